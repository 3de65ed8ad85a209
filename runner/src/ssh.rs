//! Commands on other machines, by the system's `ssh`.
//!
//! Each [`Node`] keeps one connection (a *master* in ssh's words), and on it a few shells (`channel`) that run one command after the
//! other, so that a command costs a round trip and no process here. The master's own session is `cat` on a pipe of ours: when this
//! process dies, however it dies, the pipe closes and the connection ends with it. Nothing here trusts a host that is not in the
//! known-hosts file.

mod channel;
mod master;
mod permits;

use crate::command::{Output, last_words};
use crate::error::{Error, ErrorKind, Result};
use crate::logging::{SSH, id};
use crate::metrics::metrics;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::channel::{Broken, Channel, Whose};
use self::master::Master;
use self::permits::{Permit, Permits};

/// A stock sshd takes 10 sessions per connection (`MaxSessions`); one is the master's own, and one is left in reserve. Where it turns out
/// to take fewer, we make do with fewer.
pub(crate) const SESSIONS: usize = 8;
/// A user may stop a command that runs as this user: so these never take all sessions, and the watchers go on looking.
const FOR_USERS: usize = 5;
/// So long a command waits for a session that sshd refuses.
const REFUSED_LIMIT: Duration = Duration::from_secs(10);
/// How long a new connection may take, in seconds; ssh's own limit and ours.
const CONNECT_SECONDS: u64 = 4;
/// What a client says that found the connection's sessions all taken: the connection itself is well.
const SESSION_REFUSED: &str = "Session open refused";
/// A connection that carried something within this time is believed to be alive.
const QUIET: Duration = Duration::from_secs(2);
/// Of a command, so many characters are in the log.
const SHOWN: usize = 300;
/// How long a quiet connection has to give a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);
/// How long the other side has to start a shell on a connection that is there: logins may be slow.
const SHELL_LIMIT: Duration = Duration::from_secs(10);
/// A shell that nobody needed for so long is ended when another one comes back.
const UNUSED: Duration = Duration::from_secs(60);

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
    /// Shells that wait for a command, the one that was used last at the end.
    channels: Mutex<Vec<Kept>>,
    sessions: Permits,
    /// Of these, those that commands of users may take.
    for_users: Permits,
}

#[derive(Default)]
struct Link {
    master: Option<Arc<Master>>,
    /// When and why the last connection could not be made.
    failure: Option<(Instant, Error)>,
}

/// A shell, and the connection that it is a session of, which lasts as long as one of them does.
struct Kept {
    shell: Channel,
    master: Arc<Master>,
}

impl Node {
    /// A machine that is reached as `user@address:port`. Does not connect yet.
    pub fn new(user: &str, address: &str, port: u16, options: SshOptions) -> Self {
        let (sessions, for_users) = (Permits::new(SESSIONS), Permits::new(FOR_USERS));
        Self {
            address: address.into(),
            port,
            user: user.into(),
            options,
            link: Mutex::default(),
            channels: Mutex::default(),
            sessions,
            for_users,
        }
    }

    /// The address, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Runs `line` (words already quoted, no newline) in a POSIX shell of the other side, with `stdin` (no NUL), for at most `limit`.
    ///
    /// Errors: `Unavailable` when the machine could not be reached (nothing happened there), `Unknown` when the
    /// connection or the deadline ended before the command did. What the command itself says is in the output.
    pub fn run(&self, line: &str, stdin: &[u8], limit: Duration) -> Result<Output> {
        self.noted(line, || {
            let deadline = Instant::now() + limit;
            let _session = self.session(deadline)?;
            self.again_if_broken(deadline, || self.attempt(Whose::Ours, line, stdin, deadline, &always))
        })
    }

    /// Like [`run`](Self::run), for programs that run as another user: they get no stream of the shell into their hands. They may begin
    /// before their input is there, and get none of it if it is cut off on its way: so they must be such as do nothing without.
    pub fn run_as_user(&self, line: &str, stdin: &[u8], limit: Duration) -> Result<Output> {
        self.noted(line, || {
            let deadline = Instant::now() + limit;
            let _session = self.session_for_user(deadline)?;
            self.again_if_broken(deadline, || self.attempt(Whose::Users, line, stdin, deadline, &always))
        })
    }

    /// Like [`run_as_user`](Self::run_as_user), for what must not be done twice. While it starts, `go` is asked whether it is to have its input;
    /// if not, it gets none. A command that is begun anew elsewhere asks again.
    pub fn run_as_user_once(&self, line: &str, stdin: &[u8], limit: Duration, go: &dyn Fn() -> bool) -> Result<Output> {
        self.noted(line, || {
            let deadline = Instant::now() + limit;
            let _session = self.session_for_user(deadline)?;
            self.attempt(Whose::Users, line, stdin, deadline, go)
        })
    }

    fn again_if_broken(&self, deadline: Instant, attempt: impl Fn() -> Result<Output>) -> Result<Output> {
        match attempt() {
            // Most likely a connection that had died unnoticed; a new one may try.
            Err(error) if error.kind == ErrorKind::Unknown && Instant::now() < deadline => {
                log::debug!("{}: {error}; once more", self.address);
                attempt()
            }
            result => result,
        }
    }

    /// One line of the log for one command. The watchers' commands come every few seconds, and are shown when that is asked for.
    fn noted(&self, line: &str, call: impl FnOnce() -> Result<Output>) -> Result<Output> {
        let begun = Instant::now();
        let result = call();
        let ended = match &result {
            Ok(output) => output.status.to_string(),
            Err(error) => format!("failed: {error}"),
        };
        metrics().ssh(&self.address, begun.elapsed(), result.is_err());
        let level = if id::in_request() { log::Level::Info } else { log::Level::Debug };
        let (node, command, ms) = (&self.address, beginning(line), begun.elapsed().as_millis() as u64);
        log::log!(target: SSH, level, node:%, command, ended, ms; "ssh {node}: {command}: {ended}, {ms} ms");
        result
    }

    fn session(&self, deadline: Instant) -> Result<Permit<'_>> {
        self.sessions.take(deadline).ok_or_else(|| self.unreachable("all sessions were busy until the deadline"))
    }

    fn session_for_user(&self, deadline: Instant) -> Result<[Permit<'_>; 2]> {
        let own = self.for_users.take(deadline);
        let own = own.ok_or_else(|| self.unreachable("all sessions for commands of users were busy until the deadline"))?;
        Ok([self.session(deadline)?, own])
    }

    /// Runs it in a shell, which is kept for the next one. Where it certainly did not begin, another shell is tried once.
    fn attempt(&self, whose: Whose, line: &str, stdin: &[u8], deadline: Instant, go: &dyn Fn() -> bool) -> Result<Output> {
        if line.contains('\n') || stdin.contains(&0) {
            return Err(Error::internal("a command of several lines, or a zero byte in its input, cannot be sent"));
        }
        let mut again = true;
        loop {
            let mut kept = self.channel(deadline)?;
            let broken = match kept.shell.run_if(whose, line, stdin, deadline, go) {
                Ok(output) => {
                    self.keep(kept);
                    return Ok(output);
                }
                Err(broken) => broken,
            };
            let Kept { shell, master } = kept;
            // First the shell, so that its session is not in the way.
            drop(shell);
            let unbegun = matches!(broken, Broken::Unbegun(_));
            let error = self.broke(&master, broken);
            if !unbegun || !std::mem::take(&mut again) || Instant::now() >= deadline {
                return Err(error);
            }
            log::debug!("{}: {error}; once more", self.address);
        }
    }

    /// A shell that is alive: one that was kept, or a new one. A session that sshd refuses is waited for until another command has ended; a
    /// connection that had died unnoticed is made anew once.
    fn channel(&self, deadline: Instant) -> Result<Kept> {
        let until = deadline.min(Instant::now() + REFUSED_LIMIT);
        let (mut refusals, mut again) = (0, true);
        loop {
            if let Some(kept) = self.kept(deadline) {
                return Ok(kept);
            }
            let master = self.connect(deadline)?;
            let words = match Channel::open(self.client(&master.socket), deadline.min(Instant::now() + SHELL_LIMIT)) {
                Ok(shell) => return Ok(Kept { shell, master }),
                Err(Broken::Late) => "no shell within the time".to_owned(),
                Err(Broken::Ended(words) | Broken::Unbegun(words)) => words,
            };
            if !words.contains(SESSION_REFUSED) {
                self.disconnect(&master);
                if !std::mem::take(&mut again) || Instant::now() >= deadline {
                    return Err(self.unreachable(&last_words(&words)));
                }
            } else if master.lost_sessions.load(Ordering::Relaxed) {
                log::info!("{}: commands that hang hold sessions of the connection; so there is a new one", self.address);
                self.leave(&master);
            } else if Instant::now() < until {
                self.refused(refusals);
                refusals += 1;
            } else {
                let advice = "its sshd refuses more sessions on a connection; MaxSessions should be 10, and must be 2 at least";
                return Err(Error::unavailable(format!("{}: {advice}", self.address)));
            }
        }
    }

    /// A shell that waits for a command. Whatever is sent into a connection that died in silence may have arrived or not, so one that was
    /// quiet for a while is asked for a sign of life first.
    fn kept(&self, deadline: Instant) -> Option<Kept> {
        // The lock must not be held while the other side is asked.
        let next = || lock(&self.channels).pop();
        while let Some(mut kept) = next() {
            let limit = deadline.min(Instant::now() + SIGN_OF_LIFE);
            if kept.shell.quiet() < QUIET || kept.shell.run(Whose::Ours, ":", b"", limit).is_ok() {
                return Some(kept);
            }
            self.disconnect(&kept.master);
        }
        None
    }

    /// For the next command. Those that nobody needed for long are ended: a crowd is seldom.
    fn keep(&self, channel: Kept) {
        let mut channels = lock(&self.channels);
        channels.retain(|kept| kept.shell.quiet() < UNUSED);
        channels.push(channel);
    }

    fn refused(&self, before: u32) {
        // The same command refused once more says nothing new.
        if before == 0 && self.sessions.refused() {
            log::info!("{}: sshd takes fewer sessions than usual (MaxSessions); so fewer at once from now on", self.address);
        }
        thread::sleep(Duration::from_millis(20 << before.min(4)));
    }

    /// What it means that a command has no answer. Only its own session is lost, as long as the connection carries something.
    fn broke(&self, master: &Arc<Master>, broken: Broken) -> Error {
        // What is known to be dead is not waited for; else logins may be slow, and others use the connection.
        let limit = if matches!(broken, Broken::Unbegun(_)) { SIGN_OF_LIFE } else { SHELL_LIMIT };
        if self.is_silent(master, limit) {
            self.disconnect(master);
        } else {
            master.lost_sessions.store(true, Ordering::Relaxed);
        }
        match broken {
            Broken::Ended(words) => {
                Error::unknown(format!("the connection to {} broke", self.address)).with_detail(last_words(&words))
            }
            Broken::Late => Error::unknown(format!("{}: a command did not end in time", self.address)),
            Broken::Unbegun(words) => self.unreachable(&last_words(&words)),
        }
    }

    /// Whether a connection carries nothing any more: a dead network is otherwise noticed only by ssh's own keep-alive. A refusal is a sign
    /// of life.
    fn is_silent(&self, master: &Master, limit: Duration) -> bool {
        match Channel::open(self.client(&master.socket), Instant::now() + limit) {
            Ok(_) => false,
            Err(Broken::Ended(words) | Broken::Unbegun(words)) => !words.contains(SESSION_REFUSED),
            Err(Broken::Late) => true,
        }
    }

    /// A living connection.
    fn connect(&self, deadline: Instant) -> Result<Arc<Master>> {
        let since = Instant::now();
        let mut link = lock(&self.link);
        if let Some(master) = link.master.as_ref().filter(|master| master.alive()) {
            return Ok(Arc::clone(master));
        }
        // Whoever waited while another call tried in vain need not try again at once.
        if let Some((_, error)) = link.failure.as_ref().filter(|(at, _)| *at >= since) {
            return Err(error.clone());
        }
        link.master = None;
        self.sessions.restore();
        let fresh = self.make_master(deadline).inspect_err(|error| link.failure = Some((Instant::now(), error.clone())))?;
        let fresh = Arc::new(fresh);
        link.master = Some(Arc::clone(&fresh));
        Ok(fresh)
    }

    /// Ends this connection and all that is done on it; not the one that somebody has made meanwhile.
    fn disconnect(&self, master: &Arc<Master>) {
        self.leave(master);
        master.end();
    }

    /// Begins nothing more on this connection, which ends with the last command that is under way on it.
    fn leave(&self, master: &Arc<Master>) {
        drop(lock(&self.link).master.take_if(|current| Arc::ptr_eq(current, master)));
        lock(&self.channels).retain(|kept| !Arc::ptr_eq(&kept.master, master));
    }

    fn make_master(&self, deadline: Instant) -> Result<Master> {
        let socket = self.options.sockets.join(socket_name());
        let mut ssh = self.ssh(&socket);
        ssh.args(["-o", "ControlMaster=yes"]).arg(format!("{}@{}", self.user, self.address));
        let deadline = deadline.min(Instant::now() + Duration::from_secs(CONNECT_SECONDS + 2));
        Master::start(ssh, socket, deadline).map_err(|words| self.unreachable(&words))
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

fn always() -> bool {
    true
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

/// What a lock protects here stays right when a thread panics while it holds it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
