//! Attacks on both listeners of the program, over the network, from other hosts than the honest clients.

use crate::templates::PORTLESS;
use bwvisu_tests::api::USER;
use bwvisu_tests::keyhole;
use bwvisu_tests::runner::{API_PORT, KEYHOLE_PORT, PASSWORD};
use bwvisu_tests::wait::until;
use bwvisu_tests::{Bed, Runner};
use keyhole_protocol::Token;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What an honest client may wait for nearly always, on a machine that also runs the attack.
const PATIENCE: Duration = Duration::from_millis(2500);
/// What it may wait for when the machine stands still. Who waited for the seats of the attackers would wait for ten seconds.
const STILL: Duration = Duration::from_secs(9);

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One of the two listeners, as a host sees it.
struct Door<'b> {
    bed: &'b Bed,
    host: &'static str,
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
}

impl<'b> Door<'b> {
    /// The API's from `host`.
    fn api(bed: &'b Bed, runner: &Runner, host: &'static str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(runner.folder().join("certificate.pem")).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let tls = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
        Self { bed, host, address: (bed.ip("runner"), API_PORT).into(), tls: Some(tls) }
    }

    /// Keyhole's from `host`.
    fn keyhole(bed: &'b Bed, host: &'static str) -> Self {
        Self { bed, host, address: (bed.ip("runner"), KEYHOLE_PORT).into(), tls: None }
    }

    fn tcp(&self) -> io::Result<TcpStream> {
        let stream = self.bed.at(self.host, || TcpStream::connect_timeout(&self.address, Duration::from_secs(20)))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        Ok(stream)
    }

    fn open(&self) -> io::Result<Box<dyn Stream>> {
        let tcp = self.tcp()?;
        let Some(config) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = ServerName::from(self.address.ip());
        let session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(session, tcp)))
    }

    /// The status of what comes back for these bytes, after which the connection must be closed; nothing if it is closed at once.
    fn status(&self, bytes: &[u8]) -> Option<u16> {
        let mut stream = self.open().ok()?;
        stream.write_all(bytes).and_then(|()| stream.flush()).ok()?;
        let mut answer = Vec::new();
        // However it is closed.
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(text.matches("\r\nContent-Length: ").count() <= 1, "two answers to one request: {text}");
        text.split(' ').nth(1)?.parse().ok()
    }
}

#[test]
fn attacks_cost_other_clients_nothing_and_leave_nothing_behind() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    let doors = || [Door::api(&bed, &runner, "cmd1"), Door::keyhole(&bed, "c3")];
    doors().iter().for_each(|door| malformed(door));
    let before = Figures::of(runner.pid());
    let done = AtomicBool::new(false);
    let (mut answers, most) = thread::scope(|scope| {
        let honest = scope.spawn(|| honest_clients(&bed, &runner, &done));
        let figures = scope.spawn(|| Figures::most(runner.pid(), &done));
        let threads: Vec<_> =
            attacks(&bed, &runner).into_iter().map(|(attack, door)| scope.spawn(move || attack(&door))).collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        done.store(true, Ordering::SeqCst);
        results.into_iter().for_each(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        (honest.join().unwrap(), figures.join().unwrap())
    });
    answers.sort();
    let (worst, most_of_them) = (answers[answers.len() - 1], answers[answers.len() * 95 / 100]);
    eprintln!("worst answer {worst:?}, 95 % below {most_of_them:?}; before {before:?}; during {most:?}");
    assert!(
        most_of_them < PATIENCE && worst < STILL,
        "an honest client waited for {worst:?}, and one in twenty for {most_of_them:?}"
    );
    assert!(most.threads < before.threads + 400 && most.files < before.files + 800, "{before:?} {most:?}");
    assert!(most.megabytes < before.megabytes + 150, "{before:?} {most:?}");
    let settled = |now: &Figures| now.threads <= before.threads + 8 && now.files <= before.files + 8;
    let after = until("threads and files to be given back", 60, || Figures::of(runner.pid()), settled);
    assert!(after.megabytes < before.megabytes + 60, "{before:?} {after:?}");
    assert!(runner.api.jobs().is_empty());
}

type Attack<'b> = (fn(&Door), Door<'b>);

/// All attacks on both listeners. The flood has hosts of its own: it would take the seats that the others of its address need.
fn attacks<'b>(bed: &'b Bed, runner: &Runner) -> Vec<Attack<'b>> {
    let alone: [fn(&Door); 5] = [endless_header, huge_lengths, slow_loris, silence, prefaces];
    let api = alone.map(|attack| (attack, Door::api(bed, runner, "cmd1")));
    let keyhole = alone.map(|attack| (attack, Door::keyhole(bed, "c3")));
    let floods: [Attack; 2] = [(flood, Door::api(bed, runner, "gw1")), (flood, Door::keyhole(bed, "c2"))];
    api.into_iter().chain(keyhole).chain(floods).collect()
}

/// Requests that mean different things to different readers, or nothing: refused, and the connection closed.
fn malformed(door: &Door) {
    let with = |rest: &str| format!("POST /jobs HTTP/1.1\r\nHost: a\r\n{rest}\r\n");
    let hidden = "GET /jobs HTTP/1.1\r\nHost: a\r\n\r\n";
    let cases = [
        (with("Content-Length: 100000000000\r\n"), 413),
        (with("Content-Length: 99999999999999999999999999\r\n"), 413),
        (with("Content-Length: 3\r\nContent-Length: 40\r\n") + "abc" + hidden, 400),
        (with("Content-Length: 3\r\nContent-Length: 3\r\n") + "abc", 400),
        (with("Content-Length: +3\r\n") + "abc", 400),
        (with("Content-Length: 3, 3\r\n") + "abc", 400),
        (with("Transfer-Encoding: chunked\r\n") + "0\r\n\r\n" + hidden, 501),
        (with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n" + hidden, 501),
        (with("Transfer-Encoding: identity, chunked\r\nContent-Length: 5\r\n") + "0\r\n\r\n" + hidden, 501),
        (with("Transfer-Encoding : chunked\r\n") + "0\r\n\r\n" + hidden, 400),
        (with("X: a\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n" + hidden, 400),
        (with("Host: b\r\n"), 400),
        (with("X: a\0b\r\n"), 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), 505),
        ("GET http://elsewhere/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        (with(&"X: y\r\n".repeat(200)), 431),
    ];
    for (bytes, status) in cases {
        assert_eq!(door.status(bytes.as_bytes()), Some(status), "{}: {bytes:.120}", door.address);
    }
}

/// 200 MiB of one header, of which some kilobytes are read.
fn endless_header(door: &Door) {
    let mut stream = door.open().unwrap();
    stream.write_all(b"GET /jobs HTTP/1.1\r\nHost: a\r\nX: ").unwrap();
    let chunk = vec![b'x'; 64 << 10];
    let taken = (0..3200).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(taken < 640, "{} MiB of a header were taken", taken / 16);
}

fn huge_lengths(door: &Door) {
    for _ in 0..30 {
        let bytes = b"POST /v1/ports HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000000\r\n\r\nabc";
        assert_eq!(door.status(bytes), Some(413));
    }
}

/// Many who send a byte now and then, in head and in body.
fn slow_loris(door: &Door) {
    let starts: [&[u8]; 2] =
        [b"GET /jobs HTTP/1.1\r\nX: ", b"POST /v1/ports HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n"];
    let mut streams: Vec<_> = (0..24).map(|_| door.open().unwrap()).collect();
    for (stream, start) in streams.iter_mut().zip(starts.iter().cycle()) {
        stream.write_all(start).unwrap();
    }
    let begun = Instant::now();
    // A machine that stands still meanwhile shows later what was cut off.
    let limit = |left: usize| Duration::from_secs(if left > 12 { 30 } else { 13 });
    while begun.elapsed() < limit(streams.len()) && !streams.is_empty() {
        streams.retain_mut(|stream| stream.write_all(b"x").and_then(|()| stream.flush()).is_ok());
        thread::sleep(Duration::from_millis(250));
    }
    assert!(streams.len() <= 12, "{} were not cut off, though half of them are heads", streams.len());
}

/// Connections that say nothing, or begin a TLS handshake and stop.
fn silence(door: &Door) {
    let mut streams: Vec<TcpStream> = (0..24).map(|_| door.tcp().unwrap()).collect();
    for stream in streams.iter_mut().step_by(2) {
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").unwrap();
    }
    let begun = Instant::now();
    for mut stream in streams {
        let closed = stream.read_to_end(&mut Vec::new()).map_or_else(|error| error.kind() != io::ErrorKind::WouldBlock, |_| true);
        assert!(closed, "left open");
    }
    assert!(begun.elapsed() < Duration::from_secs(18), "{:?}", begun.elapsed());
}

/// Each of these once cost a thread and two descriptors for ever.
fn prefaces(door: &Door) {
    for _ in 0..60 {
        assert_eq!(door.status(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Some(505));
    }
}

/// More connections at once than one address may have.
fn flood(door: &Door) {
    let mut streams: Vec<TcpStream> = (0..400).filter_map(|_| door.tcp().ok()).collect();
    for stream in &mut streams {
        let _ = stream.write_all(b"GET /jobs HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    thread::sleep(Duration::from_secs(2));
}

/// A front end outside and a node with a job go on all the while; how long each answer took.
fn honest_clients(bed: &Bed, runner: &Runner, done: &AtomicBool) -> Vec<Duration> {
    let mut answers = Vec::new();
    let token = Token::from_bytes([1; 32]);
    while !done.load(Ordering::SeqCst) {
        let begun = Instant::now();
        assert!(runner.api.jobs().is_empty());
        answers.push(begun.elapsed());
        let begun = Instant::now();
        let answer = keyhole::ask(bed, "c0", &token, &keyhole::request("4711", 1, 1, &["c0"]));
        assert_eq!(answer.status, 403, "refused by keyhole itself, not by the listener: {answer:?}");
        answers.push(begun.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    answers
}

/// What the program holds.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    threads: usize,
    files: usize,
    megabytes: usize,
}

impl Figures {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the runner lives");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
        };
        let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the runner lives").count();
        Self { threads: number("Threads:"), files, megabytes: number("VmRSS:") / 1024 }
    }

    fn most(pid: u32, done: &AtomicBool) -> Self {
        let mut most = Self::default();
        while !done.load(Ordering::SeqCst) {
            let now = Self::of(pid);
            most.threads = most.threads.max(now.threads);
            most.files = most.files.max(now.files);
            most.megabytes = most.megabytes.max(now.megabytes);
            thread::sleep(Duration::from_millis(20));
        }
        most
    }
}

#[test]
fn a_password_is_not_asked_for_in_plain_text() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    let plain = Door { tls: None, ..Door::api(&bed, &runner, "cmd1") };
    let authorization = bwvisu_tests::api::basic(USER, PASSWORD);
    let request = format!("GET /jobs HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\n\r\n");
    assert_eq!(plain.status(request.as_bytes()), None);
}
