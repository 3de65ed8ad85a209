//! The scheduler's watcher: one question per cycle for an overview of all jobs, and one or a few for the details of those that have changed.
//!
//! A failed look says nothing and changes nothing. A job that the scheduler does not show is believed to be gone only after two
//! good looks in a row.

mod cancels;
mod looks;
mod plan;
mod sweeps;

use crate::cluster::Cluster;
use crate::domain::job::{Job, Phase, Seen, State};
use crate::domain::summary::Summary;
use crate::error::Result;
use crate::jobs::lingers;
use crate::logging::id;
use crate::metrics::metrics;
use crate::scheduler::Wanted;
use crate::side_by_side;
use crate::store::{GivenUp, Store};
use jiff::{SignedDuration, Timestamp};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::cancels::Cancels;
use self::looks::Looks;
use self::plan::{Ending, Found, LATE_LIMIT, Step, accounted, ending, is_settled, plan};
use self::sweeps::Sweeps;

/// Of the time between two good looks, so much counts.
const LONGEST_GAP: Duration = Duration::from_secs(30);

/// The states of unfinished jobs, as the API calls them.
const SHOWN: [(State, &str); 4] = [
    (State::Submitted, "submitted"),
    (State::Running, "running"),
    (State::Available, "available"),
    (State::Completing, "completing"),
];

/// The watcher of one cluster.
pub struct JobsWatch {
    store: Arc<Store>,
    cluster: Arc<Cluster>,
    keep_finished: Duration,
    keep_trail: Duration,
    looks: Looks,
    cancels: Cancels,
    misses: HashMap<u64, u32>,
    /// Since when jobs are gone from the scheduler's list whose end its accounts do not tell yet.
    vanished: HashMap<u64, Instant>,
    /// For how long we have looked for jobs without a scheduler's id, good looks alone.
    without_id: HashMap<u64, Duration>,
    last_good_look: Option<Instant>,
    sweeps: Sweeps,
}

impl JobsWatch {
    /// The watcher of `cluster`, which keeps finished jobs for `keep_finished`.
    pub fn new(store: Arc<Store>, cluster: Arc<Cluster>, keep_finished: Duration) -> Self {
        Self {
            store,
            cluster,
            keep_finished,
            keep_trail: Duration::MAX,
            looks: Looks::default(),
            cancels: Cancels::default(),
            misses: HashMap::new(),
            vanished: HashMap::new(),
            without_id: HashMap::new(),
            last_good_look: None,
            sweeps: Sweeps::default(),
        }
    }

    /// From the next cycle on, the configuration is this one.
    pub fn follow(&mut self, cluster: &Arc<Cluster>, keep_finished: Duration, keep_trail: Duration) {
        self.cluster = Arc::clone(cluster);
        self.keep_finished = keep_finished;
        self.keep_trail = keep_trail;
    }

    /// One look, and what follows from it.
    pub fn cycle(&mut self) -> Result<()> {
        let begun = Timestamp::now();
        let jobs = self.store.summaries(&self.cluster.name)?;
        self.show(&jobs);
        let given_up = self.store.given_up(&self.cluster.name)?;
        let overview = match jobs.iter().any(|job| job.scheduler_job_id.is_some()) {
            true => self.cluster.scheduler.overview()?,
            false => HashMap::new(),
        };
        let asked = self.looks.to_ask(&jobs, &overview);
        let by_name = self.details(&jobs, &asked, &given_up)?;
        self.forget_others(&jobs);
        let since_last =
            self.last_good_look.replace(Instant::now()).map_or(Duration::ZERO, |last| last.elapsed().min(LONGEST_GAP));
        let (mut seen, mut gone) = (Vec::new(), Vec::new());
        for job in &jobs {
            let found = found(job, &overview, asked.contains(&job.id), &by_name);
            let waited = self.waited(job, since_last);
            match self.step(job, found, waited) {
                Step::Observe(look) => seen.push((job.as_ref(), look)),
                Step::Gone => gone.push(job.as_ref()),
                Step::Leave | Step::Missed | Step::Patience => {}
            }
        }
        let mut lingering = self.observe_all(seen, &overview);
        let (known, never_there) = gone.into_iter().partition(|job| job.scheduler_job_id.is_some());
        self.end_all(never_there, ending);
        self.end_vanished(known);
        for late in &given_up {
            match self.look_for_late(late, &by_name) {
                Ok(alive) => lingering.extend(alive.into_iter().map(|id| (late.user.clone(), id))),
                Err(error) => log::warn!("job {}: {error}", late.job),
            }
        }
        self.cancels.begin(&self.cluster, lingering);
        self.store.set_heard(&self.cluster.name, begun)?;
        self.sweeps.go_on(&self.store, &self.cluster.name, self.keep_finished, self.keep_trail)
    }

    /// The details of the jobs that are asked for, and of submissions that were given up.
    fn details(&self, jobs: &[Arc<Summary>], asked: &HashSet<u64>, given_up: &[GivenUp]) -> Result<HashMap<String, Vec<Seen>>> {
        let wanted = jobs.iter().filter(|job| asked.contains(&job.id));
        let wanted = wanted.map(|job| Wanted { name: job.name.clone(), scheduler_job_id: job.scheduler_job_id.clone() });
        let late = given_up.iter().map(|late| Wanted { name: late.name.clone(), scheduler_job_id: None });
        self.cluster.scheduler.look(&wanted.chain(late).collect::<Vec<_>>()).map(by_name)
    }

    /// Nothing is kept of jobs that are not unfinished.
    fn forget_others(&mut self, jobs: &[Arc<Summary>]) {
        let there: HashMap<u64, bool> = jobs.iter().map(|job| (job.id, job.scheduler_job_id.is_none())).collect();
        self.looks.retain(|id| there.contains_key(&id));
        self.misses.retain(|id, _| there.contains_key(id));
        self.vanished.retain(|id, _| there.contains_key(id));
        self.without_id.retain(|id, _| there.get(id) == Some(&true));
    }

    /// Every state is shown, also that of no job: what is not there cannot be told from what is not known.
    fn show(&self, jobs: &[Arc<Summary>]) {
        // An audit does what a watcher does, and leads nothing.
        if id::in_request() {
            return;
        }
        for (state, word) in SHOWN {
            let count = jobs.iter().filter(|job| job.state == state).count();
            metrics().jobs.with_label_values(&[self.cluster.name.as_str(), word]).set(count as i64);
        }
    }

    /// For how long the scheduler has answered us while it should have had the job.
    fn waited(&mut self, job: &Summary, since_last: Duration) -> Duration {
        match (&job.scheduler_job_id, self.without_id.get_mut(&job.id)) {
            (Some(_), _) => Duration::ZERO,
            (None, Some(waited)) => {
                *waited += since_last;
                *waited
            }
            (None, None) => *self.without_id.entry(job.id).or_default(),
        }
    }

    /// What is to be done about a job, and what is to be remembered of that.
    fn step(&mut self, job: &Summary, found: Found, waited: Duration) -> Step {
        let step = plan(job, found, self.misses.get(&job.id).copied().unwrap_or(0), waited);
        match step {
            Step::Observe(_) | Step::Leave => {
                self.misses.remove(&job.id);
                self.vanished.remove(&job.id);
            }
            Step::Missed => *self.misses.entry(job.id).or_default() += 1,
            Step::Gone | Step::Patience => {}
        }
        step
    }

    /// Returns the owners and the scheduler's ids of jobs that are to be cancelled once more.
    fn observe_all(&mut self, seen: Vec<(&Summary, Seen)>, overview: &HashMap<String, String>) -> Vec<(String, String)> {
        let observed = side_by_side::for_each(seen, |(job, seen)| (job.id, self.observe(job, &seen), seen));
        let mut lingering = Vec::new();
        for (job, observed, seen) in observed {
            match observed {
                Ok(Some((after, applied))) => {
                    if applied && let Some(words) = overview.get(&seen.scheduler_job_id) {
                        self.looks.acted(&after, words);
                    }
                    if lingers(&after, &seen) {
                        lingering.push((after.user, seen.scheduler_job_id));
                    }
                }
                Ok(None) => {}
                Err(error) => log::warn!("job {job}: {error}"),
            }
        }
        lingering
    }

    /// Writes down what was seen of a job; returns the job as it is now, and whether it is what the look was at.
    fn observe(&self, job: &Summary, seen: &Seen) -> Result<Option<(Job, bool)>> {
        let (applied, news) = (Cell::new(false), Cell::new(false));
        // Who changed the job after we read it had a newer look than ours.
        let after = self.store.update_job(&self.cluster.name, job.id, "observe", |now| {
            applied.set(job.is_still(now) || now.scheduler_job_id.is_none());
            if applied.get() {
                news.set(now.details != seen.details);
                now.observe(seen, Timestamp::now());
            }
        })?;
        let Some(after) = after else { return Ok(None) };
        if let Phase::Unclear(word) = &seen.phase
            && news.get()
        {
            log::warn!(
                "job {}: the scheduler says {word:?}, which this program does not know; it stays {:?}",
                job.id,
                after.state
            );
        }
        if after.state != job.state {
            log::info!("job {}: {:?}: {}", job.id, after.state, after.message);
        }
        Ok(Some((after, applied.get())))
    }

    /// One question about all jobs that are gone. Who is in no accounts is waited for a while, where there are any.
    fn end_vanished(&mut self, mut gone: Vec<&Summary>) {
        let ids: Vec<String> = gone.iter().filter_map(|job| job.scheduler_job_id.clone()).collect();
        if ids.is_empty() {
            return;
        }
        let accounts = self.cluster.scheduler.accounts(&ids);
        if let Err(error) = &accounts {
            log::warn!("how {} jobs ended that the scheduler no longer lists: {error}", gone.len());
        }
        gone.retain(|job| {
            let since = *self.vanished.entry(job.id).or_insert_with(Instant::now);
            is_settled(job, &accounts, since.elapsed())
        });
        self.end_all(gone, |job| accounted(job, &accounts));
    }

    fn end_all(&mut self, gone: Vec<&Summary>, how: impl Fn(&Job) -> Ending + Sync) {
        for job in &gone {
            self.misses.remove(&job.id);
            self.vanished.remove(&job.id);
        }
        let ended = side_by_side::for_each(gone, |job| self.end(job, &how).map_err(|error| (job.id, error)));
        for (job, error) in ended.into_iter().filter_map(Result::err) {
            log::warn!("job {job}: {error}");
        }
    }

    /// Finishes a job that the look did not show, unless somebody learned more about it since it was read, which was before the look.
    fn end(&self, job: &Summary, how: impl Fn(&Job) -> Ending) -> Result<()> {
        let after = self.store.update_job(&self.cluster.name, job.id, "finish", |now| {
            if job.is_still(now) {
                let (outcome, exit_code, message) = how(now);
                now.given_up = now.scheduler_job_id.is_none();
                now.finish(outcome, exit_code, &message, Timestamp::now());
            }
        })?;
        if let Some(job) = after.filter(|job| job.state == State::Finished) {
            log::info!("job {}: Finished: {}", job.id, job.message);
        }
        Ok(())
    }

    /// A submission that was given up: if it has turned up, it is one job too many, since it was said to have failed. Returns the scheduler's
    /// ids of what is to be cancelled.
    fn look_for_late(&self, late: &GivenUp, by_name: &HashMap<String, Vec<Seen>>) -> Result<Vec<String>> {
        let alive = |seen: &&Seen| seen.user == late.user && matches!(seen.phase, Phase::Waiting | Phase::Running);
        let found = by_name.get(&late.name).into_iter().flatten().filter(alive);
        let found: Vec<String> = found.map(|seen| seen.scheduler_job_id.clone()).collect();
        for id in &found {
            log::warn!("job {}: given up, and now the scheduler has it as {id}; cancelled", late.job);
        }
        let limit = SignedDuration::try_from(LATE_LIMIT).unwrap_or(SignedDuration::MAX);
        if found.is_empty() && Timestamp::now().duration_since(late.since) > limit {
            self.store.forget_given_up(late)?;
        }
        Ok(found)
    }
}

fn by_name(seen: Vec<Seen>) -> HashMap<String, Vec<Seen>> {
    let mut map: HashMap<String, Vec<Seen>> = HashMap::new();
    for seen in seen {
        map.entry(seen.name.clone()).or_default().push(seen);
    }
    map
}

/// What the look showed of one job.
fn found(job: &Summary, overview: &HashMap<String, String>, asked: bool, by_name: &HashMap<String, Vec<Seen>>) -> Found {
    if asked {
        let seen = by_name.get(job.name.as_str()).and_then(|seen| seen.iter().find(|seen| job.is(seen)));
        return seen.map_or(Found::Nothing, |seen| Found::Seen(seen.clone()));
    }
    let there = job.scheduler_job_id.as_ref().is_some_and(|id| overview.contains_key(id));
    if there { Found::Same } else { Found::Nothing }
}
