//! Requests and answers as our handlers know them.

use std::net::IpAddr;

use crate::logging::id;
use serde_json::json;

/// One whole, valid request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST` …; a `HEAD` arrives here as `GET`, and the guard keeps the body back.
    pub method: String,
    /// The path as it was sent: begins with `/`, percent-escapes are well formed and not undone.
    pub path: String,
    /// What followed the first `?`, if there was one.
    pub query: Option<String>,
    /// The headers that handlers have a use for; names in lower case, each once.
    pub headers: Vec<(String, String)>,
    /// The body, complete.
    pub body: Vec<u8>,
    /// Where the connection came from.
    pub peer: IpAddr,
}

impl Request {
    /// The value of the header called `name`, in whatever case it is asked for.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What a handler answers. The guard adds lengths and the headers about connection, caching and sniffing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status, 200 to 599.
    pub status: u16,
    /// Headers beside those that the guard adds.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// `value` as JSON.
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::of(status, "application/json", value.to_string().into_bytes())
    }

    /// Plain text.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self::of(status, "text/plain; charset=utf-8", text.into().into_bytes())
    }

    /// An error in the form of RFC 9457; `detail` says what to mend.
    pub fn problem(status: u16, detail: &str) -> Self {
        let mut value = json!({ "status": status, "title": reason(status), "detail": detail });
        // Whoever asks us about it has at hand what leads to it in the log.
        if let Some(id) = id::current() {
            value["request-id"] = (*id).into();
        }
        Self::of(status, "application/problem+json", value.to_string().into_bytes())
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Text of a kind of its own.
    pub fn of_kind(kind: &str, text: String) -> Self {
        Self::of(200, kind, text.into_bytes())
    }

    fn of(status: u16, kind: &str, body: Vec<u8>) -> Self {
        Self { status, headers: vec![("Content-Type", kind.to_owned())], body }
    }
}

/// The standard phrase for a status.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => by_class(status),
    }
}

fn by_class(status: u16) -> &'static str {
    match status / 100 {
        2 => "Success",
        3 => "Redirection",
        4 => "Client Error",
        _ => "Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_carries_status_title_and_detail() {
        let problem = Response::problem(404, "no such job");
        let body: serde_json::Value = serde_json::from_slice(&problem.body).unwrap();
        assert_eq!(body, json!({ "status": 404, "title": "Not Found", "detail": "no such job" }));
        assert_eq!(problem.headers, [("Content-Type", "application/problem+json".to_owned())]);
        let _id = id::within("r-1".into());
        let body: serde_json::Value = serde_json::from_slice(&Response::problem(404, "no such job").body).unwrap();
        assert_eq!(body["request-id"], "r-1");
    }

    #[test]
    fn headers_are_found_in_any_case() {
        let request = Request {
            method: "GET".into(),
            path: "/".into(),
            query: None,
            headers: vec![("keyhole-signature".into(), "ab".into())],
            body: Vec::new(),
            peer: IpAddr::from([127, 0, 0, 1]),
        };
        assert_eq!(request.header("Keyhole-Signature"), Some("ab"));
        assert_eq!(request.header("Host"), None);
    }

    #[test]
    fn every_status_has_a_phrase() {
        assert!((200..600).all(|status| !reason(status).is_empty()));
    }
}
