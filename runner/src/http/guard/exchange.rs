//! One question to the server behind the guard, over its private socket, and its answer.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::answer::Answer;
use super::deadline::Timed;
use super::head::Head;
use super::tickets::Ticket;
use crate::http::backend::Backend;

/// How long a request waits for a free worker.
const QUEUE: Duration = Duration::from_secs(10);
/// A request with a ticket has a free worker; if none takes it up in this time, the server behind us hangs.
const TAKE_UP: Duration = Duration::from_secs(5);
/// How long a request waits for a server that is gone to be replaced, and how often it looks.
const REPLACEMENT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);
/// Longer answers than this are nothing that our handlers give.
const MOST_ANSWER: usize = 16 * 1024 * 1024;
const MOST_HEADERS: usize = 64;

const UNAVAILABLE: &str = "the server cannot take this request up just now; it was not begun, so try again";
const CUT: &str = "the server broke off before it answered; the request may have been carried out";
const LATE: &str = "the server takes too long to answer; the request may still be carried out";

/// A request on its way to a worker.
pub(super) struct Question<'a> {
    pub(super) head: &'a Head,
    pub(super) body: &'a [u8],
    pub(super) peer: IpAddr,
    pub(super) id: &'a str,
}

/// Asks, and answers for the server where it does not.
pub(super) fn ask(backend: &Backend, question: &Question<'_>, within: Duration) -> Answer {
    let deadline = Instant::now() + within;
    let Some(ticket) = backend.tickets().get(Instant::now() + within.min(QUEUE)) else {
        return Answer::busy("the server is busy; try again");
    };
    let (generation, stream) = match connect(backend, within.min(REPLACEMENT)) {
        Ok(connected) => connected,
        Err(error) => {
            backend.complain(&format!("cannot be reached: {error}"));
            return Answer::busy(UNAVAILABLE);
        }
    };
    let mut call = Call { stream: Timed::new(stream, within.min(TAKE_UP)), ticket: &ticket, deadline };
    match call.put(question).and_then(|()| call.answer()) {
        Ok(answer) => answer,
        Err(error) => {
            backend.complain(&format!("did not answer {} {}: {error}", question.head.method, question.head.target));
            explain(backend, generation, &ticket, &error)
        }
    }
}

/// Tries again for a while: nothing is sent yet, and a server that is gone is soon replaced.
fn connect(backend: &Backend, within: Duration) -> io::Result<(u64, UnixStream)> {
    let deadline = Instant::now() + within;
    loop {
        match try_connect(backend) {
            Err(_) if Instant::now() < deadline => thread::sleep(RETRY),
            outcome => return outcome,
        }
    }
}

fn try_connect(backend: &Backend) -> io::Result<(u64, UnixStream)> {
    let door = backend.door()?;
    let outcome = UnixStream::connect(&door.path);
    match &outcome {
        Err(error) if is_gone(error) => backend.lost(door.generation, &error.to_string()),
        _ => {}
    }
    Ok((door.generation, outcome?))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound | io::ErrorKind::ConnectionReset)
}

fn explain(backend: &Backend, generation: u64, ticket: &Ticket, error: &io::Error) -> Answer {
    match (ticket.taken_up(), error.kind() == io::ErrorKind::TimedOut) {
        (true, true) => Answer::busy(LATE),
        (true, false) => Answer::busy(CUT),
        (false, _) => {
            backend.lost(generation, "it takes no requests up");
            Answer::busy(UNAVAILABLE)
        }
    }
}

struct Call<'a> {
    stream: Timed<UnixStream>,
    ticket: &'a Ticket,
    deadline: Instant,
}

impl Call<'_> {
    fn put(&mut self, question: &Question<'_>) -> io::Result<()> {
        let mut bytes = question.head.rebuilt(question.peer, self.ticket.id(), question.id).into_bytes();
        bytes.extend_from_slice(question.body);
        self.stream.write_all(&bytes)
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let mut bytes = Vec::new();
        loop {
            if let Some((mut answer, from, length)) = parse(&bytes)? {
                self.fill(&mut bytes, from + length)?;
                answer.body = bytes.split_off(from);
                return Ok(answer);
            }
            self.more(&mut bytes)?;
        }
    }

    fn fill(&mut self, bytes: &mut Vec<u8>, length: usize) -> io::Result<()> {
        while bytes.len() < length {
            self.more(bytes)?;
        }
        if bytes.len() > length {
            return Err(strange("more bytes than its length says"));
        }
        Ok(())
    }

    fn more(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let mut chunk = [0; 8192];
        let count = match self.stream.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && self.ticket.taken_up() => {
                // A worker is at it: now it has the whole time.
                self.stream.allow_until(self.deadline);
                self.stream.read(&mut chunk)?
            }
            other => other?,
        };
        match count {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if bytes.len() + count > MOST_ANSWER => return Err(strange("it is too long")),
            _ => bytes.extend_from_slice(&chunk[..count]),
        }
        Ok(())
    }
}

/// The answer without its body, where the body begins, and how long it is; `None` while the head is incomplete.
fn parse(bytes: &[u8]) -> io::Result<Option<(Answer, usize, usize)>> {
    let mut space = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut space);
    let status = response.parse(bytes).map_err(|error| strange(&error.to_string()))?;
    let httparse::Status::Complete(from) = status else { return Ok(None) };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers: Vec<_> = response.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect();
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, value)| value.parse().ok()).filter(|length| *length <= MOST_ANSWER);
    let (Some(status), Some(length)) = (response.code, length) else { return Err(strange("it has no length")) };
    let bodiless = matches!(status, 204 | 304);
    Ok(Some((Answer { status, headers, body: Vec::new() }, from, if bodiless { 0 } else { length })))
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer is malformed: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::guard::head;
    use crate::http::message::Response;
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::sync::Arc;

    const SECOND: Duration = Duration::from_secs(1);

    fn backend(folder: &Path) -> Arc<Backend> {
        Backend::start("api", folder, 2, 1024, Arc::new(|_| Response::text(200, "hi"))).unwrap()
    }

    fn status(backend: &Backend, within: Duration) -> u16 {
        let head = head::parse(b"GET / HTTP/1.0\r\n\r\n", 0).unwrap();
        ask(backend, &Question { head: &head, body: b"", peer: [127, 0, 0, 1].into(), id: "a" }, within).status
    }

    #[test]
    fn a_server_that_is_gone_is_replaced_while_the_client_waits() {
        let folder = tempfile::tempdir().unwrap();
        let backend = backend(folder.path());
        fs::remove_file(backend.door().unwrap().path).unwrap();
        assert_eq!(status(&backend, 5 * SECOND), 200);
        assert_eq!(backend.door().unwrap().generation, 2);
        backend.stop(Instant::now() + SECOND);
    }

    #[test]
    fn a_server_that_hangs_is_replaced_for_the_next_client() {
        let folder = tempfile::tempdir().unwrap();
        let backend = backend(folder.path());
        let path = backend.door().unwrap().path;
        fs::remove_file(&path).unwrap();
        let _silent = UnixListener::bind(&path).unwrap();
        assert_eq!(status(&backend, SECOND), 503);
        assert_eq!(status(&backend, 5 * SECOND), 200);
        backend.stop(Instant::now() + SECOND);
    }

    #[test]
    fn answers_are_read_to_their_length_and_no_further() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nContent-").unwrap(), None);
        let (answer, from, length) = parse(b"HTTP/1.1 404 Not Found\r\nA: b\r\nContent-Length: 3\r\n\r\nabc").unwrap().unwrap();
        assert_eq!((answer.status, from, length), (404, 51, 3));
        let bodiless = parse(b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n").unwrap().unwrap();
        assert_eq!(bodiless.2, 0);
        for bad in ["HTTP/1.1 200 OK\r\n\r\n", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"] {
            assert_eq!(parse(bad.as_bytes()).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
    }
}
