//! The life of one connection, in a thread of its own.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::access::Line;
use super::answer::{self, Refusal};
use super::deadline::Stream;
use super::head::{self, Head};
use super::seats::Seat;
use super::{Asked, Denial, Guard, LAST_WORD, Limits};
use crate::http::message::{Request, Response};
use crate::live::Live;
use crate::metrics::{Present, metrics};

/// How long, and how many bytes, we still listen to a client that we have answered for the last time.
const FAREWELL: (Duration, usize) = (Duration::from_secs(1), 4 * 1024 * 1024);
/// What is read at once. Buffers that have grown beyond it are given back after the request.
const CHUNK: usize = 8 * 1024;
/// An answer up to this size goes out in one piece: one system call, and one record of TLS, which has room for 16 KiB.
const ONE_PIECE: usize = 16 * 1024;

const BUSY: &str = "the server is busy; try again";
const LATE: &str = "the server takes too long to answer; the request may still be carried out";

/// Serves the requests that come on this connection, one after the other.
pub(super) fn serve(guard: &Arc<Guard>, seat: Seat) {
    let present = Present::new(metrics().http_connections.with_label_values(&[&guard.name]));
    // Answers are written in one piece, so waiting for more to send would only cost time.
    if seat.socket().set_nodelay(true).is_err() {
        return;
    }
    let tls = guard.tls.as_ref().map(Live::get);
    let stream = match Stream::open(seat.socket(), tls.as_ref(), guard.limits.handshake) {
        Ok(stream) => stream,
        Err(error) => return log::debug!("{}: {}: no TLS handshake: {error}", guard.name, seat.peer()),
    };
    let line = Line::begin(seat.peer());
    let (wait, manner) = (guard.limits.head, Manner::default());
    let (buffer, out) = (Vec::new(), Vec::new());
    Box::new(Visit { guard: Arc::clone(guard), seat, stream, buffer, out, wait, manner, line, _present: present }).go_on();
}

/// Goes on in this thread with a connection whose request takes its own one too long.
pub(super) fn answer_late(mut visit: Box<Visit>) {
    visit.line.goes_on_here();
    visit.guard.complain_of_lateness();
    match visit.answer_whole(&answer::busy(LATE)) {
        Ok(()) => visit.go_on(),
        Err(end) => visit.end(end),
    }
}

/// Why a connection ends.
enum End {
    /// The client went, or never said anything.
    Gone,
    /// It is we who end it, and in good form.
    Closed,
    /// What was sent is no valid request; nothing after it can be trusted.
    Refused(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// How the present request wants to be answered.
#[derive(Debug, Clone, Copy, Default)]
struct Manner {
    keep_alive: bool,
    head_only: bool,
}

/// A connection that is served, by one thread at a time: if a request takes too long, another thread goes on with it.
pub(super) struct Visit {
    guard: Arc<Guard>,
    seat: Seat,
    stream: Stream,
    /// Read, and not yet part of a request.
    buffer: Vec<u8>,
    /// Space for the head of an answer, or all of a small one.
    out: Vec<u8>,
    /// How long the next request may keep us waiting.
    wait: Duration,
    manner: Manner,
    /// What will be written down about the present request.
    line: Line,
    _present: Present,
}

impl Visit {
    fn go_on(mut self: Box<Self>) {
        let guard = Arc::clone(&self.guard);
        loop {
            let (answered, visit) = match self.request() {
                Ok(request) => match self.work(&guard, &request) {
                    Some((response, mut visit)) => (visit.answer_whole(&response), visit),
                    None => return,
                },
                Err(end) => (Err(end), self),
            };
            self = visit;
            if let Err(end) = answered {
                return self.end(end);
            }
        }
    }

    /// Has the request answered, in this thread. Nothing comes back if the client was answered meanwhile by another one.
    fn work(self: Box<Self>, guard: &Guard, request: &Request) -> Option<(Response, Box<Self>)> {
        match guard.desk.begin(self) {
            Ok(work) => {
                let response = guard.handle(request);
                work.done().map(|visit| (response, visit))
            }
            Err(visit) => Some((answer::busy(BUSY), visit)),
        }
    }

    fn end(self: Box<Self>, end: End) {
        match end {
            End::Gone => {}
            End::Closed => {
                // Whoever is only slow to say goodbye may lose the seat to a newcomer.
                self.seat.idle();
                self.stream.finish(FAREWELL.0, FAREWELL.1);
            }
            End::Refused(refusal) => self.refuse(&refusal),
        }
    }

    /// Reads one whole request.
    fn request(&mut self) -> Result<Request, End> {
        self.manner = Manner::default();
        self.await_first_byte()?;
        let head = self.read_head()?;
        self.manner.head_only = head.wants_head_only();
        self.line.asks(&head.method, &head.target);
        self.screen(&head)?;
        self.manner.keep_alive = head.keep_alive;
        let body = self.read_body(&head)?;
        if !self.seat.answering() {
            return Err(End::Gone);
        }
        self.line.is_complete();
        Ok(head.into_request(body, self.seat.peer()))
    }

    fn screen(&mut self, head: &Head) -> Result<(), End> {
        let Some(screen) = &self.guard.screen else { return Ok(()) };
        match screen(&asked(head, &self.seat)) {
            // Whoever may ask without a name may not send us anything.
            Ok(None) if head.body_length > 0 => Err(Refusal::new(413, "this page takes no body").into()),
            Ok(user) => {
                self.line.is_of(user, head.request_id.as_deref());
                Ok(())
            }
            Err(denial) => Err(self.deny(&denial)),
        }
    }

    fn await_first_byte(&mut self) -> Result<(), End> {
        // Marked in any case: also a client that sends many requests at once is between two of them here.
        self.seat.idle();
        if self.buffer.is_empty() {
            // Looked at after we are marked idle: whoever stops the listener marks first and closes the idle later.
            let wait = if self.guard.is_stopping() { self.wait.min(LAST_WORD) } else { self.wait };
            self.stream.allow(wait);
            match self.read_some() {
                Err(error) if error.kind() == io::ErrorKind::TimedOut || self.guard.is_stopping() => return Err(End::Closed),
                other => other?,
            }
        }
        self.seat.arriving();
        self.line.begin_next();
        self.wait = self.guard.limits.idle;
        Ok(())
    }

    fn read_head(&mut self) -> Result<Head, End> {
        let Limits { head, head_bytes, body_bytes, .. } = self.guard.limits;
        self.stream.allow(head);
        let mut scanned = 0;
        loop {
            head::check_start(&self.buffer)?;
            let end = head::end(&self.buffer, scanned);
            if end.unwrap_or(self.buffer.len()) > head_bytes {
                return Err(Refusal::new(431, format!("the head may have at most {head_bytes} bytes")).into());
            }
            if let Some(end) = end {
                let head = head::parse(&self.buffer[..end], body_bytes)?;
                self.buffer.drain(..end);
                return Ok(head);
            }
            scanned = self.buffer.len();
            self.read_in_time()?;
        }
    }

    /// The wait holds no place at the desk, only the seat, and that may be lost; it ends at once when the client goes.
    fn deny(&mut self, denial: &Denial) -> End {
        self.stream.allow(denial.after);
        if !denial.after.is_zero() {
            self.seat.denied();
        }
        loop {
            match self.read_some() {
                Ok(()) => self.buffer.clear(),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                Err(error) => return error.into(),
            }
        }
        self.answer(&denial.response).err().unwrap_or(End::Closed)
    }

    fn read_body(&mut self, head: &Head) -> Result<Vec<u8>, End> {
        if head.expects_continue && self.buffer.len() < head.body_length {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        self.stream.allow(self.guard.limits.body);
        while self.buffer.len() < head.body_length {
            self.read_in_time()?;
        }
        if head.body_length == 0 {
            return Ok(Vec::new());
        }
        let rest = self.buffer.split_off(head.body_length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    fn read_in_time(&mut self) -> Result<(), End> {
        match self.read_some() {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(Refusal::new(408, "the request did not arrive in time").into())
            }
            other => Ok(other?),
        }
    }

    fn read_some(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => self.buffer.extend_from_slice(&chunk[..count]),
        }
        Ok(())
    }

    /// Answers a whole request.
    fn answer_whole(&mut self, response: &Response) -> Result<(), End> {
        self.seat.answered();
        self.answer(response)
    }

    /// Writes it, and writes it down.
    fn answer(&mut self, response: &Response) -> Result<(), End> {
        let keep_alive = self.manner.keep_alive && !self.guard.is_stopping();
        let written = self.write_answer(response, keep_alive);
        self.line.end(&self.guard, response.status, response.body.len());
        written?;
        if keep_alive { Ok(()) } else { Err(End::Closed) }
    }

    fn write_answer(&mut self, response: &Response, keep_alive: bool) -> io::Result<()> {
        let body = answer::body(response, self.manner.head_only);
        self.stream.allow(self.guard.limits.write);
        self.out.clear();
        answer::write_head(&mut self.out, response, keep_alive);
        if self.out.len() + body.len() <= ONE_PIECE {
            self.out.extend_from_slice(body);
            self.stream.write_all(&self.out)?;
        } else {
            self.stream.write_all(&self.out)?;
            self.stream.write_all(body)?;
        }
        self.out.shrink_to(CHUNK);
        self.stream.flush()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.allow(self.guard.limits.write);
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    fn refuse(mut self: Box<Self>, refusal: &Refusal) {
        log::debug!("{}: {}: refused with {}: {}", self.guard.name, self.seat.peer(), refusal.status, refusal.detail);
        self.manner.keep_alive = false;
        if let Err(End::Closed) = self.answer(&refusal.into()) {
            self.stream.finish(FAREWELL.0, FAREWELL.1);
        }
    }
}

fn asked<'a>(head: &'a Head, seat: &Seat) -> Asked<'a> {
    let path = head.target.split('?').next().unwrap_or_default();
    Asked { method: &head.method, path, headers: &head.headers, peer: seat.peer() }
}
