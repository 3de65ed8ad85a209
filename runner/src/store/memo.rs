//! Records that were decoded before and have not changed since: what is looked at in every cycle is decoded once.

use super::{Versioned, decode};
use crate::error::Result;
use serde::de::DeserializeOwned;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Records by prefix and key, with the values that they were decoded from.
pub(super) struct Memo<T>(Mutex<HashMap<String, Records<T>>>);

/// A value, and what it was decoded to.
type Records<T> = HashMap<String, (Versioned, Arc<T>)>;

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: DeserializeOwned> Memo<T> {
    /// All of `found`, which is all that lies below `prefix`, decoded.
    pub(super) fn read(&self, prefix: &str, found: &[(String, Versioned)]) -> Result<Vec<Arc<T>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(prefix.to_owned()).or_default();
        let records = found.iter().map(|(key, found)| record(known, key, found)).collect();
        if known.len() > found.len() {
            let present: HashSet<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
            known.retain(|key, _| present.contains(key.as_str()));
        }
        records
    }
}

fn record<T: DeserializeOwned>(known: &mut Records<T>, key: &str, found: &Versioned) -> Result<Arc<T>> {
    // A database that was put back to an earlier time counts its versions again.
    if let Some((before, record)) = known.get(key)
        && before.version == found.version
        && (Arc::ptr_eq(&before.value, &found.value) || before.value == found.value)
    {
        return Ok(Arc::clone(record));
    }
    let record = Arc::new(decode(key, &found.value)?);
    known.insert(key.to_owned(), (found.clone(), Arc::clone(&record)));
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Record {
        name: String,
    }

    fn found(records: &[(&str, u64, &str)]) -> Vec<(String, Versioned)> {
        let value = |name: &str| serde_json::json!({"version": 1, "name": name}).to_string().into_bytes().into();
        records.iter().map(|&(key, version, name)| (key.to_owned(), Versioned { value: value(name), version })).collect()
    }

    #[test]
    fn what_has_not_changed_is_the_same_record_and_what_is_gone_is_forgotten() {
        let memo = Memo::<Record>::default();
        let first = memo.read("jobs/", &found(&[("jobs/1", 1, "a"), ("jobs/2", 2, "b")])).unwrap();
        let second = memo.read("jobs/", &found(&[("jobs/1", 3, "changed"), ("jobs/2", 2, "b"), ("jobs/3", 4, "c")])).unwrap();
        assert_eq!(second.iter().map(|record| record.name.as_str()).collect::<Vec<_>>(), ["changed", "b", "c"]);
        assert!(Arc::ptr_eq(&first[1], &second[1]));
        let restored = memo.read("jobs/", &found(&[("jobs/2", 2, "another")])).unwrap();
        assert_eq!(restored[0].name, "another", "the same version of another past");
        assert_eq!(memo.0.lock().unwrap()["jobs/"].len(), 1);
        assert!(memo.read("other/", &[]).unwrap().is_empty());
        assert_eq!(memo.0.lock().unwrap()["jobs/"].len(), 1, "another prefix is another matter");
    }
}
