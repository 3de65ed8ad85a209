//! The rules of a [`Change`], asked by every backend, so that what works on one works on the other.

use std::collections::HashSet;

use super::Change;
use crate::error::{Error, Result};

/// The most keys in one list of a change, and in one read.
pub(super) const MAX_KEYS: usize = 120;

/// Whether so many keys may be read at once.
pub(super) fn check_read(count: usize) -> Result<()> {
    if count > MAX_KEYS {
        return Err(Error::internal(format!("a read of {count} keys at once, more than {MAX_KEYS}")));
    }
    Ok(())
}

/// Whether `change` has no list that is too long, and writes no key twice.
pub(super) fn check_change(change: &Change) -> Result<()> {
    let longest = change.expect.len().max(change.put.len()).max(change.delete.len());
    if longest > MAX_KEYS {
        return Err(Error::internal(format!("a change of {longest} keys at once, more than {MAX_KEYS}")));
    }
    let mut seen = HashSet::new();
    let mut written = change.put.iter().map(|(key, _)| key).chain(&change.delete);
    if !written.all(|key| seen.insert(key)) {
        return Err(Error::internal("a change that writes the same key twice"));
    }
    Ok(())
}
