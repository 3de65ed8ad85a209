//! A connection to the API over TLS that is kept: what a front end has.

use bwvisu_tests::runner::{API_PORT, PASSWORD};
use bwvisu_tests::{Bed, Runner, api};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// One connection from the host `outside`.
pub struct Kept {
    stream: StreamOwned<ClientConnection, TcpStream>,
    authorization: String,
    address: String,
    buffer: Vec<u8>,
}

impl Kept {
    /// A connection to this runner, its handshake done.
    pub fn open(bed: &Bed, runner: &Runner) -> Self {
        let address = bed.external("runner");
        let certificate = CertificateDer::from_pem_file(runner.folder().join("certificate.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let tls = ClientConnection::new(Arc::new(config), ServerName::IpAddress(std::net::IpAddr::V4(address).into())).unwrap();
        let stream = bed.at("outside", || TcpStream::connect((address, API_PORT))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
        let authorization = api::basic(api::USER, PASSWORD);
        let mut kept =
            Self { stream: StreamOwned::new(tls, stream), authorization, address: address.to_string(), buffer: Vec::new() };
        assert_eq!(kept.get("/jobs").0, 200, "a new connection is of use");
        kept
    }

    /// One request; status and body.
    pub fn call(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            self.authorization,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).expect("the connection is kept");
        self.answer()
    }

    /// `GET`.
    pub fn get(&mut self, path: &str) -> (u16, String) {
        self.call("GET", path, "")
    }

    /// A job as it is now.
    pub fn job(&mut self, id: &str) -> Value {
        let (status, body) = self.get(&format!("/jobs/{id}"));
        assert_eq!(status, 200, "job {id}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Submits a job of alice's; how often that was refused because too much was under way is added to `refused`. Returns its id.
    pub fn post(&mut self, template: &str, variables: &Value, refused: &mut usize) -> String {
        let body = json!({"uid": "alice", "template-name": template, "variables": variables}).to_string();
        loop {
            let (status, answer) = self.call("POST", "/jobs", &body);
            if status == 429 {
                *refused += 1;
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            assert_eq!(status, 200, "{answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            return answer["job-id"].as_str().unwrap().to_owned();
        }
    }

    /// One of the figures at `/metrics`, by its whole name with labels; 0 if it is not there yet.
    pub fn metric(&mut self, name: &str) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    fn answer(&mut self) -> (u16, String) {
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.buffer.split_off(end + 4);
                break String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
            }
            self.read_more();
        };
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
        let length: usize = length.unwrap_or_else(|| panic!("no length: {head}")).trim().parse().unwrap();
        while self.buffer.len() < length {
            self.read_more();
        }
        let rest = self.buffer.split_off(length);
        let body = String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
        (head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap(), body)
    }

    fn read_more(&mut self) {
        let mut chunk = [0; 16384];
        let count = self.stream.read(&mut chunk).expect("the connection is kept");
        assert!(count > 0, "the runner closed a connection that was to be kept");
        self.buffer.extend_from_slice(&chunk[..count]);
    }
}
