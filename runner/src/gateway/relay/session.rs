//! Sessions: a client, an application, and two threads that copy between them until both directions have ended.

use super::listen::Destination;
use super::{RelayLimits, probe};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

/// What a copying thread moves at once.
const CHUNK: usize = 32 * 1024;
/// The stacks of threads that copy; the chunk is not on it.
const SMALL: usize = 64 * 1024;
/// The stacks of threads that connect; the resolver of names needs more.
const LARGE: usize = 256 * 1024;

/// A session: the external port by which it came, and both ends, once the application has accepted it.
#[derive(Debug)]
struct Session {
    port: u16,
    client: Arc<TcpStream>,
    application: Option<Arc<TcpStream>>,
}

#[derive(Debug, Default)]
struct Book {
    open: HashMap<u64, Session>,
    last: u64,
    closed: bool,
}

/// All open sessions of a relay.
#[derive(Debug)]
pub(super) struct Sessions {
    limits: RelayLimits,
    book: Mutex<Book>,
    fewer: Condvar,
}

impl Sessions {
    pub(super) fn new(limits: RelayLimits) -> Self {
        Self { limits, book: Mutex::default(), fewer: Condvar::new() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a session for `client` of the external port `port`, or closes it with the reason.
    pub(super) fn open(self: &Arc<Self>, client: TcpStream, port: u16, destination: Destination) -> io::Result<()> {
        let client = Arc::new(client);
        let number = self.enter(&client, port)?;
        let sessions = Arc::clone(self);
        let run = move || {
            let entry = Entry { sessions: &sessions, number };
            entry.run(&client, &destination);
        };
        Builder::new().name("relay-session".into()).stack_size(LARGE).spawn(run).map(drop).inspect_err(|_| self.leave(number))
    }

    fn enter(&self, client: &Arc<TcpStream>, port: u16) -> io::Result<u64> {
        let mut book = self.book();
        if book.closed {
            return Err(io::Error::other("the relay is closing"));
        }
        let RelayLimits { sessions, sessions_per_port, .. } = self.limits;
        if book.open.len() >= sessions {
            return Err(io::Error::other(format!("there are {sessions} sessions already")));
        }
        if book.open.values().filter(|session| session.port == port).count() >= sessions_per_port {
            return Err(io::Error::other(format!("port {port} has {sessions_per_port} sessions already")));
        }
        book.last += 1;
        let number = book.last;
        book.open.insert(number, Session { port, client: Arc::clone(client), application: None });
        Ok(number)
    }

    fn leave(&self, number: u64) {
        self.book().open.remove(&number);
        self.fewer.notify_all();
    }

    /// Ends all sessions, and waits for their threads. Those that are just resolving a name or connecting are not waited for long: they
    /// end by themselves within the time limit for that.
    pub(super) fn end(&self) {
        let mut book = self.book();
        book.closed = true;
        for Session { client, application, .. } in book.open.values() {
            let _ = client.shutdown(Shutdown::Both);
            let _ = application.as_ref().map(|application| application.shutdown(Shutdown::Both));
        }
        let some_open = |book: &mut Book| !book.open.is_empty();
        drop(self.fewer.wait_timeout_while(book, self.limits.connect_timeout + Duration::from_secs(1), some_open));
    }
}

/// One session in the book; it is struck out however the session ends.
struct Entry<'a> {
    sessions: &'a Sessions,
    number: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.sessions.leave(self.number);
    }
}

impl Entry<'_> {
    fn run(&self, client: &Arc<TcpStream>, destination: &Destination) {
        let patience = self.sessions.limits.half_closed_timeout;
        let done = self.connect(destination).and_then(|application| relay(client, &application, patience));
        if let Err(error) = done {
            log::debug!("a relayed session to {}:{} ended: {error}", destination.host, destination.port);
        }
    }

    fn connect(&self, destination: &Destination) -> io::Result<Arc<TcpStream>> {
        let application = Arc::new(probe::connect(&destination.host, destination.port, self.sessions.limits.connect_timeout)?);
        let mut book = self.sessions.book();
        if book.closed {
            return Err(io::Error::other("the relay is closing"));
        }
        if let Some(session) = book.open.get_mut(&self.number) {
            session.application = Some(Arc::clone(&application));
        }
        Ok(application)
    }
}

/// Copies both ways until both directions have ended, or one has and the other is silent for longer than `patience`.
fn relay(client: &Arc<TcpStream>, application: &Arc<TcpStream>, patience: Duration) -> io::Result<()> {
    tune(client)?;
    tune(application)?;
    let traffic = Arc::new(Traffic { moved: AtomicU64::new(0), patience });
    let (from, to, shared) = (Arc::clone(application), Arc::clone(client), Arc::clone(&traffic));
    let back = Builder::new().name("relay-back".into()).stack_size(SMALL).spawn(move || copy(&from, &to, &shared))?;
    copy(client, application, &traffic);
    let _ = back.join();
    Ok(())
}

/// What both directions of a session know of each other.
struct Traffic {
    /// How many chunks were moved.
    moved: AtomicU64,
    patience: Duration,
}

/// No waiting for more to send; and a peer that vanished without a word is noticed within some minutes.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, Duration::from_secs(120))?;
    set_tcp_keepintvl(stream, Duration::from_secs(20))?;
    set_tcp_keepcnt(stream, 6)?;
    Ok(())
}

/// Copies one direction. Its end is passed on, and the other direction goes on; a fault ends both.
fn copy(from: &TcpStream, to: &TcpStream, traffic: &Traffic) {
    let ended = transfer(from, to, traffic).and_then(|()| to.shutdown(Shutdown::Write)).and_then(|()| hang_up(from, traffic));
    if ended.is_err() {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// Waits until the other direction has ended, too. A peer that sends no more may yet be lost (its program died, its machine is off): who
/// only writes to it notices that late, or never while there is nothing to write. One that is there and silent is not waited for either.
fn hang_up(from: &TcpStream, traffic: &Traffic) -> io::Result<()> {
    let pause = Timespec::try_from(traffic.patience).map_err(io::Error::other)?;
    loop {
        let before = traffic.moved.load(Ordering::Relaxed);
        match poll(&mut [PollFd::new(from, PollFlags::empty())], Some(&pause)) {
            Ok(0) if traffic.moved.load(Ordering::Relaxed) == before => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return from.take_error()?.map_or(Ok(()), Err),
            Err(error) => return Err(error.into()),
        }
    }
}

fn transfer(mut from: &TcpStream, mut to: &TcpStream, traffic: &Traffic) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(&chunk[..count])?;
                traffic.moved.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
