//! A keyhole-client played by hand: requests as the protocol has them, and as it does not.

use crate::bed::Bed;
use crate::gateway::records;
use crate::runner::KEYHOLE_PORT;
use keyhole_protocol::{CONFIRM_PATH, Confirm, Nonce, PORTS_PATH, Purpose, Request, SIGNATURE_HEADER, Token, sign};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// What keyhole answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's status.
    pub status: u16,
    /// Everything behind the head.
    pub body: String,
}

/// The token of an unfinished job, as only the store and the batch script hold it.
pub fn token_of(bed: &Bed, job: &str) -> Token {
    let text = records(bed, &format!("jobs/{job}"));
    let record: Value = serde_json::from_str(text.lines().nth(1).expect("the job has a record")).unwrap();
    Token::from_hex(record["token"].as_str().expect("the record holds a token")).unwrap()
}

/// A nonce that a test can tell from others.
pub fn nonce(number: u8) -> Nonce {
    Nonce([number; 16])
}

/// A request of a job's first run.
pub fn request(job: &str, nonce_number: u8, ports: u32, nodes: &[&str]) -> Request {
    let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
    Request { job: job.parse().unwrap(), run: 0, nonce: nonce(nonce_number), ports, nodes }
}

/// Sends a request for ports from a host, signed with `token`.
pub fn ask(bed: &Bed, host: &str, token: &Token, request: &Request) -> Answer {
    let body = request.to_body();
    post(bed, host, PORTS_PATH, &body, &sign(token, Purpose::Request, body.as_bytes()))
}

/// Sends many requests at the same moment, each from its host on a connection of its own (keyhole gives one address 64 seats). The answers,
/// and how long after that moment each was there.
pub fn ask_at_once(bed: &Bed, asked: &[(&str, Token, Request)]) -> Vec<(Answer, Duration)> {
    let together = Barrier::new(asked.len());
    let one = |(host, token, request): &(&str, Token, Request)| {
        together.wait();
        let begun = Instant::now();
        (ask(bed, host, token, request), begun.elapsed())
    };
    thread::scope(|scope| {
        let asking: Vec<_> = asked.iter().map(|asked| scope.spawn(|| one(asked))).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Confirms the grant of a request.
pub fn confirm(bed: &Bed, host: &str, token: &Token, request: &Request) -> Answer {
    let body = Confirm { job: request.job, run: request.run, nonce: request.nonce }.to_body();
    post(bed, host, CONFIRM_PATH, &body, &sign(token, Purpose::Confirm, body.as_bytes()))
}

/// Sends any body with any signature.
pub fn post(bed: &Bed, host: &str, path: &str, body: &str, signature: &str) -> Answer {
    let server = bed.ip("runner");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {server}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{SIGNATURE_HEADER}: \
         {signature}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = bed.at(host, || TcpStream::connect((server, KEYHOLE_PORT))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Answer { status: status.unwrap_or_else(|| panic!("no HTTP: {text:?}")), body: body.unwrap() }
}
