//! What stands between the network and the handlers. Every client is a stranger here: it gets one of a limited number of seats, absolute
//! deadlines, and no further than one complete, unambiguous request at a time. Handlers see short, valid, complete requests, and no more of
//! them at once than the listener has workers.

mod access;
mod answer;
mod connection;
mod deadline;
mod desk;
pub(crate) mod head;
mod limits;
pub(crate) mod seats;

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ServerConfig;

use self::connection::Visit;
use self::desk::Desk;
pub use self::limits::Limits;
use self::seats::Seats;
use super::message::{Request, Response};
use crate::error::{Error, Result};
use crate::live::Live;
use crate::metrics::metrics;
use crate::seldom::Seldom;

/// What answers requests. It may block, and it may panic: the client gets a 500 then, and nobody else notices.
pub type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// A header as it was sent, its name in lower case.
pub type Header = (String, String);

/// A request before its body is read.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// `GET`, `POST` …
    pub method: &'a str,
    /// The path, without its query.
    pub path: &'a str,
    /// The headers that pass the guard.
    pub headers: &'a [Header],
    /// Where it comes from.
    pub peer: IpAddr,
}

/// Judges a request by its head and where it comes from; returns the user who asks, or nobody where everybody may. What it denies gets no
/// further: no body is read for it, and no handler knows of it.
pub type Screen = Arc<dyn Fn(&Asked<'_>) -> Result<Option<&'static str>, Denial> + Send + Sync>;

/// The route that a method and a path belong to, as one of few words: never the path itself, which strangers choose.
pub type Routes = fn(&str, &str) -> &'static str;

/// The last answer on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// What is said.
    pub response: Response,
    /// How long the client waits for it.
    pub after: Duration,
}

/// What a listener is for.
#[derive(Clone)]
pub struct Service {
    /// Answers requests.
    pub handler: Handler,
    /// Who may ask; everybody without it.
    pub screen: Option<Screen>,
    /// What requests are counted by.
    pub routes: Routes,
}

impl From<Handler> for Service {
    fn from(handler: Handler) -> Self {
        Self { handler, screen: None, routes: |_, _| "other" }
    }
}

/// Several times what handlers have been seen to need, also without optimization. Only what is touched takes memory.
const STACK: usize = 1024 * 1024;
/// After a failure to accept or to start a thread: long enough not to spin, short enough not to be noticed.
const REST: Duration = Duration::from_millis(20);
/// How often an accepting thread that has nothing to do shows that it lives.
const PULSE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// An accepting thread that was silent for so long stands still.
const DEAF: Duration = Duration::from_secs(15);
/// How long a client that has not asked yet, or may ask again, still may when the listener ends.
const LAST_WORD: Duration = Duration::from_secs(1);
/// When file descriptors run out, connections that were idle for this long are closed.
const SPARED: Duration = Duration::from_secs(1);

/// Listens on `addr`, with TLS if there is a configuration for it, and answers with `service`.
///
/// `name` is for the log.
pub fn start(
    name: &str,
    addr: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    service: impl Into<Service>,
) -> Result<Server> {
    let listener = TcpListener::bind(addr);
    let listener = listener.map_err(|error| Error::unavailable(format!("{name}: cannot listen on {addr}: {error}")))?;
    start_on(name, listener, tls, limits, service)
}

/// The same with a socket that listens already. Others may hold it too, now or later: it is never shut down, only left.
pub fn start_on(
    name: &str,
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    service: impl Into<Service>,
) -> Result<Server> {
    let cannot = |error: io::Error| Error::unavailable(format!("{name}: cannot listen: {error}"));
    warn_about_descriptors(name, &limits);
    let address = listener.local_addr().map_err(cannot)?;
    // It is waited for together with the bell; what is gone when its turn comes must not block.
    listener.set_nonblocking(true).map_err(cannot)?;
    let (rung, bell) = io::pipe().map_err(cannot)?;
    let guard = Arc::new(Guard::new(name, tls, limits, service.into()));
    let (shared, clerk) = (Arc::clone(&guard), Arc::clone(&guard));
    named(&format!("{name}-late")).spawn(move || clerk.answer_the_late()).map_err(cannot)?;
    let thread = named(&format!("{name}-accept")).spawn(move || shared.accept(&listener, &rung));
    let thread = thread.inspect_err(|_| guard.desk.end()).map_err(cannot)?;
    Ok(Server { address, guard, at_work: Mutex::new(Some((bell, thread))) })
}

fn named(name: &str) -> thread::Builder {
    // Linux keeps 15 bytes of a thread's name.
    thread::Builder::new().name(name.to_owned()).stack_size(STACK)
}

fn warn_about_descriptors(name: &str, limits: &Limits) {
    let wanted = limits.connections as u64;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    if limit < wanted {
        log::warn!("{name}: {wanted} file descriptors may be needed and {limit} are allowed; raise the limit (ulimit -n)");
    }
}

/// A listener at work. Dropping it stops it at once.
pub struct Server {
    address: SocketAddr,
    guard: Arc<Guard>,
    /// The accepting thread, and what ends it when it is dropped.
    at_work: Mutex<Option<(PipeWriter, JoinHandle<()>)>>,
}

impl Server {
    /// Where it listens; the port is known here also if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections get this configuration of TLS; those that are there keep theirs. A listener without TLS stays without.
    pub fn renew_tls(&self, tls: Arc<ServerConfig>) {
        if let Some(live) = &self.guard.tls {
            live.set(tls);
        }
    }

    /// How many connections were turned away because there was no room for them.
    pub fn refused(&self) -> u64 {
        self.guard.refused.load(Ordering::Relaxed)
    }

    /// What is wrong if the accepting thread stands still.
    pub fn ailing(&self) -> Option<String> {
        let silent = self.guard.pulse.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        (silent > DEAF).then(|| format!("{}: no connection could have been accepted for {} s", self.guard.name, silent.as_secs()))
    }

    /// Stops accepting at once, lets the requests in flight end `within` this time, and cuts off those that do not. Who was accepted last, or
    /// uses a kept connection, still gets an answer to what they ask within a moment.
    pub fn stop(&self, within: Duration) {
        let at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((bell, thread)) = at_work else { return };
        let deadline = Instant::now() + within;
        self.guard.stopping.store(true, Ordering::SeqCst);
        drop(bell);
        if thread.join().is_err() {
            log::error!("{}: the accepting thread had ended with a panic", self.guard.name);
        }
        self.guard.wait_for_clients(deadline.min(Instant::now() + LAST_WORD));
        self.guard.seats.close_idle(Duration::ZERO);
        self.guard.wait_for_clients(deadline);
        self.guard.seats.close_all();
        self.guard.wait_for_handlers(deadline);
        self.guard.desk.end();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// What all threads of one listener share.
struct Guard {
    name: String,
    tls: Option<Live<ServerConfig>>,
    limits: Limits,
    handler: Handler,
    screen: Option<Screen>,
    routes: Routes,
    seats: Arc<Seats>,
    /// Connections whose requests are at work.
    desk: Desk<Box<Visit>>,
    stopping: AtomicBool,
    /// The accepting thread's last sign of life.
    pulse: Mutex<Instant>,
    refused: AtomicU64,
    full: Seldom,
    turned_away: Seldom,
    trouble: Seldom,
    lateness: Seldom,
    /// What strangers ask is written down for each of their networks seldom.
    strangers: Seldom<IpAddr>,
}

impl Guard {
    fn new(name: &str, tls: Option<Arc<ServerConfig>>, limits: Limits, service: Service) -> Self {
        Self {
            name: name.to_owned(),
            tls: tls.map(Live::new),
            handler: service.handler,
            screen: service.screen,
            routes: service.routes,
            seats: Seats::new(limits.connections, limits.per_address),
            desk: Desk::new(limits.workers, limits.handle),
            limits,
            stopping: AtomicBool::new(false),
            pulse: Mutex::new(Instant::now()),
            refused: AtomicU64::new(0),
            full: Seldom::default(),
            turned_away: Seldom::default(),
            trouble: Seldom::default(),
            lateness: Seldom::default(),
            strangers: Seldom::bursts_of(access::STRANGERS_LINES),
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn wait_for_clients(&self, until: Instant) {
        while self.seats.taken() > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Also those whose clients are gone.
    fn wait_for_handlers(&self, until: Instant) {
        while !self.desk.is_clear(self.limits.workers) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn handle(&self, request: &Request) -> Response {
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.handler)(request)));
        outcome.map(answer::sound).unwrap_or_else(|panic| {
            let (name, Request { method, path, .. }) = (&self.name, request);
            log::error!("{name}: {method} {path}: the handler panicked: {}", words(panic.as_ref()));
            answer::fault()
        })
    }

    /// Whoever has waited long enough is answered by a thread of its own, which then goes on with the connection.
    fn answer_the_late(self: &Arc<Self>) {
        while let Some(late) = self.desk.next_late() {
            let guard = Arc::clone(self);
            let answer = move || guard.desk.take(late).into_iter().for_each(connection::answer_late);
            if let Err(error) = named(&format!("{}-client", self.name)).spawn(answer) {
                // The client stays where it is, and is announced again.
                log::error!("{}: a client that waits for its answer cannot be told so: {error}", self.name);
            }
        }
    }

    fn complain_of_lateness(&self) {
        if let Some(left_out) = self.lateness.due(()) {
            let seconds = self.desk.patience().as_secs();
            log::error!(
                "{}: a request is not answered within {seconds} s; its client got a 503, and the work goes on{left_out}",
                self.name
            );
        }
    }

    /// Accepts until the bell is gone. Nothing that a client does, and no want of the machine's, ends this loop. Whoever it has not accepted
    /// by then stays in the socket's queue, for the next program that holds the socket.
    fn accept(self: &Arc<Self>, listener: &TcpListener, bell: &PipeReader) {
        while !self.is_stopping() {
            *self.pulse.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let outcome = match self.next(listener, bell) {
                Ok(Some((socket, from))) => self.receive(socket, from),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                self.rest(&error);
            }
        }
    }

    /// Waits a moment for a connection.
    fn next(&self, listener: &TcpListener, bell: &PipeReader) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        let mut waiting = [listener.as_fd(), bell.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        poll(&mut waiting, Some(&PULSE))?;
        if self.is_stopping() || waiting[0].revents().is_empty() {
            return Ok(None);
        }
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            other => other.map(Some),
        }
    }

    /// Gives the connection a seat and a thread. This must not wait for the client: all others wait behind it.
    fn receive(self: &Arc<Self>, socket: TcpStream, from: SocketAddr) -> io::Result<()> {
        let seat = match self.seats.take(socket, from.ip()) {
            Ok((seat, left)) => {
                left.into_iter().for_each(|left| self.note_full(left));
                seat
            }
            Err(socket) => {
                self.turn_away(socket, from);
                return Ok(());
            }
        };
        let guard = Arc::clone(self);
        named(&format!("{}-client", self.name)).spawn(move || connection::serve(&guard, seat)).map(drop)
    }

    fn note_full(&self, left: IpAddr) {
        if let Some(left_out) = self.full.due(()) {
            log::warn!(
                "{}: all {} seats are taken; newcomers get those of unfinished requests, such as one from {left}{left_out}",
                self.name,
                self.limits.connections
            );
        }
    }

    fn turn_away(&self, socket: TcpStream, from: SocketAddr) {
        let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        metrics().http_refused.with_label_values(&[&self.name]).inc();
        if self.turned_away.due(()).is_some() {
            log::warn!("{}: no room for a connection from {from}; {count} turned away so far", self.name);
        }
        if self.tls.is_none() {
            let line = access::Line::begin(from.ip());
            line.end(self, 503, tell_busy(socket));
        }
    }

    fn rest(&self, error: &io::Error) {
        if self.is_stopping() || error.kind() == io::ErrorKind::ConnectionAborted {
            return;
        }
        if let Some(left_out) = self.trouble.due(()) {
            log::error!("{}: a connection could not be accepted: {error}; trying on{left_out}", self.name);
        }
        self.seats.close_idle(SPARED);
        thread::sleep(REST);
    }
}

/// One try, without waiting. A fresh connection has room for so short an answer. Returns the length of the body.
fn tell_busy(mut socket: TcpStream) -> usize {
    let response = answer::busy("there are too many connections; try again");
    let mut bytes = Vec::new();
    answer::write_head(&mut bytes, &response, false);
    bytes.extend_from_slice(&response.body);
    if socket.set_nonblocking(true).is_ok() && socket.write_all(&bytes).is_ok() {
        let _ = socket.shutdown(Shutdown::Write);
        // What is left unread when we close would make the client lose the answer.
        let _ = socket.read(&mut [0; 4096]);
    }
    response.body.len()
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
