//! What `squeue` says, over ssh.

use super::{Outcome, Target, cuts, text};
use crate::command::Output;
use crate::domain::job::Seen;
use crate::error::{ErrorKind, Result};
use crate::scheduler::slurm::squeue::judge_squeue;
use keyhole_protocol::nodelist::is_host_name;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

pub(super) const TARGET: Target = Target {
    name: "squeue",
    tokens: &[
        "bwvisu-begin\n",
        "bwvisu-end\n",
        "bwvisu-end",
        "|",
        "||",
        "\n",
        "RUNNING",
        "PENDING",
        "CANCELLED by 1000",
        "COMPLETING",
        "c[0-1]",
        "(null)",
        "None",
        "slurm_load_jobs error: Socket timed out on send/recv operation\n",
        "12|bwvisu-7-0a1b2c3d|alice|RUNNING|1|0|c[0-1]|None|(null)|main|normal|5:00|x|x|x|2|2|2|0|cpu=2|c0|2001|alice|(null)|\n",
        "\0",
    ],
    check,
};

fn judge(stdout: &str, code: i32) -> Result<Vec<Seen>> {
    judge_squeue(&Output { status: ExitStatus::from_raw(code << 8), stdout: stdout.to_owned(), stderr: String::new() })
}

fn check(input: &[u8]) -> Outcome {
    let text = match text(input) {
        Ok(text) => text,
        Err(outcome) => return outcome,
    };
    let jobs = match judge(text, 0) {
        Ok(jobs) => jobs,
        Err(error) => {
            // Nothing is known, so nothing may follow from it.
            assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
            return Outcome::refused(error);
        }
    };
    let lines: Vec<&str> = text.lines().skip_while(|line| *line != "bwvisu-begin").collect();
    assert_eq!((lines.first(), lines.last()), (Some(&"bwvisu-begin"), Some(&"bwvisu-end")), "no begin, or no end");
    assert_eq!(jobs.len() + 2, lines.len(), "a line was passed over");
    jobs.iter().for_each(assert_sound);
    assert!(judge(text, 1).is_err(), "squeue failed, and is believed");
    for at in cuts(text) {
        assert!(judge(&text[..at], 0).is_err(), "cut at {at}, and taken for whole");
    }
    let kinds: String = jobs.iter().take(4).map(|job| format!("{:?} {} ", job.phase, job.nodes.len().min(3))).collect();
    Outcome::accepted(format_args!("{} {}", jobs.len().min(9), super::engine::kind(&kinds)))
}

fn assert_sound(job: &Seen) {
    assert!(!job.scheduler_job_id.is_empty() && job.scheduler_job_id.bytes().all(|byte| byte.is_ascii_digit()), "{job:?}");
    assert!(!job.name.contains(['|', '\n']) && !job.user.contains(['|', '\n']), "{job:?}");
    assert!(job.nodes.iter().all(|node| is_host_name(node)), "{job:?}");
    assert_eq!(job.details.len(), 19, "{job:?}");
}
