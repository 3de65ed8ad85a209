//! The connection that sessions share.

use super::lock;
use crate::command::{self, last_words};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What it prints once it is there.
const READY: &str = "bwvisu-ready";

/// The living end of a connection. Dropping it ends the connection.
pub struct Master {
    child: Mutex<Child>,
    /// Held open: its end is the other side's sign that we are gone.
    _stdin: ChildStdin,
    /// Where clients find it.
    pub socket: PathBuf,
    /// Sessions were given up on it, and sshd may hold them as long as something hangs in them.
    pub lost_sessions: AtomicBool,
}

impl Master {
    /// Starts `ssh`, which lacks nothing but the command; comes back when the other side is there.
    ///
    /// Errors: what it complained about.
    pub fn start(mut ssh: Command, socket: PathBuf, deadline: Instant) -> Result<Self, String> {
        let mut child = ssh
            .arg(format!("echo {READY}; exec cat >/dev/null"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C that is meant for us must not end our connections before we do.
            .process_group(0)
            .spawn()
            .map_err(|e| format!("cannot start ssh: {e}"))?;
        match await_ready(&mut child, deadline) {
            Ok(stdin) => Ok(Self { child: Mutex::new(child), _stdin: stdin, socket, lost_sessions: AtomicBool::new(false) }),
            Err(words) => {
                command::end(&mut child);
                Err(words)
            }
        }
    }

    /// Whether it has not ended.
    pub fn alive(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// Ends the connection, whoever uses it.
    pub fn end(&self) {
        command::end(&mut lock(&self.child));
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.end();
        // A killed ssh leaves its socket behind.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Waits until the master says that it is there; else returns what it complained about.
fn await_ready(child: &mut Child, deadline: Instant) -> Result<ChildStdin, String> {
    let (sender, receiver) = channel();
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
        return Err("no pipes to ssh".into());
    };
    let complaints = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&complaints);
    // Lives as long as the master: an ssh that cannot write its complaints would hang.
    let keep = thread::Builder::new().name("ssh-stderr".into()).stack_size(128 << 10).spawn(move || keep_last(stderr, &kept));
    let ready = thread::Builder::new().name("ssh-ready".into()).stack_size(128 << 10).spawn(move || {
        let mut line = String::new();
        // A login shell may print a greeting first.
        let mut lines = BufReader::new(stdout.take(64 << 10));
        while lines.read_line(&mut line).is_ok_and(|n| n > 0) && !line.ends_with(&format!("{READY}\n")) {
            line.clear();
        }
        let _ = sender.send(!line.is_empty());
    });
    if keep.is_err() || ready.is_err() {
        return Err("no thread could be started".into());
    }
    match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(true) => Ok(stdin),
        Ok(false) => {
            // The complaint may be a moment behind the end of the output.
            thread::sleep(Duration::from_millis(50));
            Err(last_words(&lock(&complaints)))
        }
        Err(_) => Err(format!("no connection within the time. {}", last_words(&lock(&complaints)))),
    }
}

fn keep_last(mut stderr: impl Read, kept: &Mutex<String>) {
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = stderr.read(&mut buffer) {
        let mut kept = lock(kept);
        if kept.len() < 4096 {
            kept.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }
}
