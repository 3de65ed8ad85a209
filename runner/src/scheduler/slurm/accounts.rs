//! How jobs ended that `squeue` no longer shows: `sacct`, where the cluster has `slurmdbd`.

use super::squeue::{answered_lines, exit_code, phase};
use super::{BEGIN, END};
use crate::command::Output;
use crate::domain::job::{Ended, Phase};
use crate::error::{Error, Result};

/// Ids per `sacct`: one argument of a program holds 128 KiB.
const IDS_PER_CALL: usize = 10_000;
/// What `sacct` says where there is nothing to be asked, or the shell where it is not installed.
const NO_ACCOUNTS: [&str; 3] = ["accounting storage is disabled", "not running a supported accounting", "not found"];

/// The name comes last, as its owner chose it. Without `-D` only the last run of a requeued job is told; with `-j` the time does not matter.
///
/// Where `PrivateData` hides jobs the answer is empty, and perhaps less so for root.
pub(super) fn script(ids: &[String]) -> String {
    let mut script = format!(
        "set -e\nexport LC_ALL=C TZ=UTC\n\
         ask() {{ \"$@\" -n -P -X -o JobIDRaw,State,ExitCode,User,JobName -j \"$ids\" </dev/null; }}\necho {BEGIN}\n"
    );
    for chunk in ids.chunks(IDS_PER_CALL) {
        script += &format!(
            "ids={}\nanswer=$(ask sacct)\n[ -n \"$answer\" ] || answer=$(ask sudo -n sacct 2>/dev/null) || answer=\n\
             [ -z \"$answer\" ] || printf '%s\\n' \"$answer\"\n",
            chunk.join(",")
        );
    }
    script + "echo " + END + "\n"
}

/// What an answer says of jobs that have ended.
pub(super) fn judge(output: &Output) -> Result<Option<Vec<Ended>>> {
    let words = output.complaint();
    if !output.status.success() && NO_ACCOUNTS.iter().any(|mark| words.contains(mark)) {
        return Ok(None);
    }
    // Another command node would ask the same database: not the node's fault.
    let lines = answered_lines(output).map_err(|_| Error::bad_gateway(format!("sacct: no complete answer: {words}")))?;
    Ok(Some(lines.into_iter().filter_map(entry).collect()))
}

/// One line, of a job that has ended.
fn entry(line: &str) -> Option<Ended> {
    let fields: Vec<&str> = line.splitn(5, '|').collect();
    let [id, state, exit, user, name] = fields[..] else { return None };
    let Phase::Ended(outcome) = phase(state) else { return None };
    Some(Ended {
        scheduler_job_id: id.to_owned(),
        name: name.to_owned(),
        user: user.to_owned(),
        outcome,
        exit_code: exit_code(exit),
    })
}

#[cfg(test)]
#[path = "accounts_tests.rs"]
mod tests;
