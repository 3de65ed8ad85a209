//! What our words to Slurm look like, and what its words mean.

use super::*;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

fn output(code: i32, stdout: &str, stderr: &str) -> Output {
    Output { status: ExitStatus::from_raw(code << 8), stdout: stdout.into(), stderr: stderr.into() }
}

/// As squeue of Slurm 22.05 printed it.
const LINE: &str = "12|bwvisu-7-0a1b2c3d|alice|RUNNING|1|0|c[0-1]|None|(null)|main|normal|5:00|2026-11-22T01:36:15|2026-11-22T01:36:16|\
2026-11-22T01:41:16|2|2|2|0|cpu=2,node=2,billing=2|c0|2001|alice|(null)|";

#[test]
fn a_line_of_squeue_is_read() {
    let seen = parse_line(LINE).unwrap();
    assert_eq!((seen.scheduler_job_id.as_str(), seen.name.as_str(), seen.user.as_str()), ("12", "bwvisu-7-0a1b2c3d", "alice"));
    assert_eq!((seen.phase, seen.run, seen.nodes), (Phase::Running, 1, vec!["c0".to_owned(), "c1".to_owned()]));
    assert_eq!(seen.details["Partition"], "main");
    assert_eq!(seen.reason, None);
}

/// As squeue of Slurm 26.05 printed them; 24.11 does the same.
const NEWER: [(&str, Phase, Option<i32>); 4] = [
    (
        "4|bwvisu-4-dd|alice|CANCELLED|0|0:15|c0|None|(null)|all|(null)|UNLIMITED|2026-11-22T08:41:37|2026-11-22T08:41:37|\
         2026-11-22T08:41:41|1|1|1|0|cpu=1,node=1,billing=1|c0|20101|alice|(null)|",
        Phase::Ended(Outcome::Cancelled),
        Some(143),
    ),
    (
        "5|bwvisu-5-ee|alice|CANCELLED|0|0:0||JobHeldUser|(null)|all|(null)|UNLIMITED|2026-11-22T08:41:37|2026-11-22T08:41:41|\
         2026-11-22T08:41:41|1|1|4294967294|0|cpu=1,mem=1000M,node=1,billing=1|n/a|20101|alice|(null)|",
        Phase::Ended(Outcome::Cancelled),
        Some(0),
    ),
    (
        "2|bwvisu-2-bb|alice|FAILED|0|3:0|c0|NonZeroExitCode|(null)|all|(null)|UNLIMITED|2026-11-22T08:41:37|2026-11-22T08:41:37|\
         2026-11-22T08:41:38|1|1|1|0|cpu=1,node=1,billing=1|c0|20101|alice|(null)|",
        Phase::Ended(Outcome::Failed),
        Some(3),
    ),
    (
        "6|bwvisu-7-gg|alice|RUNNING|0|0:0|c[0-1]|None|(null)|all|(null)|UNLIMITED|2026-11-22T08:41:37|2026-11-22T08:41:37|NONE|\
         2|2|2|0|cpu=2,node=2,billing=2|c0|20101|alice|(null)|",
        Phase::Running,
        Some(0),
    ),
];

#[test]
fn lines_of_newer_squeues_are_read() {
    for (line, phase, exit_code) in NEWER {
        let seen = parse_line(line).unwrap_or_else(|| panic!("{line}"));
        assert_eq!((seen.phase, seen.exit_code), (phase, exit_code), "{line}");
    }
}

#[test]
fn an_answer_counts_only_when_it_is_complete_and_every_line_can_be_read() {
    let cases = [
        (output(0, &format!("{BEGIN}\n{LINE}\n{END}\n"), ""), Some(1)),
        (output(0, &format!("Welcome!\n\n{BEGIN}\n{LINE}\n{END}\n"), ""), Some(1)),
        (output(0, &format!("{BEGIN}\n{END}\n"), ""), Some(0)),
        (output(0, &format!("{LINE}\n{END}\n"), ""), None),
        (output(0, &format!("{BEGIN}\n{LINE}\n"), ""), None),
        (output(0, &format!("{BEGIN}\n{}\n{END}\n", &LINE[..60]), ""), None),
        (output(0, &format!("{BEGIN}\ngarbage\n{END}\n"), ""), None),
        (output(1, &format!("{BEGIN}\n{LINE}\n{END}\n"), "slurm_load_jobs error"), None),
        (output(0, "", ""), None),
    ];
    for (output, expected) in cases {
        assert_eq!(judge_squeue(&output).ok().map(|seen| seen.len()), expected, "{output:?}");
    }
}

#[test]
fn every_state_of_slurms_manual_has_its_phase() {
    let waiting = ["PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"];
    let running = ["RUNNING", "RESIZING", "SIGNALING", "SUSPENDED", "STOPPED"];
    let ended = [
        ("BOOT_FAIL", Outcome::BootFail),
        ("CANCELLED by 1000", Outcome::Cancelled),
        ("CANCELLED", Outcome::Cancelled),
        ("COMPLETED", Outcome::Completed),
        ("DEADLINE", Outcome::Deadline),
        ("FAILED", Outcome::Failed),
        ("NODE_FAIL", Outcome::NodeFail),
        ("OUT_OF_MEMORY", Outcome::OutOfMemory),
        ("PREEMPTED", Outcome::Preempted),
        ("REVOKED", Outcome::Cancelled),
        ("TIMEOUT", Outcome::Timeout),
    ];
    waiting.iter().for_each(|word| assert_eq!(phase(word), Phase::Waiting, "{word}"));
    running.iter().for_each(|word| assert_eq!(phase(word), Phase::Running, "{word}"));
    ended.iter().for_each(|(word, outcome)| assert_eq!(phase(word), Phase::Ended(*outcome), "{word}"));
    ["COMPLETING", "STAGE_OUT"].iter().for_each(|word| assert_eq!(phase(word), Phase::Completing, "{word}"));
    assert_eq!(phase("BRAND_NEW"), Phase::Unclear("BRAND_NEW".into()));
}

#[test]
fn exit_codes_and_signals_are_told_as_shells_do() {
    let cases = [("0", 0), ("768", 3), ("9", 137), ("0:0", 0), ("3:0", 3), ("0:9", 137)];
    cases.iter().for_each(|(words, code)| assert_eq!(exit_code(words), Some(*code), "{words}"));
    ["", ":", "x", "0:", "1:x", "0:2147483647"].iter().for_each(|words| assert_eq!(exit_code(words), None, "{words:?}"));
}

#[test]
fn the_words_of_sbatch_decide_whether_it_may_have_happened() {
    let cases = [
        ("sudo: a password is required", ErrorKind::Unavailable),
        ("sudo: unable to resolve host cmd0 sbatch: error: Invalid qos specification", ErrorKind::BadGateway),
        ("bash: line 1: sbatch: command not found", ErrorKind::Unavailable),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            ErrorKind::Unavailable,
        ),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", ErrorKind::Unknown),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", ErrorKind::BadGateway),
        ("", ErrorKind::Unknown),
    ];
    for (stderr, kind) in cases {
        assert_eq!(judge_sbatch(&output(1, "", stderr)).unwrap_err().kind, kind, "{stderr}");
    }
    assert_eq!(judge_sbatch(&output(0, "123;cluster\n", "")).unwrap(), "123");
    assert_eq!(judge_sbatch(&output(0, "Welcome!\n123\n", "")).unwrap(), "123");
    assert_eq!(judge_sbatch(&output(0, "Submitted\n", "")).unwrap_err().kind, ErrorKind::Unknown);
}

#[test]
fn a_job_that_may_be_there_is_never_called_refused_nor_tried_elsewhere() {
    let named = output(1, "123\n", "sudo: cannot write the log");
    let killed = output(137, "", "Killed");
    let killed_and_muttering = output(143, "", "sudo: unable to resolve host cmd0\nTerminated");
    for case in [named, killed, killed_and_muttering] {
        assert_eq!(judge_sbatch(&case).unwrap_err().kind, ErrorKind::Unknown, "{case:?}");
    }
    assert_eq!(judge_sbatch(&output(254, "", "sbatch: error: no such option")).unwrap_err().kind, ErrorKind::BadGateway);
}

#[test]
fn cancelling_what_has_ended_is_fine() {
    assert!(judge_scancel(&output(1, "", "scancel: error: Kill job error on job id 99: Invalid job id specified")).is_ok());
    assert!(judge_scancel(&output(1, "", "scancel: error: Unable to contact slurm controller")).is_err());
}

#[test]
fn an_account_is_there_or_not_or_nobody_could_tell() {
    let found = judge_user(&output(0, "Welcome!\nalice:x:2001:2001::/home/alice:/bin/bash\nalice vis\nbwvisu-end 0\n", ""))
        .unwrap()
        .unwrap();
    assert_eq!((found.uid, found.groups), (2001, vec!["alice".to_owned(), "vis".to_owned()]));
    assert_eq!(judge_user(&output(0, "bwvisu-end 2\n", "")).unwrap(), None);
    assert!(judge_user(&output(0, "bwvisu-end 127\n", "getent: not found")).is_err());
    assert!(judge_user(&output(0, "", "")).is_err());
}

#[test]
fn thousands_of_names_stay_below_the_limit_of_one_argument() {
    let names: Vec<String> = (0..10_000).map(|i| format!("bwvisu-{}-0a1b2c3d4e5f", u64::MAX / 2 - i)).collect();
    let script = squeue_script(&names);
    assert_eq!(script.matches("squeue").count(), 4);
    assert!(script.lines().all(|line| line.len() < 128 << 10));
}

#[test]
fn sbatch_gets_everything_by_argument_but_the_script() {
    let user = User { name: "alice".into(), uid: 2001, gid: 2001, groups: Vec::new() };
    let submission =
        Submission { name: "bwvisu-7-x", user: &user, folder: "/srv/ho me/alice", log: "bwvisu-job-7.out", script: "secret" };
    let line = sbatch_line(&submission);
    let sbatch = "sudo -n -u alice sbatch --parsable --job-name=bwvisu-7-x '--chdir=/srv/ho me/alice' --output=bwvisu-job-7.out";
    assert_eq!(line, format!("exec {sbatch}"));
    assert!(!line.contains("secret"), "{line}");
}
