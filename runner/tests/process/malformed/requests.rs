//! Requests that are not as they should be, made of the corpora of the fuzz targets.

use super::line::Door;
use super::mutate::{Dice, mutate};
use crate::world::{PASSWORD, basic};
use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// The longest damaged piece.
const LONGEST: usize = 20 * 1024;

/// One malformed request and how it is sent.
#[derive(Debug)]
pub enum Attack {
    /// Whole, on a connection that goes on if it is let.
    Kept(Vec<u8>),
    /// On a connection of its own, and then nothing more.
    Once(Vec<u8>),
    /// Whole, from this address.
    FromAfar(Vec<u8>, Ipv4Addr),
    /// Without TLS where TLS is asked for.
    Raw(Vec<u8>),
    /// In the place of a record of TLS's, after a good handshake.
    Underneath(Vec<u8>),
}

/// What one door's requests are made of.
pub struct Material {
    is_api: bool,
    heads: Vec<Vec<u8>>,
    bodies: Vec<Vec<u8>>,
    authorization: String,
}

const HEAD_WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    " ",
    ":",
    "\0",
    "Content-Length: 5\r\n",
    "Content-Length: -1\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Host: b\r\n",
    " HTTP/1.1",
    " HTTP/9.9",
    "POST ",
    "%zz",
    "Expect: 100-continue\r\n",
    "Guard-Peer: 1.2.3.4\r\n",
    "/../",
    "Connection: close\r\n",
];

const BODY_WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ",",
    ":",
    "null",
    "\"uid\":",
    "\"variables\":",
    "\"x\":\"a\",",
    "\\u0000",
    "keyhole 1\n",
    "job 1\n",
    "node c0\n",
    "ports 9\n",
    "\n",
    "\r\n",
];

/// A record of TLS's handshake that asks for more than it holds.
const HELLO: &[u8] = b"\x16\x03\x01\x00\xc4\x01\x00\x00\xc0\x03\x03 thirty-two bytes are random here";

impl Material {
    pub fn of(door: &Door) -> Self {
        let is_api = door.is_tls();
        let bodies = corpus(if is_api { "job-body" } else { "keyhole" });
        Self { is_api, heads: corpus("http-head"), bodies, authorization: basic("bwvisu-web", PASSWORD) }
    }

    /// Any of them.
    pub fn attack(&self, dice: &mut Dice) -> Attack {
        match dice.below(20) {
            0..=8 => Attack::Kept(self.with_wrong_body(dice)),
            9..=12 => Attack::Once(self.wrong_head(dice)),
            13 | 14 => Attack::Once(self.half(dice)),
            15 | 16 => Attack::Once((0..2 + dice.below(3)).flat_map(|_| self.wrong_head(dice)).collect()),
            17 if self.is_api => self.stranger(dice),
            18 if self.is_api => Attack::Underneath(garbage(dice)),
            _ => Attack::Raw(garbage(dice)),
        }
    }

    /// A good head, good credentials, the right length, and a body that is wrong.
    fn with_wrong_body(&self, dice: &mut Dice) -> Vec<u8> {
        let body = damaged(dice, &self.bodies, BODY_WORDS);
        let mut head = if self.is_api {
            format!(
                "POST /jobs HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\nContent-Type: application/json\r\n",
                self.authorization
            )
        } else {
            let path = ["/v1/ports", "/v1/ports/confirm", "/v1/ports"][dice.below(3)];
            let signature = ["0a".repeat(32), String::new(), "zz".repeat(32)][dice.below(3)].clone();
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nKeyhole-Signature: {signature}\r\n")
        };
        let _ = write!(head, "Content-Length: {}\r\n\r\n", body.len());
        [head.into_bytes(), body].concat()
    }

    /// A damaged head, now and then with good credentials in it.
    fn wrong_head(&self, dice: &mut Dice) -> Vec<u8> {
        let mut head = damaged(dice, &self.heads, HEAD_WORDS);
        let line_end = head.windows(2).position(|two| two == b"\r\n");
        if let Some(at) = line_end.filter(|_| self.is_api && dice.below(4) > 0) {
            let line = format!("\r\nAuthorization: {}", self.authorization);
            head.splice(at..at, line.into_bytes());
        }
        head
    }

    /// The beginning of a request that would be one.
    fn half(&self, dice: &mut Dice) -> Vec<u8> {
        let mut whole = self.with_wrong_body(dice);
        whole.truncate(dice.below(whole.len()));
        whole
    }

    /// Wrong credentials. Whoever guesses often waits for the answer, so each comes from somewhere else.
    fn stranger(&self, dice: &mut Dice) -> Attack {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut credentials = self.authorization.clone().into_bytes();
        mutate(dice, &mut credentials, b"Basic YTpi", &["Basic ", "Bearer ", "=", "YTpi"], 300);
        let mut request = b"GET /jobs HTTP/1.1\r\nHost: a\r\nAuthorization: ".to_vec();
        request.extend(credentials.iter().filter(|byte| **byte != b'\n'));
        request.extend_from_slice(b"\r\n\r\n");
        let [_, a, b, c] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        Attack::FromAfar(request, Ipv4Addr::new(127, 100 + a, b, c | 1))
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5, "{name}");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn damaged(dice: &mut Dice, from: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut piece = from[dice.below(from.len())].clone();
    let other = &from[dice.below(from.len())];
    mutate(dice, &mut piece, other, words, LONGEST);
    piece
}

/// Bytes that are no HTTP, and no TLS either.
fn garbage(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = match dice.below(3) {
        0 => HELLO.to_vec(),
        1 => (0..dice.below(200)).map(|_| dice.roll() as u8).collect(),
        _ => b"\x17\x03\x03\x00\x20 an application's record, perhaps".to_vec(),
    };
    mutate(dice, &mut bytes, HELLO, &["\u{16}\u{3}\u{1}", "\u{15}\u{3}\u{3}\0\u{2}\u{2}(", "GET / HTTP/1.1\r\n\r\n"], LONGEST);
    bytes
}
