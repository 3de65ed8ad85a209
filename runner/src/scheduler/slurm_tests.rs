//! What our words to Slurm look like, and what its words mean.

use super::*;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

fn output(code: i32, stdout: &str, stderr: &str) -> Output {
    Output { status: ExitStatus::from_raw(code << 8), stdout: stdout.into(), stderr: stderr.into() }
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
    // What is no id of Slurm's is none, whoever has written it there.
    for words in ["Submitted", "0", "007", "4294967296", &"7".repeat(140_000)] {
        assert_eq!(
            judge_sbatch(&output(0, words, "")).unwrap_err().kind,
            ErrorKind::Unknown,
            "{}",
            &words[..words.len().min(20)]
        );
    }
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
fn sbatch_gets_everything_by_argument_but_the_script() {
    let user = User { name: "alice".into(), uid: 2001, gid: 2001, groups: Vec::new() };
    let submission =
        Submission { name: "bwvisu-7-x", user: &user, folder: "/srv/ho me/alice", log: "bwvisu-job-7.out", script: "secret" };
    let line = sbatch_line(&submission);
    let sbatch = "sudo -n -u alice sbatch --parsable --job-name=bwvisu-7-x '--chdir=/srv/ho me/alice' --output=bwvisu-job-7.out";
    assert_eq!(line, format!("exec {sbatch}"));
    assert!(!line.contains("secret"), "{line}");
}
