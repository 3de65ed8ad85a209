//! Jobs: the record that the store keeps, its states, and what a look at the scheduler does to it.
//!
//! ```text
//! submitted ──► running ◄──► available ──► completing ──► finished
//!     └────────────┴─────────────┴──────────────┴────────────┘ (any state may end)
//! ```

use super::grant::Former;
use crate::error::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the job record that this program writes.
pub const JOB_VERSION: u32 = 2;

/// Where a job is on its way, as front ends see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The scheduler has it, or is about to; it waits for nodes.
    Submitted,
    /// It runs; none of its forwarded ports accepts connections (yet, or it asked for none).
    Running,
    /// It runs, and a forwarded port accepts connections.
    Available,
    /// It is ending.
    Completing,
    /// It has ended; `outcome` says how.
    Finished,
}

/// How a finished job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The script ended with 0.
    Completed,
    /// The script ended otherwise, or the job could not be started.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It exceeded its wall time.
    Timeout,
    /// It exceeded its memory.
    OutOfMemory,
    /// A node failed.
    NodeFail,
    /// A node could not be booted for it.
    BootFail,
    /// It could not end before its deadline.
    Deadline,
    /// It had to make room for another.
    Preempted,
    /// It ended while nobody looked, and the scheduler no longer tells how.
    Unknown,
}

/// One forwarding as front ends see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Service {
    /// The port that the application listens on.
    pub internal_port: u16,
    /// The port that users connect to.
    pub external_port: u16,
    /// The address that users connect to.
    pub external_ip: String,
}

/// A job as the store keeps it. The name of the scheduler's job carries our id, so that a submission that was cut off is found.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Job {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// Our id, counted up from 1.
    pub id: u64,
    /// The owner as the front end named it (a name or a number).
    pub uid: String,
    /// The owner's login name on the cluster.
    pub user: String,
    /// The template's file name.
    pub template_name: String,
    /// The template's variables as given.
    pub variables: BTreeMap<String, String>,
    /// The job's name in the scheduler, unique for ever.
    pub name: String,
    /// Where the job's output goes.
    pub log: String,
    /// The key under which the job signs its request for ports, in hex; gone when the job has finished.
    pub token: Option<String>,
    /// The scheduler's id, once it is known.
    pub scheduler_job_id: Option<String>,
    /// State for front ends.
    pub state: State,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What the batch script ended with, where known.
    pub exit_code: Option<i32>,
    /// One sentence for people: why it waits, failed, or where its log is.
    pub message: String,
    /// Somebody asked for its end; a scheduler's job that turns up later is cancelled.
    pub cancel_requested: bool,
    /// How often the scheduler has started it again.
    pub run: u32,
    /// It has finished because its submission was cut off and the scheduler did not have it: should it turn up, it is cancelled.
    pub given_up: bool,
    /// Who submitted it will ask again under the same key: a lost answer of the scheduler's is waited for.
    pub repeatable: bool,
    /// The last known forwardings.
    pub services: Vec<Service>,
    /// Where users found an earlier run of it.
    pub former: Option<Former>,
    /// Why nobody can say whether users get through at present; nothing while its gateway answers.
    pub gateway_trouble: Option<String>,
    /// All that the scheduler tells.
    pub details: serde_json::Map<String, serde_json::Value>,
    /// When the front end's request was taken.
    pub submitted_at: Option<Timestamp>,
    /// When it was first seen running.
    pub started_at: Option<Timestamp>,
    /// When a forwarded port first accepted a connection.
    pub available_at: Option<Timestamp>,
    /// When it was seen to have ended.
    pub finished_at: Option<Timestamp>,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            version: JOB_VERSION,
            cluster: String::new(),
            id: 0,
            uid: String::new(),
            user: String::new(),
            template_name: String::new(),
            variables: BTreeMap::new(),
            name: String::new(),
            log: String::new(),
            token: None,
            scheduler_job_id: None,
            state: State::Submitted,
            outcome: None,
            exit_code: None,
            message: String::new(),
            cancel_requested: false,
            run: 0,
            given_up: false,
            repeatable: false,
            services: Vec::new(),
            former: None,
            gateway_trouble: None,
            details: serde_json::Map::new(),
            submitted_at: None,
            started_at: None,
            available_at: None,
            finished_at: None,
        }
    }
}

/// Without the token, and short enough for a log line.
impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({} of {}, {:?}, scheduler {:?})", self.id, self.user, self.state, self.scheduler_job_id)
    }
}

/// What the scheduler says about where a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It waits.
    Waiting,
    /// It has nodes and runs (or is suspended on them).
    Running,
    /// It is ending.
    Completing,
    /// It has ended.
    Ended(Outcome),
    /// The scheduler used a word that we do not know.
    Unclear(String),
}

/// One job as one look at the scheduler shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The scheduler's id.
    pub scheduler_job_id: String,
    /// The job's name.
    pub name: String,
    /// The owner's login name.
    pub user: String,
    /// Where it is.
    pub phase: Phase,
    /// How often it was started again (0 on its first run).
    pub run: u32,
    /// The nodes that it has, expanded.
    pub nodes: Vec<String>,
    /// The exit code, once it has ended.
    pub exit_code: Option<i32>,
    /// Why it waits or ended, in the scheduler's words.
    pub reason: Option<String>,
    /// Everything else that the scheduler tells.
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// How a job ended that the scheduler no longer lists, as its accounts tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The scheduler's id.
    pub scheduler_job_id: String,
    /// The job's name.
    pub name: String,
    /// The owner's login name.
    pub user: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The exit code.
    pub exit_code: Option<i32>,
}

impl Job {
    /// Whether an entry in the scheduler's accounts is about this job: ids begin anew when a scheduler is set up anew.
    pub fn is_accounted(&self, ended: &Ended) -> bool {
        self.name == ended.name && self.user == ended.user && self.scheduler_job_id.as_ref() == Some(&ended.scheduler_job_id)
    }

    /// Whether the scheduler's job `seen` is this one: the name alone could be somebody else's.
    pub fn is(&self, seen: &Seen) -> bool {
        self.name == seen.name
            && self.user == seen.user
            && self.scheduler_job_id.as_ref().is_none_or(|id| *id == seen.scheduler_job_id)
    }

    /// Takes over what a look at the scheduler showed. Never goes back from `finished`.
    pub fn observe(&mut self, seen: &Seen, now: Timestamp) {
        if self.state == State::Finished {
            return;
        }
        self.scheduler_job_id.get_or_insert_with(|| seen.scheduler_job_id.clone());
        self.details = seen.details.clone();
        self.follow_run(seen.run);
        match &seen.phase {
            // A look that is older than the cancel may still show it waiting.
            Phase::Waiting if self.cancel_requested => {}
            Phase::Waiting => self.wait(seen),
            Phase::Running => self.run(now),
            Phase::Completing => self.complete(),
            Phase::Ended(outcome) => {
                let message = self.end_message(*outcome, seen.exit_code, seen.reason.as_deref());
                self.finish(*outcome, seen.exit_code, &message, now);
            }
            Phase::Unclear(_) => {}
        }
    }

    /// The scheduler started it anew, perhaps between two looks: what is known of the run before is over.
    fn follow_run(&mut self, run: u32) {
        if self.run != run {
            self.run = run;
            self.begin_anew();
        }
    }

    fn begin_anew(&mut self) {
        if !self.cancel_requested {
            self.state = State::Submitted;
        }
        self.started_at = None;
        self.available_at = None;
        self.services.clear();
        self.gateway_trouble = None;
    }

    fn wait(&mut self, seen: &Seen) {
        self.begin_anew();
        self.message = match &seen.reason {
            Some(reason) => format!("waiting for the scheduler: {reason}"),
            None => "waiting for the scheduler".into(),
        };
    }

    fn run(&mut self, now: Timestamp) {
        self.started_at.get_or_insert(now);
        // Completing and running again: the scheduler has started it anew.
        let anew = self.state == State::Completing && !self.cancel_requested;
        if self.state == State::Submitted || anew {
            self.state = State::Running;
            self.message = format!("running; its log is {}", self.log);
        }
    }

    fn complete(&mut self) {
        self.state = State::Completing;
        self.message = format!("ending; its log is {}", self.log);
    }

    /// The sentence for people about an end that the scheduler tells of, with its own reason for it.
    pub fn end_message(&self, outcome: Outcome, exit_code: Option<i32>, reason: Option<&str>) -> String {
        let how = match (outcome, exit_code) {
            (Outcome::Completed, _) => "completed".to_owned(),
            (Outcome::Failed, Some(code)) => format!("failed: the batch script ended with exit code {code}"),
            (Outcome::Cancelled, _) => "cancelled".to_owned(),
            (Outcome::Timeout, _) => "ended by the scheduler: it exceeded its wall time".to_owned(),
            (Outcome::OutOfMemory, _) => "ended by the scheduler: it exceeded its memory".to_owned(),
            (other, _) => format!("ended: {}", other.word()),
        };
        let reason = reason.filter(|_| outcome != Outcome::Completed).map(|r| format!(" ({r})")).unwrap_or_default();
        format!("{how}{reason}; its log is {}", self.log)
    }

    /// Ends the job for good: no token any more, so that nobody can ask for ports in its name.
    pub fn finish(&mut self, outcome: Outcome, exit_code: Option<i32>, message: &str, now: Timestamp) {
        self.state = State::Finished;
        self.outcome = Some(outcome);
        // What never ran has no exit code, whatever the scheduler fills in.
        self.exit_code = exit_code.filter(|_| outcome != Outcome::Cancelled || self.started_at.is_some());
        self.message = message.to_owned();
        self.token = None;
        self.gateway_trouble = None;
        self.finished_at = Some(now);
    }

    /// Its gateway has not answered for a while, for this reason: what is known of it stays as it is, and is called stale.
    pub fn gateway_is_silent(&mut self, reason: &str) {
        if matches!(self.state, State::Running | State::Available) {
            self.gateway_trouble = Some(reason.to_owned());
        }
    }

    /// Its forwardings are on their way to another gateway: for now nobody gets through.
    pub fn moves(&mut self) {
        self.gateway_trouble = None;
        if self.state == State::Available {
            self.state = State::Running;
            self.message = "its forwardings move to another gateway; the address changes".into();
        }
    }

    /// A forwarded port accepts connections, or none does any more. Changes only jobs that run.
    pub fn listens(&mut self, services: Option<Vec<Service>>, now: Timestamp) {
        self.gateway_trouble = None;
        match (self.state, services) {
            (State::Running | State::Available, Some(services)) => {
                self.state = State::Available;
                self.message = format!("the application accepts connections; its log is {}", self.log);
                self.services = services;
                self.available_at.get_or_insert(now);
            }
            (State::Available, None) => {
                self.state = State::Running;
                self.message = format!("the application stopped accepting connections; its log is {}", self.log);
            }
            _ => {}
        }
    }
}

impl Outcome {
    /// The word that the API uses.
    pub fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
            Self::OutOfMemory => "out-of-memory",
            Self::NodeFail => "node-fail",
            Self::BootFail => "boot-fail",
            Self::Deadline => "deadline",
            Self::Preempted => "preempted",
            Self::Unknown => "unknown",
        }
    }
}

/// A job id as it stands in a path: decimal, from 1, without leading zeros.
pub fn parse_job_id(text: &str) -> Result<u64> {
    let canonical = !text.is_empty() && text.len() <= 19 && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| canonical).ok_or_else(|| Error::not_found("no such job"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(phase: Phase) -> Seen {
        Seen {
            scheduler_job_id: "4711".into(),
            name: "bwvisu-17-x".into(),
            user: "alice".into(),
            phase,
            run: 0,
            nodes: vec!["c0".into()],
            exit_code: None,
            reason: None,
            details: serde_json::Map::new(),
        }
    }

    fn job(state: State) -> Job {
        Job { id: 17, name: "bwvisu-17-x".into(), user: "alice".into(), state, token: Some("t".into()), ..Job::default() }
    }

    #[test]
    fn a_look_moves_a_job_on_and_never_back_from_finished() {
        let cases = [
            (State::Submitted, Phase::Waiting, State::Submitted),
            (State::Submitted, Phase::Running, State::Running),
            (State::Available, Phase::Running, State::Available),
            (State::Available, Phase::Completing, State::Completing),
            (State::Running, Phase::Waiting, State::Submitted),
            (State::Running, Phase::Ended(Outcome::Failed), State::Finished),
            (State::Running, Phase::Unclear("ODD".into()), State::Running),
            (State::Completing, Phase::Running, State::Running),
            (State::Finished, Phase::Running, State::Finished),
        ];
        for (before, phase, after) in cases {
            let mut job = job(before);
            job.observe(&seen(phase.clone()), Timestamp::UNIX_EPOCH);
            assert_eq!(job.state, after, "{before:?} seen as {phase:?}");
        }
    }

    #[test]
    fn a_run_that_began_between_two_looks_is_seen_by_its_number() {
        let mut job = Job { started_at: Some(Timestamp::UNIX_EPOCH), ..job(State::Available) };
        let later = Timestamp::from_second(9).unwrap();
        job.observe(&Seen { run: 1, ..seen(Phase::Running) }, later);
        assert_eq!((job.state, job.run, job.started_at, job.services.len()), (State::Running, 1, Some(later), 0));
        job.observe(&Seen { run: 1, ..seen(Phase::Running) }, Timestamp::from_second(10).unwrap());
        assert_eq!(job.started_at, Some(later));
    }

    #[test]
    fn a_cancelled_job_does_not_run_again_because_an_old_look_says_so() {
        for phase in [Phase::Waiting, Phase::Running] {
            let mut job = Job { cancel_requested: true, ..job(State::Completing) };
            job.observe(&seen(phase), Timestamp::UNIX_EPOCH);
            assert_eq!(job.state, State::Completing);
        }
    }

    #[test]
    fn a_finished_job_has_no_token() {
        let mut job = job(State::Running);
        job.observe(&Seen { exit_code: Some(3), ..seen(Phase::Ended(Outcome::Failed)) }, Timestamp::UNIX_EPOCH);
        assert_eq!((job.token, job.exit_code, job.outcome), (None, Some(3), Some(Outcome::Failed)));
        assert!(job.message.contains("exit code 3"));
    }

    #[test]
    fn only_running_jobs_become_available_and_the_last_services_stay() {
        let service = Service { internal_port: 1, external_port: 2, external_ip: "203.0.113.1".into() };
        let mut job = job(State::Running);
        job.listens(Some(vec![service.clone()]), Timestamp::UNIX_EPOCH);
        assert_eq!((job.state, job.services.len()), (State::Available, 1));
        job.listens(None, Timestamp::UNIX_EPOCH);
        assert_eq!((job.state, job.services.len()), (State::Running, 1));
        let mut waiting = Job { state: State::Completing, ..job };
        waiting.listens(Some(vec![service]), Timestamp::UNIX_EPOCH);
        assert_eq!(waiting.state, State::Completing);
    }

    #[test]
    fn a_job_of_the_same_name_and_another_user_or_id_is_not_ours() {
        let mut job = job(State::Submitted);
        assert!(job.is(&seen(Phase::Waiting)));
        assert!(!job.is(&Seen { user: "mallory".into(), ..seen(Phase::Waiting) }));
        job.scheduler_job_id = Some("1".into());
        assert!(!job.is(&seen(Phase::Waiting)));
    }

    #[test]
    fn job_ids_are_canonical_decimals() {
        assert_eq!(parse_job_id("17").unwrap(), 17);
        for bad in ["", "0", "017", "-1", "1x", "99999999999999999999", "../1"] {
            assert_eq!(parse_job_id(bad).unwrap_err().message, "no such job", "{bad:?}");
        }
    }

    #[test]
    fn the_record_of_a_job_is_read_back_and_debug_hides_the_token() {
        let job = job(State::Running);
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
        assert!(!format!("{:?}", Job { token: Some("secret".into()), ..job }).contains("secret"));
    }
}
