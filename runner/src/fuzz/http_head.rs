//! The head of a request, as it comes from the network.

use super::{Outcome, Target};
use crate::http::guard::head::{Head, REQUEST_ID, check_start, end, parse};

const MOST_BODY: usize = 256 * 1024;
/// The guard reads no longer ones.
const MOST_HEAD: usize = 16 * 1024;

pub(super) const TARGET: Target = Target {
    name: "http-head",
    tokens: &[
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        ":",
        "GET ",
        "POST ",
        "HEAD ",
        "DELETE ",
        "/jobs",
        "/v1/ports",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        " HTTP/2.0\r\n",
        "Host: a\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive\r\n",
        "Expect: 100-continue\r\n",
        "Authorization: Basic YTpi\r\n",
        "Keyhole-Signature: 00\r\n",
        "Idempotency-Key: k\r\n",
        "Guard-Peer: 10.0.0.1\r\n",
        "Guard-Ticket: 1\r\n",
        "Content-Type: application/json\r\n",
        "X: y\r\n",
        "%2f",
        "?",
        "\u{16}\u{3}\u{1}",
    ],
    check,
};

fn check(input: &[u8]) -> Outcome {
    if let Err(refusal) = check_start(input) {
        return Outcome::refused(refusal.detail);
    }
    let end = end_in_pieces(input);
    let Some(end) = end.filter(|end| *end <= MOST_HEAD) else { return Outcome::refused(format_args!("{end:?}")) };
    let bytes = &input[..end];
    // No part of a head is a head: whoever is cut off has said nothing.
    for at in (0..bytes.len()).step_by((bytes.len() / 16).max(1)) {
        assert!(parse(&bytes[..at], MOST_BODY).is_err(), "cut at {at}");
    }
    match parse(bytes, MOST_BODY) {
        Err(refusal) => {
            assert!((400..=505).contains(&refusal.status));
            assert!(!refusal.detail.contains(['\r', '\n']), "{:?}", refusal.detail);
            Outcome::refused(format_args!("{} {}", refusal.status, refusal.detail))
        }
        Ok(head) => {
            assert_sound(&head);
            assert_read_alike(&head, bytes);
            let said = (head.keep_alive, head.expects_continue, head.body_length > 0, head.target.contains('?'));
            Outcome::accepted(format_args!("{} {said:?} {}", head.method.len().min(8), head.headers.len()))
        }
    }
}

/// Where the head ends, which must not depend on how its bytes arrive.
fn end_in_pieces(input: &[u8]) -> Option<usize> {
    let whole = end(input, 0);
    for parts in [2, 3, 7] {
        let step = (input.len() / parts).max(1);
        let mut scanned = 0;
        let mut found = None;
        while found.is_none() && scanned < input.len() {
            let length = (scanned + step).min(input.len());
            found = end(&input[..length], scanned);
            scanned = length;
        }
        assert_eq!(found, whole, "in {parts} parts");
    }
    whole
}

fn assert_sound(head: &Head) {
    assert!(head.body_length <= MOST_BODY, "{}", head.body_length);
    assert!(head.target.starts_with('/') && head.target.bytes().all(|byte| byte.is_ascii_graphic()), "{:?}", head.target);
    assert!(head.method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-'), "{:?}", head.method);
    for (at, (name, value)) in head.headers.iter().enumerate() {
        assert!(!value.contains(['\r', '\n', '\0']) && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}: {value:?}");
        assert!(value.is_ascii() && *name == name.to_ascii_lowercase(), "{name:?}: {value:?}");
        let again = head.headers[..at].iter().any(|(earlier, _)| earlier == name);
        assert!(!again || name == "accept", "{name} comes twice");
        let guards = [REQUEST_ID, "connection", "content-length", "transfer-encoding", "expect", "te", "upgrade"];
        assert!(!guards.contains(&name.as_str()), "{name} is none of the client's business");
    }
}

/// It is one request, of the same meaning, for another reader; and what handlers see of it is that.
fn assert_read_alike(head: &Head, bytes: &[u8]) {
    let mut space = [httparse::EMPTY_HEADER; 80];
    let mut request = httparse::Request::new(&mut space);
    assert_eq!(request.parse(bytes), Ok(httparse::Status::Complete(bytes.len())));
    assert_eq!((request.method, request.path), (Some(head.method.as_str()), Some(head.target.as_str())));
    let lengths = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-length"));
    let lengths: Vec<usize> = lengths.map(|header| String::from_utf8_lossy(header.value).parse().expect("a number")).collect();
    assert!(lengths.len() <= 1 && lengths.iter().sum::<usize>() == head.body_length, "{lengths:?}");
    let handed = head.clone().into_request(Vec::new(), [10, 0, 0, 1].into());
    let target = handed.query.map_or(handed.path.clone(), |query| format!("{}?{query}", handed.path));
    assert!(target == head.target && !handed.path.contains('?'), "{target:?}");
    assert!(handed.method == head.method || (head.method == "HEAD" && handed.method == "GET"));
}
