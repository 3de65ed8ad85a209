//! Real programs on a real etcd: three `bwvisu-runner`s with both watchers, of which the leader is killed, ended and frozen; and
//! the same with a program of the test's, which is frozen between its read and its write.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::store::etcd::{Etcd, EtcdConfig};
use bwvisu_runner::store::{Backend, Change, Store};
use bwvisu_runner::watch::{Stop, repeat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::caused::freeze;
use crate::contract::{put, read, value};
use crate::server::{EtcdServer, Kind, PATIENT, etcd_is_there};
use crate::tries::one_takes_less_than;

const ROLES: [&str; 2] = ["jobs-watch-default", "keyhole-watch-default"];
/// After a crash the lease of six seconds has to end; the rest is for a busy machine. What is wrong never passes on.
const CRASH: Duration = Duration::from_secs(20);
/// After a clean stop no lease has to end: what is left of one that is kept is four seconds at least.
const STOP: Duration = Duration::from_millis(3900);

/// A process of the test's, ended with it.
pub struct Program {
    child: Child,
    /// What it writes down, if it does.
    log: PathBuf,
}

impl Program {
    pub fn new(child: Child, log: PathBuf) -> Self {
        Self { child, log }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn freeze(&self) {
        freeze(Pid::from_child(&self.child));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn runner(folder: &Path, name: &str, server: &EtcdServer) -> Program {
    let home = folder.join(name);
    fs::create_dir_all(home.join("templates")).unwrap();
    let config = json!({
        "bwvisu-home-prefix": home, "state-dir": home.join("state"), "templates": home.join("templates"),
        "gateway-nodes": [{"internal-ip": "localhost", "external-ip": "127.0.0.1"}],
        "keyholed-servers": [{"ip": "127.0.0.1", "port": 0}], "keyhole-listen": "127.0.0.1:0",
        "scheduler": "local", "gateway": "relay", "watch": {"jobs-seconds": 0.2, "keyhole-seconds": 0.2},
        "etcd-servers": [{"ip": server.client_address().ip(), "port": server.client_address().port()}],
    });
    fs::write(home.join("config.json"), config.to_string()).unwrap();
    let log = File::create(home.join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bwvisu-runner"));
    command.arg("--config").arg(home.join("config.json")).args(["serve", "--only", "jobs-watch,keyhole-watch"]);
    let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    Program::new(child, home.join("log"))
}

/// The process that leads a role, by the name at its key.
fn leader(etcd: &Etcd, role: &str) -> Option<u32> {
    value(etcd, &format!("leaders/{role}"))?.split([':', ' ']).nth(1)?.parse().ok()
}

/// Waits until each role is led by a process other than `not`; how long it took.
fn wait_for_leaders(etcd: &Etcd, not: Option<u32>, within: Duration) -> Duration {
    let begin = Instant::now();
    loop {
        let leaders = ROLES.map(|role| leader(etcd, role));
        if leaders.iter().all(|leader| leader.is_some() && *leader != not) {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < within, "not in {within:?}: {leaders:?}, and not {not:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn runners_hand_their_watchers_over_when_one_is_ended_killed_or_frozen() {
    if !etcd_is_there() {
        return;
    }
    let (server, folder) = (EtcdServer::start(Kind::Plain), tempfile::tempdir().unwrap());
    let etcd = server.client();
    let start = |name: &str| runner(folder.path(), name, &server);
    // The first leads all, since it is alone.
    let first = start("first");
    wait_for_leaders(&etcd, None, CRASH);
    let mut runners: BTreeMap<u32, Program> = ["second", "third"].map(start).into_iter().map(|p| (p.pid(), p)).collect();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(leader(&etcd, ROLES[0]), Some(first.pid()), "who comes later follows");
    runners.insert(first.pid(), first);

    // From here on the two roles may have different leaders, and for each that ends another one comes.
    let mut replaced = |name: &str| {
        let led = runners.remove(&leader(&etcd, ROLES[0]).unwrap()).unwrap();
        let next = start(name);
        runners.insert(next.pid(), next);
        led
    };
    let time = one_takes_less_than(STOP, |number| {
        let ended = replaced(&format!("heir {number}"));
        ended.signal(Signal::TERM);
        wait_for_leaders(&etcd, Some(ended.pid()), CRASH)
    });
    println!("hand-over after SIGTERM: {time:?}");

    let killed = replaced("fourth");
    killed.signal(Signal::KILL);
    println!("hand-over after SIGKILL: {:?}", wait_for_leaders(&etcd, Some(killed.pid()), CRASH));

    let frozen = replaced("fifth");
    frozen.freeze();
    println!("hand-over after SIGSTOP: {:?}", wait_for_leaders(&etcd, Some(frozen.pid()), CRASH));
    let successor = leader(&etcd, ROLES[0]);
    frozen.signal(Signal::CONT);
    let begin = Instant::now();
    while !follows(&frozen) {
        assert!(begin.elapsed() < CRASH, "it does not notice that it leads no more");
        thread::sleep(Duration::from_millis(20));
    }
    println!("after SIGCONT it notices within {:?}", begin.elapsed());
    assert_eq!(leader(&etcd, ROLES[0]), successor, "and leaves the lead where it is");
}

/// Whether a runner had the lead of the first role, and says that it does not have it any more.
fn follows(program: &Program) -> bool {
    let log = fs::read_to_string(&program.log).unwrap();
    let last = |what: &str| log.rfind(&format!("watch {}: this program {what}", ROLES[0]));
    matches!((last("leads"), last("does not lead")), (Some(led), Some(lost)) if lost > led)
}

/// Where the test below, started again as a program of its own, finds its etcd.
const ENDPOINT: &str = "BWVISU_TEST_ENDPOINT";
const JOURNAL: &str = "journal";

/// A watcher whose cycle reads a record, waits for a line of input or the input's end, and writes what it made of the record. Each step is a
/// line of output.
fn watcher(endpoint: String) {
    let config = EtcdConfig { endpoints: vec![endpoint], user: None, tls: None, timeout: PATIENT };
    let (etcd, store) = (Etcd::connect(config.clone()).unwrap(), Store::new(Box::new(Etcd::connect(config).unwrap())));
    let cycle = move || {
        let version = read(&etcd, JOURNAL).map_or(0, |found| found.version);
        println!("step read");
        std::io::stdin().lock().read_line(&mut String::new()).unwrap();
        let change = Change { expect: vec![(JOURNAL.to_owned(), version)], ..put(JOURNAL, std::process::id().to_string()) };
        println!("step wrote {}", etcd.commit(&change)?);
        Ok(())
    };
    let every = || Duration::from_millis(100);
    repeat("watch".to_owned(), every, Arc::new(store), Stop::default(), cycle).unwrap().join().unwrap();
}

fn start_watcher(server: &EtcdServer, input: Stdio) -> (Program, mpsc::Receiver<String>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = "programs::a_leader_that_is_frozen_between_read_and_write_writes_nothing_later";
    command.args(["--exact", test, "--nocapture"]).env(ENDPOINT, server.endpoint());
    let mut child = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (lines, steps) = mpsc::channel();
    let output = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok).filter(|line| line.contains("step ")) {
            let _ = lines.send(line.split_once("step ").unwrap().1.to_owned());
        }
    });
    (Program::new(child, PathBuf::new()), steps)
}

#[test]
fn a_leader_that_is_frozen_between_read_and_write_writes_nothing_later() {
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        return watcher(endpoint);
    }
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let etcd = server.client();
    let (mut old, old_steps) = start_watcher(&server, Stdio::piped());
    let mut go_on = old.child.stdin.take().unwrap();
    let step = |steps: &mpsc::Receiver<String>| steps.recv_timeout(CRASH).unwrap();
    assert_eq!(step(&old_steps), "read");
    go_on.write_all(b"\n").unwrap();
    assert_eq!(step(&old_steps), "wrote true");
    let (new, new_steps) = start_watcher(&server, Stdio::null());
    assert_eq!(step(&old_steps), "read");
    old.freeze();
    go_on.write_all(b"\n").unwrap();
    let begin = Instant::now();
    assert_eq!([step(&new_steps), step(&new_steps)], ["read", "wrote true"]);
    println!("another watcher's first write {:?} after the leader was frozen", begin.elapsed());
    assert_eq!(value(&etcd, JOURNAL), Some(new.pid().to_string()));
    old.signal(Signal::CONT);
    assert_eq!(step(&old_steps), "wrote false", "it had read before, and others wrote since");
    // It leads no more, so it begins no other cycle; the new one goes on.
    assert!(old_steps.recv_timeout(Duration::from_secs(3)).is_err());
    new_steps.try_iter().for_each(drop);
    for _ in 0..2 {
        assert!((0..20).any(|_| step(&new_steps) == "wrote true"));
    }
    assert_eq!(value(&etcd, JOURNAL), Some(new.pid().to_string()));
}
