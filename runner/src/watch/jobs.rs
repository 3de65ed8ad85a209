//! The scheduler's watcher: one question per cycle for all unfinished jobs.
//!
//! A failed look says nothing and changes nothing. A job that the scheduler does not show is believed to be gone only after two
//! good looks in a row.

use crate::cluster::Cluster;
use crate::domain::job::{Ended, Job, Outcome, Phase, Seen, State};
use crate::error::Result;
use crate::jobs::lingers;
use crate::logging::id;
use crate::metrics::metrics;
use crate::scheduler::Wanted;
use crate::store::{GivenUp, Store};
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So long a submission may be under way: a job without a scheduler's id may still get one. Counted while the scheduler answers this
/// watcher: other machines' clocks may be wrong, and a scheduler that is away may hold a submission that it has yet to read.
const SUBMISSION_LIMIT: Duration = Duration::from_secs(120);
/// A scheduler that was too busy to answer may still come out with a job that we have given up; so long its name is asked for.
const LATE_LIMIT: Duration = Duration::from_secs(900);
/// A job that vanished may not have reached the scheduler's accounts yet, or these may be away: so long its end is asked for.
const ACCOUNTS_LIMIT: Duration = Duration::from_secs(120);
/// Of the time between two good looks, so much counts.
const LONGEST_GAP: Duration = Duration::from_secs(30);
/// How often old finished jobs are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// The states of unfinished jobs, as the API calls them.
const SHOWN: [(State, &str); 4] = [
    (State::Submitted, "submitted"),
    (State::Running, "running"),
    (State::Available, "available"),
    (State::Completing, "completing"),
];

/// How long a request with an `Idempotency-Key` may be repeated.
const KEEP_KEYS: SignedDuration = SignedDuration::from_hours(24);

/// The watcher of one cluster.
pub struct JobsWatch {
    store: Arc<Store>,
    cluster: Arc<Cluster>,
    keep_finished: Duration,
    keep_trail: Duration,
    misses: HashMap<u64, u32>,
    /// Since when jobs are gone from the scheduler's list whose end its accounts do not tell yet.
    vanished: HashMap<u64, Instant>,
    /// For how long we have looked for jobs without a scheduler's id, good looks alone.
    without_id: HashMap<u64, Duration>,
    last_good_look: Option<Instant>,
    last_sweep: Option<Instant>,
}

/// What one look means for one job.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// It is there.
    Observe(Seen),
    /// It was not there for the first time.
    Missed,
    /// It is gone for good.
    Gone,
    /// Its submission may still be under way.
    Patience,
}

impl JobsWatch {
    /// The watcher of `cluster`, which keeps finished jobs for `keep_finished`.
    pub fn new(store: Arc<Store>, cluster: Arc<Cluster>, keep_finished: Duration) -> Self {
        Self {
            store,
            cluster,
            keep_finished,
            keep_trail: Duration::MAX,
            misses: HashMap::new(),
            vanished: HashMap::new(),
            without_id: HashMap::new(),
            last_good_look: None,
            last_sweep: None,
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
        let jobs = self.store.active_jobs(&self.cluster.name)?;
        self.show(&jobs);
        let given_up = self.store.given_up(&self.cluster.name)?;
        let late = given_up.iter().map(|late| Wanted { name: late.name.clone(), scheduler_job_id: None });
        let wanted: Vec<Wanted> = jobs.iter().map(Wanted::from).chain(late).collect();
        let seen = self.cluster.scheduler.look(&wanted)?;
        self.misses.retain(|id, _| jobs.iter().any(|job| job.id == *id));
        self.vanished.retain(|id, _| jobs.iter().any(|job| job.id == *id));
        self.without_id.retain(|id, _| jobs.iter().any(|job| job.id == *id && job.scheduler_job_id.is_none()));
        let since_last =
            self.last_good_look.replace(Instant::now()).map_or(Duration::ZERO, |last| last.elapsed().min(LONGEST_GAP));
        let by_name = by_name(seen);
        let mut gone = Vec::new();
        for job in &jobs {
            let found = by_name.get(job.name.as_str()).and_then(|seen| seen.iter().find(|seen| job.is(seen)));
            let waited = self.waited(job, since_last);
            let step = plan(job, found, self.misses.get(&job.id).copied().unwrap_or(0), waited);
            if step == Step::Gone && job.scheduler_job_id.is_some() {
                gone.push(job);
                continue;
            }
            if let Err(error) = self.perform(job, step) {
                log::warn!("job {}: {error}", job.id);
            }
        }
        self.end_vanished(&gone);
        for late in &given_up {
            if let Err(error) = self.look_for_late(late, &by_name) {
                log::warn!("job {}: {error}", late.job);
            }
        }
        self.store.set_heard(&self.cluster.name, begun)?;
        self.sweep()
    }

    /// Every state is shown, also that of no job: what is not there cannot be told from what is not known.
    fn show(&self, jobs: &[Job]) {
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
    fn waited(&mut self, job: &Job, since_last: Duration) -> Duration {
        match (&job.scheduler_job_id, self.without_id.get_mut(&job.id)) {
            (Some(_), _) => Duration::ZERO,
            (None, Some(waited)) => {
                *waited += since_last;
                *waited
            }
            (None, None) => *self.without_id.entry(job.id).or_default(),
        }
    }

    fn perform(&mut self, job: &Job, step: Step) -> Result<()> {
        match step {
            Step::Observe(seen) => {
                self.misses.remove(&job.id);
                self.vanished.remove(&job.id);
                self.observe(job, &seen)
            }
            Step::Missed => {
                *self.misses.entry(job.id).or_default() += 1;
                Ok(())
            }
            Step::Gone => self.end(job, ending(job)),
            Step::Patience => Ok(()),
        }
    }

    fn observe(&self, job: &Job, seen: &Seen) -> Result<()> {
        // Who changed the job after we read it had a newer look than ours.
        let after = self.store.update_job(&job.cluster, job.id, "observe", |now| {
            if unchanged(now, job) || now.scheduler_job_id.is_none() {
                now.observe(seen, Timestamp::now());
            }
        })?;
        let Some(after) = after else { return Ok(()) };
        if let Phase::Unclear(word) = &seen.phase
            && after.details != job.details
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
        if lingers(&after, seen) {
            self.cluster.cancel(&after.user, &seen.scheduler_job_id)?;
        }
        Ok(())
    }

    /// One question about all jobs that are gone. Who is in no accounts is waited for a while, where there are any.
    fn end_vanished(&mut self, gone: &[&Job]) {
        let ids: Vec<String> = gone.iter().filter_map(|job| job.scheduler_job_id.clone()).collect();
        if ids.is_empty() {
            return;
        }
        let accounts = self.cluster.scheduler.accounts(&ids);
        if let Err(error) = &accounts {
            log::warn!("how {} jobs ended that the scheduler no longer lists: {error}", gone.len());
        }
        for job in gone {
            let since = *self.vanished.entry(job.id).or_insert_with(Instant::now);
            let ended = accounted(job, &accounts, since.elapsed());
            if let Some(Err(error)) = ended.map(|ended| self.end(job, ended)) {
                log::warn!("job {}: {error}", job.id);
            }
        }
    }

    fn end(&mut self, job: &Job, (outcome, exit_code, message): Ending) -> Result<()> {
        self.misses.remove(&job.id);
        self.vanished.remove(&job.id);
        let after = self.store.update_job(&job.cluster, job.id, "finish", |now| {
            // Somebody learned more about it after we had read it.
            if unchanged(now, job) {
                now.given_up = now.scheduler_job_id.is_none();
                now.finish(outcome, exit_code, &message, Timestamp::now());
            }
        })?;
        if after.is_some_and(|job| job.state == State::Finished) {
            log::info!("job {}: Finished: {message}", job.id);
        }
        Ok(())
    }

    /// A submission that was given up: if it has turned up, it is one job too many, since it was said to have failed.
    fn look_for_late(&self, late: &GivenUp, by_name: &HashMap<String, Vec<Seen>>) -> Result<()> {
        let alive = |seen: &&Seen| seen.user == late.user && matches!(seen.phase, Phase::Waiting | Phase::Running);
        for seen in by_name.get(&late.name).into_iter().flatten().filter(alive) {
            log::warn!("job {}: given up, and now the scheduler has it as {}; cancelled", late.job, seen.scheduler_job_id);
            self.cluster.cancel(&late.user, &seen.scheduler_job_id)?;
        }
        if Timestamp::now().duration_since(late.since) > SignedDuration::try_from(LATE_LIMIT).unwrap_or(SignedDuration::MAX) {
            self.store.forget_given_up(late)?;
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<()> {
        if self.last_sweep.is_some_and(|last| last.elapsed() < SWEEP_INTERVAL) {
            return Ok(());
        }
        self.last_sweep = Some(Instant::now());
        // Nothing is removed where the time began after it.
        let keep = SignedDuration::try_from(self.keep_trail).unwrap_or(SignedDuration::MAX);
        let before = Timestamp::now().checked_sub(keep).unwrap_or(Timestamp::MIN);
        match self.store.trim_trail(&self.cluster.name, before)? {
            0 => {}
            count => log::info!("{count} traces of ports were removed after their time"),
        }
        let keep = SignedDuration::try_from(self.keep_finished).unwrap_or(SignedDuration::MAX);
        let Ok(before) = Timestamp::now().checked_sub(keep) else { return Ok(()) };
        let yesterday = Timestamp::now().checked_sub(KEEP_KEYS).unwrap_or(Timestamp::MIN);
        self.store.remove_keys(&self.cluster.name, yesterday)?;
        match self.store.remove_finished(&self.cluster.name, before, yesterday)? {
            0 => {}
            count => log::info!("{count} finished jobs were removed after their time"),
        }
        Ok(())
    }
}

fn by_name(seen: Vec<Seen>) -> HashMap<String, Vec<Seen>> {
    let mut map: HashMap<String, Vec<Seen>> = HashMap::new();
    for seen in seen {
        map.entry(seen.name.clone()).or_default().push(seen);
    }
    map
}

/// Whether a job is still as it was when this cycle read it.
fn unchanged(now: &Job, then: &Job) -> bool {
    (now.state, now.run, &now.scheduler_job_id) == (then.state, then.run, &then.scheduler_job_id)
}

fn plan(job: &Job, found: Option<&Seen>, misses: u32, waited: Duration) -> Step {
    let young = waited < if job.cancel_requested { LATE_LIMIT } else { SUBMISSION_LIMIT };
    match found {
        Some(seen) => Step::Observe(seen.clone()),
        None if job.scheduler_job_id.is_none() && young => Step::Patience,
        None if misses == 0 => Step::Missed,
        None => Step::Gone,
    }
}

/// Outcome, exit code, and the sentence for people.
type Ending = (Outcome, Option<i32>, String);

/// How a job ended whose end nobody can tell.
fn ending(job: &Job) -> Ending {
    let (outcome, message) = match (&job.scheduler_job_id, job.cancel_requested) {
        (None, true) => (Outcome::Cancelled, "cancelled before the scheduler had it".into()),
        (None, false) => (Outcome::Failed, "the submission was cut off before the scheduler took it; submit it again".into()),
        (Some(_), true) => (Outcome::Cancelled, format!("cancelled; its log is {}", job.log)),
        (Some(_), false) => (
            Outcome::Unknown,
            format!("it ended while nobody looked, and the scheduler no longer knows how; its log is {}", job.log),
        ),
    };
    (outcome, None, message)
}

/// How a job ended that has been gone for `since`, by what the accounts say; nothing while they may yet say more.
fn accounted(job: &Job, accounts: &Result<Option<Vec<Ended>>>, since: Duration) -> Option<Ending> {
    let entries = match accounts {
        Ok(Some(entries)) => entries.as_slice(),
        // There are none.
        Ok(None) => return Some(ending(job)),
        Err(_) => &[],
    };
    match entries.iter().find(|ended| job.is_accounted(ended)) {
        Some(Ended { outcome, exit_code, .. }) => Some((*outcome, *exit_code, job.end_message(*outcome, *exit_code, None))),
        None => (since >= ACCOUNTS_LIMIT).then(|| ending(job)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(scheduler_job_id: Option<&str>) -> Job {
        Job { id: 1, scheduler_job_id: scheduler_job_id.map(str::to_owned), ..Job::default() }
    }

    fn step(job: &Job, found: Option<&Seen>, misses: u32, waited: u64) -> Step {
        plan(job, found, misses, Duration::from_secs(waited))
    }

    #[test]
    fn a_job_is_gone_only_after_two_looks_that_missed_it() {
        assert_eq!(step(&job(Some("7")), None, 0, 0), Step::Missed);
        assert_eq!(step(&job(Some("7")), None, 1, 0), Step::Gone);
    }

    #[test]
    fn a_submission_under_way_is_waited_for_and_one_that_was_cut_off_is_given_up() {
        assert_eq!(step(&job(None), None, 5, 10), Step::Patience);
        assert_eq!(step(&job(None), None, 0, 300), Step::Missed);
        assert_eq!(step(&job(None), None, 1, 300), Step::Gone);
    }

    #[test]
    fn a_submission_that_was_given_up_is_looked_for_much_longer() {
        let given_up = Job { cancel_requested: true, ..job(None) };
        assert_eq!(step(&given_up, None, 1, 300), Step::Patience);
        assert_eq!(step(&given_up, None, 1, 1000), Step::Gone);
    }

    #[test]
    fn a_job_that_is_there_is_observed_whatever_was_missed_before() {
        let seen = Seen {
            scheduler_job_id: "7".into(),
            name: String::new(),
            user: String::new(),
            phase: Phase::Running,
            run: 0,
            nodes: Vec::new(),
            exit_code: None,
            reason: None,
            details: serde_json::Map::new(),
        };
        assert_eq!(step(&job(Some("7")), Some(&seen), 1, 0), Step::Observe(seen));
    }

    #[test]
    fn the_accounts_say_how_a_vanished_job_ended_and_are_waited_for_where_there_are_any() {
        let job = Job { state: State::Running, name: "bwvisu-1-x".into(), user: "alice".into(), ..job(Some("7")) };
        let entry = |name: &str, outcome| Ended {
            scheduler_job_id: "7".into(),
            name: name.into(),
            user: "alice".into(),
            outcome,
            exit_code: Some(3),
        };
        let failed = || Ok(Some(vec![entry("bwvisu-1-x", Outcome::Failed)]));
        let anothers = || Ok(Some(vec![entry("bwvisu-1-y", Outcome::Failed)]));
        type Case = (&'static str, Result<Option<Vec<Ended>>>, u64, Option<Outcome>);
        let cases: [Case; 6] = [
            ("an entry", failed(), 0, Some(Outcome::Failed)),
            ("no accounts", Ok(None), 0, Some(Outcome::Unknown)),
            ("no entry yet", Ok(Some(Vec::new())), 119, None),
            ("no entry at all", Ok(Some(Vec::new())), 120, Some(Outcome::Unknown)),
            ("another job's entry", anothers(), 0, None),
            ("accounts that are away", Err(crate::error::Error::bad_gateway("away")), 119, None),
        ];
        for (what, accounts, since, expected) in cases {
            let ending = accounted(&job, &accounts, Duration::from_secs(since));
            assert_eq!(ending.map(|(outcome, ..)| outcome), expected, "{what}");
        }
        let (_, code, message) = accounted(&job, &failed(), Duration::ZERO).unwrap();
        assert!(code == Some(3) && message.contains("exit code 3"), "{message}");
    }

    #[test]
    fn how_a_vanished_job_ended_depends_on_what_was_known() {
        assert_eq!(ending(&job(None)).0, Outcome::Failed);
        assert_eq!(ending(&Job { cancel_requested: true, ..job(Some("7")) }).0, Outcome::Cancelled);
        assert_eq!(ending(&Job { state: State::Running, ..job(Some("7")) }).0, Outcome::Unknown);
    }
}
