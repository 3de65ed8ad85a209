//! A front end: requests to the API, from a host of the bed.

use crate::bed::Bed;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::time::Duration;
use ureq::http::{Request, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// The one user of the API.
pub const USER: &str = "bwvisu-web";

/// A front end on `outside`, which trusts the runner's certificate alone.
#[derive(Clone)]
pub struct Api<'b> {
    bed: &'b Bed,
    url: String,
    certificate: Certificate<'static>,
    password: String,
    patience: Duration,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP's status.
    pub status: u16,
    /// The body; a text if it is no JSON.
    pub body: Value,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Reply {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Fails unless this is a problem with that status whose detail holds these words; returns the detail.
    pub fn assert_problem(&self, what: &str, status: u16, words: &str) -> String {
        let detail = self.body["detail"].as_str().unwrap_or_default();
        assert!(self.status == status && detail.contains(words), "{what}: expected {status} with {words:?}, not {self:#?}");
        assert!(self.body["status"] == status && self.body["title"].is_string(), "{what}: no problem body: {self:#?}");
        detail.to_owned()
    }
}

impl<'b> Api<'b> {
    /// A front end of the API at `url`.
    pub fn new(bed: &'b Bed, url: &str, certificate: &[u8], password: &str) -> Self {
        let certificate = Certificate::from_pem(certificate).unwrap().to_owned();
        Self { bed, url: url.to_owned(), certificate, password: password.to_owned(), patience: Duration::from_secs(100) }
    }

    /// The same front end, which waits for an answer no longer than that.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// The header that lets a request in.
    pub fn authorization(&self) -> String {
        basic(USER, &self.password)
    }

    /// One request as it should be.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Reply {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let authorization = self.authorization();
        self.send(method, path, &[("Authorization", &authorization), ("Content-Type", "application/json")], text.as_bytes())
    }

    /// One request with just these headers and this body.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.try_send(method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// The same, where no answer is no surprise.
    pub fn try_send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, String> {
        let uri: Uri = format!("{}{path}", self.url).parse().map_err(|e| format!("{path}: {e}"))?;
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.to_vec()).map_err(|e| e.to_string())?;
        self.bed.at("outside", || read(self.agent().run(request)))
    }

    fn agent(&self) -> ureq::Agent {
        let roots = RootCerts::new_with_certs(std::slice::from_ref(&self.certificate));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .proxy(None)
            .timeout_global(Some(self.patience))
            .tls_config(TlsConfig::builder().root_certs(roots).build());
        config.build().into()
    }

    /// Submits a job, which must be accepted; returns its id.
    pub fn submit(&self, user: &str, template: &str, variables: &Value) -> String {
        let reply = self.call("POST", "/jobs", &json!({"uid": user, "template-name": template, "variables": variables}));
        assert_eq!(reply.status, 200, "{template} for {user}: {reply:#?}");
        reply.body["job-id"].as_str().unwrap().to_owned()
    }

    /// A job.
    pub fn job(&self, id: &str) -> Value {
        let reply = self.call("GET", &format!("/jobs/{id}"), &Value::Null);
        assert_eq!(reply.status, 200, "job {id}: {reply:#?}");
        reply.body
    }

    /// The ids of all jobs that are not finished.
    pub fn jobs(&self) -> Vec<String> {
        let reply = self.call("GET", "/jobs", &Value::Null);
        assert_eq!(reply.status, 200, "{reply:#?}");
        let ids = reply.body["jobs"].as_array().expect("a list of jobs");
        ids.iter().map(|id| id.as_str().expect("ids are texts").to_owned()).collect()
    }

    /// What the runner's own audit finds, and what it could not look at. A few tenths of a second if all is well.
    pub fn audit(&self) -> Vec<Value> {
        let reply = self.call("GET", "/cluster/audit", &Value::Null);
        assert_eq!(reply.status, 200, "{reply:#?}");
        let list = |name: &str| reply.body[name].as_array().expect("a list").clone();
        [list("disagreements"), list("not-looked-at")].concat()
    }

    /// One of the counts at `/metrics`, by its whole name with labels.
    pub fn count(&self, name: &str) -> u64 {
        let reply = self.call("GET", "/metrics", &Value::Null);
        assert_eq!(reply.status, 200, "{reply:#?}");
        let mut lines = reply.body.as_str().expect("a text").lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
    }

    /// Cancels a job.
    pub fn cancel(&self, id: &str) -> Reply {
        self.call("DELETE", &format!("/jobs/{id}"), &Value::Null)
    }
}

/// The value of the header `Authorization`.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Reply, String> {
    let mut answer = answer.map_err(|e| e.to_string())?;
    let headers = answer.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect();
    let text = answer.body_mut().read_to_string().map_err(|e| e.to_string())?;
    Ok(Reply { status: answer.status().as_u16(), body: serde_json::from_str(&text).unwrap_or(Value::String(text)), headers })
}
