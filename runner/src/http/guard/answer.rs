//! What goes back to the client.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Write;

use jiff::Timestamp;

use crate::http::message::{Response, reason};
use crate::logging::id;

/// Set by the guard on every answer; a handler's own are dropped.
const OURS: [&str; 9] = [
    "cache-control",
    "connection",
    "content-length",
    "date",
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

impl From<&Refusal> for Response {
    fn from(refusal: &Refusal) -> Self {
        Self::problem(refusal.status, &refusal.detail)
    }
}

/// There is no room just now; come again in some seconds.
pub(super) fn busy(detail: &str) -> Response {
    Response::problem(503, detail).with_header("Retry-After", "5")
}

/// What is not to be sent whatever a handler says.
pub(super) fn sound(response: Response) -> Response {
    if (200..600).contains(&response.status) {
        return response;
    }
    log::error!("a handler answered with the status {}", response.status);
    fault()
}

/// It is us.
pub(super) fn fault() -> Response {
    Response::problem(500, "an unexpected fault; it has been logged")
}

/// Whether the status allows no body, nor its length.
fn is_bodiless(status: u16) -> bool {
    matches!(status, 204 | 304)
}

/// The body as it is sent. With `head_only` its length is told, and itself kept back.
pub(super) fn body(response: &Response, head_only: bool) -> &[u8] {
    if head_only || is_bodiless(response.status) { &[] } else { &response.body }
}

/// Writes the head as it is sent, behind what stands in `out`.
pub(super) fn write_head(out: &mut Vec<u8>, response: &Response, keep_alive: bool) {
    // Nothing that is written into memory fails.
    let _ = write!(out, "HTTP/1.1 {} {}\r\n", response.status, reason(response.status));
    for (name, value) in response.headers.iter().filter(|(name, value)| is_handlers(name) && is_harmless(name, value)) {
        [name, ": ", value, "\r\n"].iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
    }
    if !is_bodiless(response.status) {
        let _ = write!(out, "Content-Length: {}\r\n", response.body.len());
    }
    out.extend_from_slice(b"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n");
    write_date(out);
    if let Some(id) = id::current() {
        ["X-Request-Id: ", &id, "\r\n"].iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
    }
    out.extend_from_slice(if keep_alive { b"Connection: keep-alive\r\n\r\n" } else { b"Connection: close\r\n\r\n" });
}

fn is_handlers(name: &str) -> bool {
    !OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours))
}

/// A header that could split the answer in two is left out: its value may hold what a client sent.
fn is_harmless(name: &str, value: &str) -> bool {
    let fine = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !fine {
        log::error!("a handler's header {name:?} is left out: its name or value has characters that no header may have");
    }
    fine
}

/// The time of the answer, which is put into words once a second.
fn write_date(out: &mut Vec<u8>) {
    thread_local! {
        static SAID: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let now = Timestamp::now();
    SAID.with_borrow_mut(|(second, words)| {
        if *second != now.as_second() {
            (*second, *words) = (now.as_second(), now.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n").to_string());
        }
        out.extend_from_slice(words.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of it; the date is another one each time.
    fn rendered(response: &Response, keep_alive: bool, head_only: bool) -> String {
        let mut out = Vec::new();
        write_head(&mut out, response, keep_alive);
        out.extend_from_slice(body(response, head_only));
        let text = String::from_utf8(out).unwrap();
        let (before, rest) = text.split_once("Date: ").unwrap();
        let (date, after) = rest.split_once("\r\n").unwrap();
        let said = jiff::fmt::rfc2822::parse(date).unwrap().timestamp();
        assert!(date.ends_with(" GMT") && Timestamp::now().duration_since(said).as_secs() < 60, "{date}");
        format!("{before}{after}")
    }

    #[test]
    fn the_guard_alone_speaks_of_length_connection_and_caching() {
        let response = Response::text(200, "hi").with_header("connection", "upgrade").with_header("Content-Length", "9");
        let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n\
            X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: keep-alive\r\n\r\nhi";
        assert_eq!(rendered(&response, true, false), expected);
        let head = rendered(&response, false, true);
        assert!(head.contains("Content-Length: 2\r\n") && head.ends_with("Connection: close\r\n\r\n"), "{head}");
    }

    #[test]
    fn an_answer_without_content_has_neither_body_nor_length() {
        let text = rendered(&Response::text(204, "x"), true, false);
        assert!(!text.contains("Length") && text.ends_with("\r\n\r\n"), "{text}");
    }

    #[test]
    fn headers_that_could_split_an_answer_are_left_out() {
        assert!(is_harmless("Location", "/jobs/1"));
        for (name, value) in [("Location", "/\r\nSet-Cookie: a=b"), ("Lo cation", "/"), ("", "/"), ("A:", "b"), ("A", "\u{e9}")] {
            assert!(!is_harmless(name, value), "{name:?}: {value:?}");
        }
        let text = rendered(&Response::text(200, "x").with_header("X-A", "a\r\nX-Evil: b").with_header("X-B", "b"), true, false);
        assert!(!text.contains("X-A") && !text.contains("Evil") && text.contains("\r\nX-B: b\r\n"), "{text}");
    }

    #[test]
    fn a_status_that_is_none_becomes_a_fault() {
        let statuses = [0, 199, 200, 404, 599, 600].map(|status| sound(Response::text(status, "x")).status);
        assert_eq!(statuses, [500, 500, 200, 404, 599, 500]);
    }
}
