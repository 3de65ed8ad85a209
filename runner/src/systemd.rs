//! What the program and systemd tell each other: that it serves, reloads, ends, lives; and the listening sockets, which systemd keeps while
//! one program ends and the next one starts. A client that connects meanwhile waits in the socket's queue, and notices nothing.
//!
//! Without systemd (`NOTIFY_SOCKET`, `LISTEN_FDS`) all of it does nothing.

use crate::error::{Error, Result};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

/// Who waits for a connection while the program is started anew waits here. The kernel may allow less (`net.core.somaxconn`).
const QUEUE: i32 = 1024;
/// How long systemd may take to close a socket that is let go. Until then no other one can listen at an address that it covers.
const LETTING_GO: Duration = Duration::from_secs(3);

/// Listening sockets that systemd handed over: those it kept of the program before, or those of a socket unit.
#[derive(Default)]
pub struct Sockets {
    passed: Vec<(String, TcpListener)>,
}

impl Sockets {
    /// What was handed over. To be called once, before anything else opens files.
    pub fn passed() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut handed = ListenFd::from_env();
        let mut passed = Vec::new();
        for index in 0..handed.len() {
            let name = names.next().unwrap_or_default().to_owned();
            match handed.take_tcp_listener(index) {
                Ok(Some(listener)) => passed.push((name, listener)),
                Ok(None) => {}
                Err(error) => log::warn!("systemd handed over {name:?}, which is no listening socket of TCP: {error}"),
            }
        }
        Self { passed }
    }

    /// A socket that listens at `address`: the one that was handed over if there is one, else a new one, which systemd is asked to keep.
    pub fn listen(&mut self, name: &str, address: SocketAddr) -> Result<TcpListener> {
        let fits = |listener: &TcpListener| listener.local_addr().is_ok_and(|bound| serves(bound, address));
        // By the address above all: the sockets of a socket unit may have other names.
        let found = self.passed.iter().position(|(_, listener)| fits(listener));
        if let Some((kept, listener)) = found.map(|index| self.passed.swap_remove(index)) {
            log::info!("{name}: goes on with the socket that systemd kept ({kept})");
            return Ok(listener);
        }
        let patience = if self.let_go_of(name) { LETTING_GO } else { Duration::ZERO };
        let cannot = |error: std::io::Error| Error::unavailable(format!("{name}: cannot listen on {address}: {error}"));
        let listener = bind(address, patience).map_err(cannot)?;
        rustix::net::listen(&listener, QUEUE).map_err(|error| cannot(error.into()))?;
        keep(name, &listener);
        Ok(listener)
    }

    /// Closes what no part of the program wanted.
    pub fn let_go(&mut self) {
        while let Some((name, _)) = self.passed.first() {
            let name = name.clone();
            self.let_go_of(&name);
        }
    }

    /// Whether there was one.
    fn let_go_of(&mut self, name: &str) -> bool {
        let before = self.passed.len();
        self.passed.retain(|(kept, _)| kept != name);
        let was_there = self.passed.len() < before;
        if was_there {
            log::info!("the socket {name:?} that systemd kept is not where the configuration wants one: it is let go");
            tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        }
        was_there
    }
}

/// Tries again for so long where the address is taken.
fn bind(address: SocketAddr, patience: Duration) -> std::io::Result<TcpListener> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < patience => {
                thread::sleep(Duration::from_millis(20))
            }
            result => return result,
        }
    }
}

/// Whether a socket that is bound here does what is asked for there. One for all addresses of IPv6 takes those of IPv4 too; not the other way
/// round.
fn serves(bound: SocketAddr, asked: SocketAddr) -> bool {
    let (here, there) = (bound.ip(), asked.ip());
    let everywhere = here.is_unspecified() && there.is_unspecified() && here.is_ipv6();
    bound.port() == asked.port() && (here == there || everywhere)
}

fn keep(name: &str, listener: &TcpListener) {
    let words = [NotifyState::FdStore, NotifyState::FdName(name)];
    if let Err(error) = sd_notify::notify_with_fds(&words, &[listener.as_fd()]) {
        log::warn!("systemd cannot be asked to keep the socket of {name}: {error}");
    }
}

fn tell(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        log::warn!("systemd cannot be told ({words:?}): {error}");
    }
}

/// It serves, and what `systemctl status` shows beside that.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is read again; [`ready`] follows.
pub fn reloading() {
    // With Type=notify-reload systemd wants to know when it began.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// It ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("answering the requests in flight")]);
}

/// Tells systemd's watchdog again and again that the program lives, as long as `ailing` finds nothing that stands still. Else systemd kills it after
/// `WatchdogSec=`, and starts it anew.
pub fn feed_watchdog(ailing: impl Fn() -> Option<String> + Send + 'static) -> Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let every = (limit / 3).max(Duration::from_millis(10));
    let work = move || {
        loop {
            feed(ailing());
            thread::sleep(every);
        }
    };
    let thread = thread::Builder::new().name("watchdog".into()).spawn(work);
    thread.map(drop).map_err(|e| Error::internal(format!("no thread can be started: {e}")))
}

fn feed(ailing: Option<String>) {
    match ailing {
        None => tell(&[NotifyState::Watchdog]),
        Some(words) => log::error!("{words}: systemd's watchdog is not told that all is well"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_socket_serves_where_it_takes_all_that_is_asked_for() {
        for (bound, asked, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "0.0.0.0:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", false),
            ("[::]:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "[::]:80", false),
        ] {
            assert_eq!(serves(bound.parse().unwrap(), asked.parse().unwrap()), expected, "{bound} {asked}");
        }
    }
}
