//! What a process has left during and after an attack. Each listener here is a process of its own, so that its
//! descriptors can run out, and its threads and memory be counted.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::http::guard::Limits;

use crate::world::{self, FOE, FRIEND, PATIENCE, eventually};

/// Not a test by itself: the process that the tests below start, with the limits of its shell. It ends with its stdin.
#[test]
#[ignore = "the tests below run it as a process of its own"]
fn listener() {
    env_logger::Builder::new().filter_level(log::LevelFilter::Warn).init();
    // Short where those end who are left alone, and long where ordinary clients would.
    let (short, long) = (Duration::from_secs(1), PATIENCE);
    let limits =
        Limits { per_address: 400, head: long, body: short, idle: short, write: short, handle: long, ..Limits::default() };
    let server = world::serve(limits, false);
    eprintln!("listening on {}", server.address());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.stop(Duration::from_secs(1));
}

struct Process {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// With at most this many descriptors.
    fn start(descriptors: u32) -> Self {
        let script = format!("ulimit -n {descriptors}; exec \"$0\" --exact exhaustion::listener --ignored --nocapture");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let address = lines.find_map(|line| line.strip_prefix("listening on ").map(|address| address.parse().unwrap()));
        let log = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&log);
        thread::spawn(move || lines.for_each(|line| shared.lock().unwrap().push(line)));
        Self { child, address: address.unwrap(), log }
    }

    fn has_logged(&self, words: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(words))
    }

    /// A number from what the kernel says of the process, such as `Threads` or `VmRSS` (kB).
    fn status(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn is_serving(&self, from: Ipv4Addr, within: Duration) -> bool {
        let mut socket = world::socket(self.address, from);
        socket.set_read_timeout(Some(within)).unwrap();
        let asked = std::io::Write::write_all(&mut socket, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        asked.and_then(|()| socket.read_to_end(&mut answer)).is_ok() && answer.starts_with(b"HTTP/1.1 200 ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(status.success() || thread::panicking(), "the listener's process ended with {status}");
    }
}

fn send(socket: &mut TcpStream, bytes: &[u8]) -> bool {
    std::io::Write::write_all(socket, bytes).is_ok()
}

#[test]
fn a_listener_without_descriptors_left_goes_on_when_there_are_some_again() {
    let process = Process::start(64);
    assert!(process.is_serving(FRIEND, PATIENCE));
    let mut flood: Vec<_> = (0..150).map(|_| world::socket(process.address, FOE)).collect();
    eventually("the descriptors run out", || process.has_logged("a connection could not be accepted: Too many open files"));
    // All ask at once, too.
    let asked = flood.iter_mut().filter_map(|socket| send(socket, b"GET /sleep/300 HTTP/1.1\r\nHost: a\r\n\r\n").then_some(()));
    assert!(asked.count() > 20);
    thread::sleep(Duration::from_millis(500));
    eventually("a client is served during the flood", || process.is_serving(FRIEND, Duration::from_secs(2)));
    drop(flood);
    eventually("a client is served after it", || process.is_serving(FRIEND, Duration::from_secs(1)));
    eventually("no descriptor is lost", || process.descriptors() < 20);
    let served = (0..50).filter(|_| process.is_serving(FRIEND, PATIENCE)).count();
    assert_eq!(served, 50, "and it goes on without trouble");
}

#[test]
fn threads_memory_and_descriptors_are_bounded_during_a_storm_and_few_after_it() {
    let process = Process::start(1024);
    assert!(process.is_serving(FRIEND, PATIENCE));
    let (threads, descriptors) = (process.status("Threads"), process.descriptors());
    let storm = thread::scope(|scope| {
        let attacks = [huge_lengths, endless_headers, half_bodies, silence, versions]
            .map(|attack| scope.spawn(move || attack(process.address)));
        let (mut most, mut served) = ((0, 0), 0);
        while attacks.iter().any(|attack| !attack.is_finished()) {
            most = (most.0.max(process.status("Threads")), most.1.max(process.status("VmRSS")));
            assert!(process.is_serving(FRIEND, Duration::from_secs(15)), "an ordinary client is not served");
            served += usize::from(attacks.iter().any(|attack| !attack.is_finished()));
            thread::sleep(Duration::from_millis(50));
        }
        // It takes two seconds at least. The first may have come before it.
        assert!(served >= 3, "{served} ordinary clients were served during the storm");
        most
    });
    eprintln!("storm: at most {} threads and {} kB", storm.0, storm.1);
    // 512 seats, and a handful.
    assert!(storm.0 < 530, "{} threads", storm.0);
    assert!(storm.1 < 100_000, "{} kB", storm.1);
    eventually("the threads end", || process.status("Threads") <= threads + 2);
    eventually("the descriptors are closed", || process.descriptors() <= descriptors);
}

fn huge_lengths(address: SocketAddr) {
    for _ in 0..200 {
        let mut socket = world::socket(address, FOE);
        send(&mut socket, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000000\r\n\r\n");
    }
}

fn endless_headers(address: SocketAddr) {
    for _ in 0..10 {
        let mut socket = world::socket(address, Ipv4Addr::new(127, 0, 0, 67));
        send(&mut socket, b"GET / HTTP/1.1\r\nX: ");
        let megabyte = vec![b'x'; 1 << 20];
        (0..200).take_while(|_| send(&mut socket, &megabyte)).for_each(drop);
    }
}

fn half_bodies(address: SocketAddr) {
    let sockets = (0..30).map(|_| world::socket(address, Ipv4Addr::new(127, 0, 0, 68)));
    let begun = sockets.map(|mut socket| {
        send(&mut socket, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
        send(&mut socket, &[b'x'; 500_000]);
        socket
    });
    let begun: Vec<_> = begun.collect();
    thread::sleep(Duration::from_secs(2));
    drop(begun);
}

fn silence(address: SocketAddr) {
    let sockets: Vec<_> = (0..600).map(|_| world::socket(address, Ipv4Addr::new(127, 0, 0, 69))).collect();
    thread::sleep(Duration::from_secs(2));
    drop(sockets);
}

fn versions(address: SocketAddr) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        let mut socket = world::socket(address, Ipv4Addr::new(127, 0, 0, 70));
        send(&mut socket, b"GET / HTTP/2.0\r\n\r\n");
        let mut answer = Vec::new();
        assert!(socket.read_to_end(&mut answer).is_ok() && answer.starts_with(b"HTTP/1.1 505 "));
    }
}
