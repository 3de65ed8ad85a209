//! The program in a folder of its own.

use crate::caused::{on_a_small_disk, quick_folder};
pub use crate::ports::free_port;
pub use crate::served::{Answer, Served, basic, fetch};
use bwvisu_runner::domain::user::User;
use bwvisu_runner::scheduler::Scheduler;
use bwvisu_runner::scheduler::local::{Local, LocalOptions};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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
