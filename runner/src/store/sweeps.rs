//! What is kept for a while and then removed: finished jobs, and the keys of requests. There may be hundreds of thousands, so they are looked through
//! in pages, and for a bounded time at once: who sweeps has other things to do in between.

use super::{Change, Store, Versioned, decode, keys};
use crate::error::{Error, Result};
use jiff::Timestamp;
use serde::Deserialize;
use std::time::Instant;

/// Records that are read at once.
pub(super) const PAGE: usize = 500;
/// Keys of one change.
const BATCH: usize = 100;

/// How far a look through the records of one kind has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// The last key that was looked at.
    after: String,
    done: bool,
    removed: usize,
    unreadable: Option<Error>,
}

impl Progress {
    /// Whether all records were looked at.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// How many were removed so far.
    pub fn removed(&self) -> usize {
        self.removed
    }

    /// What is wrong with the first record that could not be read, and stays.
    pub fn unreadable(&self) -> Option<&Error> {
        self.unreadable.as_ref()
    }

    /// All records were looked at.
    pub fn end(&mut self) {
        self.done = true;
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
    /// Removes the finished jobs of a cluster that ended before the first of these times, and, if a key leads to them, before the second as well. Goes
    /// on from `progress` until `until`, for a page at least.
    pub fn remove_finished(
        &self,
        cluster: &str,
        (before, with_key): (Timestamp, Timestamp),
        progress: &mut Progress,
        until: Instant,
    ) -> Result<()> {
        let is_old = |job: Finished| job.finished_at.is_none_or(|at| at < before && (!job.repeatable || at < with_key));
        let prefix = keys::all_finished(cluster);
        self.remove_old(&prefix, |key, found| decode(key, &found.value).map(is_old), progress, until)
    }

    /// In the same way the keys of requests that were made before `before`.
    pub fn remove_keys(&self, cluster: &str, before: Timestamp, progress: &mut Progress, until: Instant) -> Result<()> {
        let is_old = |key: Asked| key.at < before;
        let prefix = keys::all_repeatable(cluster);
        self.remove_old(&prefix, |key, found| decode(key, &found.value).map(is_old), progress, until)
    }

    fn remove_old(
        &self,
        prefix: &str,
        is_old: impl Fn(&str, &Versioned) -> Result<bool>,
        progress: &mut Progress,
        until: Instant,
    ) -> Result<()> {
        while !progress.done && self.remove_page(prefix, &is_old, progress)? {
            if Instant::now() >= until {
                return Ok(());
            }
        }
        progress.end();
        Ok(())
    }

    /// Looks at the next page below `prefix` and removes what is old there, unless it is changed meanwhile; whether there was one.
    pub(super) fn remove_page(
        &self,
        prefix: &str,
        is_old: impl Fn(&str, &Versioned) -> Result<bool>,
        progress: &mut Progress,
    ) -> Result<bool> {
        let page = self.backend.page(prefix, &progress.after, PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(false) };
        let mut old = Vec::new();
        for (key, found) in &page {
            match is_old(key, found) {
                Ok(true) => old.push((key.clone(), found.version)),
                Ok(false) => {}
                Err(error) => drop(progress.unreadable.get_or_insert(error)),
            }
        }
        for batch in old.chunks(BATCH) {
            let delete = batch.iter().map(|(key, _)| key.clone()).collect();
            if self.commit("sweep", &Change { expect: batch.to_vec(), delete, ..Change::default() })? {
                progress.removed += batch.len();
            }
        }
        progress.after.clone_from(last);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::{Job, Outcome};
    use crate::store::embedded::Embedded;
    use crate::store::put;
    use std::time::Duration;

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
        store.finished_jobs("default", |_| false).unwrap().0
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_sweep_goes_on_where_it_stopped_and_ends() {
        let (_folder, store) = with_finished(1200);
        let (mut progress, mut pages) = (Progress::default(), 0);
        while !progress.is_done() {
            // The time is over at once, so it is a page each time.
            store.remove_finished("default", (at(700), at(0)), &mut progress, Instant::now()).unwrap();
            pages += 1;
        }
        assert_eq!((pages, progress.removed(), left(&store)), (4, 700, 500));
        let (_, some) = store.finished_jobs("default", |job| job.id >= 1190).unwrap();
        assert_eq!(some.iter().map(|job| job.id).collect::<Vec<_>>(), (1190..1200).collect::<Vec<_>>());
        store.remove_finished("default", (at(9999), at(0)), &mut progress, Instant::now() + LONG).unwrap();
        assert_eq!(left(&store), 500, "it is done");
        store.remove_finished("default", (at(9999), at(0)), &mut Progress::default(), Instant::now() + LONG).unwrap();
        assert_eq!(left(&store), 0);
    }

    #[test]
    fn records_that_cannot_be_read_stay_and_stand_in_nobodys_way() {
        let (_folder, store) = with_finished(700);
        let damaged = ["3", "31", "699"].map(|id| keys::finished("default", id.parse().unwrap()));
        for key in &damaged {
            let newer = Change { put: vec![(key.clone(), br#"{"version":99}"#.to_vec())], ..Change::default() };
            assert!(store.backend.commit(&newer).unwrap());
        }
        let mut progress = Progress::default();
        let ever = (Timestamp::MAX, Timestamp::MAX);
        store.remove_finished("default", ever, &mut progress, Instant::now() + LONG).unwrap();
        let words = &progress.unreadable().unwrap().message;
        assert!(words.contains("finished/3 has the form 99") && progress.is_done(), "{words}");
        let records = store.backend.scan(&keys::all_finished("default")).unwrap();
        assert_eq!(records.iter().map(|(key, _)| key).collect::<Vec<_>>(), damaged.iter().collect::<Vec<_>>());
    }
}
