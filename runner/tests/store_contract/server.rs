//! A real etcd server on loopback for one test, ended with it.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::store::Backend;
use bwvisu_runner::store::etcd::{Etcd, EtcdConfig, EtcdTls};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::caused::freeze;
use crate::certificates;

// Below the ports that the system gives to connections.
const CLIENT_PORT: u16 = 23790;
const PEER_PORT: u16 = 23800;

/// How long a call of a test's client has where its end is not the question: an attempt that may not be repeated has a fraction of it,
/// and that must be longer than a busy machine stands still.
pub const PATIENT: Duration = Duration::from_secs(15);
/// For all that comes sooner or later, or never.
const LATE: Duration = Duration::from_secs(60);

/// Whether the programs are there that these tests need. Where they are not, it says so loudly, or fails where `REQUIRE_ETCD=1`.
pub fn etcd_is_there() -> bool {
    let missing: Vec<&str> = ["etcd", "etcdctl", "openssl"].into_iter().filter(|program| !installed(program)).collect();
    if missing.is_empty() {
        return true;
    }
    let advice = format!("{} not installed (Debian: etcd-server etcd-client openssl)", missing.join(", "));
    assert!(std::env::var("REQUIRE_ETCD").as_deref() != Ok("1"), "REQUIRE_ETCD=1, but {advice}");
    // Written past the test harness, which would keep it to itself where the test passes.
    let warning = format!("\n*** NOT TESTED AGAINST ETCD: {advice} ***\n");
    std::io::stderr().lock().write_all(warning.as_bytes()).unwrap();
    false
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// How a server is set up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it comes.
    Plain,
    /// A login's token lasts one second.
    ShortTokens,
    /// TLS, and certificates asked of clients.
    MutualTls,
    /// The same, with a server's certificate that has expired.
    ExpiredTls,
    /// The same, with a certificate for another host.
    OtherHostTls,
    /// So little space that a few megabytes fill it.
    LittleSpace,
}

impl Kind {
    /// The server's certificate, where it has one.
    fn certificate(self) -> Option<&'static str> {
        match self {
            Self::MutualTls => Some("server"),
            Self::ExpiredTls => Some("expired-server"),
            Self::OtherHostTls => Some("other-host"),
            Self::Plain | Self::ShortTokens | Self::LittleSpace => None,
        }
    }
}

/// One server. Its data and its address stay when it is killed and started again.
pub struct EtcdServer {
    folder: TempDir,
    kind: Kind,
    name: String,
    /// All members of its cluster, as etcd wants them listed.
    cluster: String,
    /// One of loopback's 16 million addresses: with a random port on 127.0.0.1, others could take the port while the server is down.
    address: Ipv4Addr,
    child: Option<Child>,
}

impl EtcdServer {
    pub fn start(kind: Kind) -> Self {
        let mut server = Self::new(kind, "one");
        server.cluster = server.peer();
        server.spawn();
        server.assert_listens();
        server
    }

    fn new(kind: Kind, name: &str) -> Self {
        let (folder, address) = (tempfile::tempdir().unwrap(), random_address());
        if kind.certificate().is_some() {
            certificates::make(folder.path(), address);
        }
        Self { folder, kind, name: name.to_owned(), cluster: String::new(), address, child: None }
    }

    /// Starts the server that `kill` ended; whether it listens then.
    pub fn start_again(&mut self) -> bool {
        self.spawn();
        self.listens()
    }

    /// Starts the process, which listens as soon as its cluster has a leader.
    pub fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new("etcd");
        command.args(self.arguments()).env_clear().stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    pub fn assert_listens(&mut self) {
        assert!(self.listens(), "etcd does not start:\n{}", self.log());
    }

    fn listens(&mut self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < LATE {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect((self.address, CLIENT_PORT)).is_ok() {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    fn arguments(&self) -> Vec<String> {
        let (client, peer) = (self.endpoint(), format!("http://{}:{PEER_PORT}", self.address));
        let text = |path: &str| self.path(path).display().to_string();
        let mut options = vec![
            ("name", self.name.clone()),
            ("data-dir", text("data")),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer),
            ("initial-cluster", self.cluster.clone()),
            // The disk need not be waited for: no server here loses power, and one that is killed leaves behind what it wrote.
            ("unsafe-no-fsync", "true".to_owned()),
        ];
        match self.kind {
            Kind::ShortTokens => options.push(("auth-token-ttl", "1".to_owned())),
            Kind::LittleSpace => options.push(("quota-backend-bytes", (4 << 20).to_string())),
            _ => {}
        }
        if let Some(name) = self.kind.certificate() {
            options.extend([
                ("cert-file", text(&format!("{name}.pem"))),
                ("key-file", text(&format!("{name}.key"))),
                ("trusted-ca-file", text("ca.pem")),
                ("client-cert-auth", "true".to_owned()),
            ]);
        }
        options.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
    }

    /// Ends the server as a power loss would, but for the disk.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Freezes the server: it neither answers nor hangs up.
    pub fn freeze(&self) {
        freeze(Pid::from_child(self.child.as_ref().unwrap()));
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// The member as its peers are told of it.
    fn peer(&self) -> String {
        format!("{}=http://{}:{PEER_PORT}", self.name, self.address)
    }

    pub fn client_address(&self) -> SocketAddr {
        SocketAddr::from((self.address, CLIENT_PORT))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn endpoint(&self) -> String {
        let scheme = if self.kind.certificate().is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{CLIENT_PORT}", self.address)
    }

    pub fn config(&self) -> EtcdConfig {
        EtcdConfig { endpoints: vec![self.endpoint()], user: None, tls: None, timeout: PATIENT }
    }

    /// The TLS of a client that the server trusts.
    pub fn tls(&self) -> EtcdTls {
        EtcdTls { ca: Some(self.path("ca.pem")), certificate: Some(self.certificate("client")) }
    }

    /// A certificate of the test's, with its key.
    pub fn certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")))
    }

    /// Waits until the server answers this client.
    pub fn wait_for(&self, client: &Etcd) {
        let begin = Instant::now();
        while let Err(error) = client.get(&["some".to_owned()]) {
            assert!(begin.elapsed() < LATE, "etcd does not answer: {error}\n{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A client of its own, once the server answers.
    pub fn client(&self) -> Etcd {
        let client = Etcd::connect(self.config()).unwrap();
        self.wait_for(&client);
        client
    }

    /// Whether it leads its cluster, as it says itself; a dead or frozen one says nothing.
    fn leads(&self) -> bool {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args([
            "--dial-timeout=5s",
            "--command-timeout=5s",
            "endpoint",
            "status",
            "--write-out=json",
        ]);
        let output = command.arg(format!("--endpoints={}", self.endpoint())).output().unwrap();
        let Ok(status) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else { return false };
        let status = &status[0]["Status"];
        status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
    }

    /// Runs etcdctl, as `user:password` where authentication is on.
    pub fn ctl(&self, user: Option<&str>, arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoint()));
        command.args(["--dial-timeout=20s", "--command-timeout=30s"]);
        command.args(user.map(|user| format!("--user={user}"))).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn random_address() -> Ipv4Addr {
    let mut bytes = [0; 3];
    getrandom::fill(&mut bytes).unwrap();
    // Not 127.0.x.y, where the machine's own servers are, and no broadcast address.
    Ipv4Addr::new(127, 1 + bytes[0] % 250, bytes[1], 1 + bytes[2] % 250)
}

/// Three servers that are one etcd.
pub struct EtcdCluster {
    pub members: Vec<EtcdServer>,
}

impl EtcdCluster {
    pub fn start() -> Self {
        let mut members: Vec<EtcdServer> = ["one", "two", "three"].map(|name| EtcdServer::new(Kind::Plain, name)).into();
        let cluster = members.iter().map(EtcdServer::peer).collect::<Vec<_>>().join(",");
        for member in &mut members {
            member.cluster = cluster.clone();
            member.spawn();
        }
        members.iter_mut().for_each(EtcdServer::assert_listens);
        Self { members }
    }

    pub fn config(&self) -> EtcdConfig {
        let endpoints = self.members.iter().map(EtcdServer::endpoint).collect();
        EtcdConfig { endpoints, ..self.members[0].config() }
    }

    /// A program's connection to all members.
    pub fn client(&self) -> Etcd {
        self.client_with(PATIENT)
    }

    /// One whose calls have so long.
    pub fn client_with(&self, timeout: Duration) -> Etcd {
        let client = Etcd::connect(EtcdConfig { timeout, ..self.config() }).unwrap();
        self.members[0].wait_for(&client);
        client
    }

    /// Which member leads the others now.
    pub fn leader(&self) -> usize {
        let begin = Instant::now();
        loop {
            if let Some(leader) = self.members.iter().position(EtcdServer::leads) {
                return leader;
            }
            assert!(begin.elapsed() < LATE, "no member leads");
            thread::sleep(Duration::from_millis(50));
        }
    }
}
