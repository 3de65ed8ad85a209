//! A job of the spool in the words of the scheduler's door, with details like those that Slurm shows.

use super::NODE;
use super::spool::{JobFolder, Request, Stage, State};
use crate::domain::job::{Outcome, Phase, Seen};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The job as one look shows it.
pub(super) fn seen(folder: &JobFolder, request: &Request, state: &State) -> Seen {
    Seen {
        scheduler_job_id: folder.id.to_string(),
        name: request.name.clone(),
        user: request.user.clone(),
        phase: phase(state),
        run: 0,
        nodes: state.started_at.map(|_| NODE.to_owned()).into_iter().collect(),
        exit_code: state.exit_code,
        reason: reason(state),
        details: details(folder, request, state),
    }
}

fn phase(state: &State) -> Phase {
    match state.stage {
        Stage::Waiting => Phase::Waiting,
        Stage::Running => Phase::Running,
        Stage::Ending => Phase::Completing,
        Stage::Ended => Phase::Ended(state.outcome.unwrap_or(Outcome::Unknown)),
    }
}

fn reason(state: &State) -> Option<String> {
    match state.stage {
        Stage::Waiting => Some("Resources".to_owned()),
        _ => state.reason.clone(),
    }
}

/// Slurm's word for where the job is.
fn word(state: &State) -> &'static str {
    match (state.stage, state.outcome) {
        (Stage::Waiting, _) => "PENDING",
        (Stage::Running, _) => "RUNNING",
        (Stage::Ending, _) => "COMPLETING",
        (Stage::Ended, Some(Outcome::Completed)) => "COMPLETED",
        (Stage::Ended, Some(Outcome::Cancelled)) => "CANCELLED",
        (Stage::Ended, Some(Outcome::Timeout)) => "TIMEOUT",
        (Stage::Ended, Some(Outcome::NodeFail)) => "NODE_FAIL",
        (Stage::Ended, _) => "FAILED",
    }
}

fn details(folder: &JobFolder, request: &Request, state: &State) -> Map<String, Value> {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    let members = [
        ("JobId", json!(folder.id.to_string())),
        ("JobName", json!(request.name)),
        ("UserId", json!(format!("{}({})", request.user, request.uid))),
        ("GroupId", json!(request.gid.to_string())),
        ("JobState", json!(word(state))),
        ("Reason", json!(reason(state))),
        ("SubmitTime", json!(request.submitted_at.to_string())),
        ("StartTime", json!(time(state.started_at))),
        ("EndTime", json!(time(state.ended_at))),
        ("TimeLimitSeconds", json!(request.wall_seconds)),
        ("NodeList", json!(state.started_at.map(|_| NODE))),
        ("NumNodes", json!("1")),
        ("ExitCode", json!(state.exit_code)),
        ("Command", json!("(standard input)")),
        ("WorkDir", json!(request.folder)),
        ("StdOut", json!(std::path::Path::new(&request.folder).join(&request.log).display().to_string())),
    ];
    members.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_owned(), value)).collect()
}
