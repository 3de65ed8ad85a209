//! What users may try against the runner and against other users' jobs.

use crate::bench::{Bench, gone, kill, lives, until};
use bwvisu_runner::domain::job::{Outcome, Phase};
use bwvisu_runner::scheduler::{Before, Scheduler, Submission};
use std::collections::BTreeSet;
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

/// The session of this process, from the text behind its name in brackets. It is 0, which no library call returns, when the session's
/// leader lives outside of our PID namespace, as in a container.
fn own_session() -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned()
}

fn without_terminal(bench: &Bench) {
    let read = |file: &str| fs::read_to_string(bench.home().join(file)).unwrap();
    let own = own_session();
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

/// A process that ignores all signals that it can, has left its session, and whose first thread has ended: it looks dead.
const GHOST: &str = r#"cat >ghost.py <<'END'
import ctypes, os, platform, signal, threading, time
for number in set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
threading.Thread(target=lambda: time.sleep(600)).start()
open("ghost", "w").write(str(os.getpid()))
ctypes.CDLL(None).syscall(93 if platform.machine() == "aarch64" else 60, 0)
END
python3 ghost.py
sleep 600"#;

/// Submits a job with such a process; the job's id, and the process.
fn haunted(bench: &Bench) -> (String, i32) {
    let id = bench.submit("haunted", GHOST);
    let ghost = bench.pid("ghost");
    let state = || fs::read_to_string(format!("/proc/{ghost}/stat")).unwrap_or_default();
    until("its first thread has ended", || state().contains(") Z ").then_some(()), || bench.log("haunted"));
    assert!(lives(ghost));
    (id, ghost)
}

#[test]
fn a_process_whose_first_thread_has_ended_does_not_survive_its_job() {
    let bench = Bench::new();
    let (id, ghost) = haunted(&bench);
    bench.cancel(&id);
    let seen = bench.ended("haunted");
    assert_eq!((seen.phase, seen.reason), (Phase::Ended(Outcome::Cancelled), None));
    assert!(!lives(ghost));
}

#[test]
fn a_process_whose_first_thread_has_ended_does_not_survive_the_shepherd() {
    let bench = Bench::new();
    let (id, ghost) = haunted(&bench);
    kill(bench.shepherd(&id));
    assert_eq!(bench.ended("haunted").phase, Phase::Ended(Outcome::NodeFail));
    gone(ghost);
}

#[test]
fn a_log_that_is_no_regular_file_ends_the_job_at_once_and_says_so() {
    let bench = Bench::new();
    for (name, make) in
        [("fifo", "mkfifo -m 666 fifo.out"), ("device", "ln -s /dev/null device.out"), ("pipe", "ln -s fifo.out pipe.out")]
    {
        assert!(Command::new("bash").args(["-c", make]).current_dir(bench.home()).status().unwrap().success(), "{make}");
        bench.submit(name, "echo never >ran");
        let seen = bench.ended(name);
        let reason = seen.reason.unwrap_or_default();
        assert_eq!((seen.phase, seen.exit_code), (Phase::Ended(Outcome::Failed), Some(126)), "{reason}");
        assert_eq!(reason, format!("the log {name}.out is not a regular file; remove it"));
    }
    assert!(!bench.home().join("ran").exists());
}

#[test]
fn a_log_is_appended_to_also_by_way_of_a_link() {
    let bench = Bench::new();
    let real = bench.home().join("real");
    fs::write(&real, "before\n").unwrap();
    std::os::unix::fs::chown(&real, Some(bench.user.uid), Some(bench.user.gid)).unwrap();
    std::os::unix::fs::symlink("real", bench.home().join("linked.out")).unwrap();
    bench.submit("linked", "echo one; : >>linked.out; echo two >&2");
    assert_eq!(bench.ended("linked").phase, Phase::Ended(Outcome::Completed));
    assert_eq!(fs::read_to_string(real).unwrap(), "before\none\ntwo\n");
}

#[test]
fn what_bash_says_of_a_log_is_short_and_obeyed_by_no_terminal_and_in_no_file() {
    let bench = Bench::new();
    let folder = bench.home();
    let evil = format!("missing/\u{1b}[2J\u{202e}root: password expired\u{7}{}", "B".repeat(3000));
    let submission =
        Submission { name: "loud", user: &bench.user, folder: folder.to_str().unwrap(), log: &evil, script: "echo never >ran" };
    let id = bench.local.submit(&submission, &Before::nothing()).unwrap();
    let seen = bench.ended("loud");
    let reason = seen.reason.unwrap_or_default();
    assert_eq!(seen.phase, Phase::Ended(Outcome::Failed));
    assert!(reason.contains(r"missing/\u{1b}[2J\u{202e}root: password expired\u{7}BBB"), "{reason}");
    assert!(reason.chars().count() <= 301, "{reason}");
    let spooled = fs::read_dir(bench.spool().join(&id)).unwrap().flatten().map(|file| file.file_name().into_string().unwrap());
    let spooled: BTreeSet<String> = spooled.collect();
    assert_eq!(spooled, ["alive", "job.json", "queued", "state.json"].map(str::to_owned).into());
}
