//! What is kept for a while and then removed: finished jobs, and the keys of requests. There may be hundreds of thousands, so they are looked through
//! in pages, and for a bounded time at once: who sweeps has other things to do in between.

use super::{Change, Store, decode, keys};
use crate::error::Result;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Instant;

/// Records that are read at once.
const PAGE: usize = 500;
/// Keys of one change.
const BATCH: usize = 100;

/// How far a look through the records of one kind has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// The last key that was looked at.
    after: String,
    done: bool,
}

impl Progress {
    /// Whether all records were looked at.
    pub fn is_done(&self) -> bool {
        self.done
    }
}

/// As much of a finished job as tells whether its time has come.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Finished {
    finished_at: Option<Timestamp>,
    #[serde(default)]
    repeatable: bool,
}

/// The same of the key of a request.
#[derive(Deserialize)]
struct Asked {
    at: Timestamp,
}

impl Store {
    /// Removes the finished jobs of a cluster that ended before `before`, and, if a key leads to them, before `with_key` as well. Goes on from `progress`
    /// until `until`, for a page at least; returns how many were removed. A record that cannot be read is an error once the page is done with,
    /// and stays.
    pub fn remove_finished(
        &self,
        cluster: &str,
        (before, with_key): (Timestamp, Timestamp),
        progress: &mut Progress,
        until: Instant,
    ) -> Result<usize> {
        let is_old = |job: Finished| job.finished_at.is_none_or(|at| at < before && (!job.repeatable || at < with_key));
        self.remove_old(&keys::all_finished(cluster), is_old, progress, until)
    }

    /// In the same way the keys of requests that were made before `before`.
    pub fn remove_keys(&self, cluster: &str, before: Timestamp, progress: &mut Progress, until: Instant) -> Result<usize> {
        self.remove_old(&keys::all_repeatable(cluster), |key: Asked| key.at < before, progress, until)
    }

    fn remove_old<T: DeserializeOwned>(
        &self,
        prefix: &str,
        is_old: impl Fn(T) -> bool,
        progress: &mut Progress,
        until: Instant,
    ) -> Result<usize> {
        let mut removed = 0;
        while !progress.done {
            let page = self.backend.page(prefix, &progress.after, PAGE)?;
            let Some((last, _)) = page.last() else {
                progress.done = true;
                break;
            };
            let (mut old, mut unreadable) = (Vec::new(), Ok(()));
            for (key, found) in &page {
                match decode(key, &found.value).map(&is_old) {
                    Ok(true) => old.push(key.clone()),
                    Ok(false) => {}
                    Err(error) => unreadable = Err(error),
                }
            }
            removed += self.remove_all(&old)?;
            progress.after.clone_from(last);
            unreadable?;
            if Instant::now() >= until {
                break;
            }
        }
        Ok(removed)
    }

    pub(super) fn remove_all(&self, keys: &[String]) -> Result<usize> {
        for batch in keys.chunks(BATCH) {
            self.commit("sweep", &Change { delete: batch.to_vec(), ..Change::default() })?;
        }
        Ok(keys.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::{Job, Outcome};
    use crate::store::embedded::Embedded;
    use crate::store::put;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A store with as many finished jobs, each of which ended as many seconds after the beginning as its number says.
    fn with_finished(count: u64) -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(Box::new(Embedded::open(&folder.path().join("store.redb")).unwrap()));
        let ids: Vec<u64> = (0..count).collect();
        for ids in ids.chunks(BATCH) {
            let mut change = Change::default();
            for &id in ids {
                let mut job = Job { cluster: "default".into(), id, ..Job::default() };
                job.finish(Outcome::Completed, Some(0), "", at(id as i64));
                put(&mut change, &keys::finished("default", id), &job).unwrap();
            }
            assert!(store.backend.commit(&change).unwrap());
        }
        (folder, store)
    }

    fn left(store: &Store) -> usize {
        store.finished_jobs("default", |job| job).unwrap().len()
    }

    #[test]
    fn a_sweep_goes_on_where_it_stopped_and_ends() {
        let (_folder, store) = with_finished(1200);
        let (mut progress, mut removed) = (Progress::default(), Vec::new());
        while !progress.is_done() {
            // The time is over at once, so it is a page each time.
            removed.push(store.remove_finished("default", (at(700), at(0)), &mut progress, Instant::now()).unwrap());
        }
        assert_eq!((removed.len(), removed.iter().sum::<usize>(), left(&store)), (4, 700, 500));
        assert_eq!(store.remove_finished("default", (at(9999), at(0)), &mut progress, Instant::now()).unwrap(), 0, "it is done");
        let until = Instant::now() + std::time::Duration::from_secs(60);
        assert_eq!(store.remove_finished("default", (at(9999), at(0)), &mut Progress::default(), until).unwrap(), 500);
        assert_eq!(left(&store), 0);
    }

    #[test]
    fn a_record_that_cannot_be_read_stays_and_stands_in_nobodys_way() {
        let (_folder, store) = with_finished(700);
        let key = keys::finished("default", 3);
        let newer = Change { put: vec![(key.clone(), br#"{"version":99}"#.to_vec())], ..Change::default() };
        assert!(store.backend.commit(&newer).unwrap());
        let (mut progress, until) = (Progress::default(), Instant::now() + std::time::Duration::from_secs(60));
        let mut remove = || store.remove_finished("default", (Timestamp::MAX, Timestamp::MAX), &mut progress, until);
        assert!(remove().unwrap_err().message.contains("finished/3 has the form 99"));
        remove().unwrap();
        let records = store.backend.scan(&keys::all_finished("default")).unwrap();
        assert_eq!(records.iter().map(|(key, _)| key).collect::<Vec<_>>(), [&key]);
    }
}
