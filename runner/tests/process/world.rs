//! The program in a folder of its own, and its clients.

use crate::caused::{on_a_small_disk, quick_folder};
pub use crate::ports::free_port;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bwvisu_runner::domain::user::User;
use bwvisu_runner::scheduler::Scheduler;
use bwvisu_runner::scheduler::local::{Local, LocalOptions};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// With a colon and a letter outside ASCII: both are ordinary in passwords.
pub const PASSWORD: &str = "pass:wörd-4711-of-the-api";
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_bwvisu-runner");

/// A job that writes a line and ends when it is told to.
const SLEEPER: &str = "#!/bin/bash\n#SBATCH --time=5\necho started {{word}}\nexec sleep 300\n";
/// The shipped demo, which begins later.
const LATE: &str = "#!/bin/bash\n#SBATCH --time=5\nsleep {{delay}}\n{{> template_demo.txt}}\n";

/// The keyhole-clients: the folder that `TEST_KEYHOLE_CLIENTS` names, else built now as they are shipped.
pub fn clients() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("TEST_KEYHOLE_CLIENTS") {
            return folder.into();
        }
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clients");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/build-clients");
        let output = Command::new(script).arg(&folder).output().unwrap();
        assert!(output.status.success(), "packaging/build-clients: {}", String::from_utf8_lossy(&output.stderr));
        folder
    })
}

/// Who jobs run as: `nobody` where the tests run as root, else who runs them.
pub fn user() -> &'static User {
    static USER: OnceLock<User> = OnceLock::new();
    USER.get_or_init(|| {
        let own = fs::metadata("/proc/self").unwrap().uid();
        let spool = tempfile::tempdir().unwrap();
        let name = if own == 0 { "nobody".to_owned() } else { own.to_string() };
        Local::open(&spool.path().join("spool"), LocalOptions::default()).unwrap().user(&name).unwrap().unwrap()
    })
}

/// Waits until `look` finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>, story: impl Fn() -> String) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(40), "not in time: {what}\n{}", story());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Says that it is over when it is dropped, by a panic too: a scope waits for those that go on until then.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A folder with a configuration, an installation and users' homes.
pub struct Bench {
    root: tempfile::TempDir,
    /// Holds the state folder: in memory, because every step of the program waits until its state is written.
    memory: tempfile::TempDir,
    pub config: Value,
    pub environment: Vec<(String, String)>,
}

impl Bench {
    /// Embedded defaults: local scheduler, relay, a store in a file, a certificate of its own.
    pub fn new() -> Self {
        static RANGES: AtomicU16 = AtomicU16::new(16_000);
        let root = tempfile::Builder::new().prefix("bwvisu-process-").tempdir().unwrap();
        let memory = quick_folder();
        let low = RANGES.fetch_add(40, Ordering::Relaxed);
        let config = json!({
            "bwvisu-home-prefix": root.path().join("home"),
            "state-dir": memory.path().join("state"),
            "templates": root.path().join("templates"),
            "gateway-nodes": [{"internal-ip": "localhost", "external-ip": "127.0.0.1"}],
            "keyholed-servers": [{"ip": "127.0.0.1", "port": 0}],
            "keyhole-listen": "127.0.0.1:0",
            "api-listen": "127.0.0.1:0",
            "keyholed-port-range": {"min": low, "max": low + 39},
            "keyholed-max-forwarders-per-job": 5,
            "scheduler": "local",
            "gateway": "relay",
            "users": {"min-uid": 1},
            "watch": {"jobs-seconds": 0.2, "keyhole-seconds": 0.2},
        });
        let bench = Self { root, memory, config, environment: Vec::new() };
        bench.furnish();
        bench
    }

    /// The same without TLS.
    pub fn plain() -> Self {
        let mut bench = Self::new();
        bench.set("api-plain-http", true);
        bench
    }

    fn furnish(&self) {
        fs::set_permissions(self.root.path(), Permissions::from_mode(0o711)).unwrap();
        let home = self.home();
        for folder in [home.clone(), self.path("install"), self.path("templates")] {
            fs::create_dir_all(folder).unwrap();
        }
        if fs::metadata("/proc/self").unwrap().uid() == 0 {
            chown(&home, Some(user().uid), Some(user().gid)).unwrap();
        }
        symlink(clients(), self.path("install/share")).unwrap();
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../templates/template_demo.txt");
        fs::copy(shipped, self.path("templates/template_demo.txt")).unwrap();
        self.template("template_sleeper.txt", SLEEPER);
        self.template("template_late.txt", LATE);
        self.write("settings.json", &json!({"api-password": PASSWORD}).to_string(), 0o600);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        let folder = if Path::new(name).starts_with("state") { &self.memory } else { &self.root };
        folder.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.path("home").join(&user().name)
    }

    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.config[key] = value.into();
    }

    pub fn template(&self, name: &str, text: &str) {
        self.write(&format!("templates/{name}"), text, 0o644);
    }

    pub fn write(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    /// Writes the configuration down.
    pub fn save(&self) {
        self.write("config.json", &self.config.to_string(), 0o644);
    }

    /// The program, with this configuration.
    pub fn command(&self) -> Command {
        self.save();
        let mut command = Command::new(PROGRAM);
        for name in
            ["CREDENTIALS_DIRECTORY", "JOURNAL_STREAM", "RUST_LOG", "BWVISU_API_URL", "BWVISU_API_PASSWORD", "NOTIFY_SOCKET"]
        {
            command.env_remove(name);
        }
        command.arg("--config").arg(self.path("config.json"));
        command.env("BWVISU_INSTALL_DIR", self.path("install")).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same, after a line of shell that changes what it starts with.
    pub fn command_after(&self, line: &str) -> Command {
        let plain = self.command();
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{line} && exec \"$@\"")).arg("sh").arg(plain.get_program()).args(plain.get_args());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The program from start to end.
    pub fn run(&self, words: &[&str]) -> Ended {
        ended(self.command().args(words))
    }

    /// The program at work, all four parts.
    pub fn serve(&self) -> Served {
        self.serve_with(&[])
    }

    pub fn serve_with(&self, words: &[&str]) -> Served {
        self.serve_as(self.command().arg("serve").args(words))
    }

    /// What `command` starts.
    pub fn serve_as(&self, command: &mut Command) -> Served {
        let child = command.spawn().unwrap();
        // What was handed over is the child's alone from here on: a copy of a socket would go on listening.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let own = self.path("state/tls/certificate.pem");
        let configured = self.config["api-tls"]["certificate"].as_str().map_or(own, PathBuf::from);
        let certificate = (self.config["api-plain-http"] != true).then_some(configured);
        Served::attach(child, certificate.as_deref())
    }

    /// The program at work, its state folder on a small disk of its own. Without TLS: its certificate would lie there.
    pub fn serve_on_a_small_disk(&self, kib: u32) -> Served {
        fs::create_dir_all(self.path("state")).unwrap();
        let mut command = on_a_small_disk(self.command().arg("serve"), &self.path("state"), kib);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Served::attach(command.spawn().unwrap(), None)
    }

    /// Files of the state folder, with their type and mode.
    pub fn state_files(&self) -> Vec<(PathBuf, fs::Metadata)> {
        let (mut files, mut folders) = (Vec::new(), vec![self.path("state")]);
        while let Some(folder) = folders.pop() {
            files.push((folder.clone(), fs::symlink_metadata(&folder).unwrap()));
            // What is gone by now was temporary.
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                match fs::symlink_metadata(entry.path()) {
                    Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                    Ok(metadata) => files.push((entry.path(), metadata)),
                    Err(_) => {}
                }
            }
        }
        files
    }
}

/// Jobs outlive the runner, so they are ended here.
impl Drop for Bench {
    fn drop(&mut self) {
        let spool = self.path("state/local-jobs");
        if let (true, Ok(local)) = (spool.exists(), Local::open(&spool, LocalOptions::default())) {
            for entry in fs::read_dir(&spool).into_iter().flatten().flatten() {
                let _ = local.cancel(&user().name, &entry.file_name().to_string_lossy());
            }
        }
        let begin = Instant::now();
        let mentioned = |folder: &tempfile::TempDir| !mentioning(&folder.path().to_string_lossy()).is_empty();
        while begin.elapsed() < Duration::from_secs(8) && (mentioned(&self.root) || mentioned(&self.memory)) {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The command lines of all processes that name this text.
pub fn mentioning(text: &str) -> Vec<String> {
    let lines = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(text)).collect()
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn ended(command: &mut Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The program at work.
pub struct Served {
    child: Child,
    log: Arc<Mutex<String>>,
    agent: ureq::Agent,
    pub url: String,
    pub address: String,
}

impl Served {
    fn attach(mut child: Child, certificate: Option<&Path>) -> Self {
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, kept) = (child.stderr.take().unwrap(), Arc::clone(&log));
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *kept.lock().unwrap() += &(line + "\n");
            }
        });
        let mut served = Self { child, log, agent: agent(None), url: String::new(), address: String::new() };
        // The other in JSON.
        served.await_line(&[" ready", "\"ready\""]);
        served.address = served.listening("api").unwrap_or_default();
        served.url = format!("{}://{}", if certificate.is_some() { "https" } else { "http" }, served.address);
        if let Some(certificate) = certificate.filter(|_| !served.address.is_empty()) {
            served.agent = agent(Some(certificate));
        }
        served
    }

    fn await_line(&mut self, texts: &[&str]) {
        let begin = Instant::now();
        while !self.log().lines().any(|line| texts.iter().any(|text| line.contains(text))) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status}:\n{}", self.log());
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "no {texts:?}:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where a part listens.
    pub fn listening(&self, part: &str) -> Option<String> {
        let log = self.log();
        let (_, rest) = log.split_once(&format!("{part}: listening on "))?;
        rest.split_whitespace().next().map(str::to_owned)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.get_as(&basic("bwvisu-web", PASSWORD), path)
    }

    /// The same, of a client that names its request.
    pub fn get_named(&self, id: &str, path: &str) -> Answer {
        let request = self.agent.get(format!("{}{path}", self.url)).header("Authorization", self.password());
        Answer::of(request.header("X-Request-Id", id).call())
    }

    pub fn get_as(&self, authorization: &str, path: &str) -> Answer {
        let request = self.agent.get(format!("{}{path}", self.url)).header("Authorization", authorization);
        Answer::of(request.call())
    }

    pub fn delete(&self, path: &str) -> Answer {
        let request = self.agent.delete(format!("{}{path}", self.url));
        Answer::of(request.header("Authorization", basic("bwvisu-web", PASSWORD)).call())
    }

    pub fn post(&self, body: &Value) -> Answer {
        self.post_text("application/json", &body.to_string())
    }

    pub fn post_text(&self, kind: &str, body: &str) -> Answer {
        let request = self.agent.post(format!("{}/jobs", self.url)).content_type(kind);
        Answer::of(request.header("Authorization", basic("bwvisu-web", PASSWORD)).send(body))
    }

    pub fn post_as(&self, key: &str, body: &Value) -> Answer {
        self.post_text_as(key, &body.to_string())
    }

    /// The same request may be made again under its key.
    pub fn post_text_as(&self, key: &str, body: &str) -> Answer {
        let request = self.agent.post(format!("{}/jobs", self.url)).content_type("application/json");
        Answer::of(request.header("Authorization", self.password()).header("Idempotency-Key", key).send(body))
    }

    /// The header's value.
    pub fn password(&self) -> String {
        basic("bwvisu-web", PASSWORD)
    }

    /// What these bytes get on a connection of their own, all of it.
    pub fn raw(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Asks for a backup of the store.
    pub fn back_up(&self) -> Answer {
        let request = self.agent.post(format!("{}/cluster/backup", self.url));
        Answer::of(request.header("Authorization", basic("bwvisu-web", PASSWORD)).send_empty())
    }

    /// Whether it answers to the same, and is not killed over it.
    pub fn try_back_up(&self) -> bool {
        let request = self.agent.post(format!("{}/cluster/backup", self.url));
        request.header("Authorization", basic("bwvisu-web", PASSWORD)).send_empty().is_ok()
    }

    /// Submits, and expects to be given an id.
    pub fn submit(&self, user: &str, template: &str, variables: Value) -> String {
        let answer = self.post(&json!({"uid": user, "template-name": template, "variables": variables}));
        assert_eq!(answer.status, 200, "{answer:?}\n{}", self.log());
        answer.body["job-id"].as_str().unwrap().to_owned()
    }

    pub fn job(&self, id: &str) -> Value {
        let answer = self.get(&format!("/jobs/{id}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// Waits until the job is in this state.
    pub fn await_state(&self, id: &str, state: &str) -> Value {
        let look = || Some(self.job(id)).filter(|job| job["state"] == state);
        until(&format!("job {id} is {state}"), look, || format!("{:#}\n{}", self.job(id), self.log()))
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.pid().to_string()]).status().unwrap().success());
    }

    /// Sends SIGHUP, and waits for what it says then.
    pub fn reload(&self) -> String {
        let said = || self.log().lines().filter(|line| line.contains("SIGHUP: ")).map(str::to_owned).collect::<Vec<_>>();
        let before = said().len();
        self.signal("-HUP");
        until("the configuration is read again", || said().get(before).cloned(), || self.log())
    }

    /// How many entries `/proc` shows for it: of threads (`task`), of open files (`fd`).
    pub fn count(&self, what: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{what}", self.pid())).unwrap().count()
    }

    /// Waits for its end; its exit code and how long that took.
    pub fn wait(mut self) -> (Option<i32>, Duration) {
        let begin = Instant::now();
        (self.child.wait().unwrap().code(), begin.elapsed())
    }

    /// Ends it with SIGTERM; its exit code and how long that took.
    pub fn terminate(mut self) -> (Option<i32>, Duration) {
        self.signal("-TERM");
        let begin = Instant::now();
        (self.child.wait().unwrap().code(), begin.elapsed())
    }

    /// Ends it as a power failure would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent(certificate: Option<&Path>) -> ureq::Agent {
    let roots = certificate.map(|file| Certificate::from_pem(&fs::read(file).unwrap()).unwrap().to_owned());
    let roots = roots.map_or(RootCerts::WebPki, |certificate| RootCerts::new_with_certs(&[certificate]));
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(60)));
    config.proxy(None).tls_config(TlsConfig::builder().root_certs(roots).build()).build().into()
}

pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Bytes that an application serves, as a user gets them.
pub fn fetch(service: &Value) -> String {
    let url = format!("http://{}:{}/", service["external-ip"].as_str().unwrap(), service["external-port"]);
    agent(None).get(url).call().unwrap().body_mut().read_to_string().unwrap()
}

/// An answer of the API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub kind: String,
    /// `X-Request-Id`
    pub id: String,
    pub headers: String,
    pub body: Value,
}

impl Answer {
    fn of(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Self {
        let mut answer = answer.unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let header = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        Self {
            status: answer.status().as_u16(),
            kind: header("content-type"),
            id: header("x-request-id"),
            headers: format!("{:?}", answer.headers()),
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        }
    }

    /// Expects the whole of an error: members, and words in its detail.
    pub fn assert_problem(&self, status: u16, title: &str, words: &str) {
        assert_eq!((self.status, self.kind.as_str()), (status, "application/problem+json"), "{words:?}: {self:?}");
        assert_eq!((&self.body["status"], &self.body["title"]), (&json!(status), &json!(title)), "{self:?}");
        assert!(self.body["detail"].as_str().unwrap().contains(words), "{words:?}: {self:?}");
        assert!(!self.id.is_empty() && self.body["request-id"] == self.id.as_str(), "{self:?}");
    }
}
