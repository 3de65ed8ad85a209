//! A real etcd server on loopback for one test, ended with it.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::store::Backend;
use bwvisu_runner::store::etcd::{Etcd, EtcdConfig, EtcdTls};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

// Below the ports that the system gives to connections.
const CLIENT_PORT: u16 = 23790;
const PEER_PORT: u16 = 23800;

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
}

/// One server. Its data and its address stay when it is killed and started again.
pub struct EtcdServer {
    folder: TempDir,
    kind: Kind,
    /// One of loopback's 16 million addresses: with a random port on 127.0.0.1, others could take the port while the server is down.
    address: Ipv4Addr,
    child: Option<Child>,
}

impl EtcdServer {
    pub fn start(kind: Kind) -> Self {
        let mut server = Self { folder: tempfile::tempdir().unwrap(), kind, address: random_address(), child: None };
        if kind == Kind::MutualTls {
            make_certificates(server.folder.path(), server.address);
        }
        assert!(server.start_again(), "etcd does not start:\n{}", fs::read_to_string(server.path("log")).unwrap());
        server
    }

    /// Starts the server that `kill` ended; whether it listens then.
    pub fn start_again(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new("etcd")
            .args(self.arguments())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(20) {
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

    fn arguments(&self) -> Vec<String> {
        let (client, peer) = (self.endpoint(), format!("http://{}:{PEER_PORT}", self.address));
        let text = |path: &str| self.path(path).display().to_string();
        let mut options = vec![
            ("name", "one".to_owned()),
            ("data-dir", text("data")),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("one={peer}")),
        ];
        match self.kind {
            Kind::Plain => {}
            Kind::ShortTokens => options.push(("auth-token-ttl", "1".to_owned())),
            Kind::MutualTls => options.extend([
                ("cert-file", text("server.pem")),
                ("key-file", text("server.key")),
                ("trusted-ca-file", text("ca.pem")),
                ("client-cert-auth", "true".to_owned()),
            ]),
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
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn endpoint(&self) -> String {
        let scheme = if self.kind == Kind::MutualTls { "https" } else { "http" };
        format!("{scheme}://{}:{CLIENT_PORT}", self.address)
    }

    pub fn config(&self) -> EtcdConfig {
        EtcdConfig { endpoints: vec![self.endpoint()], user: None, tls: None, timeout: EtcdConfig::DEFAULT_TIMEOUT }
    }

    /// The TLS of a client that the server trusts.
    pub fn tls(&self) -> EtcdTls {
        EtcdTls { ca: Some(self.path("ca.pem")), certificate: Some((self.path("client.pem"), self.path("client.key"))) }
    }

    /// Waits until the server answers this client, at most 20 seconds.
    pub fn wait_for(&self, client: &Etcd) {
        let begin = Instant::now();
        while let Err(error) = client.get(&["some".to_owned()]) {
            let log = || fs::read_to_string(self.path("log")).unwrap();
            assert!(begin.elapsed() < Duration::from_secs(20), "etcd does not answer: {error}\n{}", log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A client of its own, once the server answers.
    pub fn client(&self) -> Etcd {
        let client = Etcd::connect(self.config()).unwrap();
        self.wait_for(&client);
        client
    }

    /// Runs etcdctl, as `user:password` where authentication is on.
    pub fn ctl(&self, user: Option<&str>, arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoint()));
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

/// An authority, and a certificate each for the server and a client; and another authority which signed nothing.
fn make_certificates(folder: &Path, address: Ipv4Addr) {
    for authority in ["ca", "stranger"] {
        let subject = format!("/CN={authority}");
        let (key, pem) = (format!("{authority}.key"), format!("{authority}.pem"));
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let constraint = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
        openssl(
            folder,
            &[&new[..], &["-subj", &subject, "-keyout", &key, "-out", &pem], &constraint[..1], &constraint[1..]].concat(),
        );
    }
    let extensions = format!("subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n");
    fs::write(folder.join("extensions"), extensions).unwrap();
    for name in ["server", "client"] {
        let subject = format!("/CN={name}");
        let (key, request, pem) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let new = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        openssl(folder, &[&new[..], &["-subj", &subject, "-keyout", &key, "-out", &request]].concat());
        let sign = ["x509", "-req", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(folder, &[&sign[..], &["-extfile", "extensions", "-in", &request, "-out", &pem]].concat());
    }
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
