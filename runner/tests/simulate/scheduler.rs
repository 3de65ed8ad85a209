//! A scheduler that is played: it takes jobs, starts them a second later, and shows them as Slurm does, with Slurm's delays.

use bwvisu_runner::domain::job::{Outcome, Phase, Seen};
use bwvisu_runner::domain::user::User;
use bwvisu_runner::error::{Error, Result};
use bwvisu_runner::scheduler::slurm::{LANES, most_by_id};
use bwvisu_runner::scheduler::{Before, Scheduler, Submission, Wanted};
use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

pub const NODES: u64 = 2_000;
/// `sudo sbatch` through a kept shell.
const SUBMIT: Duration = Duration::from_millis(13);
/// What a listing costs whatever it holds, and for each job that Slurm has.
const LIST: Duration = Duration::from_millis(10);
const LIST_PER_JOB: Duration = Duration::from_micros(15);
const LIST_PER_NAME: Duration = Duration::from_nanos(45);
/// Of one job by its id.
const LOOK: Duration = Duration::from_millis(8);
/// Two command nodes with eight sessions each.
const SESSIONS: usize = 16;
/// From sbatch to the script's first line.
const START: Duration = Duration::from_secs(1);
/// How long an ended job is shown (MinJobAge).
const SHOWN: Duration = Duration::from_secs(60);

/// One job of the scheduler's.
#[derive(Clone)]
pub struct Batch {
    pub id: u64,
    pub name: String,
    pub user: String,
    pub token: String,
    pub node: String,
    pub starts: Instant,
    pub ended: Option<Instant>,
}

#[derive(Default)]
pub struct Slurm {
    jobs: Mutex<Jobs>,
    sessions: Mutex<usize>,
    free: Condvar,
}

#[derive(Default)]
struct Jobs {
    last: u64,
    all: HashMap<u64, Batch>,
    by_name: HashMap<String, u64>,
    /// In the order of their starts.
    to_start: VecDeque<u64>,
    /// In the order of their ends.
    ended: VecDeque<u64>,
}

impl Slurm {
    /// Waits for the next job that is to run its script, and takes it; nothing after a short while without one.
    pub fn next_start(&self) -> Option<Batch> {
        let due = {
            let mut jobs = self.jobs.lock().unwrap();
            let first = jobs.to_start.front().and_then(|id| jobs.all.get(id)).cloned();
            if first.as_ref().is_some_and(|job| job.starts <= Instant::now()) {
                jobs.to_start.pop_front();
                return first;
            }
            first.map(|job| job.starts)
        };
        let pause = due.map_or(Duration::from_millis(20), |due| due.saturating_duration_since(Instant::now()));
        sleep(pause.min(Duration::from_millis(20)));
        None
    }

    pub fn end(&self, id: u64) {
        let mut jobs = self.jobs.lock().unwrap();
        if let Some(job) = jobs.all.get_mut(&id) {
            job.ended = Some(Instant::now());
            jobs.ended.push_back(id);
        }
    }

    /// Forgets what is shown no longer; returns how many jobs are left.
    fn sweep(&self) -> u32 {
        let mut jobs = self.jobs.lock().unwrap();
        while let Some(&id) = jobs.ended.front() {
            if jobs.all[&id].ended.is_some_and(|at| at.elapsed() < SHOWN) {
                break;
            }
            jobs.ended.pop_front();
            if let Some(job) = jobs.all.remove(&id) {
                jobs.by_name.remove(&job.name);
            }
        }
        jobs.all.len() as u32
    }

    /// What a command says about these.
    fn show(&self, takes: Duration, wanted: &[Wanted]) -> Vec<Seen> {
        self.command(takes, || {
            let jobs = self.jobs.lock().unwrap();
            let seen = wanted.iter().filter_map(|one| jobs.by_name.get(&one.name).and_then(|id| jobs.all.get(id)));
            seen.map(seen_as).collect()
        })
    }

    /// A command on a command node.
    fn command<T>(&self, takes: Duration, result: impl FnOnce() -> T) -> T {
        let mut busy = self.free.wait_while(self.sessions.lock().unwrap(), |busy| *busy >= SESSIONS).unwrap();
        *busy += 1;
        drop(busy);
        sleep(takes);
        let result = result();
        *self.sessions.lock().unwrap() -= 1;
        self.free.notify_one();
        result
    }
}

impl Scheduler for Slurm {
    fn submit(&self, submission: &Submission, before: &Before) -> Result<String> {
        // sbatch starts meanwhile.
        let begun = Instant::now();
        before.run()?;
        self.command(SUBMIT.saturating_sub(begun.elapsed()), || {
            let mut jobs = self.jobs.lock().unwrap();
            jobs.last += 1;
            let id = jobs.last;
            let job = Batch {
                id,
                name: submission.name.into(),
                user: submission.user.name.clone(),
                token: token(submission.script).ok_or_else(|| Error::internal("no token in the script"))?,
                node: format!("n{:04}", id % NODES),
                starts: Instant::now() + START,
                ended: None,
            };
            jobs.by_name.insert(job.name.clone(), id);
            jobs.all.insert(id, job);
            jobs.to_start.push_back(id);
            Ok(id.to_string())
        })
    }

    fn cancel(&self, _user: &str, scheduler_job_id: &str) -> Result<()> {
        self.command(SUBMIT, || self.end(scheduler_job_id.parse().unwrap_or_default()));
        Ok(())
    }

    fn look(&self, wanted: &[Wanted]) -> Result<Vec<Seen>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        // As the real one does.
        let all = self.sweep();
        if wanted.iter().all(|one| one.scheduler_job_id.is_some()) && wanted.len() <= most_by_id(all as usize, LANES) {
            let lanes = wanted.chunks(wanted.len().div_ceil(LANES).max(2));
            return Ok(thread::scope(|scope| {
                let asked: Vec<_> = lanes.map(|lane| scope.spawn(|| self.show(LOOK * lane.len() as u32, lane))).collect();
                asked.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
            }));
        }
        // squeue compares each name with each job.
        Ok(self.show(LIST + LIST_PER_JOB * all + LIST_PER_NAME * all * wanted.len() as u32, wanted))
    }

    fn overview(&self) -> Result<HashMap<String, String>> {
        self.command(LIST + LIST_PER_JOB * self.sweep(), || {
            let jobs = self.jobs.lock().unwrap();
            Ok(jobs.all.values().map(|job| (job.id.to_string(), words(job))).collect())
        })
    }

    fn user(&self, name: &str) -> Result<Option<User>> {
        Ok(Some(User { name: name.into(), uid: 2001, gid: 2001, groups: Vec::new() }))
    }

    fn names(&self, _prefix: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

fn phase(job: &Batch) -> Phase {
    match (job.ended, job.starts <= Instant::now()) {
        (Some(_), _) => Phase::Ended(Outcome::Completed),
        (None, true) => Phase::Running,
        (None, false) => Phase::Waiting,
    }
}

fn words(job: &Batch) -> String {
    format!("{}|{:?}|0|2026-11-22T12:00:00|None|{}", job.user, phase(job), job.node)
}

/// As many details as Slurm tells.
fn seen_as(job: &Batch) -> Seen {
    let details = (0..17).map(|number| (format!("Detail{number}"), format!("2026-11-22T12:00:{number:02}").into()));
    Seen {
        scheduler_job_id: job.id.to_string(),
        name: job.name.clone(),
        user: job.user.clone(),
        phase: phase(job),
        run: 0,
        nodes: vec![job.node.clone()],
        exit_code: job.ended.map(|_| 0),
        reason: None,
        details: details.collect(),
    }
}

/// The 64 hex digits in the script.
fn token(script: &str) -> Option<String> {
    let words = script.split(|c: char| !c.is_ascii_hexdigit());
    words.filter(|word| word.len() == 64).map(str::to_owned).next()
}
