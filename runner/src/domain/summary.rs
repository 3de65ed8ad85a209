//! Of a job, what its watchers go by: small, so that all of them are at hand.

use super::job::{Ended, Job, Seen, State};
use jiff::Timestamp;
use serde::Deserialize;

/// The part of a [`Job`] that says where it is, and which of the scheduler's jobs it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Summary {
    /// Our id.
    pub id: u64,
    /// The owner's login name.
    pub user: String,
    /// The job's name in the scheduler.
    pub name: String,
    /// The scheduler's id, once it is known.
    pub scheduler_job_id: Option<String>,
    /// State for front ends.
    pub state: State,
    /// Somebody asked for its end.
    pub cancel_requested: bool,
    /// How often the scheduler has started it again.
    pub run: u32,
    /// Why nobody can say whether users get through at present; nothing while its gateway answers.
    pub gateway_trouble: Option<String>,
    /// When it was first seen running.
    pub started_at: Option<Timestamp>,
    /// When a forwarded port first accepted a connection.
    pub available_at: Option<Timestamp>,
}

impl Default for Summary {
    fn default() -> Self {
        Self::from(&Job::default())
    }
}

impl From<&Job> for Summary {
    fn from(job: &Job) -> Self {
        Self {
            id: job.id,
            user: job.user.clone(),
            name: job.name.clone(),
            scheduler_job_id: job.scheduler_job_id.clone(),
            state: job.state,
            cancel_requested: job.cancel_requested,
            run: job.run,
            gateway_trouble: job.gateway_trouble.clone(),
            started_at: job.started_at,
            available_at: job.available_at,
        }
    }
}

impl Summary {
    /// Whether the scheduler's job `seen` is this one: the name alone could be somebody else's.
    pub fn is(&self, seen: &Seen) -> bool {
        self.name == seen.name
            && self.user == seen.user
            && self.scheduler_job_id.as_ref().is_none_or(|id| *id == seen.scheduler_job_id)
    }

    /// Whether an entry in the scheduler's accounts is about this job: ids begin anew when a scheduler is set up anew.
    pub fn is_accounted(&self, ended: &Ended) -> bool {
        self.name == ended.name && self.user == ended.user && self.scheduler_job_id.as_ref() == Some(&ended.scheduler_job_id)
    }

    /// Whether the job is still where it was then.
    pub fn is_still(&self, job: &Job) -> bool {
        (self.state, self.run, &self.scheduler_job_id) == (job.state, job.run, &job.scheduler_job_id)
    }
}
