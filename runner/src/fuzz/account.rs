//! What `getent passwd` and `id` say about an account, over ssh.

use super::{Outcome, Target, cuts, text};
use crate::command::Output;
use crate::domain::user::{User, check_user_name};
use crate::error::Result;
use crate::scheduler::slurm::judge_user;
use std::process::ExitStatus;

pub(super) const TARGET: Target = Target {
    name: "account",
    tokens: &["bwvisu-end 0\n", "bwvisu-end 2\n", "bwvisu-end", "alice:x:2001:2001::/home/alice:/bin/bash\n", ":", "\n", "\r\n"],
    check,
};

fn judge(stdout: &str) -> Result<Option<User>> {
    judge_user(&Output { status: ExitStatus::default(), stdout: stdout.to_owned(), stderr: String::new() })
}

fn check(input: &[u8]) -> Outcome {
    let text = match text(input) {
        Ok(text) => text,
        Err(outcome) => return outcome,
    };
    let answer = match judge(text) {
        Ok(answer) => answer,
        Err(error) => return Outcome::refused(error),
    };
    assert!(text.lines().last().is_some_and(|line| line.starts_with("bwvisu-end")), "an answer without an end");
    if let Some(user) = &answer {
        check_user_name(&user.name).expect("a name that may be passed on");
        assert!(user.groups.iter().all(|group| !group.contains(char::is_whitespace)));
    }
    // What was cut off says nothing of an account, and above all not that there is none.
    for at in cuts(text) {
        assert!(judge(&text[..at]).is_err(), "cut at {at}, and taken for whole");
    }
    Outcome::accepted(format_args!("{} {}", answer.is_some(), answer.map_or(0, |user| user.groups.len().min(3))))
}
