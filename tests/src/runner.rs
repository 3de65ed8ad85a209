//! A real `bwvisu-runner serve` on one of the bed's hosts for runners, with a configuration of its own.

use crate::api::Api;
use crate::bed::{Bed, repository};
use crate::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;

/// What front ends must know.
pub const PASSWORD: &str = "a-password-that-nobody-else-has";
/// Where the API listens.
pub const API_PORT: u16 = 4242;
/// Where keyhole listens.
pub const KEYHOLE_PORT: u16 = 80;

/// What may differ from one test to another.
pub struct Setup<'s> {
    /// Templates beside those that are installed: names and texts.
    pub templates: &'s [(&'s str, &'s str)],
    /// The ports that may be forwarded.
    pub ports: (u16, u16),
    /// How many of them one job may have.
    pub max_ports: u32,
    /// `RUST_LOG`.
    pub log: &'s str,
    /// Whether the hosts' keys are known.
    pub trusts_hosts: bool,
    /// The parts that run, as `--only` takes them; all without it.
    pub parts: &'s str,
    /// More of its environment.
    pub env: Vec<(String, String)>,
    /// Another program than the one that is installed.
    pub program: Option<PathBuf>,
    /// The host: `runner`, `run1` or `run2`.
    pub host: &'s str,
    /// Members of the configuration that are otherwise than usual.
    pub config: Value,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            templates: &[],
            ports: (50000, 50999),
            max_ports: 100,
            log: "info",
            trusts_hosts: true,
            parts: "",
            env: Vec::new(),
            program: None,
            host: "runner",
            config: json!({}),
        }
    }
}

/// The process, its folder, and a front end of it. When a test fails, its log is printed.
pub struct Runner<'b> {
    bed: &'b Bed,
    folder: tempfile::TempDir,
    child: Option<Child>,
    host: String,
    log_level: String,
    parts: String,
    env: Vec<(String, String)>,
    program: PathBuf,
    /// A front end outside.
    pub api: Api<'b>,
}

impl<'b> Runner<'b> {
    /// A runner with these templates beside those that are installed.
    pub fn start(bed: &'b Bed, templates: &[(&str, &str)]) -> Self {
        Self::with(bed, &Setup { templates, ..Setup::default() })
    }

    /// A runner of this kind, ready to serve.
    pub fn with(bed: &'b Bed, setup: &Setup) -> Self {
        let mut runner = Self::prepare(bed, setup);
        runner.start_again();
        runner
    }

    /// A runner of this kind that has not been started yet.
    pub fn prepare(bed: &'b Bed, setup: &Setup) -> Self {
        let folder = tempfile::Builder::new().prefix("bwvisu-proof-").tempdir_in("/tmp").unwrap();
        let certificate = write_certificate(folder.path(), bed, setup.host);
        write_templates(&folder.path().join("templates"), setup.templates);
        write_config(folder.path(), bed, setup);
        let url = format!("https://{}:{API_PORT}", bed.external(setup.host));
        let api = Api::new(bed, &url, certificate.as_bytes(), PASSWORD);
        let (host, log_level, parts, env) =
            (setup.host.to_owned(), setup.log.to_owned(), setup.parts.to_owned(), setup.env.clone());
        let program = setup.program.clone().unwrap_or_else(|| dist().join("bin/bwvisu-runner"));
        Self { bed, folder, child: None, host, log_level, parts, env, program, api }
    }

    /// Starts the process, which does not run, with more in its environment, and does not wait for anything.
    pub fn launch(&mut self, environment: &[(&str, &str)]) {
        assert!(self.child.is_none(), "it runs already");
        let log = OpenOptions::new().append(true).create(true).open(self.folder.path().join("log")).unwrap();
        let only = if self.parts.is_empty() { String::new() } else { format!(" --only {}", self.parts) };
        let mut words = vec!["env".to_owned()];
        words.extend(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        words.extend(self.program(&format!("serve{only}")));
        let mut command = self.bed.command(&self.host, &words.iter().map(String::as_str).collect::<Vec<_>>());
        command.env("RUST_LOG", &self.log_level).env("BWVISU_INSTALL_DIR", dist()).envs(environment.iter().copied());
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// How the process ended by itself, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap();
        self.child.take_if(|_| status.is_some());
        status
    }

    /// Starts the process, which does not run, and waits until it is ready.
    pub fn start_again(&mut self) {
        let before = self.log().matches("ready\n").count();
        let path = self.folder.path().join("log");
        self.launch(&[]);
        let ready = |log: &String| log.matches("ready\n").count() > before;
        let look = || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "the runner ended at once: {}", fs::read_to_string(&path).unwrap_or_default());
            fs::read_to_string(&path).unwrap_or_default()
        };
        until("the runner to be ready", 20, look, ready);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// SIGTERM; returns how it ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.end(Signal::TERM)
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let _ = kill_process(Pid::from_child(&child), signal);
        child.wait().unwrap()
    }

    /// The process's number on this machine.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Sends it a signal that it goes on after: SIGSTOP or SIGCONT.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("it is ours");
    }

    /// All that was logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The folder with its configuration, templates, state and log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration, to be named on a command line.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.json")
    }

    /// The words of a command line of the program under test with this configuration.
    pub fn program(&self, command: &str) -> Vec<String> {
        let config = self.config_file();
        let mut words =
            vec![self.program.to_string_lossy().into_owned(), "--config".into(), config.to_string_lossy().into_owned()];
        words.extend(command.split(' ').map(str::to_owned));
        words
    }

    /// Waits until a job is in `state`; fails at once if it finished instead.
    pub fn wait_for(&self, id: &str, state: &str, seconds: u64) -> Value {
        let there = |job: &Value| job["state"] == state || job["state"] == "finished";
        let job = until(&format!("job {id} to be {state}"), seconds, || self.api.job(id), there);
        assert_eq!(job["state"], state, "job {id}: {job:#}");
        job
    }

    /// The output of a user's job, as far as it is there.
    pub fn job_log(&self, user: &str, id: &str) -> String {
        let path = self.bed.home(user).join(format!("bwvisu-job-{id}.out"));
        fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for Runner<'_> {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if thread::panicking() {
            eprintln!("--- the runner's log\n{}", last_lines(&self.log(), 80));
            for (path, text) in job_logs(self.bed) {
                eprintln!("--- {}\n{}", path.display(), last_lines(&text, 20));
            }
        }
        for (path, _) in job_logs(self.bed) {
            let _ = fs::remove_file(path);
        }
    }
}

/// The install folder under test.
pub fn dist() -> PathBuf {
    let dist = std::env::var_os("BWVISU_DIST").map_or_else(|| repository().join("dist"), PathBuf::from);
    let program = dist.join("bin/bwvisu-runner");
    assert!(program.is_file(), "{} is not there: `make build` makes it, or set BWVISU_DIST", program.display());
    dist
}

/// The build with debug assertions of the program under test, which lies beside this test's own: it can be told to die at a point
/// of its own (`BWVISU_DIE_AT`).
pub fn mortal() -> PathBuf {
    let beside = || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("bwvisu-runner");
    let program = std::env::var_os("BWVISU_DEBUG_RUNNER").map_or_else(beside, PathBuf::from);
    let text = fs::read(&program).unwrap_or_else(|error| panic!("{}: {error}: `cargo build` makes it", program.display()));
    let mark = b"BWVISU_DIE_AT";
    assert!(text.windows(mark.len()).any(|window| window == mark), "{} is no build with debug assertions", program.display());
    program
}

fn write_certificate(folder: &Path, bed: &Bed, host: &str) -> String {
    let names = vec![bed.external(host).to_string(), bed.ip(host).to_string(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    write_private(&folder.join("key.pem"), &made.signing_key.serialize_pem());
    fs::write(folder.join("certificate.pem"), made.cert.pem()).unwrap();
    made.cert.pem()
}

fn write_templates(folder: &Path, more: &[(&str, &str)]) {
    fs::create_dir(folder).unwrap();
    for entry in fs::read_dir(dist().join("templates")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    for (name, text) in more {
        fs::write(folder.join(name), text).unwrap();
    }
}

fn write_config(folder: &Path, bed: &Bed, setup: &Setup) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    let login = |host: &str| json!({"ip": bed.ip(host), "user": bed.get("BED_SSH_USER"), "port": 22});
    let gateway = |host: &str| json!({"internal-ip": bed.ip(host), "external-ip": bed.external(host), "user": bed.get("BED_SSH_USER"), "port": 22});
    let mut config = json!({
        "bwvisu-home-prefix": bed.get("BED_HOME_PREFIX"),
        "gateway-nodes": [gateway("gw0"), gateway("gw1")],
        "command-nodes": [login("cmd0"), login("cmd1")],
        "keyholed-servers": [{"ip": bed.ip("runner"), "port": KEYHOLE_PORT}],
        "keyholed-port-range": {"min": setup.ports.0, "max": setup.ports.1},
        "keyholed-max-forwarders-per-job": setup.max_ports,
        "etcd-servers": [{"ip": "127.0.0.1", "port": 2379}],
        "debug": {"keyholed-static-forwarding": "False"},
        "forwarding-hostname-suffix": "-ib0",
        "api-tls": {"certificate": folder.join("certificate.pem"), "key": folder.join("key.pem")},
        "templates": folder.join("templates"),
        "state-dir": folder.join("state"),
        "ssh": {"identity-file": bed.get("BED_SSH_KEY")},
        "watch": {"jobs-seconds": 0.5, "keyhole-seconds": 0.5},
    });
    if setup.trusts_hosts {
        config["ssh"]["known-hosts"] = bed.get("BED_SSH_KNOWN_HOSTS").into();
    }
    for (name, value) in setup.config.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    fs::write(folder.join("config.json"), format!("{config:#}")).unwrap();
    write_private(&folder.join("settings.json"), &json!({"api-password": PASSWORD}).to_string());
}

fn write_private(path: &Path, text: &str) {
    use std::io::Write;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn job_logs(bed: &Bed) -> Vec<(PathBuf, String)> {
    let entries = ["alice", "bob"].into_iter().flat_map(|user| fs::read_dir(bed.home(user)).into_iter().flatten().flatten());
    let logs = entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/bwvisu-job-"));
    logs.map(|path| (path.clone(), String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned())).collect()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
