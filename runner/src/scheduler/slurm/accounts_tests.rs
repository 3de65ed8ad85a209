//! What `sacct` said on real clusters, recorded.

use super::*;
use crate::domain::job::Outcome;
use crate::error::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

fn output(code: i32, stdout: &str, stderr: &str) -> Output {
    Output { status: ExitStatus::from_raw(code << 8), stdout: stdout.into(), stderr: stderr.into() }
}

/// Slurm 22.05 and 24.11 tell the same of the same jobs.
const ACCOUNTS: &str = "bwvisu-begin
1|COMPLETED|0:0|alice|bwvisu-1-aa
2|FAILED|3:0|alice|bwvisu-2-bb
3|FAILED|0:9|alice|bwvisu-3-cc
4|CANCELLED by 20101|0:0|alice|bwvisu-4-dd
6|TIMEOUT|0:0|alice|bwvisu-6-ff
7|RUNNING|0:0|alice|bwvisu-7-gg
bwvisu-end
";

#[test]
fn accounts_tell_outcome_and_exit_code_of_what_has_ended() {
    let ended = judge(&output(0, ACCOUNTS, "")).unwrap().unwrap();
    let told: Vec<_> = ended.iter().map(|one| (one.scheduler_job_id.as_str(), one.outcome, one.exit_code)).collect();
    let expected = [
        ("1", Outcome::Completed, Some(0)),
        ("2", Outcome::Failed, Some(3)),
        ("3", Outcome::Failed, Some(137)),
        ("4", Outcome::Cancelled, Some(0)),
        ("6", Outcome::Timeout, Some(0)),
    ];
    assert_eq!(told, expected);
    assert_eq!((ended[0].name.as_str(), ended[0].user.as_str()), ("bwvisu-1-aa", "alice"));
}

#[test]
fn no_accounts_and_accounts_that_are_away_are_two_things() {
    let begin = "bwvisu-begin\n";
    let away = "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:ctl:6819: \
                Connection refused\nsacct: error: Problem talking to the database: Connection refused\n";
    let cases = [
        (output(1, begin, "Slurm accounting storage is disabled\n"), Ok(None)),
        (output(127, begin, "sh: 4: sacct: not found\n"), Ok(None)),
        (output(0, "bwvisu-begin\nbwvisu-end\n", ""), Ok(Some(0))),
        (output(1, begin, away), Err(ErrorKind::BadGateway)),
        (output(0, &ACCOUNTS[..60], ""), Err(ErrorKind::BadGateway)),
        (output(0, "", ""), Err(ErrorKind::BadGateway)),
    ];
    for (output, expected) in cases {
        let judged = judge(&output).map(|accounts| accounts.map(|list| list.len())).map_err(|error| error.kind);
        assert_eq!(judged, expected, "{output:?}");
    }
}

#[test]
fn a_line_that_is_no_entry_is_left_out_and_a_name_may_hold_anything() {
    let lines = ["", "x", "7|FAILED|3:0|alice", "7|NEW_WORD|0:0|alice|n"];
    lines.iter().for_each(|line| assert_eq!(entry(line), None, "{line:?}"));
    assert_eq!(entry("7|FAILED|3:0|alice|a|b").unwrap().name, "a|b");
}

#[test]
fn thousands_of_ids_stay_below_the_limit_of_one_argument() {
    let ids: Vec<String> = (0..25_000).map(|i| (4_000_000_000_u64 + i).to_string()).collect();
    let script = script(&ids);
    assert_eq!(script.matches("answer=$(ask sacct)").count(), 3);
    assert!(script.lines().all(|line| line.len() < 128 << 10));
}
