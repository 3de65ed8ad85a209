//! The local scheduler with real processes: shepherds, bash, signals, and the runner's program.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

mod attacks;
mod bench;
mod faults;

use bench::{Bench, contains, files, gone, lives, mentions, options, own_uid, until};
use bwvisu_runner::domain::job::{Outcome, Phase};
use bwvisu_runner::domain::user::User;
use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::scheduler::Scheduler;
use bwvisu_runner::scheduler::local::LocalOptions;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

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
    let bench = Bench::with(LocalOptions { grace: Duration::from_secs(20), ..options() });
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
