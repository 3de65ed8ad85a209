//! Commands on other machines, by the system's `ssh`.
//!
//! Each [`Node`] keeps a connection (a *master* in ssh's words), and on it a few shells (`channel`) that run one command after the other, so that
//! a command costs a round trip and no process here. Commands of users have a connection of their own: who stops one of them holds a session
//! of that, and the watchers go on looking. Nothing here trusts a host that is not in the known-hosts file.

mod channel;
mod line;
mod master;
mod permits;

pub(crate) use self::line::SESSIONS;

use crate::command::Output;
use crate::error::{ErrorKind, Result};
use crate::logging::{SSH, id};
use crate::metrics::metrics;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::channel::Whose;
use self::line::Line;

/// Of a command, so many characters are in the log.
const SHOWN: usize = 300;
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

/// One machine, and our connections to it.
pub struct Node {
    address: String,
    ours: Line,
    users: Line,
}

impl Node {
    /// A machine that is reached as `user@address:port`. Does not connect yet.
    pub fn new(user: &str, address: &str, port: u16, options: SshOptions) -> Self {
        let line = |whose| Line::new(whose, user, address, port, options.clone());
        Self { address: address.into(), ours: line(Whose::Ours), users: line(Whose::Users) }
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
        let deadline = Instant::now() + limit;
        self.noted(line, || self.again_if_broken(deadline, || self.ours.run(line, stdin, deadline, &always)))
    }

    /// Like [`run`](Self::run), for programs that run as another user: they get no stream of the shell into their hands. They may begin
    /// before their input is there, and get none of it if it is cut off on its way: so they must be such as do nothing without.
    pub fn run_as_user(&self, line: &str, stdin: &[u8], limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        self.noted(line, || self.again_if_broken(deadline, || self.users.run(line, stdin, deadline, &always)))
    }

    /// Like [`run_as_user`](Self::run_as_user), for what must not be done twice. While it starts, `go` is asked whether it is to have its input;
    /// if not, it gets none. A command that is begun anew elsewhere asks again.
    pub fn run_as_user_once(&self, line: &str, stdin: &[u8], limit: Duration, go: &dyn Fn() -> bool) -> Result<Output> {
        let deadline = Instant::now() + limit;
        self.noted(line, || self.users.run(line, stdin, deadline, go))
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
}

fn always() -> bool {
    true
}

/// The beginning of a command, on one line. No secret is ever in a command.
fn beginning(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect()
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
