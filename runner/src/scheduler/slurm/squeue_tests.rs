//! What we ask of squeue, and what its words mean.

use super::*;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

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

fn wanted(id: Option<&str>) -> Wanted {
    Wanted { name: "bwvisu-7-0a1b2c3d".into(), scheduler_job_id: id.map(str::to_owned) }
}

#[test]
fn thousands_of_names_stay_below_the_limit_of_one_argument() {
    let name = |i| format!("bwvisu-{}-0a1b2c3d4e5f", u64::MAX / 2 - i);
    let wanted: Vec<_> = (0..10_000).map(|i| Wanted { name: name(i), scheduler_job_id: Some(i.to_string()) }).collect();
    let script = by_name_script(&wanted);
    assert_eq!(script.matches("squeue").count(), 4);
    assert!(script.lines().all(|line| line.len() < 128 << 10));
}

#[test]
fn jobs_are_asked_for_by_ids_when_all_are_known_and_look_like_slurms() {
    let known = Some(vec![("12", "bwvisu-7-0a1b2c3d"); 2]);
    assert_eq!(ids(&[wanted(Some("12")), wanted(Some("12"))]), known);
    for other in [None, Some("12; id"), Some(""), Some("012")] {
        assert_eq!(ids(&[wanted(Some("12")), wanted(other)]), None, "{other:?}");
    }
}

/// What the script for one job prints where `sudo` is this program.
fn asked_with(sudo: &str, wanted: &[Wanted]) -> Vec<(String, Output)> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("sudo"), format!("#!/bin/sh\n{sudo}\n")).unwrap();
    std::fs::set_permissions(folder.path().join("sudo"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let run = |shell: &str| {
        let mut words = shell.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env("PATH", &path);
        let deadline = Instant::now() + Duration::from_secs(20);
        (shell.to_owned(), crate::command::run(&mut command, by_id_script(&ids(wanted).unwrap()).as_bytes(), deadline).unwrap())
    };
    ["dash", "bash", "busybox sh"].into_iter().map(run).collect()
}

#[test]
fn a_look_by_id_knows_a_job_that_slurm_has_forgotten_from_a_squeue_that_failed() {
    let known = format!("echo '{LINE}'; echo 'sudo: unable to resolve host cmd0' >&2");
    let forgotten = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1";
    let one_of_two = format!("case $* in *--jobs=13*) {forgotten} ;; esac; {known}");
    let away = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1";
    let other_words = "case $* in *'squeue --noheader --states=all --jobs=12 --name=bwvisu-7-0a1b2c3d '*) ;; *) exit 3 ;; esac";
    let cases = [
        (known.as_str(), Some(2)),
        (forgotten, Some(0)),
        (one_of_two.as_str(), Some(1)),
        (away, None),
        ("exit 1", None),
        ("exit 0", Some(0)),
        (&format!("{other_words}; {known}"), None),
    ];
    for (sudo, expected) in cases {
        for (shell, output) in asked_with(sudo, &[wanted(Some("12")), wanted(Some("13"))]) {
            assert_eq!(judge_squeue(&output).ok().map(|seen| seen.len()), expected, "{shell}: {sudo}: {output:?}");
        }
    }
    for (shell, output) in asked_with(&format!("{other_words}; {known}"), &[wanted(Some("12"))]) {
        assert_eq!(judge_squeue(&output).unwrap().len(), 1, "{shell}: {output:?}");
    }
}

#[test]
fn of_a_look_that_was_made_together_each_gets_what_has_the_name() {
    let named = |name: &str| Wanted { name: name.into(), scheduler_job_id: None };
    let seen = |id: &str, name: &str| Seen { scheduler_job_id: id.into(), name: name.into(), ..parse_line(LINE).unwrap() };
    let all = [seen("1", "bwvisu-1-a"), seen("2", "bwvisu-2-b"), seen("3", "bwvisu-1-a")];
    let shares = shares(&[named("bwvisu-2-b"), named("bwvisu-1-a"), named("bwvisu-9-z")], &all);
    let ids = |share: &Vec<Seen>| share.iter().map(|seen| seen.scheduler_job_id.clone()).collect::<Vec<_>>().join(" ");
    assert_eq!(shares.iter().map(ids).collect::<Vec<_>>(), ["2", "1 3", ""]);
}

#[test]
fn an_overview_is_believed_as_a_whole_or_not_at_all() {
    let first = "12|alice|RUNNING|1|2026-11-22T01:36:15|c[0-1]|";
    let second = "13|bob|PENDING|0|2026-11-22T01:36:15||";
    let cases = [
        (format!("Welcome!\n{BEGIN}\n{first}\n{second}\n{END}\n"), Some(2)),
        (format!("{BEGIN}\n{END}\n"), Some(0)),
        (format!("{BEGIN}\n{first}\n{second}\n"), None),
        (format!("{BEGIN}\n{first}\n{}\n{END}\n", &second[..20]), None),
        (format!("{BEGIN}\n{first}\nn/a{second}\n{END}\n"), None),
        (format!("{BEGIN}\n{first}more|\n{END}\n"), None),
    ];
    for (stdout, expected) in cases {
        let jobs = judge_overview(&output(0, &stdout, ""));
        assert_eq!(jobs.as_ref().ok().map(HashMap::len), expected, "{stdout}: {jobs:?}");
        assert!(judge_overview(&output(1, &stdout, "")).is_err(), "{stdout}");
    }
    let jobs = judge_overview(&output(0, &format!("{BEGIN}\n{first}\n{END}\n"), "")).unwrap();
    assert_eq!(jobs["12"], "alice|RUNNING|1|2026-11-22T01:36:15|c[0-1]");
    assert_eq!(overview_script().matches("squeue").count(), 1);
}
