//! What users may try against the runner and against other users' jobs.

use crate::bench::Bench;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Shows the session and the terminal of the job, and tries to open the latter.
const LOOK_FOR_TERMINAL: &str = "read -r line </proc/$$/stat; set -- ${line##*) }; echo \"$4 $5\" >session\n\
                                 (exec 9<>/dev/tty) 2>refusal && echo open >refusal; true";

#[test]
fn a_job_has_no_terminal_even_if_its_runner_has_one() {
    let inner = format!("{} --exact --ignored --nocapture attacks::in_a_terminal", std::env::current_exe().unwrap().display());
    let output = Command::new("script").args(["-qec", &inner, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let story = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && story.contains("1 passed"), "{story}");
}

#[test]
#[ignore = "run by a_job_has_no_terminal_even_if_its_runner_has_one, which gives it a terminal"]
fn in_a_terminal() {
    fs::File::open("/dev/tty").expect("the runner has a terminal");
    let bench = Bench::new();
    bench.submit("typist", LOOK_FOR_TERMINAL);
    bench.ended("typist");
    without_terminal(&bench);
}

fn without_terminal(bench: &Bench) {
    let read = |file: &str| fs::read_to_string(bench.home().join(file)).unwrap();
    let own = rustix::process::getsid(None).unwrap().as_raw_pid().to_string();
    let (session, refusal) = (read("session"), read("refusal"));
    let (session, terminal) = session.trim().split_once(' ').unwrap();
    assert!(session != own && terminal == "0", "session {session}, ours {own}, terminal {terminal}");
    assert!(refusal.contains("No such device or address"), "{refusal}");
}

/// As a shell does when somebody starts it by hand.
#[test]
fn a_shepherd_that_leads_a_process_group_leaves_its_session_all_the_same() {
    let bench = Bench::new();
    let folder = bench.spool().join("7");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("job.json"), bench.record("by-hand", &folder).to_string()).unwrap();
    let mut shepherd = Command::new(env!("CARGO_BIN_EXE_bwvisu-runner"));
    shepherd.arg("local-job").arg(&folder).process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut shepherd = shepherd.spawn().unwrap();
    let script = format!("{}\n{LOOK_FOR_TERMINAL}", LOOK_FOR_TERMINAL.len());
    std::io::Write::write_all(&mut shepherd.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(shepherd.wait().unwrap().success());
    without_terminal(&bench);
}
