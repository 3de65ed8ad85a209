//! A net between a client and a server that can be cut: in silence, or so that questions arrive and answers do not.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// What the net does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Net {
    /// All passes.
    Whole,
    /// Nothing passes, in either direction, and nobody hangs up.
    Silent,
    /// Questions arrive; answers are lost.
    AnswersLost,
    /// Answers take their time.
    Slow,
}

/// A listener that passes everything on to one server. Lives until the test's process ends.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    net: AtomicU8,
    /// Bytes that clients sent and the server got.
    forwarded: AtomicU64,
}

/// How long an answer takes on a slow net.
pub const DELAY: Duration = Duration::from_millis(300);

impl Proxy {
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || state.serve(client, server));
            }
        });
        Self { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, net: Net) {
        self.state.net.store(net as u8, Ordering::SeqCst);
    }

    /// How many bytes arrived at the server so far.
    pub fn forwarded(&self) -> u64 {
        self.state.forwarded.load(Ordering::SeqCst)
    }
}

impl State {
    fn is(&self, net: Net) -> bool {
        self.net.load(Ordering::SeqCst) == net as u8
    }

    fn serve(self: Arc<Self>, client: TcpStream, server: SocketAddr) {
        // A net that is cut carries no handshake either.
        self.wait_while_silent();
        let Ok(server) = TcpStream::connect(server) else { return };
        let (from_client, from_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let questions = Arc::clone(&self);
        thread::spawn(move || {
            questions.pump(from_client, server, |count| {
                questions.wait_while_silent();
                questions.forwarded.fetch_add(count as u64, Ordering::SeqCst);
                true
            })
        });
        self.pump(from_server, client, |_| {
            self.wait_while_silent();
            if self.is(Net::Slow) {
                thread::sleep(DELAY);
            }
            !self.is(Net::AnswersLost)
        });
    }

    /// Copies until one side ends; once something was lost, the connection carries nothing more in this direction.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, passes: impl Fn(usize) -> bool) {
        let (mut buffer, mut whole) = ([0; 64 << 10], true);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            whole &= passes(count);
            if whole && to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    fn wait_while_silent(&self) {
        while self.is(Net::Silent) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
