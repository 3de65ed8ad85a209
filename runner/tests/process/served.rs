//! The program at work, and what its API answers.

use crate::world::{PASSWORD, until};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// The program at work.
pub struct Served {
    child: Child,
    log: Arc<Mutex<String>>,
    agent: ureq::Agent,
    pub url: String,
    pub address: String,
}

impl Served {
    pub fn attach(mut child: Child, certificate: Option<&Path>) -> Self {
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, kept) = (child.stderr.take().unwrap(), Arc::clone(&log));
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *kept.lock().unwrap() += &(line + "\n");
            }
        });
        let mut served = Self { child, log, agent: agent(None), url: String::new(), address: String::new() };
        // The other in JSON.
        served.await_line(&[" ready", "\"ready\""]);
        served.address = served.listening("api").unwrap_or_default();
        served.url = format!("{}://{}", if certificate.is_some() { "https" } else { "http" }, served.address);
        if let Some(certificate) = certificate.filter(|_| !served.address.is_empty()) {
            served.agent = agent(Some(certificate));
        }
        served
    }

    fn await_line(&mut self, texts: &[&str]) {
        let begin = Instant::now();
        while !self.log().lines().any(|line| texts.iter().any(|text| line.contains(text))) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status}:\n{}", self.log());
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "no {texts:?}:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where a part listens.
    pub fn listening(&self, part: &str) -> Option<String> {
        let log = self.log();
        let (_, rest) = log.split_once(&format!("{part}: listening on "))?;
        rest.split_whitespace().next().map(str::to_owned)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.get_as(&basic("bwvisu-web", PASSWORD), path)
    }

    /// The same, of a client that names its request.
    pub fn get_named(&self, id: &str, path: &str) -> Answer {
        let request = self.agent.get(format!("{}{path}", self.url)).header("Authorization", self.password());
        Answer::of(request.header("X-Request-Id", id).call())
    }

    pub fn get_as(&self, authorization: &str, path: &str) -> Answer {
        let request = self.agent.get(format!("{}{path}", self.url)).header("Authorization", authorization);
        Answer::of(request.call())
    }

    pub fn delete(&self, path: &str) -> Answer {
        let request = self.agent.delete(format!("{}{path}", self.url));
        Answer::of(request.header("Authorization", basic("bwvisu-web", PASSWORD)).call())
    }

    pub fn post(&self, body: &Value) -> Answer {
        self.post_text("application/json", &body.to_string())
    }

    pub fn post_text(&self, kind: &str, body: &str) -> Answer {
        let request = self.agent.post(format!("{}/jobs", self.url)).content_type(kind);
        Answer::of(request.header("Authorization", basic("bwvisu-web", PASSWORD)).send(body))
    }

    pub fn post_as(&self, key: &str, body: &Value) -> Answer {
        self.post_text_as(key, &body.to_string())
    }

    /// The same request may be made again under its key.
    pub fn post_text_as(&self, key: &str, body: &str) -> Answer {
        let request = self.agent.post(format!("{}/jobs", self.url)).content_type("application/json");
        Answer::of(request.header("Authorization", self.password()).header("Idempotency-Key", key).send(body))
    }

    /// The header's value.
    pub fn password(&self) -> String {
        basic("bwvisu-web", PASSWORD)
    }

    /// What these bytes get on a connection of their own, all of it.
    pub fn raw(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Asks for a backup of the store.
    pub fn back_up(&self) -> Answer {
        let request = self.agent.post(format!("{}/cluster/backup", self.url));
        Answer::of(request.header("Authorization", basic("bwvisu-web", PASSWORD)).send_empty())
    }

    /// Whether it answers to the same, and is not killed over it.
    pub fn try_back_up(&self) -> bool {
        let request = self.agent.post(format!("{}/cluster/backup", self.url));
        request.header("Authorization", basic("bwvisu-web", PASSWORD)).send_empty().is_ok()
    }

    /// Submits, and expects to be given an id.
    pub fn submit(&self, user: &str, template: &str, variables: Value) -> String {
        let answer = self.post(&json!({"uid": user, "template-name": template, "variables": variables}));
        assert_eq!(answer.status, 200, "{answer:?}\n{}", self.log());
        answer.body["job-id"].as_str().unwrap().to_owned()
    }

    pub fn job(&self, id: &str) -> Value {
        let answer = self.get(&format!("/jobs/{id}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// Waits until the job is in this state.
    pub fn await_state(&self, id: &str, state: &str) -> Value {
        let look = || Some(self.job(id)).filter(|job| job["state"] == state);
        until(&format!("job {id} is {state}"), look, || format!("{:#}\n{}", self.job(id), self.log()))
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.pid().to_string()]).status().unwrap().success());
    }

    /// Sends SIGHUP, and waits for what it says then.
    pub fn reload(&self) -> String {
        let said = || self.log().lines().filter(|line| line.contains("SIGHUP: ")).map(str::to_owned).collect::<Vec<_>>();
        let before = said().len();
        self.signal("-HUP");
        until("the configuration is read again", || said().get(before).cloned(), || self.log())
    }

    /// How many entries `/proc` shows for it: of threads (`task`), of open files (`fd`).
    pub fn count(&self, what: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{what}", self.pid())).unwrap().count()
    }

    /// Waits for its end; its exit code and how long that took.
    pub fn wait(mut self) -> (Option<i32>, Duration) {
        let begin = Instant::now();
        (self.child.wait().unwrap().code(), begin.elapsed())
    }

    /// Ends it with SIGTERM; its exit code and how long that took.
    pub fn terminate(mut self) -> (Option<i32>, Duration) {
        self.signal("-TERM");
        let begin = Instant::now();
        (self.child.wait().unwrap().code(), begin.elapsed())
    }

    /// Ends it as a power failure would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent(certificate: Option<&Path>) -> ureq::Agent {
    let roots = certificate.map(|file| Certificate::from_pem(&fs::read(file).unwrap()).unwrap().to_owned());
    let roots = roots.map_or(RootCerts::WebPki, |certificate| RootCerts::new_with_certs(&[certificate]));
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(60)));
    config.proxy(None).tls_config(TlsConfig::builder().root_certs(roots).build()).build().into()
}

pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Bytes that an application serves, as a user gets them.
pub fn fetch(service: &Value) -> String {
    let url = format!("http://{}:{}/", service["external-ip"].as_str().unwrap(), service["external-port"]);
    agent(None).get(url).call().unwrap().body_mut().read_to_string().unwrap()
}

/// An answer of the API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub kind: String,
    /// `X-Request-Id`
    pub id: String,
    pub headers: String,
    pub body: Value,
}

impl Answer {
    fn of(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Self {
        let mut answer = answer.unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let header = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        Self {
            status: answer.status().as_u16(),
            kind: header("content-type"),
            id: header("x-request-id"),
            headers: format!("{:?}", answer.headers()),
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        }
    }

    /// Expects the whole of an error: members, and words in its detail.
    pub fn assert_problem(&self, status: u16, title: &str, words: &str) {
        assert_eq!((self.status, self.kind.as_str()), (status, "application/problem+json"), "{words:?}: {self:?}");
        assert_eq!((&self.body["status"], &self.body["title"]), (&json!(status), &json!(title)), "{self:?}");
        assert!(self.body["detail"].as_str().unwrap().contains(words), "{words:?}: {self:?}");
        assert!(!self.id.is_empty() && self.body["request-id"] == self.id.as_str(), "{self:?}");
    }
}
