//! sshd that takes connections and says nothing, takes few of them, or few sessions on each.

use crate::main_path::fetch;
use crate::templates::{PORTLESS, SERVICE};
use bwvisu_tests::gateway::{GATEWAYS, all_forwardings, forwardings_of};
use bwvisu_tests::slurm::Queue;
use bwvisu_tests::wait::{is_quick, until};
use bwvisu_tests::{Bed, Broken, Reply, Runner, Setup};
use serde_json::{Value, json};
use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

fn submit(runner: &Runner, user: &str) -> Reply {
    let body = json!({"uid": user, "template-name": PORTLESS.0, "variables": {"seconds": "600"}});
    runner.api.call("POST", "/jobs", &body)
}

/// All of sshd on a host stops where it is: the one that listens, and those behind connections that are there.
fn hung<'b>(bed: &'b Bed, host: &str) -> Broken<'b> {
    Broken::by(bed, host, "pkill -STOP -x sshd", "pkill -CONT -x sshd")
}

fn timed<T>(what: &str, limit: u64, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let value = work();
    println!("{what}: {:.1} s", begun.elapsed().as_secs_f32());
    assert!(begun.elapsed() < Duration::from_secs(limit), "{what} took {:?}", begun.elapsed());
    value
}

#[test]
fn command_nodes_whose_sshd_hangs_are_passed_over_and_come_back() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::start(&bed, &[PORTLESS]);
    let first = submit(&runner, "alice");
    assert_eq!(first.status, 200, "the connections are there");
    let id = first.body["job-id"].as_str().unwrap().to_owned();
    runner.wait_for(&id, "running", 30);
    let hangs = hung(&bed, "cmd0");
    // As with a dead node: what was heard a moment ago is believed to live.
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(timed("a submission past a hung node", 20, || submit(&runner, "alice")).status, 200);
    let quick = is_quick(Duration::from_secs(3), || assert_eq!(submit(&runner, "alice").status, 200));
    assert!(quick, "the next ones pass it over at once");
    let both = hung(&bed, "cmd1");
    thread::sleep(Duration::from_millis(2500));
    let refused = timed("a refusal when both hang", 40, || submit(&runner, "alice"));
    refused.assert_problem("both hang", 503, "no command node could do it");
    assert_eq!(runner.api.job(&id)["state"], "running", "a failed look changes nothing");
    drop((hangs, both));
    until("a submission to be accepted again", 60, || submit(&runner, "alice").status, |status| *status == 200);
    until("accepted is in Slurm", 20, || queue.alive().len(), |count| *count == runner.api.jobs().len());
}

#[test]
fn an_sshd_that_is_full_of_strangers_is_passed_over() {
    let bed = Bed::take();
    // Stock values: past 10 unauthenticated connections it drops some, past 100 all.
    let _strangers: Vec<TcpStream> = bed.at("c0", || {
        let knock = || TcpStream::connect((bed.ip("cmd0"), 22)).unwrap();
        (0..130).map(|_| knock()).collect()
    });
    let full = || {
        let mut stream = bed.at("c1", || TcpStream::connect((bed.ip("cmd0"), 22)).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut greeting = String::new();
        let _ = stream.read_to_string(&mut greeting);
        greeting
    };
    until("cmd0 to refuse whoever comes", 20, full, |greeting| !greeting.starts_with("SSH-"));
    let runner = Runner::start(&bed, &[PORTLESS]);
    assert_eq!(timed("a submission past a full sshd", 20, || submit(&runner, "alice")).status, 200);
}

#[test]
fn a_gateway_whose_sshd_hangs_gets_no_new_forwardings_and_keeps_its_old_ones() {
    let bed = Bed::take();
    // It keeps them however long it hangs here.
    let config = json!({"gateway-down-seconds": 600});
    let runner = Runner::with(&bed, &Setup { templates: &[SERVICE], config, ..Setup::default() });
    until("the chains on both", 15, || runner.log().matches("chains BWVISU set up").count(), |count| *count >= 2);
    let old = runner.api.submit("alice", SERVICE.0, &json!({}));
    let old_job = runner.wait_for(&old, "available", 40);
    let behind = GATEWAYS.into_iter().find(|gateway| old_job["services"][0]["external-ip"] == bed.external(gateway).to_string());
    let behind = behind.unwrap();
    let hangs = hung(&bed, behind);
    let new: Vec<String> = (0..2).map(|_| runner.api.submit("alice", SERVICE.0, &json!({}))).collect();
    for id in &new {
        let job = runner.wait_for(id, "available", 90);
        assert_ne!(job["services"][0]["external-ip"], bed.external(behind).to_string(), "{job:#}");
    }
    fetch(&bed, &old_job, "/bytes").expect("its users stay connected");
    drop(hangs);
    until("the old one to be available", 60, || runner.api.job(&old), |job| job["state"] == "available" && job["stale"] != true);
    assert_eq!(all_forwardings(&bed).len(), 3);
    for id in new.iter().chain([&old]) {
        runner.api.cancel(id);
    }
    until("nothing to be left", 40, || all_forwardings(&bed), Vec::is_empty);
}

/// Other lines in sshd's configuration, known to all connections from now on.
fn sshd_config<'b>(bed: &'b Bed, host: &str, lines: &str) -> Broken<'b> {
    let file = format!("{}/ssh/sshd_config_{host}", bed.get("BED_MOUNT"));
    let breaks = format!("echo '{lines}' >>{file} && pkill -HUP -o -x sshd");
    Broken::by(bed, host, &breaks, &format!("sed -i '/^MaxS/d' {file} && pkill -HUP -o -x sshd"))
}

/// A held job with one port, which says when it has it.
const BURST: (&str, &str) = (
    "burst.txt",
    "#!/bin/bash\n#SBATCH --time=10 --nodes=1 --hold\n#KEYHOLE-REQUEST-PORTS 1\necho \"has $KEYHOLE_PORT0\"\nexec sleep 600\n",
);

/// A crowd in which no connection broke; its log. A machine that stands still for three seconds breaks them; a session that is refused, and
/// taken for a connection that broke, would do so each time.
fn crowd(submissions: usize, asking: usize, lines: &str) -> String {
    let mut logs = (0..3).map(|_| one_crowd(submissions, asking, lines));
    logs.find(|log| !log.contains("the connection to")).expect("no connection broke")
}

/// Many submissions at once, while many jobs begin and ask for their ports.
/// Returns the log.
fn one_crowd(submissions: usize, asking: usize, lines: &str) -> String {
    let bed = Bed::take();
    let _sshd = ["cmd0", "cmd1", "gw0", "gw1"].map(|host| sshd_config(&bed, host, lines));
    let queue = Queue::from_now(&bed);
    let runner = Runner::start(&bed, &[PORTLESS, BURST]);
    let held: Vec<String> = (0..asking).map(|_| runner.api.submit("bob", BURST.0, &json!({}))).collect();
    let begun = Instant::now();
    let replies: Vec<Reply> = thread::scope(|scope| {
        bed.sh("ctl", "squeue --noheader --format=%A | xargs scontrol release");
        let posted: Vec<_> = (0..submissions).map(|_| scope.spawn(|| submit(&runner, "alice"))).collect();
        posted.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let answered = begun.elapsed();
    let count = |status: u16| replies.iter().filter(|reply| reply.status == status).count();
    println!("{submissions} submissions: 200 {}, 429 {}, 503 {} in {answered:.1?}", count(200), count(429), count(503));
    assert_eq!(count(200) + count(429) + count(503), submissions, "{replies:#?}");
    let served = |id: &&String| runner.job_log("bob", id).contains("has ");
    until("all jobs to have their ports", 120, || held.iter().filter(served).count(), |count| *count == asking);
    println!("{asking} jobs had their ports after {:.1?}", begun.elapsed());
    assert_eq!(held.iter().map(|id| forwardings_of(&bed, id).len()).collect::<Vec<_>>(), vec![1; asking]);
    until("what was accepted, and no more, to be in Slurm", 60, || queue.alive().len(), |alive| *alive == count(200) + asking);
    let accepted: Vec<&Value> = replies.iter().filter(|reply| reply.status == 200).map(|reply| &reply.body["job-id"]).collect();
    let known = runner.api.jobs();
    assert!(accepted.iter().all(|id| known.contains(&id.as_str().unwrap().to_owned())), "{accepted:?} in {known:?}");
    assert!(count(200) > 0, "{replies:#?}");
    runner.log()
}

#[test]
fn a_crowd_is_answered_within_the_limits_of_a_stock_sshd() {
    let log = crowd(64, 50, "MaxSessions 10\nMaxStartups 10:30:100");
    assert!(!log.contains("sshd takes fewer sessions than usual"), "{log}");
}

#[test]
fn a_crowd_is_answered_by_an_sshd_with_two_sessions() {
    let log = crowd(16, 8, "MaxSessions 2");
    assert!(log.contains("sshd takes fewer sessions than usual"), "{log}");
}

/// Waits for an `sbatch` of its user, takes both streams from it, and writes into them until it is killed. Its files say how far it has come.
const THIEF: &str = r#"
import ctypes, os, signal, time
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
PIDFD_GETFD = 438

def is_sbatch(pid):
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.getuid() and open(f"/proc/{pid}/comm").read() == "sbatch\n"
    except OSError:
        return False

def found():
    while True:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if is_sbatch(pid):
                return int(pid)

def taken(pidfd, number):
    libc = ctypes.CDLL(None, use_errno=True)
    stream = libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    assert stream >= 0, os.strerror(ctypes.get_errno())
    return stream

pidfd = os.pidfd_open(found())
streams = {number: taken(pidfd, number) for number in (1, 2)}
open("thief-has", "w").write(" ".join(os.readlink(f"/proc/self/fd/{stream}") for stream in streams.values()))
closed = set()
while True:
    for number, stream in streams.items():
        try:
            os.write(stream, b"bwvisu-begin\nforged by a thief\n")
        except BrokenPipeError:
            closed.add(number)
    open("thief-lost", "w").write(" ".join(map(str, sorted(closed))))
    time.sleep(0.005)
"#;

#[test]
fn who_takes_the_streams_of_their_sbatch_writes_into_no_later_answer() {
    let bed = Bed::take();
    let home = bed.home("alice");
    let told = |file: &str| std::fs::read_to_string(home.join(file)).unwrap_or_default();
    for file in ["thief-has", "thief-lost"] {
        let _ = std::fs::remove_file(home.join(file));
    }
    let runner = Runner::start(&bed, &[PORTLESS]);
    let first = submit(&runner, "bob").body["job-id"].as_str().unwrap().to_owned();
    runner.wait_for(&first, "running", 30);
    let thief = bed.spawn("cmd0", &["-u", "alice", "python3", "-c", THIEF]);
    let slow = Broken::by(&bed, "ctl", "pkill -STOP -x slurmctld", "pkill -CONT -x slurmctld");
    let robbed = thread::scope(|scope| {
        let posted = scope.spawn(|| submit(&runner, "alice"));
        until(
            "the thief to have both streams (kernel.yama.ptrace_scope must be 0)",
            30,
            || told("thief-has"),
            |has| has.matches("pipe:").count() == 2,
        );
        // While it writes, and the command is still there.
        thread::sleep(Duration::from_millis(300));
        drop(slow);
        posted.join().unwrap()
    });
    println!("the robbed one's own answer: {robbed:?}");
    until("both streams to be closed under the thief", 20, || told("thief-lost"), |lost| lost == "1 2");
    for _ in 0..20 {
        assert_eq!(submit(&runner, "bob").status, 200);
    }
    runner.api.cancel(&first);
    runner.wait_for(&first, "finished", 30);
    let log = runner.log();
    let after = log.split_once("forged by a thief").map_or("", |(_, after)| after);
    assert!(!after.contains("forged by a thief") && !log.contains("cannot be read"), "{log}");
    drop(thief);
}

#[test]
fn an_sshd_that_takes_no_session_beside_the_connections_own_is_named_with_what_to_mend() {
    let bed = Bed::take();
    let _sshd = ["cmd0", "cmd1"].map(|host| sshd_config(&bed, host, "MaxSessions 1"));
    let runner = Runner::start(&bed, &[PORTLESS]);
    let detail = timed("a refusal", 60, || submit(&runner, "alice")).assert_problem("one session", 503, "MaxSessions");
    assert!(detail.contains(&bed.ip("cmd0").to_string()) && detail.contains("2 at least"), "{detail}");
}
