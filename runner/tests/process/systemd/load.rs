//! Clients that ask without a pause and repeat nothing: whatever is not answered is lost.

use crate::world::{PASSWORD, basic};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// One connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

/// The part of an answer that matters here.
pub struct Heard {
    pub status: u16,
    pub body: String,
    /// Whether the connection goes on.
    pub stays: bool,
}

impl Client {
    pub fn connect(address: &str) -> Self {
        Self::try_connect(address).unwrap()
    }

    fn try_connect(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub fn ask(&mut self, path: &str) {
        self.try_ask(path).unwrap();
    }

    fn try_ask(&mut self, path: &str) -> io::Result<()> {
        let authorization = basic("bwvisu-web", PASSWORD);
        let head = format!("GET {path} HTTP/1.1\r\nHost: here\r\nAuthorization: {authorization}\r\n\r\n");
        self.stream.get_mut().write_all(head.as_bytes())
    }

    /// Waits for one answer, all of it.
    pub fn hear(&mut self) -> io::Result<Heard> {
        let (mut lines, mut length, mut stays) = (Vec::new(), 0, true);
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("closed after {lines:?}")));
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            stays &= line != "connection: close";
            length = line.strip_prefix("content-length: ").map_or(length, |digits| digits.parse().unwrap());
            lines.push(line);
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let status = lines[0].split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok(Heard { status, body, stays })
    }
}

/// Several clients, half of them on connections that they keep as long as the server lets them.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    end: AtomicBool,
    answered: AtomicUsize,
    lost: Mutex<Vec<String>>,
}

impl Load {
    pub fn start(address: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let client = |number: usize| {
            let (shared, address) = (Arc::clone(&shared), address.to_owned());
            thread::spawn(move || shared.work(&address, number.is_multiple_of(2)))
        };
        Self { threads: (0..8).map(client).collect(), shared }
    }

    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    pub fn story(&self) -> String {
        format!("{} answered, lost: {:?}", self.answered(), self.shared.lost.lock().unwrap())
    }

    /// How many requests were answered, and what became of the others.
    pub fn end(self) -> (usize, Vec<String>) {
        self.shared.end.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let lost = std::mem::take(&mut *self.shared.lost.lock().unwrap());
        (self.shared.answered.load(Ordering::Relaxed), lost)
    }
}

impl Shared {
    fn work(&self, address: &str, keeps: bool) {
        let mut kept: Option<Client> = None;
        while !self.end.load(Ordering::Relaxed) {
            let reused = kept.is_some();
            match once(address, kept.take()) {
                Ok((heard, client)) if heard.status == 200 => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    kept = (keeps && heard.stays).then_some(client);
                }
                Ok((heard, _)) => self.lost.lock().unwrap().push(format!("status {}: {}", heard.status, heard.body)),
                Err(error) => self.lost.lock().unwrap().push(format!("{error} (connection kept: {reused})")),
            }
        }
    }
}

fn once(address: &str, kept: Option<Client>) -> io::Result<(Heard, Client)> {
    let mut client = kept.map_or_else(|| Client::try_connect(address), Ok)?;
    client.try_ask("/jobs")?;
    Ok((client.hear()?, client))
}
