//! Commands on other machines, by the system's `ssh`.
//!
//! Each [`Node`] keeps one connection (a *master* in ssh's words) and runs commands as sessions on it, so that a command costs a
//! few milliseconds. The master's own session is `cat` on a pipe of ours: when this process dies, however it dies, the pipe
//! closes and the connection ends with it. Nothing here trusts a host that is not in the known-hosts file.

mod permits;

use crate::command::{self, Output, last_words};
use crate::error::{Error, Result};
use crate::logging::{SSH, id};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::permits::{Permit, Permits};

/// A stock sshd takes 10 sessions per connection (`MaxSessions`); one is the master's own, and one is left in reserve. Where it turns out
/// to take fewer, we make do with fewer.
pub(crate) const SESSIONS: usize = 8;
/// So long a command waits for a session that sshd refuses.
const REFUSED_LIMIT: Duration = Duration::from_secs(10);
/// How long a new connection may take, in seconds; ssh's own limit and ours.
const CONNECT_SECONDS: u64 = 4;
/// What a client says that found no master, and whose own connection led nowhere (see [`Node::client`]).
const NEVER_BEGAN: &str = "UNKNOWN port 65535";
/// What a client says that found the connection's sessions all taken: the connection itself is well.
const SESSION_REFUSED: &str = "Session open refused";
/// A connection that carried something within this time is believed to be alive.
const QUIET: Duration = Duration::from_secs(2);
/// Of a command, so many characters are in the log.
const SHOWN: usize = 300;
/// What the master prints once it is there.
const READY: &str = "bwvisu-ready";

/// What all nodes have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshOptions {
    /// The private key; where it is not given, ssh looks where it always looks.
    pub identity_file: Option<PathBuf>,
    /// The host keys that we trust.
    pub known_hosts: PathBuf,
    /// A private folder for the control sockets.
    pub sockets: PathBuf,
}

/// One machine, and our connection to it.
pub struct Node {
    address: String,
    port: u16,
    user: String,
    options: SshOptions,
    link: Mutex<Link>,
    /// Held by the one that asks a quiet connection for a sign of life.
    waking: Mutex<()>,
    sessions: Permits,
}

#[derive(Default)]
struct Link {
    master: Option<Master>,
    /// When and why the last connection could not be made.
    failure: Option<(Instant, Error)>,
    /// When a command was last answered.
    heard: Option<Instant>,
}

impl Node {
    /// A machine that is reached as `user@address:port`. Does not connect yet.
    pub fn new(user: &str, address: &str, port: u16, options: SshOptions) -> Self {
        let sessions = Permits::new(SESSIONS);
        Self {
            address: address.into(),
            port,
            user: user.into(),
            options,
            link: Mutex::default(),
            waking: Mutex::default(),
            sessions,
        }
    }

    /// The address, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Runs `line` (words already quoted) in the login shell of the other side, a POSIX one, with `stdin`, for at most `limit`. A
    /// command that ends with 255 is seen to end with 254.
    ///
    /// Errors: `Unavailable` when the machine could not be reached (nothing happened there), `Unknown` when the
    /// connection or the deadline ended before the command did. What the command itself says is in the output.
    pub fn run(&self, line: &str, stdin: &[u8], limit: Duration) -> Result<Output> {
        self.noted(line, || {
            let deadline = Instant::now() + limit;
            let _session = self.session(deadline)?;
            self.twice(line, stdin, deadline)
        })
    }

    /// Like [`run`](Self::run), for what must not be done twice: whatever is sent into a connection that died in silence may have
    /// arrived or not, so one that was quiet for a while is asked for a sign of life first.
    pub fn run_once(&self, line: &str, stdin: &[u8], limit: Duration) -> Result<Output> {
        self.noted(line, || {
            let deadline = Instant::now() + limit;
            let _session = self.session(deadline)?;
            self.wake();
            self.twice(line, stdin, deadline)
        })
    }

    /// One line of the log for one command. The watchers' commands come every few seconds, and are shown when that is asked for.
    fn noted(&self, line: &str, call: impl FnOnce() -> Result<Output>) -> Result<Output> {
        let begun = Instant::now();
        let result = call();
        let ended = match &result {
            Ok(output) => output.status.to_string(),
            Err(error) => format!("failed: {error}"),
        };
        let level = if id::in_request() { log::Level::Info } else { log::Level::Debug };
        let (node, command, ms) = (&self.address, beginning(line), begun.elapsed().as_millis() as u64);
        log::log!(target: SSH, level, node:%, command, ended, ms; "ssh {node}: {command}: {ended}, {ms} ms");
        result
    }

    fn session(&self, deadline: Instant) -> Result<Permit<'_>> {
        self.sessions.take(deadline).ok_or_else(|| self.unreachable("all sessions were busy until the deadline"))
    }

    fn twice(&self, line: &str, stdin: &[u8], deadline: Instant) -> Result<Output> {
        match self.attempt(line, stdin, deadline) {
            // A connection that had died unnoticed carried nothing, so a new one may try.
            Err(error) if error.detail.as_ref().is_some_and(|detail| detail.contains(NEVER_BEGAN)) => {
                log::debug!("{}: {error}; once more", self.address);
                self.attempt(line, stdin, deadline)
            }
            result => result,
        }
    }

    /// A session that sshd refused carried nothing: its command waits until another one has ended.
    fn attempt(&self, line: &str, stdin: &[u8], deadline: Instant) -> Result<Output> {
        let until = deadline.min(Instant::now() + REFUSED_LIMIT);
        let mut refusals = 0;
        loop {
            let socket = self.connect(deadline)?;
            let result = self.judge(&socket, command::run(self.client(&socket).arg(without_255(line)), stdin, deadline));
            if !result.as_ref().is_err_and(was_refused) {
                return result;
            }
            if Instant::now() >= until {
                let advice = "its sshd refuses more sessions on a connection; MaxSessions should be 10, and must be 2 at least";
                return Err(Error::unavailable(format!("{}: {advice}", self.address)));
            }
            // The same command refused once more says nothing new.
            if refusals == 0 && self.sessions.refused() {
                log::info!("{}: sshd takes fewer sessions than usual (MaxSessions); so fewer at once from now on", self.address);
            }
            refusals += 1;
            thread::sleep(Duration::from_millis(20 << refusals.min(4)));
        }
    }

    fn judge(&self, socket: &Path, output: Result<Output>) -> Result<Output> {
        match output {
            Ok(output) if output.status.code() == Some(255) => {
                // 255 is ssh's own word for a broken connection; the next call makes a new one.
                let detail = output.complaint();
                if !detail.contains(SESSION_REFUSED) {
                    self.disconnect(socket);
                }
                if detail.contains(NEVER_BEGAN) {
                    return Err(self.unreachable(&detail));
                }
                Err(Error::unknown(format!("the connection to {} broke", self.address)).with_detail(detail))
            }
            Ok(output) => {
                lock(&self.link).heard = Some(Instant::now());
                Ok(output)
            }
            Err(error) => {
                self.end_if_silent(socket);
                Err(error.within(&self.address))
            }
        }
    }

    /// One of all that wait asks a quiet connection whether it lives.
    fn wake(&self) {
        let _turn = lock(&self.waking);
        let (socket, heard) = {
            let link = lock(&self.link);
            (link.master.as_ref().map(|master| master.socket.clone()), link.heard)
        };
        if let Some(socket) = socket
            && heard.is_none_or(|at| at.elapsed() >= QUIET)
        {
            self.end_if_silent(&socket);
        }
    }

    /// Ends a connection that carries nothing any more: a dead network is otherwise noticed only by ssh's own keep-alive. A refusal is
    /// a sign of life.
    fn end_if_silent(&self, socket: &Path) {
        let deadline = Instant::now() + Duration::from_secs(3);
        match command::run(self.client(socket).arg("true"), b"", deadline) {
            Ok(_) => lock(&self.link).heard = Some(Instant::now()),
            Err(_) => self.disconnect(socket),
        }
    }

    /// The control socket of a living connection.
    fn connect(&self, deadline: Instant) -> Result<PathBuf> {
        let since = Instant::now();
        let mut link = lock(&self.link);
        if let Some(master) = link.master.as_mut()
            && master.alive()
        {
            return Ok(master.socket.clone());
        }
        // Whoever waited while another call tried in vain need not try again at once.
        if let Some((_, error)) = link.failure.as_ref().filter(|(at, _)| *at >= since) {
            return Err(error.clone());
        }
        link.master = None;
        self.sessions.restore();
        let fresh = self.make_master(deadline).inspect_err(|error| link.failure = Some((Instant::now(), error.clone())))?;
        let socket = fresh.socket.clone();
        link.master = Some(fresh);
        Ok(socket)
    }

    /// Ends the connection behind this socket; not the one that somebody has made meanwhile.
    fn disconnect(&self, socket: &Path) {
        drop(lock(&self.link).master.take_if(|master| master.socket == socket));
    }

    fn make_master(&self, deadline: Instant) -> Result<Master> {
        let socket = self.options.sockets.join(socket_name());
        let mut child = self
            .ssh(&socket)
            .args(["-o", "ControlMaster=yes"])
            .arg(format!("{}@{}", self.user, self.address))
            .arg(format!("echo {READY}; exec cat >/dev/null"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C that is meant for us must not end our connections before we do.
            .process_group(0)
            .spawn()
            .map_err(|e| Error::unavailable(format!("cannot start ssh: {e}")))?;
        match await_ready(&mut child, deadline.min(Instant::now() + Duration::from_secs(CONNECT_SECONDS + 2))) {
            Ok(stdin) => Ok(Master { child, _stdin: stdin, socket }),
            Err(words) => {
                command::end(&mut child);
                Err(self.unreachable(&words))
            }
        }
    }

    fn unreachable(&self, detail: &str) -> Error {
        let advice = if detail.contains("Host key verification failed") || detail.contains("host key is known") {
            format!("; its key is not in {}: see `bwvisu-runner hosts trust`", self.options.known_hosts.display())
        } else {
            String::new()
        };
        Error::unavailable(format!("{} cannot be reached by ssh{advice}", self.address)).with_detail(detail)
    }

    fn client(&self, socket: &Path) -> Command {
        let mut command = self.ssh(socket);
        // Without a master the client would make a connection of its own; the proxy that it would use for that never connects.
        command.args(["-o", "ControlMaster=no", "-o", "ProxyCommand=false"]).arg(format!("{}@{}", self.user, self.address));
        command
    }

    /// `ssh` with everything that both kinds of calls share, and nothing from configuration files of the account or the system.
    fn ssh(&self, socket: &Path) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-T", "-p", &self.port.to_string(), "-S"]).arg(socket);
        let known_hosts = format!("UserKnownHostsFile=\"{}\"", self.options.known_hosts.display());
        let connect = format!("ConnectTimeout={CONNECT_SECONDS}");
        let settings = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=/dev/null",
            &known_hosts,
            &connect,
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ForwardAgent=no",
            "ForwardX11=no",
            "ClearAllForwardings=yes",
            "LogLevel=ERROR",
        ];
        for setting in settings {
            command.args(["-o", setting]);
        }
        if let Some(file) = &self.options.identity_file {
            command.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(file);
        }
        command
    }
}

/// The living end of a connection. Dropping it ends the connection.
struct Master {
    child: Child,
    /// Held open: its end is the other side's sign that we are gone.
    _stdin: ChildStdin,
    socket: PathBuf,
}

impl Master {
    fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        command::end(&mut self.child);
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

/// 255 is ssh's own word for a broken connection, but programs use it too (sbatch does for a wrong option): theirs becomes 254.
fn without_255(line: &str) -> String {
    format!("( {line} ); status=$?; [ $status -ne 255 ] || status=254; exit $status")
}

/// The beginning of a command, on one line. No secret is ever in a command.
fn beginning(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect()
}

/// A new name for every connection: the socket of one that just died may still be there. Short, as paths of sockets must be.
fn socket_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Removes the sockets that programs left behind which did not end in good order.
pub fn remove_stale_sockets(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()) {
            // Whoever else cleans up here is welcome to be faster.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Whether sshd had no session left for a command. The connection itself is well.
fn was_refused(error: &Error) -> bool {
    error.detail.as_ref().is_some_and(|detail| detail.contains(SESSION_REFUSED))
}

/// What a lock protects here stays right when a thread panics while it holds it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_can_pretend_that_the_connection_broke() {
        for (line, code) in [("exit 255", 254), ("exit 3", 3), ("true", 0), ("exec sh -c 'exit 255'", 254)] {
            let status = Command::new("sh").arg("-c").arg(without_255(line)).status().unwrap();
            assert_eq!(status.code(), Some(code), "{line}");
        }
    }

    #[test]
    fn sockets_of_the_dead_are_removed_and_those_of_the_living_stay() {
        let folder = tempfile::tempdir().unwrap();
        let living = format!("{}-0", std::os::unix::process::parent_id());
        for name in [living.as_str(), "4194305-0", "unrelated"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        remove_stale_sockets(folder.path());
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, [living.as_str(), "unrelated"]);
    }
}
