//! A job as a test has it: a script with a ports line, a client, a node's tools and folders; run by real bash.

use bwvisu_runner::domain::batch_script::{Clients, KeyholeSetup, batch_script};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::{env, fs, io};
use tempfile::TempDir;

pub const TOKEN: &str = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2";

/// What a node has installed, but for what is left out on purpose.
const TOOLS: [&str; 17] = [
    "bash", "sh", "cat", "mktemp", "chmod", "rm", "mkdir", "uname", "base64", "gzip", "sed", "grep", "env", "sleep", "ls", "tr",
    "readlink",
];

/// A client that notes how it was called, and answers as keyhole-client does.
pub const ANSWERS: &str = r#"
while [ $# -gt 0 ]; do [ "$1" = --ports ] && ports=$2; shift; done
i=0
while [ $i -lt "$ports" ]; do
    echo "export KEYHOLE_PORT$i=$((50000 + i))"
    echo "export KEYHOLE_GATEWAY$i=192.0.2.$i"
    echo "export KEYHOLE_EXTERNAL_PORT$i=$((60000 + i))"
    i=$((i + 1))
done
echo "export KEYHOLE_NUM_PORTS=$ports"
"#;

/// A program in sh that does what every client must, notes its call in `$RECORD`, and goes on with `then`.
pub fn stub(then: &str) -> Vec<u8> {
    let head = r#"#!/bin/sh
[ "$1" = --version ] && exit 0
printf '%s' "$*" >"$RECORD/arguments"
printf '%s' "$KEYHOLE_TOKEN" >"$RECORD/token"
cat "/proc/$$/cmdline" "/proc/$PPID/cmdline" >"$RECORD/cmdlines"
readlink "/proc/$$/fd/0" >"$RECORD/stdin"
"#;
    format!("{head}{then}").into_bytes()
}

/// This machine's architecture as `uname -m` says it.
pub const HERE: &str = std::env::consts::ARCH;

pub struct Job {
    folder: TempDir,
    pub before: String,
    pub after: String,
    pub ports: u32,
    pub client: Vec<u8>,
    pub architecture: String,
    pub environment: Vec<(String, String)>,
    /// A command that runs in front of bash, as `unshare` does.
    pub within: Option<String>,
}

pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Job {
    pub fn new() -> Self {
        Self::beneath(&env::temp_dir())
    }

    pub fn beneath(folder: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("job").tempdir_in(folder).unwrap();
        for name in ["tmp", "home", "work", "record", "bin", "full", "readonly"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let (before, after) = ("set -euo pipefail".to_owned(), "env | grep ^KEYHOLE_ | LC_ALL=C sort".to_owned());
        let client = stub(ANSWERS);
        Self { folder, before, after, ports: 1, client, architecture: HERE.into(), environment: Vec::new(), within: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the client noted, or a script wrote into `$RECORD`.
    pub fn record(&self, name: &str) -> String {
        fs::read(self.path("record").join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn set(&mut self, name: &str, value: impl AsRef<Path>) {
        self.environment.push((name.into(), value.as_ref().to_str().unwrap().into()));
    }

    /// Gives the job a PATH with the tools of a bare node, less some, and more.
    pub fn only_tools(&mut self, without: &[&str], with: &[&str]) {
        for tool in TOOLS.iter().filter(|tool| !without.contains(tool)).chain(with) {
            let found = find(tool).unwrap_or_else(|| panic!("this test needs {tool} on this machine"));
            symlink(found, self.path("bin").join(tool)).unwrap();
        }
        self.set("PATH", self.path("bin"));
    }

    /// Puts a program of the test's own before all others on the PATH.
    pub fn tool(&mut self, name: &str, script: &str) {
        let file = self.path("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", self.path("bin").display(), env::var("PATH").unwrap());
        self.set("PATH", path);
    }

    pub fn script(&self) -> String {
        let clients = Clients::new(vec![(self.architecture.clone(), self.client.clone())]).unwrap();
        let servers: [SocketAddr; 2] = ["127.0.0.1:9".parse().unwrap(), "[::1]:9".parse().unwrap()];
        let setup = KeyholeSetup { job_id: 17, token_hex: TOKEN, servers: &servers, give_up_after_seconds: 1, clients: &clients };
        let rendered = format!("#!/bin/bash\n{}\n#KEYHOLE-REQUEST-PORTS {}\n{}\n", self.before, self.ports, self.after);
        batch_script(&rendered, &setup, 100).unwrap()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = match &self.within {
            Some(within) => {
                let mut command = Command::new("unshare");
                command
                    .args(["--mount", "sh", "-c", &format!("set -e; {within}\nexec \"$@\""), "sh"])
                    .args(DEFAULT_SIGNALS)
                    .args(words);
                command
            }
            None => {
                let mut command = Command::new(DEFAULT_SIGNALS[0]);
                command.args(&DEFAULT_SIGNALS[1..]).args(words);
                command
            }
        };
        command
            .current_dir(self.path("work"))
            .stdin(Stdio::null())
            .env("TMPDIR", self.path("tmp"))
            .env("HOME", self.path("home"));
        command
            .env("RECORD", self.path("record"))
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("TEST_KEYHOLE_CLIENT")
            .envs(self.environment.iter().cloned());
        command
    }

    /// Runs the script as Slurm does: from a file.
    pub fn run(&self) -> Run {
        self.run_as(&[bash(), self.file().to_str().unwrap()])
    }

    pub fn run_as(&self, words: &[&str]) -> Run {
        self.file();
        Run::new(self.command(words).output().unwrap())
    }

    /// Starts the script in a process group of its own.
    pub fn start(&self) -> Child {
        let file = self.file();
        let mut command = self.command(&[bash(), file.to_str().unwrap()]);
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn file(&self) -> PathBuf {
        let file = self.path("script");
        fs::write(&file, self.script()).unwrap();
        file
    }

    /// What lies in the job's folders that should be empty.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let folders = ["tmp", "home", "work", "full"].map(|name| self.path(name));
        folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path()).collect()
    }
}

impl Run {
    fn new(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    pub fn told(&self) -> String {
        format!("status {:?}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.stdout, self.stderr)
    }

    /// The job ended, for this reason, and nothing after the ports line ran.
    pub fn must_have_ended(&self, status: i32, reasons: &[&str]) {
        assert_eq!(self.status, Some(status), "{}", self.told());
        assert!(self.stderr.contains("bwVisu job 17 ends, because it could get no ports: "), "{}", self.told());
        for reason in reasons {
            assert!(self.stderr.contains(reason), "\"{reason}\" is not said: {}", self.told());
        }
        assert_eq!(self.stdout, "", "the script went on: {}", self.told());
        assert!(!self.stderr.contains(TOKEN), "{}", self.told());
    }

    pub fn must_have_one_port(&self) {
        let expected = "KEYHOLE_EXTERNAL_PORT0=60000\nKEYHOLE_GATEWAY0=192.0.2.0\nKEYHOLE_NUM_PORTS=1\nKEYHOLE_PORT0=50000\n";
        assert_eq!((self.status, self.stdout.as_str()), (Some(0), expected), "{}", self.told());
        assert!(!self.stderr.contains(TOKEN), "{}", self.told());
    }
}

/// The bash that runs scripts: another one (an old version) can be given.
pub fn bash() -> &'static str {
    static BASH: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    BASH.get_or_init(|| env::var("TEST_BASH").unwrap_or_else(|_| "/bin/bash".into()))
}

fn find(tool: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(tool)).find(|file| file.is_file())
}

/// Whether this machine has a tool; says so, past the test harness, if it has not.
pub fn has(tool: &str) -> bool {
    let has = find(tool).is_some();
    if !has {
        say(&format!("*** NOT RUN: a case that needs {tool}, which is not installed here ***"));
    }
    has
}

/// Whoever runs the tests may ignore signals (as nohup and shells in the background do), and bash could not trap those then.
const DEFAULT_SIGNALS: [&str; 2] = ["/usr/bin/env", "--default-signal"];

/// Whether this machine lets us mount things, in a namespace of our own; says so if it does not.
pub fn can_mount() -> bool {
    let can = Command::new("unshare").args(["--mount", "sh", "-c", "mount -t tmpfs none /mnt"]).output();
    let can = can.is_ok_and(|output| output.status.success());
    if !can {
        say("*** NOT RUN: a test that mounts folders noexec or full; it needs root and unshare ***");
    }
    can
}

pub fn say(message: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("\n{message}\n").as_bytes());
}
