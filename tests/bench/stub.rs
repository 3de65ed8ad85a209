//! A keyhole that answers at once: so the client's own time is measured, and not that of a gateway.

use keyhole_protocol::{Grant, GrantedPort, PORTS_PATH, Purpose, Request, SIGNATURE_HEADER, Token, sign};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// The stub, for as long as the program runs.
pub struct Stub {
    /// Where it listens.
    pub address: SocketAddr,
    holds: Arc<AtomicBool>,
    held: Receiver<()>,
    release: Sender<()>,
}

impl Stub {
    /// On loopback, for clients with this token.
    pub fn start(token: Token) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let holds = Arc::new(AtomicBool::new(false));
        let ((tell, held), (release, released)) = (channel(), channel());
        let (hold, gate) = (Arc::clone(&holds), Mutex::new((tell, released)));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &token, &hold, &gate);
            }
        });
        Self { address, holds, held, release }
    }

    /// Does something with a client that has everything but the answer to its confirmation: the last thing that it waits for.
    pub fn while_it_waits<T>(&self, start: impl FnOnce() -> T, look: impl FnOnce(&T) -> f64) -> (T, f64) {
        self.holds.store(true, Ordering::SeqCst);
        let client = start();
        self.held.recv().unwrap();
        let seen = look(&client);
        self.holds.store(false, Ordering::SeqCst);
        self.release.send(()).unwrap();
        (client, seen)
    }
}

fn serve(mut stream: TcpStream, token: &Token, holds: &AtomicBool, gate: &Mutex<(Sender<()>, Receiver<()>)>) {
    let Some((head, body)) = read(&mut stream) else { return };
    let answer = if head.contains(&format!(" {PORTS_PATH} ")) {
        let request = Request::parse(&body).expect("a request as the protocol has it");
        let port =
            |i: u32| GrantedPort { internal: 50000 + i as u16, gateway: "203.0.113.1".to_owned(), external: 50000 + i as u16 };
        Grant { nonce: request.nonce, ports: (0..request.ports).map(port).collect() }.to_body()
    } else {
        if holds.load(Ordering::SeqCst) {
            let gate = gate.lock().unwrap();
            gate.0.send(()).unwrap();
            gate.1.recv().unwrap();
        }
        String::new()
    };
    let signature = sign(token, Purpose::Grant, answer.as_bytes());
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{SIGNATURE_HEADER}: {signature}\r\nConnection: close\r\n\r\n",
        answer.len()
    );
    let _ = stream.write_all((head + &answer).as_bytes());
}

/// Head and body of a request; nothing if it does not come whole.
fn read(stream: &mut TcpStream) -> Option<(String, String)> {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(text[..end].to_vec()).ok()?;
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned))?;
            if text.len() >= end + 4 + length.parse::<usize>().ok()? {
                return Some((head, String::from_utf8(text.split_off(end + 4)).ok()?));
            }
        }
        match stream.read(&mut chunk) {
            Ok(count) if count > 0 => text.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    }
}
