//! What goes back to the client.

use std::borrow::Cow;

use crate::http::message::{Response, reason};
use crate::logging::id;

/// Set by the guard on every answer; a handler's own are dropped.
const OURS: [&str; 8] = [
    "cache-control",
    "connection",
    "content-length",
    "keep-alive",
    "server",
    "transfer-encoding",
    "x-content-type-options",
    "x-request-id",
];

/// Why a request goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) detail: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(status: u16, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, detail: detail.into() }
    }
}

/// An answer on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        let headers = response.headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { status: response.status, headers, body: response.body }
    }
}

impl From<&Refusal> for Answer {
    fn from(refusal: &Refusal) -> Self {
        Response::problem(refusal.status, &refusal.detail).into()
    }
}

impl Answer {
    /// There is no room just now; come again in some seconds.
    pub(super) fn busy(detail: &str) -> Self {
        Response::problem(503, detail).with_header("Retry-After", "5").into()
    }

    /// As it is sent. With `head_only` the length is told, and the body kept back.
    pub(super) fn rendered(&self, keep_alive: bool, head_only: bool) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in self.headers.iter().filter(|(name, _)| !OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours))) {
            text += &format!("{name}: {value}\r\n");
        }
        let bodiless = matches!(self.status, 204 | 304);
        if !bodiless {
            text += &format!("Content-Length: {}\r\n", self.body.len());
        }
        text += "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n";
        if let Some(id) = id::current() {
            text += &format!("X-Request-Id: {id}\r\n");
        }
        text += if keep_alive { "Connection: keep-alive\r\n\r\n" } else { "Connection: close\r\n\r\n" };
        let mut bytes = text.into_bytes();
        if !head_only && !bodiless {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(response: Response, keep_alive: bool, head_only: bool) -> String {
        String::from_utf8(Answer::from(response).rendered(keep_alive, head_only)).unwrap()
    }

    #[test]
    fn the_guard_alone_speaks_of_length_connection_and_caching() {
        let response = Response::text(200, "hi").with_header("connection", "upgrade").with_header("Content-Length", "9");
        let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n\
            X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: keep-alive\r\n\r\nhi";
        assert_eq!(rendered(response.clone(), true, false), expected);
        let head = rendered(response, false, true);
        assert!(head.contains("Content-Length: 2\r\n") && head.ends_with("Connection: close\r\n\r\n"), "{head}");
    }

    #[test]
    fn an_answer_without_content_has_neither_body_nor_length() {
        let text = rendered(Response::text(204, "x"), true, false);
        assert!(!text.contains("Length") && text.ends_with("\r\n\r\n"), "{text}");
    }
}
