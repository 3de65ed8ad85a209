//! The life of one connection, in a thread of its own.

use std::io::{self, Read, Write};
use std::time::Duration;

use super::access::Line;
use super::answer::{Answer, Refusal};
use super::deadline::Stream;
use super::exchange::{self, Question};
use super::head::{self, Head};
use super::seats::Seat;
use super::{Asked, Denial, Guard, LAST_WORD};
use crate::live::Live;

/// How long, and how many bytes, we still listen to a client that we have answered for the last time.
const FAREWELL: (Duration, usize) = (Duration::from_secs(1), 4 * 1024 * 1024);

/// Serves the requests that come on this connection, one after the other.
pub(super) fn serve(guard: &Guard, seat: &Seat) {
    let tls = guard.tls.as_ref().map(Live::get);
    let stream = match Stream::open(seat.socket(), tls.as_ref(), guard.limits.handshake) {
        Ok(stream) => stream,
        Err(error) => return log::debug!("{}: {}: no TLS handshake: {error}", guard.name, seat.peer()),
    };
    let line = Line::begin(seat.peer());
    let mut visit = Visit { guard, seat, stream, buffer: Vec::new(), wait: guard.limits.head, line };
    match visit.requests() {
        End::Gone => {}
        End::Closed => {
            // Whoever is only slow to say goodbye may lose the seat to a newcomer.
            seat.idle();
            visit.stream.finish(FAREWELL.0, FAREWELL.1);
        }
        End::Refused(refusal) => visit.refuse(&refusal),
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

struct Visit<'a> {
    guard: &'a Guard,
    seat: &'a Seat,
    stream: Stream,
    /// Read, and not yet part of a request.
    buffer: Vec<u8>,
    /// How long the next request may keep us waiting.
    wait: Duration,
    /// What will be written down about the present request.
    line: Line,
}

impl Visit<'_> {
    fn requests(&mut self) -> End {
        loop {
            if let Err(end) = self.request() {
                return end;
            }
        }
    }

    fn request(&mut self) -> Result<(), End> {
        self.await_first_byte()?;
        let head = self.read_head()?;
        self.line.asks(&head.method, &head.target);
        if let Some(screen) = &self.guard.screen {
            match screen(&asked(&head, self.seat)) {
                // Whoever may ask without a name may not send us anything.
                Ok(None) if head.body_length > 0 => return Err(Refusal::new(413, "this page takes no body").into()),
                Ok(user) => self.line.is_of(user, head.request_id.as_deref()),
                Err(denial) => self.deny(&head, denial)?,
            }
        }
        let body = self.read_body(&head)?;
        if !self.seat.answering() {
            return Err(End::Gone);
        }
        self.line.is_complete();
        let question = Question { head: &head, body: &body, peer: self.seat.peer(), id: self.line.id() };
        let answer = exchange::ask(&self.guard.backend, &question, self.guard.limits.handle);
        drop(body);
        let keep_alive = head.keep_alive && !self.guard.is_stopping();
        self.answer(&answer, keep_alive, head.wants_head_only())?;
        if keep_alive { Ok(()) } else { Err(End::Closed) }
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
        self.line = Line::begin(self.seat.peer());
        self.wait = self.guard.limits.idle;
        Ok(())
    }

    fn read_head(&mut self) -> Result<Head, End> {
        let limits = &self.guard.limits;
        self.stream.allow(limits.head);
        let mut scanned = 0;
        loop {
            head::check_start(&self.buffer)?;
            let end = head::end(&self.buffer, scanned);
            if end.unwrap_or(self.buffer.len()) > limits.head_bytes {
                return Err(Refusal::new(431, format!("the head may have at most {} bytes", limits.head_bytes)).into());
            }
            if let Some(end) = end {
                let head = head::parse(&self.buffer[..end], limits.body_bytes)?;
                self.buffer.drain(..end);
                return Ok(head);
            }
            scanned = self.buffer.len();
            self.read_in_time()?;
        }
    }

    /// The wait holds no worker, only the seat, and that may be lost; it ends at once when the client goes.
    fn deny(&mut self, head: &Head, denial: Denial) -> Result<(), End> {
        self.stream.allow(denial.after);
        if !denial.after.is_zero() {
            self.seat.denied();
        }
        loop {
            match self.read_some() {
                Ok(()) => self.buffer.clear(),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.answer(&Answer::from(denial.response), false, head.wants_head_only())?;
        Err(End::Closed)
    }

    fn read_body(&mut self, head: &Head) -> Result<Vec<u8>, End> {
        if head.expects_continue && self.buffer.len() < head.body_length {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        self.stream.allow(self.guard.limits.body);
        while self.buffer.len() < head.body_length {
            self.read_in_time()?;
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
        let mut chunk = [0; 8192];
        match self.stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => self.buffer.extend_from_slice(&chunk[..count]),
        }
        Ok(())
    }

    /// Writes it, and writes it down.
    fn answer(&mut self, answer: &Answer, keep_alive: bool, head_only: bool) -> io::Result<()> {
        let written = self.write(&answer.rendered(keep_alive, head_only));
        self.line.end(self.guard, answer.status, answer.body.len());
        written
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.allow(self.guard.limits.write);
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    fn refuse(mut self, refusal: &Refusal) {
        log::debug!("{}: {}: refused with {}: {}", self.guard.name, self.seat.peer(), refusal.status, refusal.detail);
        if self.answer(&Answer::from(refusal), false, false).is_ok() {
            self.stream.finish(FAREWELL.0, FAREWELL.1);
        }
    }
}

fn asked<'a>(head: &'a Head, seat: &Seat) -> Asked<'a> {
    let path = head.target.split('?').next().unwrap_or_default();
    Asked { method: &head.method, path, headers: &head.headers, peer: seat.peer() }
}
