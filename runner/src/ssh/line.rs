//! One connection to a machine, and the shells on it.
//!
//! The master's own session is `cat` on a pipe of ours: when this process dies, however it dies, the pipe closes and the connection ends with
//! it.

use crate::command::{Output, last_words};
use crate::error::{Error, Result};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::channel::{Broken, Channel, Whose};
use super::master::Master;
use super::permits::{Permit, Permits};
use super::{SshOptions, lock};

/// A stock sshd takes 10 sessions per connection (`MaxSessions`); one is the master's own, and one is left in reserve. Where it turns out
/// to take fewer, we make do with fewer.
pub(crate) const SESSIONS: usize = 8;
/// So long a command waits for a session that sshd refuses.
const REFUSED_LIMIT: Duration = Duration::from_secs(10);
/// How long the other side has to greet us, in seconds: who is dead or hangs says nothing for so long.
const CONNECT_SECONDS: u64 = 4;
/// How long the login may take after that: directories of users and busy machines are slow.
const LOGIN_SECONDS: u64 = 8;
/// What a client says that found the connection's sessions all taken: the connection itself is well.
const SESSION_REFUSED: &str = "Session open refused";
/// A connection that carried something within this time is believed to be alive.
const QUIET: Duration = Duration::from_secs(2);
/// How long a quiet connection has to give a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);
/// How long the other side has to start a shell on a connection that is there: logins may be slow.
const SHELL_LIMIT: Duration = Duration::from_secs(10);
/// A shell that nobody needed for so long is ended when another one comes back.
const UNUSED: Duration = Duration::from_secs(60);

/// A connection that is made when it is needed, kept, and made anew.
pub struct Line {
    whose: Whose,
    address: String,
    port: u16,
    user: String,
    options: SshOptions,
    link: Mutex<Link>,
    /// Shells that wait for a command, the one that was used last at the end.
    channels: Mutex<Vec<Kept>>,
    sessions: Permits,
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

impl Line {
    /// The connection for these commands to `user@address:port`. Does not connect yet.
    pub fn new(whose: Whose, user: &str, address: &str, port: u16, options: SshOptions) -> Self {
        Self {
            whose,
            address: address.into(),
            port,
            user: user.into(),
            options,
            link: Mutex::default(),
            channels: Mutex::default(),
            sessions: Permits::new(SESSIONS),
        }
    }

    fn session(&self, deadline: Instant) -> Result<Permit<'_>> {
        self.sessions.take(deadline).ok_or_else(|| self.unreachable("all sessions were busy until the deadline"))
    }

    /// Runs it in a shell, which is kept for the next one. Where it certainly did not begin, another shell is tried once.
    pub fn run(&self, line: &str, stdin: &[u8], deadline: Instant, go: &dyn Fn() -> bool) -> Result<Output> {
        let _session = self.session(deadline)?;
        if line.contains('\n') || stdin.contains(&0) {
            return Err(Error::internal("a command of several lines, or a zero byte in its input, cannot be sent"));
        }
        let mut again = true;
        loop {
            let mut kept = self.channel(deadline)?;
            let broken = match kept.shell.run_if(line, stdin, deadline, go) {
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
            let limit = deadline.min(Instant::now() + SHELL_LIMIT);
            let words = match Channel::open(self.client(&master.socket), self.whose, limit) {
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
            if kept.shell.quiet() < QUIET || kept.shell.run(":", b"", limit).is_ok() {
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
        let unbegun = matches!(broken, Broken::Unbegun(_));
        let limit = if unbegun { SIGN_OF_LIFE } else { SHELL_LIMIT };
        if self.is_silent(master, limit) {
            // What others have under way on it has deadlines of its own, and ssh finds out by itself whether it is dead.
            if unbegun { self.leave(master) } else { self.disconnect(master) }
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
        match Channel::open(self.client(&master.socket), self.whose, Instant::now() + limit) {
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
        let deadline = deadline.min(Instant::now() + Duration::from_secs(CONNECT_SECONDS + LOGIN_SECONDS));
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

/// A new name for every connection: the socket of one that just died may still be there. Short, as paths of sockets must be.
fn socket_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
