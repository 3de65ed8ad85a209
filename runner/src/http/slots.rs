//! Room for requests that wait for other machines, so that they never take all the workers: when a cluster hangs, jobs can still be
//! looked at.

use crate::error::{Error, Result};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Of the guard's 32 workers, so many at most may be given to submissions (`limits.submissions-in-flight`).
pub const MOST_SUBMISSIONS: usize = 28;
/// Of the guard's 32 workers; the others answer from the database.
const MOST: usize = 24;
/// A crowd of submissions goes by within this time, if the cluster is well.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many such requests are under way.
#[derive(Debug, Default)]
pub(super) struct Slots {
    taken: Mutex<usize>,
    returned: Condvar,
}

/// Held while the request is under way.
#[derive(Debug)]
pub(super) struct Slot<'a>(&'a Slots);

impl Slots {
    /// Takes a slot, or refuses after a short while.
    pub(super) fn take(&self) -> Result<Slot<'_>> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.returned.wait_timeout_while(taken, PATIENCE, |taken| *taken >= MOST);
        let (mut taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *taken >= MOST {
            return Err(Error::unavailable("too many requests wait for the cluster; try again"));
        }
        *taken += 1;
        Ok(Slot(self))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_slot_is_refused_until_one_comes_back() {
        let slots = Slots::default();
        let mut held: Vec<_> = (0..MOST).map(|_| slots.take().unwrap()).collect();
        assert!(slots.take().unwrap_err().message.contains("try again"));
        held.pop();
        assert!(slots.take().is_ok());
    }
}
