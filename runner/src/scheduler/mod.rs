//! The door to the scheduler: Slurm over ssh ([`slurm`]), or processes on this machine ([`local`]).

pub mod local;
pub mod slurm;

use crate::domain::job::{Ended, Job, Seen};
use crate::domain::user::User;
use crate::error::{Error, Result};
use std::cell::OnceCell;
use std::collections::HashMap;

/// One batch job to be submitted.
#[derive(Clone, Copy)]
pub struct Submission<'a> {
    /// The job's name in the scheduler; unique, so that a submission whose answer was lost can be looked for.
    pub name: &'a str,
    /// The owner.
    pub user: &'a User,
    /// The folder that the job runs in.
    pub folder: &'a str,
    /// The file in that folder that takes its output.
    pub log: &'a str,
    /// The batch script. It holds a token: it goes by standard input, never into an argument or a file of ours.
    pub script: &'a str,
}

/// What is done once, before something else.
pub struct Before<'a> {
    act: &'a dyn Fn() -> Result<()>,
    done: OnceCell<Result<()>>,
}

impl<'a> Before<'a> {
    /// This.
    pub fn new(act: &'a dyn Fn() -> Result<()>) -> Self {
        Self { act, done: OnceCell::new() }
    }

    /// Nothing.
    pub fn nothing() -> Self {
        Self::new(&|| Ok(()))
    }

    /// Does it, or says again what came of it.
    pub fn run(&self) -> Result<()> {
        self.done.get_or_init(self.act).clone()
    }

    /// Whether it is done, successfully.
    pub fn is_done(&self) -> bool {
        matches!(self.done.get(), Some(Ok(())))
    }

    /// Why it could not be done.
    pub fn failure(&self) -> Option<&Error> {
        self.done.get()?.as_ref().err()
    }
}

/// A job that a look is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name in the scheduler.
    pub name: String,
    /// The scheduler's id where that is known: it makes the look cheaper.
    pub scheduler_job_id: Option<String>,
}

impl From<&Job> for Wanted {
    fn from(job: &Job) -> Self {
        Self { name: job.name.clone(), scheduler_job_id: job.scheduler_job_id.clone() }
    }
}

/// What the verbs ask of a scheduler.
pub trait Scheduler: Send + Sync {
    /// Submits a job and returns the scheduler's id. `before` is called at most once, when all is ready, and before the scheduler gets anything
    /// of the script: if it fails, nothing is submitted, and its error is returned. So what it does takes no time of its own where the
    /// scheduler's programs are still starting.
    ///
    /// Errors: `Unavailable` when nobody took it and nothing happened, `BadGateway` when the scheduler refused it,
    /// `Unknown` when it may or may not have been taken: then it must be looked for by its name before anything else.
    fn submit(&self, submission: &Submission, before: &Before) -> Result<String>;

    /// Ends a job. Fine if it has ended already.
    fn cancel(&self, user: &str, scheduler_job_id: &str) -> Result<()>;

    /// What the scheduler shows of these jobs: a few questions at most, however many they are. A job that is not in the answer is not known to the
    /// scheduler (any more); others may be in it that have the name of one, or its id. An error says nothing about any job.
    fn look(&self, wanted: &[Wanted]) -> Result<Vec<Seen>>;

    /// All jobs of the cluster, whoever owns them, by the scheduler's ids: each with words that are others as soon as [`Scheduler::look`] would
    /// show a change of its owner, state, run or nodes. A job that is not in it is not known to the scheduler (any more). An error says
    /// nothing about any job.
    fn overview(&self) -> Result<HashMap<String, String>>;

    /// How jobs ended that [`Scheduler::look`] no longer shows, from the scheduler's accounts; nothing at all where it keeps none.
    /// Who is missing in the answer may appear there later.
    fn accounts(&self, _scheduler_job_ids: &[String]) -> Result<Option<Vec<Ended>>> {
        Ok(None)
    }

    /// The account behind a name or a number that [`crate::domain::user::check_user_name`] has passed, if there is one.
    fn user(&self, name: &str) -> Result<Option<User>>;

    /// The names of all jobs that it shows and that begin with `prefix`, whoever owns them: names are chosen by strangers, so they are
    /// a hint and no proof.
    fn names(&self, prefix: &str) -> Result<Vec<String>>;
}
