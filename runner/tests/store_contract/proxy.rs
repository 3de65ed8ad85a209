//! A net between a client and a server that can be cut in silence, lose answers, or be slow.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
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
    /// How long an answer takes on a slow net, in milliseconds.
    delay: AtomicU64,
    /// Bytes that clients sent and the server got.
    forwarded: AtomicU64,
    /// Answers to questions with these words are lost, so many times more.
    losses: Mutex<(String, u64)>,
    lost: AtomicU64,
    /// When an answer with these words comes, nothing passes any more.
    last_words: Mutex<Option<String>>,
}

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

    /// From now on each answer takes so long.
    pub fn be_slow(&self, delay: Duration) {
        self.state.delay.store(delay.as_millis() as u64, Ordering::SeqCst);
        self.set(Net::Slow);
    }

    /// From now on loses the answers to so many questions that hold these words; their connections carry no answers any more.
    pub fn lose_answers_to(&self, words: &str, times: u64) {
        *self.state.losses.lock().unwrap() = (words.to_owned(), times);
    }

    /// Falls silent as soon as an answer comes that holds these words, and keeps it back.
    pub fn be_silent_at(&self, words: &str) {
        *self.state.last_words.lock().unwrap() = Some(words.to_owned());
    }

    pub fn is_silent(&self) -> bool {
        self.state.is(Net::Silent)
    }

    /// How many answers were lost so far.
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::SeqCst)
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
        let (questions, deaf) = (Arc::clone(&self), Arc::new(AtomicBool::new(false)));
        let deafened = Arc::clone(&deaf);
        thread::spawn(move || {
            pump(from_client, server, |bytes| {
                questions.wait_while_silent();
                questions.forwarded.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                if questions.loses_answer(bytes) {
                    deafened.store(true, Ordering::SeqCst);
                }
                true
            })
        });
        pump(from_server, client, |bytes| {
            self.fall_silent_at(bytes);
            self.wait_while_silent();
            if self.is(Net::Slow) {
                thread::sleep(Duration::from_millis(self.delay.load(Ordering::SeqCst)));
            }
            !deaf.load(Ordering::SeqCst)
        });
    }

    fn loses_answer(&self, question: &[u8]) -> bool {
        let mut losses = self.losses.lock().unwrap();
        let found = losses.1 > 0 && holds(question, &losses.0);
        if found {
            losses.1 -= 1;
            self.lost.fetch_add(1, Ordering::SeqCst);
        }
        found
    }

    fn fall_silent_at(&self, answer: &[u8]) {
        let mut words = self.last_words.lock().unwrap();
        if words.take_if(|words| holds(answer, words)).is_some() {
            self.net.store(Net::Silent as u8, Ordering::SeqCst);
        }
    }

    fn wait_while_silent(&self) {
        while self.is(Net::Silent) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn holds(bytes: &[u8], words: &str) -> bool {
    bytes.windows(words.len()).any(|window| window == words.as_bytes())
}

/// Copies what passes until one side ends.
fn pump(mut from: TcpStream, mut to: TcpStream, passes: impl Fn(&[u8]) -> bool) {
    let mut buffer = [0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if passes(&buffer[..count]) && to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
