//! Restarts, kills, refusals, and what is left after them.

use crate::bench::{Bench, gone, kill, options, own_uid, until};
use bwvisu_runner::domain::job::{Outcome, Phase};
use bwvisu_runner::domain::user::User;
use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::scheduler::local::{Local, LocalOptions};
use bwvisu_runner::scheduler::{Before, Scheduler, Submission};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_runner_that_starts_again_finds_its_jobs() {
    let mut bench = Bench::new();
    let id = bench.submit("survivor", "sleep 1; until [ -e go ]; do sleep 0.05; done; echo survived");
    bench.running("survivor");
    bench.local = Local::open(&bench.spool(), options()).unwrap();
    assert_eq!(bench.seen("survivor").unwrap().phase, Phase::Running);
    assert_eq!(bench.submit("survivor", "exit 9"), id, "the same name is the same job");
    fs::write(bench.home().join("go"), "").unwrap();
    assert_eq!(bench.ended("survivor").phase, Phase::Ended(Outcome::Completed));
    assert_eq!(bench.log("survivor"), "survived\n");
    assert_eq!(bench.submit("survivor", "exit 9"), id, "also when it has ended");
}

#[test]
fn when_a_shepherd_is_killed_its_job_has_failed_and_its_processes_end() {
    let bench = Bench::new();
    let id = bench.submit("orphan", "setsid sleep 600 & echo $! >far\nsleep 600 & echo $! >near\nwait");
    let (far, near) = (bench.pid("far"), bench.pid("near"));
    bench.running("orphan");
    kill(bench.shepherd(&id));
    let seen = bench.ended("orphan");
    assert_eq!((seen.phase, seen.reason.as_deref()), (Phase::Ended(Outcome::NodeFail), Some("the shepherd vanished")));
    gone(far);
    gone(near);
    assert_eq!(bench.ended("orphan").details["JobState"], "NODE_FAIL");
}

#[test]
fn when_the_shepherd_of_a_waiting_job_is_killed_the_queue_goes_on() {
    let bench = Bench::with(LocalOptions { slots: 1, ..options() });
    let first = bench.submit("first", "sleep 600");
    let second = bench.submit("second", "true");
    bench.submit("third", "true");
    kill(bench.shepherd(&second));
    assert_eq!(bench.ended("second").phase, Phase::Ended(Outcome::NodeFail));
    kill(bench.shepherd(&first));
    assert_eq!(bench.ended("third").phase, Phase::Ended(Outcome::Completed));
    bench.ended("first");
}

#[test]
fn submissions_at_the_same_time_get_different_ids_and_the_same_name_gets_one() {
    let bench = Bench::new();
    let submit = |name: String| bench.submit(&name, "echo once >>count");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20).map(|n| scope.spawn(move || submit(format!("job-{n}")))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 20, "{ids:?}");
    let same: BTreeSet<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..5).map(|_| scope.spawn(|| bench.submit("same", "echo same >>same"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(same.len(), 1);
    for name in (0..20).map(|n| format!("job-{n}")).chain(["same".into()]) {
        assert_eq!(bench.ended(&name).phase, Phase::Ended(Outcome::Completed), "{name}");
    }
    assert_eq!(fs::read_to_string(bench.home().join("count")).unwrap().lines().count(), 20);
    assert_eq!(fs::read_to_string(bench.home().join("same")).unwrap(), "same\n");
}

#[test]
fn nobody_else_may_submit_and_root_never() {
    let bench = Bench::new();
    let folder = bench.home();
    let submit = |user: &User, folder: &str, script: &str| {
        bench.local.submit(&Submission { name: "x", user, folder, log: "x.out", script }, &Before::nothing()).unwrap_err()
    };
    let home = folder.to_str().unwrap();
    let root = User { name: "root".into(), uid: 0, gid: 0, groups: Vec::new() };
    assert_eq!(submit(&root, home, "true").kind, ErrorKind::BadInput);
    if own_uid() != 0 {
        let other = User { uid: own_uid() + 1, ..bench.user.clone() };
        let error = submit(&other, home, "true");
        assert!(error.kind == ErrorKind::BadInput && error.message.contains("own user"), "{error}");
    }
    fs::write(folder.join("file"), "").unwrap();
    for missing in [format!("{home}/missing"), format!("{home}/file")] {
        let error = submit(&bench.user, &missing, "true");
        assert!(error.kind == ErrorKind::BadGateway && error.message.contains(&missing), "{error}");
    }
    assert!(submit(&bench.user, home, "#SBATCH --time=soon\n").message.contains("soon"));
    assert_eq!(bench.seen("x"), None, "nothing of it is left");
}

#[test]
fn a_job_that_cannot_write_its_log_says_so() {
    let bench = Bench::new();
    let folder = bench.home();
    fs::create_dir(folder.join("deaf.out")).unwrap();
    bench.submit("deaf", "echo never >ran");
    let seen = bench.ended("deaf");
    assert_eq!(seen.phase, Phase::Ended(Outcome::Failed));
    assert!(seen.reason.as_deref().unwrap_or_default().contains("deaf.out"), "{seen:?}");
    assert!(!folder.join("ran").exists());
}

#[test]
fn ended_jobs_are_shown_for_a_while_and_then_removed_and_running_ones_never() {
    let bench = Bench::with(LocalOptions { keep: Duration::ZERO, ..options() });
    let kept = bench.submit("kept", "sleep 600");
    bench.running("kept");
    let id = bench.submit("brief", "true");
    let folder = bench.spool().join(&id);
    let gone = || bench.local.look(&[]).unwrap().is_empty() && !folder.exists();
    until("the folder is removed", || gone().then_some(()), String::new);
    assert_eq!(bench.seen("brief"), None);
    assert!(bench.spool().join(&kept).exists());
    assert_ne!(bench.submit("another", "true"), id, "ids are not used again");
}

#[test]
fn a_submission_that_cannot_be_served_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    for (program, message) in [("/nonexistent/program", "cannot start a process"), ("/bin/true", "did not answer")] {
        let bench = Bench::with(LocalOptions { program: Some(program.into()), ..options() });
        let folder = root.path().to_str().unwrap();
        let submission = Submission { name: "x", user: &bench.user, folder, log: "x.out", script: &"#".repeat(200_000) };
        let error = bench.local.submit(&submission, &Before::nothing()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(error.message.contains(message), "{error}");
        assert_eq!(bench.seen("x"), None);
    }
}

#[test]
fn a_runner_that_dies_while_it_submits_leaves_no_half_of_a_job() {
    let bench = Bench::new();
    let folder = bench.spool().join("7");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("job.json"), bench.record("half", &folder).to_string()).unwrap();
    let mut shepherd = Command::new(env!("CARGO_BIN_EXE_bwvisu-runner"));
    let mut shepherd = shepherd
        .arg("local-job")
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut shepherd.stdin.take().unwrap(), b"100\necho half >ran\n").unwrap();
    let output = shepherd.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("cut off"), "{output:?}");
    assert_eq!(bench.seen("half"), None);
    assert!(!folder.exists() && !bench.home().join("ran").exists());
    assert_eq!(bench.submit("next", "true"), "1");
}

#[test]
fn a_runner_that_is_killed_loses_nothing() {
    let bench = Bench::new();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "faults::submit_and_die"])
        .env("LOCAL_SPOOL", bench.spool())
        .env("LOCAL_HOME", bench.home())
        .output()
        .unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(9), "{output:?}");
    assert_eq!(bench.running("bereft").scheduler_job_id, "1");
    fs::write(bench.home().join("go"), "").unwrap();
    assert_eq!(bench.ended("bereft").phase, Phase::Ended(Outcome::Completed));
    assert_eq!(bench.log("bereft"), "still here\n");
}

#[test]
#[ignore = "run by a_runner_that_is_killed_loses_nothing, as the runner that is killed"]
fn submit_and_die() {
    let [spool, home] = ["LOCAL_SPOOL", "LOCAL_HOME"].map(|name| PathBuf::from(std::env::var_os(name).unwrap()));
    let local = Local::open(&spool, options()).unwrap();
    let user = crate::bench::user(&local);
    let script = "until [ -e go ]; do sleep 0.05; done; echo still here";
    let folder = home.to_str().unwrap();
    local.submit(&Submission { name: "bereft", user: &user, folder, log: "bereft.out", script }, &Before::nothing()).unwrap();
    kill(i32::try_from(std::process::id()).unwrap());
}
