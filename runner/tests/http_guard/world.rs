//! A listener with a few handlers, and clients that can be as rude as a test needs.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::http::guard::{self, Handler, Limits, Server, Service};
use bwvisu_runner::http::message::{Request, Response};
use bwvisu_runner::http::tls;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// Longer than a client may wait for anything; reaching it fails the test. What is held on purpose is held for longer.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Where ordinary clients come from.
pub const FRIEND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// Where the others come from.
pub const FOE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// A certificate for localhost and its key, made once.
struct Identity {
    folder: tempfile::TempDir,
}

impl Identity {
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Identity> = OnceLock::new();
        SHARED.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            fs::write(folder.path().join("certificate"), made.cert.pem()).unwrap();
            fs::write(folder.path().join("key"), made.signing_key.serialize_pem()).unwrap();
            Self { folder }
        })
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        tls::load(&self.folder.path().join("certificate"), &self.folder.path().join("key")).unwrap()
    }

    fn client(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.folder.path().join("certificate")).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

/// What the listener answers.
pub fn handler() -> Handler {
    Arc::new(|request: &Request| {
        let number = |prefix: &str| request.path.strip_prefix(prefix).and_then(|rest| rest.parse::<u64>().ok());
        if let Some(milliseconds) = number("/sleep/") {
            thread::sleep(Duration::from_millis(milliseconds));
        }
        if let Some(bytes) = number("/big/") {
            return Response::text(200, "x".repeat(bytes as usize));
        }
        match request.path.as_str() {
            "/panic" => panic!("as asked"),
            "/split" => Response::text(200, "split").with_header("X-Split", "a\r\nX-Evil: b"),
            "/echo" => Response::json(200, &describe(request)),
            "/none" => Response::problem(404, "no such thing"),
            _ => Response::text(200, "hello"),
        }
    })
}

/// Holds those who ask for `/held` until it is opened, but not for ever.
#[derive(Default)]
pub struct Gate {
    /// How many have come, and whether it is open.
    state: Mutex<(usize, bool)>,
    opened: Condvar,
}

impl Gate {
    /// What the listener answers behind this gate.
    fn handler(self: &Arc<Self>) -> Handler {
        let (gate, others) = (Arc::clone(self), handler());
        Arc::new(move |request: &Request| {
            if request.path == "/held" {
                gate.hold();
            }
            others(request)
        })
    }

    fn hold(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        drop(self.opened.wait_timeout_while(state, 3 * PATIENCE, |state| !state.1).unwrap());
    }

    /// How many have come so far.
    pub fn entered(&self) -> usize {
        self.state.lock().unwrap().0
    }

    /// Lets them all go on.
    pub fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.opened.notify_all();
    }
}

fn describe(request: &Request) -> Value {
    json!({
        "method": request.method, "path": request.path, "query": request.query, "peer": request.peer.to_string(),
        "headers": request.headers, "length": request.body.len(), "body": String::from_utf8_lossy(&request.body),
    })
}

/// One listener.
pub struct World {
    pub server: Server,
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
}

impl World {
    pub fn plain(limits: Limits) -> Self {
        Self::new(limits, false)
    }

    pub fn tls(limits: Limits) -> Self {
        Self::new(limits, true)
    }

    /// One of each.
    pub fn both(limits: &Limits) -> [Self; 2] {
        [Self::plain(limits.clone()), Self::tls(limits.clone())]
    }

    /// One of each, behind a gate of its own.
    pub fn both_gated(limits: &Limits) -> [(Self, Arc<Gate>); 2] {
        [false, true].map(|tls| Self::gated(limits, tls))
    }

    pub fn gated(limits: &Limits, tls: bool) -> (Self, Arc<Gate>) {
        let gate = Arc::<Gate>::default();
        (Self::of(limits.clone(), tls, gate.handler()), gate)
    }

    fn new(limits: Limits, tls: bool) -> Self {
        Self::of(limits, tls, handler())
    }

    /// A listener for this service.
    pub fn of(limits: Limits, tls: bool, service: impl Into<Service>) -> Self {
        let server = start(limits, tls, service);
        let tls = tls.then(|| Identity::shared().client());
        Self { address: server.address(), server, tls }
    }

    pub fn connect(&self) -> Client {
        self.connect_from(FRIEND)
    }

    pub fn connect_from(&self, from: Ipv4Addr) -> Client {
        self.try_connect(from).unwrap()
    }

    pub fn try_connect(&self, from: Ipv4Addr) -> io::Result<Client> {
        Client::new(socket(self.address, from), self.tls.as_ref())
    }

    /// Whether who comes from there gets an answer.
    pub fn is_serving(&self, from: Ipv4Addr) -> bool {
        self.try_connect(from).and_then(|mut client| client.try_get("/hello")).is_ok_and(|answer| answer.status == 200)
    }

    /// What one request from a new connection gets.
    pub fn get(&self, path: &str) -> Answer {
        self.connect().get(path)
    }

    /// Others are served, and at once: at least one of five who come one after the other. Where the machine stands still, four may have to
    /// wait, or wait so long that they are not served. Nobody is refused at once for that.
    pub fn assert_serves(&self) {
        const QUICK: Duration = Duration::from_millis(900);
        let took = || {
            let start = Instant::now();
            let served = self.is_serving(FRIEND);
            assert!(served || start.elapsed() >= QUICK, "an ordinary client was refused at once");
            (served, start.elapsed())
        };
        let slow: Vec<_> = (0..5).map(|_| took()).take_while(|(served, time)| !served || *time >= QUICK).collect();
        assert!(slow.len() < 5, "ordinary clients were (not) served, and waited for {slow:?}");
    }

    /// What the listener makes of these bytes, whatever comes first: all it sends until it closes.
    pub fn answer_to(&self, bytes: &[u8]) -> Answer {
        let mut client = self.connect_from(FOE);
        client.send(bytes);
        let answer = client.answer();
        client.assert_closed();
        answer
    }
}

/// Starts the listener alone, as a child process does too.
pub fn serve(limits: Limits, tls: bool) -> Server {
    start(limits, tls, handler())
}

fn start(limits: Limits, tls: bool, service: impl Into<Service>) -> Server {
    let tls = tls.then(|| Identity::shared().server());
    guard::start("test", (FRIEND, 0).into(), tls, limits, service).unwrap()
}

/// A connection from an address of choice, nothing sent yet.
pub fn socket(to: SocketAddr, from: Ipv4Addr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if from != FRIEND {
        // Not for those whose address it is anyway: searching a free port is slow where thousands were just used.
        socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into()).unwrap();
    }
    if from == FOE {
        // Small, so that it is noticed soon when nobody reads; it makes everything slower, too.
        socket.set_recv_buffer_size(16 * 1024).unwrap();
    }
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Either kind of stream.
trait Line: Read + Write + Send {}
impl<T: Read + Write + Send> Line for T {}

/// A client that reads what it is given.
pub struct Client {
    line: Box<dyn Line>,
    unread: Vec<u8>,
}

impl Client {
    pub fn new(mut socket: TcpStream, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let Some(config) = tls else { return Ok(Self { line: Box::new(socket), unread: Vec::new() }) };
        let name = ServerName::try_from("localhost").unwrap();
        let mut session = ClientConnection::new(Arc::clone(config), name).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Self { line: Box::new(StreamOwned::new(session, socket)), unread: Vec::new() })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes.as_ref()).unwrap();
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.line.write_all(bytes)?;
        self.line.flush()
    }

    pub fn ask(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.ask(path);
        self.answer()
    }

    pub fn try_get(&mut self, path: &str) -> io::Result<Answer> {
        self.try_send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
        self.try_answer(false)
    }

    pub fn answer(&mut self) -> Answer {
        self.try_answer(false).unwrap()
    }

    pub fn answer_without_body(&mut self) -> Answer {
        self.try_answer(true).unwrap()
    }

    pub fn try_answer(&mut self, head_only: bool) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.more()?;
        };
        let rest = self.unread.split_off(end);
        let head = String::from_utf8(std::mem::replace(&mut self.unread, rest)).unwrap();
        let mut answer = Answer { status: head[9..12].parse().unwrap(), head, body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |value| value.parse().unwrap());
        let length = if head_only { 0 } else { length };
        while self.unread.len() < length {
            self.more()?;
        }
        let rest = self.unread.split_off(length);
        answer.body = std::mem::replace(&mut self.unread, rest);
        Ok(answer)
    }

    fn more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        match self.line.read(&mut chunk)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.unread.extend_from_slice(&chunk[..count]);
                Ok(())
            }
        }
    }

    /// The listener says goodbye in good form, and nothing else.
    pub fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        self.line.read_to_end(&mut rest).unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "", "nothing comes after the last answer");
    }

    /// All that comes until the connection ends, in whatever form it ends.
    pub fn drain(&mut self) -> usize {
        let (mut chunk, mut sum) = ([0; 64 * 1024], 0);
        loop {
            match self.line.read(&mut chunk) {
                Ok(0) => return sum,
                Ok(count) => sum += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("the connection is still open"),
                Err(_) => return sum,
            }
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// It is an error in the form that all our errors have, and the last on its connection.
    pub fn assert_problem(&self, status: u16, what: &str) {
        assert_eq!(self.status, status, "{what}: {}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{what}");
        assert_eq!(self.json()["status"], status, "{what}");
        assert!(self.json()["title"].is_string() && self.json()["detail"].is_string(), "{what}");
        assert_eq!(self.json()["request-id"].as_str(), self.header("x-request-id"), "{what}");
        assert_eq!(self.header("x-request-id").unwrap().len(), 16, "{what}");
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not even after {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
