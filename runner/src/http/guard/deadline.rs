//! Streams whose every read and write ends at one absolute moment, however slowly the other side dribbles.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A blocking socket that can be told how long one call may take.
pub(crate) trait Socket {
    /// Reads what is there, or waits for it.
    fn receive(&mut self, into: &mut [u8], within: Duration) -> io::Result<usize>;
    /// Writes some of `bytes`.
    fn send(&mut self, bytes: &[u8], within: Duration) -> io::Result<usize>;
}

impl Socket for Arc<TcpStream> {
    fn receive(&mut self, into: &mut [u8], within: Duration) -> io::Result<usize> {
        self.set_read_timeout(Some(within))?;
        (&**self).read(into)
    }

    fn send(&mut self, bytes: &[u8], within: Duration) -> io::Result<usize> {
        self.set_write_timeout(Some(within))?;
        (&**self).write(bytes)
    }
}

impl Socket for UnixStream {
    fn receive(&mut self, into: &mut [u8], within: Duration) -> io::Result<usize> {
        self.set_read_timeout(Some(within))?;
        self.read(into)
    }

    fn send(&mut self, bytes: &[u8], within: Duration) -> io::Result<usize> {
        self.set_write_timeout(Some(within))?;
        self.write(bytes)
    }
}

/// A socket with a deadline.
pub(crate) struct Timed<S> {
    socket: S,
    deadline: Instant,
}

impl<S: Socket> Timed<S> {
    pub(crate) fn new(socket: S, within: Duration) -> Self {
        Self { socket, deadline: Instant::now() + within }
    }

    pub(crate) fn allow(&mut self, within: Duration) {
        self.allow_until(Instant::now() + within);
    }

    pub(crate) fn allow_until(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Repeats `call` while signals interrupt it; every kind of lateness becomes `TimedOut`.
    fn in_time(&mut self, mut call: impl FnMut(&mut S, Duration) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match call(&mut self.socket, left) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                other => return other,
            }
        }
    }
}

impl<S: Socket> Read for Timed<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.in_time(|socket, left| socket.receive(into, left))
    }
}

impl<S: Socket> Write for Timed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.in_time(|socket, left| socket.send(bytes, left))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Client = Timed<Arc<TcpStream>>;

/// A client's connection, plain or TLS.
pub(crate) enum Stream {
    Plain(Client),
    Tls(Box<StreamOwned<ServerConnection, Client>>),
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

    fn client(&mut self) -> &mut Client {
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
    use std::thread;

    fn spent(call: impl FnOnce() -> io::Error) -> Duration {
        let start = Instant::now();
        assert_eq!(call().kind(), io::ErrorKind::TimedOut);
        start.elapsed()
    }

    #[test]
    fn a_dribbling_sender_does_not_move_the_deadline() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
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
        assert!((200..600).contains(&spent.as_millis()), "{spent:?}");
    }

    #[test]
    fn a_reader_who_does_not_read_does_not_hold_the_writer() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut stream = Timed::new(ours, Duration::from_millis(200));
        let spent = spent(|| stream.write_all(&vec![0; 8 << 20]).unwrap_err());
        assert!((200..600).contains(&spent.as_millis()), "{spent:?}");
    }
}
