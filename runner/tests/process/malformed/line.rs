//! Connections of clients that do not mind how they are treated.

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// No request may go without an answer, or an end, for so long.
const LONGEST: Duration = Duration::from_secs(20);

/// What became of a request: a status, `alert` (TLS ended it), or `closed` (without a word).
#[derive(Debug)]
pub struct Heard(pub String);

/// One listener.
pub struct Door {
    pub name: &'static str,
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
}

/// A connection, in TLS or not.
pub enum Line {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Door {
    pub fn api(address: &str, certificate: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
        Self { name: "api", address: address.parse().unwrap(), tls: Some(Arc::new(config)) }
    }

    pub fn keyhole(address: &str) -> Self {
        Self { name: "keyhole", address: address.parse().unwrap(), tls: None }
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    fn connect(&self, from: Option<Ipv4Addr>) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into())?;
        }
        socket.connect_timeout(&self.address.into(), LONGEST)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(LONGEST))?;
        stream.set_write_timeout(Some(LONGEST))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn line(&self, from: Option<Ipv4Addr>) -> io::Result<Line> {
        let mut socket = self.connect(from)?;
        let Some(config) = &self.tls else { return Ok(Line::Plain(socket)) };
        let name = ServerName::try_from("127.0.0.1").map_err(io::Error::other)?;
        let mut session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Line::Tls(Box::new(StreamOwned::new(session, socket))))
    }

    /// One whole request on the connection that is kept, or on a new one if the last answer ended it.
    pub fn ask(&self, kept: &mut Option<Line>, bytes: &[u8]) -> io::Result<Heard> {
        let mut line = match kept.take() {
            Some(line) => line,
            None => self.line(None)?,
        };
        let _ = line.write(bytes);
        let (heard, goes_on) = line.answer()?;
        if goes_on {
            *kept = Some(line);
        }
        Ok(heard)
    }

    /// These bytes and nothing more, on a connection of their own.
    pub fn once(&self, bytes: &[u8]) -> io::Result<Heard> {
        let mut line = self.line(None)?;
        line.last_words(bytes)?;
        line.rest()
    }

    /// One whole request from another address.
    pub fn ask_from(&self, bytes: &[u8], from: Ipv4Addr) -> io::Result<Heard> {
        let mut line = self.line(Some(from))?;
        let _ = line.write(bytes);
        line.answer().map(|(heard, _)| heard)
    }

    /// Bytes without TLS, also where it is asked for.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<Heard> {
        let mut line = Line::Plain(self.connect(None)?);
        line.last_words(bytes)?;
        line.rest()
    }

    /// Bytes beneath TLS, in the middle of a good connection.
    pub fn underneath(&self, bytes: &[u8]) -> io::Result<Heard> {
        let mut line = Line::Plain(match self.line(None)? {
            Line::Plain(socket) => socket,
            Line::Tls(stream) => stream.sock,
        });
        line.last_words(bytes)?;
        line.rest()
    }
}

impl Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = match self {
            Self::Plain(socket) => socket.read(into),
            Self::Tls(stream) => stream.read(into),
        };
        match read {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(io::Error::new(ErrorKind::TimedOut, "neither an answer nor an end"))
            }
            // However it ends, it is an end.
            Err(_) => Ok(0),
            read => read,
        }
    }

    /// Writes, and says that nothing will follow. A listener that has closed already does not hear it.
    fn last_words(&mut self, bytes: &[u8]) -> io::Result<()> {
        let _ = self.write(bytes);
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => {
                stream.conn.send_close_notify();
                let _ = stream.flush();
                &mut stream.sock
            }
        };
        let _ = socket.shutdown(Shutdown::Write);
        Ok(())
    }

    /// The first answer of all that comes until the end.
    fn rest(&mut self) -> io::Result<Heard> {
        let (mut all, mut chunk) = (Vec::new(), [0; 8192]);
        loop {
            match self.read(&mut chunk)? {
                0 => return Ok(Heard(status(&all).unwrap_or_else(|| "closed".to_owned()))),
                count => all.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// One answer, and whether another request may follow.
    fn answer(&mut self) -> io::Result<(Heard, bool)> {
        let (mut all, mut chunk) = (Vec::new(), [0; 8192]);
        loop {
            if let Some((length, goes_on)) = whole(&all)
                && all.len() >= length
            {
                return Ok((Heard(status(&all).expect("it has a head")), goes_on));
            }
            match self.read(&mut chunk)? {
                0 => return Ok((Heard(status(&all).unwrap_or_else(|| "closed".to_owned())), false)),
                count => all.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

/// The status of the first final answer.
fn status(all: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(all);
    let answer = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
    if answer.is_empty() {
        return None;
    }
    match answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)) {
        Some(status) if status.bytes().all(|byte| byte.is_ascii_digit()) => Some(status.to_owned()),
        // Records of TLS's, of which the last is an alert.
        _ if (0x14..=0x17).contains(&all[0]) => Some("alert".to_owned()),
        _ => panic!("this is no answer: {answer:?}"),
    }
}

/// How long the first answer is, once its head is there, and whether the connection stays.
fn whole(all: &[u8]) -> Option<(usize, bool)> {
    let head = all.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&all[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.trim().parse().expect("a length"));
    Some((head + length, text.contains("connection: keep-alive")))
}
