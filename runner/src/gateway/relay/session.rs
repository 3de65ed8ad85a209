//! Sessions: a client, an application, and two threads that copy between them until both directions have ended.

use super::listen::Destination;
use super::probe;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

/// What a copying thread moves at once.
const CHUNK: usize = 32 * 1024;
/// The stacks of threads that copy; the chunk is not on it.
const SMALL: usize = 64 * 1024;
/// The stacks of threads that connect; the resolver of names needs more.
const LARGE: usize = 512 * 1024;

/// Both ends of a session, once the application has accepted it.
type Pair = (Arc<TcpStream>, Option<Arc<TcpStream>>);

#[derive(Debug, Default)]
struct Book {
    open: HashMap<u64, Pair>,
    last: u64,
    closed: bool,
}

/// All open sessions of a relay.
#[derive(Debug)]
pub(super) struct Sessions {
    limit: usize,
    connect_timeout: Duration,
    book: Mutex<Book>,
    fewer: Condvar,
}

impl Sessions {
    pub(super) fn new(limit: usize, connect_timeout: Duration) -> Self {
        Self { limit, connect_timeout, book: Mutex::default(), fewer: Condvar::new() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a session for `client`, or closes it with the reason.
    pub(super) fn open(self: &Arc<Self>, client: TcpStream, destination: Destination) -> io::Result<()> {
        let client = Arc::new(client);
        let number = self.enter(&client)?;
        let sessions = Arc::clone(self);
        let run = move || {
            let entry = Entry { sessions: &sessions, number };
            entry.run(&client, &destination);
        };
        Builder::new().name("relay-session".into()).stack_size(LARGE).spawn(run).map(drop).inspect_err(|_| self.leave(number))
    }

    fn enter(&self, client: &Arc<TcpStream>) -> io::Result<u64> {
        let mut book = self.book();
        if book.closed {
            return Err(io::Error::other("the relay is closing"));
        }
        if book.open.len() >= self.limit {
            return Err(io::Error::other(format!("there are {} sessions already", self.limit)));
        }
        book.last += 1;
        let number = book.last;
        book.open.insert(number, (Arc::clone(client), None));
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
        for (client, application) in book.open.values() {
            let _ = client.shutdown(Shutdown::Both);
            let _ = application.as_ref().map(|application| application.shutdown(Shutdown::Both));
        }
        let some_open = |book: &mut Book| !book.open.is_empty();
        drop(self.fewer.wait_timeout_while(book, self.connect_timeout + Duration::from_secs(1), some_open));
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
        let done = self.connect(destination).and_then(|application| relay(client, &application));
        if let Err(error) = done {
            log::debug!("a relayed session to {}:{} ended: {error}", destination.host, destination.port);
        }
    }

    fn connect(&self, destination: &Destination) -> io::Result<Arc<TcpStream>> {
        let application = Arc::new(probe::connect(&destination.host, destination.port, self.sessions.connect_timeout)?);
        let mut book = self.sessions.book();
        if book.closed {
            return Err(io::Error::other("the relay is closing"));
        }
        if let Some((_, place)) = book.open.get_mut(&self.number) {
            *place = Some(Arc::clone(&application));
        }
        Ok(application)
    }
}

/// Copies both ways until both directions have ended.
fn relay(client: &Arc<TcpStream>, application: &Arc<TcpStream>) -> io::Result<()> {
    tune(client)?;
    tune(application)?;
    let (from, to) = (Arc::clone(application), Arc::clone(client));
    let back = Builder::new().name("relay-back".into()).stack_size(SMALL).spawn(move || copy(&from, &to))?;
    copy(client, application);
    let _ = back.join();
    Ok(())
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
fn copy(from: &TcpStream, to: &TcpStream) {
    let ended = transfer(from, to).and_then(|()| to.shutdown(Shutdown::Write)).and_then(|()| hang_up(from));
    if ended.is_err() {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// Waits until the other direction has ended, too. A peer that sends no more may yet be lost (its program died, its machine is off): who
/// only writes to it notices that late, or never while there is nothing to write.
fn hang_up(from: &TcpStream) -> io::Result<()> {
    while let Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(from, PollFlags::empty())], None::<&Timespec>) {}
    from.take_error()?.map_or(Ok(()), Err)
}

fn transfer(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
