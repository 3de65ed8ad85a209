//! The relay with real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

use bwvisu_runner::domain::ports::{PortRange, Span};
use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::gateway::relay::{Relay, RelayLimits};
use bwvisu_runner::gateway::{Gateway, Probe, Rule, Target};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
/// Where nobody listens: tcpmux is served nowhere, and no other test gets its port by chance.
const UNUSED: u16 = 1;

/// Every test has a loopback address of its own for the relay, so that all can use the same ports.
fn own_address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    [127, 77, NEXT.fetch_add(1, Ordering::Relaxed), 1].into()
}

fn relay_with(bind: IpAddr, sessions: usize) -> Relay {
    let limits = RelayLimits { sessions, ..RelayLimits::default() };
    Relay::new("10.0.0.1".into(), bind.to_string(), bind, limits)
}

fn rule(job: u64, external: u16, internal: u16) -> Rule {
    Rule { cluster: "default".into(), job, span: Span { external, internal, count: 1 }, target: "127.0.0.1".into() }
}

fn blocks(rules: &[Rule]) -> BTreeMap<u16, BTreeSet<Rule>> {
    let mut blocks: BTreeMap<u16, BTreeSet<Rule>> = BTreeMap::new();
    for rule in rules {
        blocks.entry(rule.span.block()).or_default().insert(rule.clone());
    }
    blocks
}

/// An application that serves each connection with `serve` in a thread of its own; the port that it listens on.
fn application(serve: fn(TcpStream)) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(thread::spawn(move || serve(stream)))));
    port
}

fn echo(mut stream: TcpStream) {
    let mut chunk = vec![0; 65536];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        if stream.write_all(&chunk[..count]).is_err() {
            return;
        }
    }
}

/// Reads to the end first, and answers then: only possible if an end in one direction leaves the other open.
fn digest(mut stream: TcpStream) {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 65536];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        hash.update(&chunk[..count]);
    }
    let _ = stream.write_all(&hash.finalize());
}

/// Says a word now and then, and ends after ten.
fn dawdle(mut stream: TcpStream) {
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(500));
        let _ = stream.write_all(b".");
    }
}

/// Never reads and never ends.
fn sulk(stream: TcpStream) {
    loop {
        thread::sleep(Duration::from_secs(60));
        let _ = &stream;
    }
}

fn connect(bind: IpAddr, port: u16) -> TcpStream {
    let stream = TcpStream::connect((bind, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn exchange(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), text);
}

fn closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn bytes_go_both_ways_and_a_span_is_many_ports() {
    let (bind, first, second) = (own_address(), application(echo), application(digest));
    let relay = relay_with(bind, 16);
    assert_eq!((relay.address(), relay.external_ip()), ("10.0.0.1", bind.to_string().as_str()));
    relay.apply(&blocks(&[rule(1, 50100, first), rule(2, 50250, second)])).unwrap();
    exchange(&mut connect(bind, 50100), "hello");
    let mut stream = connect(bind, 50250);
    stream.write_all(b"abc").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut hash = Vec::new();
    stream.read_to_end(&mut hash).unwrap();
    assert_eq!(hash, Sha256::digest(b"abc").to_vec(), "the answer comes after the client's end");
}

#[test]
fn fifty_clients_at_once_are_all_served() {
    let (bind, port) = (own_address(), application(echo));
    let relay = relay_with(bind, 64);
    relay.apply(&blocks(&[rule(1, 50100, port)])).unwrap();
    thread::scope(|scope| {
        for number in 0..50 {
            scope.spawn(move || {
                let mut stream = connect(bind, 50100);
                for round in 0..20 {
                    exchange(&mut stream, &format!("client {number} round {round}"));
                }
            });
        }
    });
}

#[test]
fn much_data_arrives_whole() {
    let (bind, port) = (own_address(), application(digest));
    let relay = relay_with(bind, 4);
    relay.apply(&blocks(&[rule(1, 50100, port)])).unwrap();
    let data: Vec<u8> = (0..32_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut stream = connect(bind, 50100);
    stream.write_all(&data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut hash = Vec::new();
    stream.read_to_end(&mut hash).unwrap();
    assert_eq!(hash, Sha256::digest(&data).to_vec());
}

#[test]
fn a_client_is_closed_when_nothing_listens_behind_the_port() {
    let bind = own_address();
    let relay = relay_with(bind, 4);
    relay.apply(&blocks(&[rule(1, 50100, UNUSED)])).unwrap();
    assert!(closed(&mut connect(bind, 50100)));
}

#[test]
fn a_removed_rule_takes_no_clients_and_leaves_open_sessions_alone() {
    let (bind, port, other) = (own_address(), application(echo), application(echo));
    let relay = relay_with(bind, 4);
    relay.apply(&blocks(&[rule(1, 50100, port), rule(2, 50300, other)])).unwrap();
    let mut stream = connect(bind, 50100);
    exchange(&mut stream, "before");
    relay.apply(&BTreeMap::from([(501, BTreeSet::new())])).unwrap();
    assert!(TcpStream::connect((bind, 50100)).is_err(), "the port is closed when apply has returned");
    exchange(&mut stream, "after");
    exchange(&mut connect(bind, 50300), "other blocks stay");
    assert_eq!(relay.installed().unwrap().blocks, blocks(&[rule(2, 50300, other)]));
    relay.apply(&blocks(&[rule(3, 50100, port)])).unwrap();
    exchange(&mut connect(bind, 50100), "again, while the old session is open");
    exchange(&mut stream, "still");
}

#[test]
fn setting_up_brings_back_all_blocks_but_the_one_with_a_port_in_other_hands() {
    let (bind, application) = (own_address(), application(echo));
    let relay = relay_with(bind, 8);
    let _stranger = TcpListener::bind((bind, 50100)).unwrap();
    let wanted = blocks(&[rule(1, 50100, application), rule(2, 50300, application)]);
    assert!(relay.set_up(&wanted).is_err());
    exchange(&mut connect(bind, 50300), "the other block");
    assert_eq!(relay.installed().unwrap().blocks, blocks(&[rule(2, 50300, application)]));
}

#[test]
fn apply_may_be_repeated_and_a_port_may_get_another_target() {
    let (bind, first, second) = (own_address(), application(echo), application(digest));
    let relay = relay_with(bind, 8);
    assert_eq!(relay.installed().unwrap().blocks, BTreeMap::new());
    assert!(!relay.installed().unwrap().ready, "whatever should be here is missing");
    relay.set_up(&BTreeMap::new()).unwrap();
    assert!(relay.installed().unwrap().ready);
    let wanted = blocks(&[rule(1, 50100, first), rule(1, 50101, first)]);
    for _ in 0..3 {
        relay.apply(&wanted).unwrap();
        assert_eq!(relay.installed().unwrap().blocks, wanted);
    }
    let mut old = connect(bind, 50100);
    exchange(&mut old, "echo");
    relay.apply(&blocks(&[rule(2, 50100, second)])).unwrap();
    let mut new = connect(bind, 50100);
    new.shutdown(Shutdown::Write).unwrap();
    let mut hash = Vec::new();
    new.read_to_end(&mut hash).unwrap();
    assert_eq!(hash, Sha256::digest(b"").to_vec());
    assert!(TcpStream::connect((bind, 50101)).is_err(), "the block holds exactly what was applied");
    exchange(&mut old, "echo still");
}

#[test]
fn a_port_of_somebody_else_is_a_conflict_and_nothing_changes() {
    let (bind, port) = (own_address(), application(echo));
    let foreign = TcpListener::bind((bind, 50205)).unwrap();
    let relay = relay_with(bind, 8);
    let before = blocks(&[rule(1, 50100, port)]);
    relay.apply(&before).unwrap();
    let change = BTreeMap::from([(501, BTreeSet::new()), (502, BTreeSet::from([rule(2, 50204, port), rule(2, 50205, port)]))]);
    let error = relay.apply(&change).unwrap_err();
    assert!(error.kind == ErrorKind::Conflict && error.message.contains("50205"), "{error}");
    assert_eq!(relay.installed().unwrap().blocks, before);
    exchange(&mut connect(bind, 50100), "as before");
    assert!(TcpStream::connect((bind, 50204)).is_err());
    drop(foreign);
    relay.apply(&change).unwrap();
    exchange(&mut connect(bind, 50205), "free now");
}

#[test]
fn clients_beyond_the_limit_are_turned_away_and_places_are_given_back() {
    let (bind, port) = (own_address(), application(echo));
    let relay = relay_with(bind, 2);
    relay.apply(&blocks(&[rule(1, 50100, port)])).unwrap();
    let mut streams = [connect(bind, 50100), connect(bind, 50100)];
    streams.iter_mut().for_each(|stream| exchange(stream, "in"));
    assert!(closed(&mut connect(bind, 50100)));
    streams.iter_mut().for_each(|stream| exchange(stream, "still in"));
    drop(streams);
    let served = || {
        let mut stream = connect(bind, 50100);
        stream.write_all(b"x").is_ok() && stream.read(&mut [0]).is_ok_and(|count| count == 1)
    };
    until("a place is free again", served);
}

#[test]
fn three_hundred_clients_of_one_port_leave_places_for_other_ports() {
    assert_eq!((RelayLimits::default().sessions, RelayLimits::default().sessions_per_port), (1024, 64));
    let (bind, port, other) = (own_address(), application(echo), application(echo));
    let relay = Relay::new("10.0.0.1".into(), bind.to_string(), bind, RelayLimits::default());
    relay.apply(&blocks(&[rule(1, 50100, port), rule(2, 50300, other)])).unwrap();
    let mut crowd: Vec<TcpStream> = (0..300).map(|_| connect(bind, 50100)).collect();
    crowd[..64].iter_mut().for_each(|stream| exchange(stream, "in"));
    assert!(crowd[64..].iter_mut().all(closed), "a port has its share and no more");
    exchange(&mut connect(bind, 50300), "another job is served");
    crowd[..64].iter_mut().for_each(|stream| exchange(stream, "still in"));
}

#[test]
fn a_session_that_is_half_closed_ends_when_the_other_half_is_silent() {
    let (bind, silent, slow) = (own_address(), application(sulk), application(dawdle));
    // Less than the slow one takes in all, and so much more than its pauses that a busy machine does not make them too long.
    let limits = RelayLimits { half_closed_timeout: Duration::from_secs(4), ..RelayLimits::default() };
    let relay = Relay::new("10.0.0.1".into(), bind.to_string(), bind, limits);
    relay.apply(&blocks(&[rule(1, 50100, silent), rule(2, 50300, slow)])).unwrap();
    let half_closed = |port| {
        let stream = connect(bind, port);
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    };
    let started = Instant::now();
    let (mut open, mut lost, mut served) = (connect(bind, 50100), half_closed(50100), half_closed(50300));
    assert!(closed(&mut lost));
    assert!((4000..15_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    let mut words = Vec::new();
    served.read_to_end(&mut words).unwrap();
    assert_eq!(words, b"..........", "what still speaks is heard to its end");
    open.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    assert!(!closed(&mut open), "a session that is open both ways may be silent");
}

#[test]
fn a_client_that_vanishes_after_its_last_word_does_not_keep_its_place() {
    let (bind, port) = (own_address(), application(sulk));
    let relay = relay_with(bind, 1);
    relay.apply(&blocks(&[rule(1, 50100, port)])).unwrap();
    let stream = connect(bind, 50100);
    stream.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(closed(&mut connect(bind, 50100)), "the place is taken as long as the client may still listen");
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    let free = || {
        let mut stream = connect(bind, 50100);
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        !closed(&mut stream)
    };
    until("the place is free again", free);
}

#[test]
fn a_probe_tells_open_from_closed_from_unreachable() {
    let open = application(echo);
    let relay = relay_with(own_address(), 1);
    let target = |host: &str, lo: u16, hi: u16| Target { host: host.into(), ports: PortRange { lo, hi } };
    let targets = [
        target("localhost", open, open),
        target("127.0.0.1", open, open),
        target("127.0.0.1", UNUSED, UNUSED),
        target("no-such-host.invalid", 1, 9),
        target("", 1, 1),
    ];
    let probe = relay.probe(&targets).unwrap();
    assert_eq!(probe.open, BTreeSet::from([("localhost".into(), open), ("127.0.0.1".into(), open)]));
    assert_eq!(probe.unreachable, BTreeSet::from(["no-such-host.invalid".into(), String::new()]));
    assert_eq!(relay.probe(&[]).unwrap(), Probe::default());
}

#[test]
fn a_probe_of_ten_thousand_ports_is_quick_and_exact() {
    // Listeners that accept nothing: a connection that waits to be accepted is open, too.
    let host = own_address();
    let listeners: Vec<TcpListener> =
        [20_000, 20_063, 20_064, 25_000, 29_999].map(|port| TcpListener::bind((host, port)).unwrap()).into();
    let started = Instant::now();
    let targets = [Target { host: host.to_string(), ports: PortRange { lo: 20_000, hi: 29_999 } }];
    let probe = relay_with(own_address(), 1).probe(&targets).unwrap();
    let expected = listeners.iter().map(|listener| (host.to_string(), listener.local_addr().unwrap().port()));
    assert_eq!(probe.open, expected.collect());
    assert!(probe.unreachable.is_empty());
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_host_that_does_not_answer_costs_one_deadline() {
    // A listener whose queue is full answers nothing to further connections.
    let host = own_address();
    let full = |port| {
        let full = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&full, &std::net::SocketAddr::new(host, port)).unwrap();
        rustix::net::listen(&full, 0).unwrap();
        (full, TcpStream::connect((host, port)).unwrap())
    };
    let _all: Vec<_> = (20_000..=20_059).map(full).collect();
    let limits = RelayLimits { probe_timeout: Duration::from_millis(500), ..RelayLimits::default() };
    let relay = Relay::new(String::new(), String::new(), host, limits);
    let started = Instant::now();
    let targets = [Target { host: host.to_string(), ports: PortRange { lo: 20_000, hi: 20_059 } }];
    let probe = relay.probe(&targets).unwrap();
    assert_eq!((probe.open.len(), probe.unreachable), (0, BTreeSet::from([host.to_string()])));
    // 30 s, were it one for each port.
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

/// Runs the test named here in a process of its own, with few descriptors.
#[test]
fn the_relay_survives_when_there_are_no_descriptors_left() {
    let inner = std::process::Command::new("bash")
        .args(["-c", r#"ulimit -n 40; exec "$0" --exact --ignored --nocapture with_few_descriptors"#])
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    let story = String::from_utf8_lossy(&inner.stdout);
    assert!(inner.status.success() && story.contains("1 passed"), "{story}{}", String::from_utf8_lossy(&inner.stderr));
}

#[test]
#[ignore = "run by the_relay_survives_when_there_are_no_descriptors_left, which limits its descriptors"]
fn with_few_descriptors() {
    let (bind, port) = (own_address(), application(echo));
    let relay = relay_with(bind, 64);
    relay.apply(&blocks(&[rule(1, 50100, port)])).unwrap();
    let mut streams = Vec::new();
    // Whom the relay turns away gives a descriptor back, so all are taken only when none has been given back for a while.
    let some_are_left = || std::fs::File::open("/dev/null").is_ok();
    let started = Instant::now();
    let mut full = started;
    while full.elapsed() < Duration::from_millis(300) || some_are_left() {
        while let Ok(stream) = TcpStream::connect((bind, 50100)) {
            streams.push(stream);
            full = Instant::now();
        }
        assert!(started.elapsed() < PATIENCE, "there are always some left");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(streams.len() > 5, "{} streams took all descriptors", streams.len());
    drop(streams);
    exchange(&mut connect_at_last(bind, 50100), "back again");
}

fn connect_at_last(bind: IpAddr, port: u16) -> TcpStream {
    let started = Instant::now();
    loop {
        let stream = TcpStream::connect((bind, port));
        if let Ok(mut stream) = stream {
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            if stream.write_all(b"?").is_ok() && stream.read(&mut [0]).is_ok_and(|count| count == 1) {
                return stream;
            }
        }
        assert!(started.elapsed() < PATIENCE, "the relay is not served again");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn dropping_the_relay_frees_ports_and_ends_sessions_and_threads() {
    let (bind, port) = (own_address(), application(echo));
    // As long as that is how long it would wait for sessions that do not end.
    let limits = RelayLimits { sessions: 8, connect_timeout: Duration::from_secs(30), ..RelayLimits::default() };
    let relay = Relay::new("10.0.0.1".into(), bind.to_string(), bind, limits);
    relay.apply(&blocks(&[rule(1, 50100, port), rule(1, 50101, port)])).unwrap();
    let mut streams: Vec<TcpStream> = (0..5).map(|_| connect(bind, 50100)).collect();
    streams.iter_mut().for_each(|stream| exchange(stream, "open"));
    let started = Instant::now();
    drop(relay);
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "it waits for its threads, and they end at once: {:?}",
        started.elapsed()
    );
    assert!(streams.iter_mut().all(closed));
    for port in [50100, 50101] {
        TcpListener::bind((bind, port)).unwrap();
    }
}
