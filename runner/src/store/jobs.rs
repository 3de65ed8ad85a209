//! Jobs, who owns them, and under which keys they were asked for.

use super::sweeps::PAGE;
use super::{Change, RECORD_VERSION, Store, Versioned, decode, keys, put};
use crate::domain::job::{JOB_VERSION, Job, State};
use crate::domain::summary::Summary;
use crate::error::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long it may take to read all finished jobs.
const LONG: Duration = Duration::from_secs(60);

/// The next job id, for all clusters together.
#[derive(Serialize, Deserialize)]
struct Counter {
    version: u32,
    next: u64,
}

/// What tells this installation's jobs from those of others on the same scheduler.
#[derive(Serialize, Deserialize)]
struct Installation {
    version: u32,
    id: String,
}

/// The unfinished jobs of one user.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Owner {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The user's login name.
    pub user: String,
    /// The ids.
    pub jobs: BTreeSet<u64>,
}

/// A submission that nobody waits for any longer: should the scheduler come out with it after all, it is cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GivenUp {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The job.
    pub job: u64,
    /// Its name in the scheduler.
    pub name: String,
    /// Its owner's login name.
    pub user: String,
    /// Since when.
    pub since: Timestamp,
}

/// When the scheduler last answered the watcher.
#[derive(Serialize, Deserialize)]
struct Heard {
    version: u32,
    cluster: String,
    at: Timestamp,
}

/// A request for a job that may be repeated, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Repeatable {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The digest of the key that the front end chose.
    pub key: String,
    /// The digest of what was asked for.
    pub body: String,
    /// The job that was made for it.
    pub job: u64,
    /// When it was made.
    pub at: Timestamp,
}

/// The key of a request that may be repeated.
#[derive(Debug, Clone, Copy)]
pub struct RepeatKey<'a> {
    /// The key's digest.
    pub key: &'a str,
    /// The digest of what is asked for.
    pub body: &'a str,
    /// A job that was made for it before, and was certainly not accepted: another takes its place.
    pub instead_of: Option<u64>,
}

/// So many ids are taken from the counter at once.
const IDS_AT_ONCE: u64 = 10;

impl Owner {
    fn check(&self, limit: usize) -> Result<()> {
        let (user, count) = (&self.user, self.jobs.len());
        if count < limit {
            return Ok(());
        }
        Err(Error::busy(format!("user {user} has {count} jobs that are not finished, and may have {limit} at a time")))
    }
}

/// What came of [`Store::create_job`].
#[derive(Debug, PartialEq)]
pub enum Created {
    /// A new job.
    New,
    /// The request was made before.
    Before(Repeatable),
}

impl Store {
    /// The id for a new job, of those that were taken from the counter for the next few, so that most jobs cost no change of it. What a
    /// program has taken and not used is never used.
    pub fn new_id(&self) -> Result<u64> {
        if let Some(id) = self.next_id() {
            return Ok(id);
        }
        let _turn = self.turn(keys::COUNTER)?;
        if let Some(id) = self.next_id() {
            return Ok(id);
        }
        let first = self.repeat(|| {
            let (counter, version) = self.read::<Counter>(keys::COUNTER)?;
            let first = counter.map_or(1, |counter| counter.next);
            let mut change = Change { expect: vec![(keys::COUNTER.into(), version)], ..Change::default() };
            put(&mut change, keys::COUNTER, &Counter { version: 1, next: first + IDS_AT_ONCE })?;
            Ok(self.commit("take-ids", &change)?.then_some(first))
        })?;
        *self.ids() = first + 1..first + IDS_AT_ONCE;
        Ok(first)
    }

    fn next_id(&self) -> Option<u64> {
        self.ids().next()
    }

    fn ids(&self) -> MutexGuard<'_, Range<u64>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down a new job, whose id is from [`new_id`](Self::new_id), unless there was a job for the same key before. `Busy` when its user
    /// has `limit` unfinished jobs already.
    pub fn create_job(&self, job: &Job, repeat: Option<RepeatKey>, limit: usize) -> Result<Created> {
        let (cluster, key) = (job.cluster.as_str(), keys::job(&job.cluster, job.id));
        let _turn = self.turn(&keys::owner(cluster, &job.user))?;
        let again = Cell::new(false);
        self.repeat(|| {
            let mut change = Change::default();
            if let Some(before) = self.check_key(cluster, repeat, &mut change)? {
                return Ok(Some(Created::Before(before)));
            }
            if self.was_put_back(job, again.replace(true))? {
                return Err(self.ids_are_taken());
            }
            self.own(job, limit, &mut change)?;
            change.expect.push((key.clone(), 0));
            change.expect.push((keys::finished(cluster, job.id), 0));
            put(&mut change, &key, job)?;
            put_key(cluster, repeat, job.id, &mut change)?;
            Ok(self.commit("create-job", &change)?.then_some(Created::New))
        })
    }

    /// Whether the database knows nothing of this id having been taken, or more than that: it was put back to what it was a while ago, with a
    /// counter that begins again. What copies of it may not hold is asked only when there is a reason (`surely`).
    fn was_put_back(&self, job: &Job, surely: bool) -> Result<bool> {
        let (there, finished) = (keys::job(&job.cluster, job.id), keys::finished(&job.cluster, job.id));
        let found = match surely {
            true => self.backend.get(&[keys::COUNTER.to_owned(), there, finished])?,
            false => self.recent(&[keys::COUNTER.to_owned(), there])?,
        };
        let counter = found[0].as_ref().map(|found| decode::<Counter>(keys::COUNTER, &found.value)).transpose()?;
        Ok(found[1..].iter().any(Option::is_some) || counter.is_none_or(|counter| counter.next <= job.id))
    }

    /// None of those that are kept is used any more.
    fn ids_are_taken(&self) -> Error {
        *self.ids() = 0..0;
        Error::unavailable("the database gave the same job id twice: it has been put back, it seems; try again")
    }

    /// What was made before for a key with this digest.
    pub fn repeatable(&self, cluster: &str, key: &str) -> Result<Option<Repeatable>> {
        Ok(self.read(&keys::repeatable(cluster, key))?.0)
    }

    /// What was made for this key before; else adds to `change` that nothing has been made meanwhile either.
    fn check_key(&self, cluster: &str, repeat: Option<RepeatKey>, change: &mut Change) -> Result<Option<Repeatable>> {
        let Some(repeat) = repeat else { return Ok(None) };
        let key = keys::repeatable(cluster, repeat.key);
        let (before, version) = self.read::<Repeatable>(&key)?;
        if let Some(before) = before.filter(|before| Some(before.job) != repeat.instead_of) {
            return Ok(Some(before));
        }
        change.expect.push((key, version));
        Ok(None)
    }

    /// Adds to `change` that the job's user has one more.
    fn own(&self, job: &Job, limit: usize, change: &mut Change) -> Result<()> {
        let key = keys::owner(&job.cluster, &job.user);
        let (mut owner, version) = self.owner(&job.cluster, &job.user)?;
        owner.check(limit)?;
        owner.jobs.insert(job.id);
        change.expect.push((key.clone(), version));
        put(change, &key, &owner)
    }

    fn owner(&self, cluster: &str, user: &str) -> Result<(Owner, u64)> {
        let (owner, version) = self.read::<Owner>(&keys::owner(cluster, user))?;
        let none = || Owner { version: 1, cluster: cluster.into(), user: user.into(), jobs: BTreeSet::new() };
        Ok((owner.unwrap_or_else(none), version))
    }

    /// `Busy` when a user has `limit` unfinished jobs, by what is known here.
    pub fn check_limit(&self, cluster: &str, user: &str, limit: usize) -> Result<()> {
        self.owner(cluster, user)?.0.check(limit)
    }

    /// Adds to `change` that the user has this job no longer.
    fn disown(&self, job: &Job, change: &mut Change) -> Result<()> {
        let key = keys::owner(&job.cluster, &job.user);
        let (owner, version) = self.read::<Owner>(&key)?;
        // Jobs of version 1 were not counted.
        let Some(mut owner) = owner.filter(|owner| owner.jobs.contains(&job.id)) else { return Ok(()) };
        owner.jobs.remove(&job.id);
        change.expect.push((key.clone(), version));
        if owner.jobs.is_empty() {
            change.delete.push(key);
            return Ok(());
        }
        put(change, &key, &owner)
    }

    /// All users with unfinished jobs.
    pub fn owners(&self, cluster: &str) -> Result<Vec<Owner>> {
        self.scan(&keys::owners(cluster))
    }

    /// A job of one of these clusters, finished or not.
    pub fn job(&self, clusters: &[&str], id: u64) -> Result<Option<Job>> {
        Ok(self.job_and_heard(clusters, id)?.map(|(job, _)| job))
    }

    /// The same, and when its scheduler last answered the watcher.
    pub fn job_and_heard(&self, clusters: &[&str], id: u64) -> Result<Option<(Job, Option<Timestamp>)>> {
        for key in [keys::job, keys::finished] {
            let keys: Vec<String> = clusters.iter().flat_map(|cluster| [key(cluster, id), keys::heard(cluster)]).collect();
            let found = self.backend.recent(&keys).unwrap_or_default();
            if let Some(job) = job_among(&keys, &found)? {
                return Ok(Some(job));
            }
        }
        // It may have been made, or have finished, elsewhere a moment ago.
        let of_cluster =
            |cluster: &&str| [keys::job(cluster, id), keys::heard(cluster), keys::finished(cluster, id), keys::heard(cluster)];
        let keys: Vec<String> = clusters.iter().flat_map(of_cluster).collect();
        job_among(&keys, &self.backend.get(&keys)?)
    }

    /// The scheduler answered a look that began at this time.
    pub fn set_heard(&self, cluster: &str, at: Timestamp) -> Result<()> {
        let mut change = Change::default();
        put(&mut change, &keys::heard(cluster), &Heard { version: 1, cluster: cluster.into(), at })?;
        self.commit("heard", &change).map(drop)
    }

    /// All jobs of a cluster that are not finished, by id.
    pub fn active_jobs(&self, cluster: &str) -> Result<Vec<Job>> {
        let mut jobs: Vec<Job> = self.scan(&keys::jobs(cluster))?;
        jobs.sort_by_key(|job| job.id);
        Ok(jobs)
    }

    /// The same in short, as they are now.
    pub fn summaries(&self, cluster: &str) -> Result<Vec<Arc<Summary>>> {
        let prefix = keys::jobs(cluster);
        self.summaries.read(&prefix, &self.backend.scan(&prefix)?)
    }

    /// The ids of a cluster's jobs that are not finished.
    pub fn active_ids(&self, cluster: &str) -> Result<Vec<u64>> {
        let prefix = keys::jobs(cluster);
        let found = self.backend.scan(&prefix)?;
        Ok(found.iter().filter_map(|(key, _)| key.strip_prefix(&prefix)?.parse().ok()).collect())
    }

    /// How many finished jobs of a cluster are still kept, and those of them that are `wanted`. There may be hundreds of thousands, so they are
    /// read in pages, each of a moment of its own, for a minute at most.
    pub fn finished_jobs(&self, cluster: &str, wanted: impl Fn(&Job) -> bool) -> Result<(usize, Vec<Job>)> {
        let (prefix, mut after) = (keys::all_finished(cluster), String::new());
        let (mut count, mut jobs) = (0, Vec::new());
        let begun = Instant::now();
        while begun.elapsed() < LONG {
            let page = self.backend.page(&prefix, &after, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok((count, jobs)) };
            for (key, found) in &page {
                jobs.extend(Some(decode::<Job>(key, &found.value)?).filter(|job| wanted(job)));
            }
            count += page.len();
            after.clone_from(last);
        }
        Err(Error::unavailable(format!("the finished jobs cannot be read within {LONG:?}; {count} were")))
    }

    /// Changes an unfinished job, however many others change it at the same time; `change` may be called repeatedly. Returns the job as it is
    /// now, or nothing if there is no such unfinished job. A job that `change` has finished moves to the finished ones. Nothing is
    /// written when nothing changes.
    pub fn update_job(&self, cluster: &str, id: u64, effect: &'static str, change: impl Fn(&mut Job)) -> Result<Option<Job>> {
        let key = keys::job(cluster, id);
        self.repeat(|| {
            let (Some(before), version) = self.read_now::<Job>(&key)? else { return Ok(Some(None)) };
            let mut job = before.clone();
            change(&mut job);
            if job == before || self.commit(effect, &self.replacement(&key, version, &job)?)? {
                Ok(Some(Some(job)))
            } else {
                Ok(None)
            }
        })
    }

    /// The change that writes `job` in place of version `version`, or moves it to the finished ones.
    fn replacement(&self, key: &str, version: u64, job: &Job) -> Result<Change> {
        let mut change = Change { expect: vec![(key.to_owned(), version)], ..Change::default() };
        // Whatever version it was read in, it is written in this one.
        let job = &Job { version: JOB_VERSION, ..job.clone() };
        if job.state == State::Finished {
            change.delete.push(key.to_owned());
            put(&mut change, &keys::finished(&job.cluster, job.id), job)?;
            self.disown(job, &mut change)?;
            if job.given_up {
                put_given_up(job, &mut change)?;
            }
        } else {
            put(&mut change, key, job)?;
        }
        Ok(change)
    }

    /// The submissions that were given up a while ago.
    pub fn given_up(&self, cluster: &str) -> Result<Vec<GivenUp>> {
        self.scan(&keys::all_given_up(cluster))
    }

    /// This submission is not looked for any longer.
    pub fn forget_given_up(&self, given_up: &GivenUp) -> Result<()> {
        let delete = vec![keys::given_up(&given_up.cluster, given_up.job)];
        self.commit("sweep", &Change { delete, ..Change::default() }).map(drop)
    }

    /// The same, if any job was ever submitted.
    pub fn installation_known(&self) -> Result<Option<String>> {
        Ok(self.read::<Installation>(keys::INSTALLATION)?.0.map(|found| found.id))
    }

    /// Four hex digits that stand in the names of all this installation's jobs, drawn by `draw` when there are none yet.
    pub fn installation(&self, draw: impl Fn() -> Result<u16>) -> Result<String> {
        self.repeat(|| {
            if let (Some(found), _) = self.read::<Installation>(keys::INSTALLATION)? {
                return Ok(Some(found.id));
            }
            let id = format!("{:04x}", draw()?);
            let mut change = Change { expect: vec![(keys::INSTALLATION.into(), 0)], ..Change::default() };
            put(&mut change, keys::INSTALLATION, &Installation { version: 1, id: id.clone() })?;
            Ok(self.commit("installation", &change)?.then_some(id))
        })
    }
}

/// The first job among pairs of a job and when its cluster's scheduler was heard.
fn job_among(keys: &[String], found: &[Option<Versioned>]) -> Result<Option<(Job, Option<Timestamp>)>> {
    for (keys, found) in keys.chunks(2).zip(found.chunks(2)) {
        if let (Some(job), [key, heard_key]) = (&found[0], keys) {
            let heard = found[1].as_ref().map(|heard| decode::<Heard>(heard_key, &heard.value)).transpose()?;
            return Ok(Some((decode(key, &job.value)?, heard.map(|heard| heard.at))));
        }
    }
    Ok(None)
}

fn put_given_up(job: &Job, change: &mut Change) -> Result<()> {
    let record = GivenUp {
        version: RECORD_VERSION,
        cluster: job.cluster.clone(),
        job: job.id,
        name: job.name.clone(),
        user: job.user.clone(),
        since: job.finished_at.unwrap_or_else(Timestamp::now),
    };
    put(change, &keys::given_up(&job.cluster, job.id), &record)
}

fn put_key(cluster: &str, repeat: Option<RepeatKey>, job: u64, change: &mut Change) -> Result<()> {
    let Some(RepeatKey { key, body, .. }) = repeat else { return Ok(()) };
    let record = Repeatable {
        version: RECORD_VERSION,
        cluster: cluster.into(),
        key: key.into(),
        body: body.into(),
        job,
        at: Timestamp::now(),
    };
    put(change, &keys::repeatable(cluster, key), &record)
}
