//! A network and a clock that do as they are told.

use keyhole_client::arguments::{self, Invocation};
use keyhole_client::{Failure, Fault, Random, Transport, Variables, client};
use keyhole_protocol::{Grant, GrantedPort, Nonce, Purpose, Token, sign};
use std::collections::VecDeque;
use std::net::SocketAddr;

pub const NONCE: [u8; 16] = [0x5e; 16];

pub fn token() -> Token {
    Token::from_bytes([0xa5; 32])
}

/// What one connection does.
#[derive(Clone, Debug)]
pub enum Connection {
    /// Cannot be made.
    Fails(Fault),
    /// Is not answered, neither yes nor no.
    Hangs,
    /// Is made, and then says nothing.
    Silent,
    /// Answers in pieces of so many bytes, and ends.
    Answers(Vec<u8>, usize),
}

/// What came over one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub address: SocketAddr,
    pub bytes: String,
}

#[derive(Default)]
pub struct World {
    pub now: u64,
    pub sent: Vec<Sent>,
    pub pauses: Vec<u64>,
    pub open: bool,
    script: VecDeque<Connection>,
    answer: VecDeque<u8>,
    piece: usize,
}

impl World {
    /// The connections in turn; the last one again and again.
    pub fn new(script: &[Connection]) -> Self {
        World { now: 1_000_000, script: script.iter().cloned().collect(), ..World::default() }
    }

    fn next_connection(&mut self) -> Connection {
        let next = self.script.front().cloned().unwrap_or(Connection::Silent);
        if self.script.len() > 1 {
            self.script.pop_front();
        }
        next
    }

    fn time_out<T>(&mut self, deadline: u64) -> Result<T, Fault> {
        self.now = self.now.max(deadline);
        Err(Fault::TimedOut)
    }
}

impl Transport for World {
    fn now(&self) -> u64 {
        self.now
    }

    fn pause(&mut self, milliseconds: u64) {
        self.pauses.push(milliseconds);
        self.now += milliseconds;
    }

    fn connect(&mut self, address: SocketAddr, deadline: u64) -> Result<(), Fault> {
        assert!(!self.open, "the connection before was not closed");
        self.now += 1;
        self.sent.push(Sent { address, bytes: String::new() });
        self.answer.clear();
        match self.next_connection() {
            Connection::Fails(fault) => return Err(fault),
            Connection::Hangs => return self.time_out(deadline),
            Connection::Silent => self.piece = 0,
            Connection::Answers(bytes, piece) => (self.answer, self.piece) = (bytes.into(), piece),
        }
        self.open = true;
        Ok(())
    }

    /// Takes no more than 100 bytes at a time.
    fn send(&mut self, bytes: &[u8], _: u64) -> Result<usize, Fault> {
        let (taken, _) = bytes.split_at(bytes.len().min(100));
        let text = str::from_utf8(taken).expect("requests are ASCII");
        self.sent.last_mut().expect("a connection").bytes.push_str(text);
        Ok(taken.len())
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: u64) -> Result<usize, Fault> {
        if self.piece == 0 {
            return self.time_out(deadline);
        }
        let count = self.piece.min(self.answer.len()).min(buffer.len());
        buffer.iter_mut().zip(self.answer.drain(..count)).for_each(|(to, from)| *to = from);
        Ok(count)
    }

    fn disconnect(&mut self) {
        self.open = false;
    }
}

/// An answer with all headers right for its body.
pub fn answer(status: &str, signature: Option<&str>, body: &str) -> Vec<u8> {
    let signature = signature.map(|signature| format!("Keyhole-Signature: {signature}\r\n")).unwrap_or_default();
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{signature}Connection: close\r\n\r\n{body}").into()
}

pub fn grant(ports: u16) -> Grant {
    let port = |index| GrantedPort { internal: 50000 + index, gateway: "129.206.9.65".into(), external: 40000 + index };
    Grant { nonce: Nonce(NONCE), ports: (0..ports).map(port).collect() }
}

/// The answer that this grant comes in.
pub fn signed(grant: &Grant) -> Vec<u8> {
    signed_text(&grant.to_body())
}

pub fn signed_text(body: &str) -> Vec<u8> {
    answer("200 OK", Some(&sign(&token(), Purpose::Grant, body.as_bytes())), body)
}

/// What a client for two ports and the node `c0` ends with.
pub fn run(world: &mut World, servers: &[&str], more: &[&str], seed: u64) -> Result<String, Failure> {
    let servers = servers.iter().flat_map(|server| ["--server", server]);
    let words: Vec<&str> = ["--job", "17", "--ports", "2"].into_iter().chain(servers).chain(more.iter().copied()).collect();
    let Ok(Invocation::Ask(arguments)) = arguments::parse(&words) else { panic!("{words:?} are no arguments") };
    let variables = Variables { job_node_list: Some("c0"), ..Variables::default() };
    client(world, arguments, &token(), &variables, Random { nonce: NONCE, seed })
}
