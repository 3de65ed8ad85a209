//! Streams whose every read and write ends at one absolute moment, however slowly the other side dribbles.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A timeout that the kernel has already does for one that is shorter by no more than this: so a connection that is well needs no system call
/// for its deadlines.
const SLACK: Duration = Duration::from_millis(20);

/// A socket with a deadline.
pub(crate) struct Timed {
    socket: Arc<TcpStream>,
    deadline: Instant,
    /// What the kernel was told last of reading and of writing.
    reading: Option<Duration>,
    writing: Option<Duration>,
}

impl Timed {
    pub(crate) fn new(socket: Arc<TcpStream>, within: Duration) -> Self {
        Self { socket, deadline: Instant::now() + within, reading: None, writing: None }
    }

    pub(crate) fn allow(&mut self, within: Duration) {
        self.deadline = Instant::now() + within;
    }

    /// What is left of the time.
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.left()?;
        if !is_told(self.reading, left) {
            self.socket.set_read_timeout(Some(left))?;
            self.reading = Some(left);
        }
        (&*self.socket).read(into)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        if !is_told(self.writing, left) {
            self.socket.set_write_timeout(Some(left))?;
            self.writing = Some(left);
        }
        (&*self.socket).write(bytes)
    }
}

fn is_told(told: Option<Duration>, left: Duration) -> bool {
    told.is_some_and(|told| told >= left && told - left <= SLACK)
}

/// Repeats `call` while signals interrupt it; every kind of lateness becomes `TimedOut`.
fn in_time(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            other => return other,
        }
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        in_time(|| self.receive(into))
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        in_time(|| self.send(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's connection, plain or TLS.
pub(crate) enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ServerConnection, Timed>>),
}

impl Stream {
    /// Takes a fresh connection; with TLS this shakes hands, within `handshake`.
    pub(crate) fn open(socket: Arc<TcpStream>, tls: Option<&Arc<ServerConfig>>, handshake: Duration) -> io::Result<Self> {
        let mut client = Timed::new(socket, handshake);
        let Some(config) = tls else { return Ok(Self::Plain(client)) };
        let mut session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut client)?;
        }
        Ok(Self::Tls(Box::new(StreamOwned::new(session, client))))
    }

    /// Sets the deadline for all that follows.
    pub(crate) fn allow(&mut self, within: Duration) {
        self.client().allow(within);
    }

    /// Says goodbye, then waits for the other side to have read it: closing at once would reset the connection if
    /// anything of the client's is still unread, and the reset could overtake the answer.
    pub(crate) fn finish(mut self, within: Duration, bytes: usize) {
        self.allow(within);
        if let Self::Tls(stream) = &mut self {
            stream.conn.send_close_notify();
            if stream.flush().is_err() {
                return;
            }
        }
        let client = self.client();
        if client.socket.shutdown(Shutdown::Write).is_ok() {
            drain(client, bytes);
        }
    }

    fn client(&mut self) -> &mut Timed {
        match self {
            Self::Plain(client) => client,
            Self::Tls(stream) => &mut stream.sock,
        }
    }
}

fn drain(from: &mut impl Read, mut bytes: usize) {
    let mut waste = [0; 4096];
    while bytes > 0 {
        match from.read(&mut waste) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes = bytes.saturating_sub(count),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(client) => client.read(into),
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(client) => client.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(client) => client.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    fn pair() -> (Arc<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Arc::new(listener.accept().unwrap().0), theirs)
    }

    fn spent(call: impl FnOnce() -> io::Error) -> Duration {
        let start = Instant::now();
        assert_eq!(call().kind(), io::ErrorKind::TimedOut);
        start.elapsed()
    }

    #[test]
    fn a_dribbling_sender_does_not_move_the_deadline() {
        let (ours, mut theirs) = pair();
        thread::spawn(move || {
            while theirs.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let mut stream = Timed::new(ours, Duration::from_millis(200));
        let spent = spent(|| {
            loop {
                if let Err(error) = stream.read(&mut [0; 16]) {
                    break error;
                }
            }
        });
        // It would go on for ever.
        assert!((200..15_000).contains(&spent.as_millis()), "{spent:?}");
    }

    #[test]
    fn a_reader_who_does_not_read_does_not_hold_the_writer() {
        let (ours, _theirs) = pair();
        let mut stream = Timed::new(ours, Duration::from_millis(200));
        let spent = spent(|| stream.write_all(&vec![0; 64 << 20]).unwrap_err());
        assert!((200..15_000).contains(&spent.as_millis()), "{spent:?}");
    }

    #[test]
    fn each_deadline_is_kept_whatever_the_one_before_was() {
        let (ours, theirs) = pair();
        let mut stream = Timed::new(ours, Duration::ZERO);
        // A longer one goes before all but the last.
        for (longer_before, within) in [(true, 300), (true, 100), (false, 200)] {
            if longer_before {
                stream.allow(Duration::from_secs(60));
                (&theirs).write_all(b"x").unwrap();
                assert_eq!(stream.read(&mut [0; 16]).unwrap(), 1);
            }
            stream.allow(Duration::from_millis(within));
            let spent = spent(|| stream.read(&mut [0; 16]).unwrap_err()).as_millis();
            assert!((u128::from(within)..15_000).contains(&spent), "{within}: {spent}");
        }
    }
}
