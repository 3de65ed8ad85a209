//! The local scheduler with real processes: shepherds, bash, signals, and the runner's program.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bwvisu_runner::domain::job::{Outcome, Phase, Seen};
use bwvisu_runner::domain::user::User;
use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::scheduler::local::{Local, LocalOptions};
use bwvisu_runner::scheduler::{Scheduler, Submission};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A spool, a folder that jobs run in, and a user who may run them: `nobody` where the tests run as root, else who runs them.
struct Bench {
    root: tempfile::TempDir,
    local: Local,
    user: User,
}

fn options() -> LocalOptions {
    let program = Some(PathBuf::from(env!("CARGO_BIN_EXE_bwvisu-runner")));
    LocalOptions { program, slots: 8, keep: Duration::from_secs(300), grace: Duration::from_secs(1) }
}

fn own_uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

impl Bench {
    fn new() -> Self {
        Self::with(options())
    }

    fn with(options: LocalOptions) -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let local = Local::open(&root.path().join("spool"), options).unwrap();
        let name = if own_uid() == 0 { "nobody".to_owned() } else { own_uid().to_string() };
        let user = local.user(&name).unwrap().unwrap();
        chown(&home, Some(user.uid), Some(user.gid)).unwrap();
        Self { root, local, user }
    }

    fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    fn spool(&self) -> PathBuf {
        self.root.path().join("spool")
    }

    fn submit(&self, name: &str, script: &str) -> String {
        let folder = self.home();
        let log = format!("{name}.out");
        let submission = Submission { name, user: &self.user, folder: folder.to_str().unwrap(), log: &log, script };
        self.local.submit(&submission).unwrap()
    }

    fn seen(&self, name: &str) -> Option<Seen> {
        self.local.list(&[name.to_owned()]).unwrap().pop()
    }

    fn cancel(&self, id: &str) {
        self.local.cancel(&self.user.name, id).unwrap();
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.home().join(format!("{name}.out"))).unwrap_or_default()
    }

    fn wait(&self, name: &str, what: &str, done: impl Fn(&Seen) -> bool) -> Seen {
        until(
            &format!("{name} {what}"),
            || self.seen(name).filter(&done),
            || format!("{:?}\n{}", self.seen(name), self.log(name)),
        )
    }

    fn ended(&self, name: &str) -> Seen {
        self.wait(name, "has ended", |seen| matches!(seen.phase, Phase::Ended(_)))
    }

    fn running(&self, name: &str) -> Seen {
        self.wait(name, "runs", |seen| seen.phase == Phase::Running)
    }

    /// The number that the job `name` has written into the file `file`.
    fn pid(&self, file: &str) -> i32 {
        let path = self.home().join(file);
        let read = || fs::read_to_string(&path).ok()?.trim().parse().ok();
        until(&format!("{file} holds a number"), read, || fs::read_to_string(&path).unwrap_or_default())
    }

    fn shepherd(&self, id: &str) -> i32 {
        let state = fs::read(self.spool().join(id).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        i32::try_from(state["shepherd"]["pid"].as_i64().unwrap()).unwrap()
    }
}

/// No test leaves a process behind, whatever became of it.
impl Drop for Bench {
    fn drop(&mut self) {
        let jobs = fs::read_dir(self.spool()).into_iter().flatten().flatten();
        for id in jobs.filter_map(|entry| entry.file_name().into_string().ok()) {
            let _ = self.local.cancel(&self.user.name, &id);
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) && !mentions(self.root.path().to_str().unwrap()).is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn until<T>(what: &str, look: impl Fn() -> Option<T>, story: impl Fn() -> String) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "not in time: {what}\n{}", story());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn gone(pid: i32) {
    until(&format!("process {pid} is gone"), || (!lives(pid)).then_some(()), || format!("{pid} lives"));
}

fn kill(pid: i32) {
    assert!(Command::new("kill").args(["-9", "--", &pid.to_string()]).status().unwrap().success());
}

/// The processes with this text among their arguments or in their environment.
fn mentions(text: &str) -> Vec<String> {
    let holds = |path: PathBuf| fs::read(path).is_ok_and(|bytes| contains(&bytes, text));
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let others = processes.filter(|pid| pid.parse::<u32>().is_ok_and(|pid| pid != std::process::id()));
    others.filter(|pid| ["cmdline", "environ"].iter().any(|file| holds(Path::new("/proc").join(pid).join(file)))).collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_script_ends_as_it_says_and_its_output_is_in_the_log() {
    let large = "x".repeat(150_000);
    let cases = [
        ("success", "echo done; echo problem >&2".to_owned(), 0, "done\nproblem\n"),
        ("code", "echo before; exit 3".into(), 3, "before\n"),
        ("strict", "#!/bin/bash\nset -euo pipefail\ntrap 'echo bye' EXIT\nfalse | true\necho never".into(), 1, "bye\n"),
        ("unset", "set -u\necho ${absent}".into(), 127, "batch-script: line 2: absent: unbound variable\n"),
        ("stdin", "cat; read -r line || echo nothing".into(), 0, "nothing\n"),
        ("large", format!("wc -c <<'END'\n{large}\nEND\necho after"), 0, "150001\nafter\n"),
        ("words", "echo \"$#\" \"$0\" \"${BASH_SOURCE-none}\"".into(), 0, "0 batch-script none\n"),
        ("signal", "kill -9 $$".into(), 137, ""),
        ("functions", "f() { local a=1; return 5; }\nf || echo $?\nexec true".into(), 0, "5\n"),
        ("empty", String::new(), 0, ""),
    ];
    let bench = Bench::new();
    for (name, script, ..) in &cases {
        bench.submit(name, script);
    }
    for (name, _, code, output) in &cases {
        let seen = bench.ended(name);
        let outcome = if *code == 0 { Outcome::Completed } else { Outcome::Failed };
        assert_eq!((seen.phase, seen.exit_code), (Phase::Ended(outcome), Some(*code)), "{name}: {}", bench.log(name));
        assert_eq!(bench.log(name), *output, "{name}");
    }
    assert!(bench.seen("signal").unwrap().reason.unwrap().contains("signal 9"));
    let log = fs::metadata(bench.home().join("success.out")).unwrap();
    assert_eq!((log.mode() & 0o777, log.uid()), (0o600, bench.user.uid));
}

#[test]
fn details_are_like_slurm_s() {
    let bench = Bench::new();
    let id = bench.submit("shown", "#!/bin/bash\n#SBATCH --time=10\nsleep 60");
    let seen = bench.running("shown");
    assert_eq!((seen.scheduler_job_id.as_str(), seen.user.as_str(), seen.run), (id.as_str(), bench.user.name.as_str(), 0));
    assert_eq!(seen.nodes, ["localhost"]);
    let text = |name: &str| seen.details[name].as_str().unwrap().to_owned();
    assert_eq!((text("JobState"), text("NodeList"), text("JobId")), ("RUNNING".into(), "localhost".into(), id.clone()));
    assert_eq!(text("UserId"), format!("{}({})", bench.user.name, bench.user.uid));
    assert_eq!(seen.details["TimeLimitSeconds"], 600);
    assert!(text("StartTime").ends_with('Z') && !seen.details.contains_key("EndTime"));
    bench.cancel(&id);
    assert!(bench.ended("shown").details.contains_key("EndTime"));
}

#[test]
fn cancelling_ends_everything_that_the_job_started() {
    let bench = Bench::new();
    let script = "trap '' TERM\n(trap '' TERM; sleep 600) & echo $! >child\n\
                  setsid bash -c 'trap \"\" TERM; echo $$ >far; while :; do sleep 600; done' &\nset -m\nsleep 600 & echo $! >group\nwait";
    let id = bench.submit("stubborn", script);
    let pids = ["child", "far", "group"].map(|file| bench.pid(file));
    assert!(pids.iter().all(|&pid| lives(pid)));
    bench.cancel(&id);
    bench.wait("stubborn", "is ending", |seen| seen.phase != Phase::Running);
    assert_eq!(bench.ended("stubborn").phase, Phase::Ended(Outcome::Cancelled));
    assert!(!pids.iter().any(|&pid| lives(pid)), "what ignores SIGTERM and leaves the group is killed all the same");
    bench.cancel(&id);
    bench.cancel("999999");
    bench.cancel("../x");
    assert_eq!(bench.local.cancel("somebody-else", &id).unwrap_err().kind, ErrorKind::Refused);
}

#[test]
fn a_job_may_clean_up_when_it_is_cancelled() {
    let bench = Bench::new();
    let id = bench.submit("tidy", "trap 'echo tidying; exit 0' TERM\necho ready >flag\nsleep 600 & wait");
    until("the trap is set", || bench.home().join("flag").exists().then_some(()), String::new);
    bench.cancel(&id);
    assert_eq!(bench.ended("tidy").phase, Phase::Ended(Outcome::Cancelled));
    assert!(bench.log("tidy").contains("tidying"));
}

#[test]
fn what_a_script_leaves_behind_ends_with_it() {
    let bench = Bench::new();
    bench.submit("careless", "setsid sleep 600 & echo $! >left");
    let left = bench.pid("left");
    assert_eq!(bench.ended("careless").phase, Phase::Ended(Outcome::Completed));
    assert!(!lives(left));
}

#[test]
fn a_job_that_exceeds_its_wall_time_is_ended() {
    let bench = Bench::new();
    bench.submit("long", "#!/bin/bash\n#SBATCH --time=0:01\ntrap '' TERM\nsleep 600 & echo $! >pid\nwait; wait; sleep 600");
    let seen = bench.ended("long");
    assert_eq!((seen.phase, seen.reason.as_deref()), (Phase::Ended(Outcome::Timeout), Some("TimeLimit")));
    gone(bench.pid("pid"));
}

#[test]
fn jobs_beyond_the_slots_wait_in_order_and_can_be_cancelled_while_they_wait() {
    let bench = Bench::with(LocalOptions { slots: 1, ..options() });
    let first = bench.submit("first", "sleep 600");
    bench.running("first");
    let name = |number: u32| format!("waiting-{number}");
    let ids: Vec<String> = (0..5).map(|number| bench.submit(&name(number), &format!("echo {number} >>order"))).collect();
    let seen = bench.seen(&name(0)).unwrap();
    assert_eq!((seen.phase, seen.reason.as_deref(), seen.nodes.len()), (Phase::Waiting, Some("Resources"), 0));
    bench.cancel(&ids[1]);
    bench.cancel(&ids[3]);
    assert_eq!(bench.ended(&name(1)).phase, Phase::Ended(Outcome::Cancelled));
    assert_eq!(bench.ended(&name(3)).details["JobState"], "CANCELLED");
    std::thread::sleep(Duration::from_millis(300));
    assert!((0..5).filter(|n| n % 2 == 0).all(|n| bench.seen(&name(n)).unwrap().phase == Phase::Waiting), "nobody overtakes");
    bench.cancel(&first);
    for number in [0, 2, 4] {
        assert_eq!(bench.ended(&name(number)).phase, Phase::Ended(Outcome::Completed));
    }
    assert_eq!(fs::read_to_string(bench.home().join("order")).unwrap(), "0\n2\n4\n");
}

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
fn the_script_is_in_no_argument_environment_or_file() {
    let bench = Bench::with(LocalOptions { slots: 1, ..options() });
    // Put together here, so that the marker is in no argument of the tests either.
    let marker = ["very", "secret", "marker"].join("-");
    let id = bench.submit("secretive", &format!("token={marker}\necho up >up\nsleep 600"));
    bench.submit("waiting", &format!("token={marker}"));
    until("it runs", || bench.home().join("up").exists().then_some(()), || bench.log("secretive"));
    assert!(!mentions(bench.spool().to_str().unwrap()).is_empty(), "the shepherds are seen by this test");
    assert_eq!(mentions(&marker), Vec::<String>::new());
    let searched = files(bench.root.path());
    assert!(searched.iter().any(|path| path.ends_with("job.json")));
    for path in searched {
        assert!(!contains(&fs::read(&path).unwrap(), &marker), "{}", path.display());
    }
    bench.cancel(&id);
}

#[test]
fn the_environment_is_small_and_no_descriptor_leaks_in() {
    let bench = Bench::new();
    let id = bench
        .submit("clean", "env -0 | sort -z | tr '\\0' '\\n' | cut -d= -f1 >names\nls /proc/self/fd >fds\nenv >all\npwd >where");
    bench.ended("clean");
    let read = |file: &str| fs::read_to_string(bench.home().join(file)).unwrap();
    let names: BTreeSet<String> = read("names").lines().map(str::to_owned).collect();
    let required = [
        "BWVISU_LOCAL_JOB",
        "HOME",
        "LOGNAME",
        "PATH",
        "PWD",
        "SHELL",
        "SHLVL",
        "SLURM_CPUS_ON_NODE",
        "SLURM_JOB_ID",
        "SLURM_JOB_NAME",
        "SLURM_JOB_NODELIST",
        "SLURM_JOB_NUM_NODES",
        "SLURM_NODELIST",
        "SLURM_SUBMIT_DIR",
        "USER",
        "_",
    ];
    let expected: BTreeSet<String> = required.map(str::to_owned).into();
    let optional: BTreeSet<String> = ["LANG", "TMPDIR"].map(str::to_owned).into();
    assert!(names.is_superset(&expected), "{names:?}");
    assert_eq!(names.difference(&expected).filter(|name| !optional.contains(*name)).count(), 0, "{names:?}");
    let home = bench.home().display().to_string();
    for line in [format!("SLURM_JOB_ID={id}"), "SLURM_JOB_NODELIST=localhost".into(), format!("SLURM_SUBMIT_DIR={home}")] {
        assert!(read("all").lines().any(|l| l == line), "{line}");
    }
    assert_eq!(read("fds"), "0\n1\n2\n3\n", "3 is the one by which ls reads the folder");
    assert_eq!(read("where").trim(), home);
}

#[test]
fn as_root_the_job_has_the_user_s_rights_and_no_other_groups() {
    let bench = Bench::new();
    bench.submit(
        "rights",
        "grep -E '^(Uid|Gid|Groups):' /proc/self/status | tr -s '\\t ' ' ' >ids\nls \"$(dirname \"$PWD\")\"/spool",
    );
    let seen = bench.ended("rights");
    let ids = fs::read_to_string(bench.home().join("ids")).unwrap();
    let User { uid, gid, .. } = bench.user;
    assert!(ids.contains(&format!("Uid: {uid} {uid} {uid} {uid}\nGid: {gid} {gid} {gid} {gid}\n")), "{ids}");
    if own_uid() == 0 {
        assert!(ids.lines().any(|line| line.trim_end() == "Groups:"), "{ids}");
        assert_eq!(seen.phase, Phase::Ended(Outcome::Failed), "the spool is closed to the job's user");
    }
    assert_eq!(fs::metadata(bench.spool()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn nobody_else_may_submit_and_root_never() {
    let bench = Bench::new();
    let folder = bench.home();
    let submit = |user: &User, folder: &str, script: &str| {
        bench.local.submit(&Submission { name: "x", user, folder, log: "x.out", script }).unwrap_err()
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
    let gone = || bench.local.list(&[]).unwrap().is_empty() && !folder.exists();
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
        let error = bench.local.submit(&submission).unwrap_err();
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
    let request = serde_json::json!({
        "version": 1, "name": "half", "user": bench.user.name, "uid": bench.user.uid, "gid": bench.user.gid, "folder": bench.home(),
        "log": "half.out", "environment": {"PATH": "/usr/bin:/bin"}, "wall-seconds": null, "grace-millis": 1000, "slots": 1,
        "after": null, "mark": folder, "submitted-at": "2026-01-01T00:00:00Z",
    });
    fs::write(folder.join("job.json"), request.to_string()).unwrap();
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
