//! What we ask of `squeue`, and what its answers mean.

use super::{BEGIN, END};
use crate::command::Output;
use crate::domain::job::{Outcome, Phase, Seen};
use crate::domain::shell;
use crate::error::{Error, Result};
use crate::scheduler::Wanted;
use keyhole_protocol::nodelist;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt::Write;

/// Names per `squeue`: one argument of a program holds 128 KiB, and the longest name of ours has 39 bytes.
pub(super) const NAMES_PER_CALL: usize = 3000;
/// What we read from `squeue`, in this order; what follows goes into the job's details as it is. The names and this way of writing the
/// format are the same from Slurm 22.05 to today's.
const FIELDS: [&str; 24] = [
    "JobID",
    "Name",
    "UserName",
    "State",
    "RestartCnt",
    "exit_code",
    "NodeList",
    "Reason",
    "Account",
    "Partition",
    "QOS",
    "TimeLimit",
    "SubmitTime",
    "StartTime",
    "EndTime",
    "NumNodes",
    "NumCPUs",
    "NumTasks",
    "MinMemory",
    "tres-alloc",
    "BatchHost",
    "UserID",
    "GroupName",
    "Reservation",
];
const LEADING: usize = 8;
/// What an overview shows: first the id, then what tells that a job is no longer as it was. Not why it waits: some plugins write there what
/// programs said, and a line of a foreign job's must not spoil the overview.
const OVERVIEW: [&str; 6] = ["JobID", "UserName", "State", "RestartCnt", "SubmitTime", "NodeList"];

/// The ids and names of these jobs, if all ids are known.
pub(super) fn ids(wanted: &[Wanted]) -> Option<Vec<(&str, &str)>> {
    let ids = wanted.iter().map(|job| job.scheduler_job_id.as_deref().filter(|id| is_id(id)));
    ids.zip(wanted).map(|(id, job)| Some((id?, job.name.as_str()))).collect()
}

/// The details of these jobs, on standard input, since thousands of names do not fit into an argument.
pub(super) fn by_name_script(wanted: &[Wanted]) -> String {
    let names: Vec<&str> = wanted.iter().map(|job| job.name.as_str()).collect();
    let mut script = head();
    for chunk in names.chunks(NAMES_PER_CALL) {
        let names = shell::quote(&chunk.join(","));
        let _ = writeln!(script, "sudo -n squeue --noheader --states=all --name={names} --Format={} </dev/null", format(&FIELDS));
    }
    script + "echo " + END + "\n"
}

/// The details of these jobs by ids and names, one by one. An id that Slurm no longer knows is no failure, and no job.
pub(super) fn by_id_script(jobs: &[(&str, &str)]) -> String {
    let mut script = head();
    let _ = writeln!(
        script,
        r#"ask() {{
    {{ words=$(sudo -n squeue --noheader --states=all --jobs="$1" --name="$2" --Format={} </dev/null 2>&1 >&3 3>&-); }} 3>&1 && return
    case $words in *"Invalid job id"*) ;; *) printf "%s\n" "$words" >&2; exit 1 ;; esac
}}"#,
        format(&FIELDS)
    );
    for (id, name) in jobs {
        let _ = writeln!(script, "ask {id} {}", shell::quote(name));
    }
    script + "echo " + END + "\n"
}

/// All jobs of the cluster, in as few words as tell whether one has changed: about half of the time goes into sending them.
pub(super) fn overview_script() -> String {
    format!("{}sudo -n squeue --noheader --states=all --Format={} </dev/null\necho {END}\n", head(), format(&OVERVIEW))
}

/// The times in the details are UTC like all others.
fn head() -> String {
    format!("set -e\nexport LC_ALL=C TZ=UTC\necho {BEGIN}\n")
}

fn format(fields: &[&str]) -> String {
    let fields: Vec<String> = fields.iter().map(|field| format!("{field}:0|")).collect();
    shell::quote(&fields.join(","))
}

/// A name may hold a newline, and then looks like two: callers take names for hints.
pub(super) const NAMES_SCRIPT: &str = "set -e\nexport LC_ALL=C\necho bwvisu-begin\n\
                            sudo -n squeue --noheader --states=all --Format=Name:0 </dev/null\necho bwvisu-end\n";

pub(super) fn judge_names(output: &Output) -> Result<Vec<String>> {
    Ok(answered_lines(output)?.into_iter().map(|name| name.trim_end().to_owned()).collect())
}

pub(crate) fn judge_squeue(output: &Output) -> Result<Vec<Seen>> {
    let seen = answered_lines(output)?.into_iter().map(parse_line).collect::<Option<_>>();
    seen.ok_or_else(|| Error::unavailable("squeue: a line of its answer cannot be read"))
}

/// The jobs of an overview by their ids, each with the other fields as they are.
pub(crate) fn judge_overview(output: &Output) -> Result<HashMap<String, String>> {
    let jobs = answered_lines(output)?.into_iter().map(overview_line).collect::<Option<_>>();
    jobs.ok_or_else(|| Error::unavailable("squeue: a line of its overview cannot be read"))
}

fn overview_line(line: &str) -> Option<(String, String)> {
    let (id, words) = line.strip_suffix('|')?.split_once('|')?;
    (is_id(id) && words.split('|').count() + 1 == OVERVIEW.len()).then(|| (id.to_owned(), words.to_owned()))
}

/// Slurm's ids have 32 bits. What calls itself one may come from a user's hands: anything else would stand in later commands, and in the way of
/// the others that are asked for with it.
pub(super) fn is_id(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit()) && !word.starts_with('0') && word.parse::<u32>().is_ok()
}

/// What one look at several jobs shows of each.
pub(super) fn shares(wanted: &[Wanted], seen: &[Seen]) -> Vec<Vec<Seen>> {
    let of = |wanted: &Wanted| seen.iter().filter(|seen| seen.name == wanted.name).cloned().collect();
    wanted.iter().map(of).collect()
}

/// The lines of a complete answer.
pub(super) fn answered_lines(output: &Output) -> Result<Vec<&str>> {
    // A squeue that failed is the node's fault until every node has failed.
    // A login shell may have had something to say before.
    let mut lines: Vec<&str> = output.stdout.lines().skip_while(|line| *line != BEGIN).collect();
    let complete = output.status.success() && output.stdout.ends_with('\n') && lines.pop() == Some(END) && !lines.is_empty();
    if !complete {
        return Err(Error::unavailable(format!("squeue: no complete answer: {}", output.complaint())));
    }
    lines.remove(0);
    Ok(lines)
}

/// One line of `squeue`, or nothing if it is not one that we asked for.
fn parse_line(line: &str) -> Option<Seen> {
    // The last field is a path and may hold anything.
    let fields: Vec<&str> = line.strip_suffix('|')?.splitn(FIELDS.len(), '|').collect();
    let (leading, rest) = fields.split_first_chunk::<LEADING>().filter(|_| fields.len() == FIELDS.len())?;
    let [id, name, user, state, run, exit, nodes, reason] = leading.map(|field| field);
    Some(Seen {
        scheduler_job_id: Some(id).filter(|id| is_id(id))?.to_owned(),
        name: name.to_owned(),
        user: user.to_owned(),
        phase: phase(state),
        run: run.parse().ok()?,
        // Empty or "(null)" while it waits; and a list that nobody can read is no reason to know nothing of all other jobs.
        nodes: nodelist::expand(nodes).unwrap_or_default(),
        exit_code: Some(exit_code(exit)?),
        reason: Some(reason).filter(|reason| !["", "None", "(null)"].contains(reason)).map(str::to_owned),
        details: details(state, nodes, reason, rest),
    })
}

fn details(state: &str, nodes: &str, reason: &str, rest: &[&str]) -> Map<String, Value> {
    let known = [("State", state), ("NodeList", nodes), ("Reason", reason)];
    let rest = FIELDS[LEADING..].iter().copied().zip(rest.iter().copied());
    known.into_iter().chain(rest).map(|(name, value)| (name.to_owned(), value.into())).collect()
}

/// How the batch script ended: `CODE:SIGNAL`, and from `squeue` before 24.11 a wait status, with the code in its high byte. Shells write
/// a signal as 128 + n.
pub(super) fn exit_code(words: &str) -> Option<i32> {
    let (code, signal) = match words.split_once(':') {
        Some((code, signal)) => (code.parse().ok()?, signal.parse().ok()?),
        None => words.parse().map(|status: i32| (status >> 8, status & 0x7f)).ok()?,
    };
    if signal == 0 { Some(code) } else { i32::checked_add(signal, 128) }
}

/// Slurm's states as of `squeue`'s manual (JOB STATE CODES).
pub(super) fn phase(state: &str) -> Phase {
    // "CANCELLED by 1000" in accounting's spelling.
    match state.split([' ', '+']).next().unwrap_or_default() {
        "PENDING" | "CONFIGURING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "RESV_DEL_HOLD" | "SPECIAL_EXIT" => {
            Phase::Waiting
        }
        "RUNNING" | "RESIZING" | "SIGNALING" | "SUSPENDED" | "STOPPED" => Phase::Running,
        "COMPLETING" | "STAGE_OUT" => Phase::Completing,
        "COMPLETED" => Phase::Ended(Outcome::Completed),
        "FAILED" => Phase::Ended(Outcome::Failed),
        "CANCELLED" | "REVOKED" => Phase::Ended(Outcome::Cancelled),
        "TIMEOUT" => Phase::Ended(Outcome::Timeout),
        "OUT_OF_MEMORY" => Phase::Ended(Outcome::OutOfMemory),
        "NODE_FAIL" => Phase::Ended(Outcome::NodeFail),
        "BOOT_FAIL" => Phase::Ended(Outcome::BootFail),
        "DEADLINE" => Phase::Ended(Outcome::Deadline),
        "PREEMPTED" => Phase::Ended(Outcome::Preempted),
        other => Phase::Unclear(other.to_owned()),
    }
}

#[cfg(test)]
#[path = "squeue_tests.rs"]
mod tests;
