use proptest::prelude::*;

use super::*;

const MOST_BODY: usize = 1 << 20;

fn status(head: &str) -> u16 {
    parse(head.as_bytes(), MOST_BODY).map_or_else(|refusal| refusal.status, |_| 200)
}

#[test]
fn a_plain_request_is_understood() {
    let bytes = b"POST /jobs?x=1 HTTP/1.1\r\nHOST: a.example:4242\r\nContent-Length: 12\r\nAuthorization: Basic eDp5\r\n\
        Connection: keep-alive\r\nKeyhole-Signature:  ab \r\nIdempotency-Key: k1\r\nGuard-Peer: 6.6.6.6\r\nTE: chunked\r\nCookie: a=b\r\n\r\n";
    let head = parse(bytes, MOST_BODY).unwrap();
    let expected =
        [("host", "a.example:4242"), ("authorization", "Basic eDp5"), ("keyhole-signature", "ab"), ("idempotency-key", "k1")];
    assert_eq!((head.method.as_str(), head.target.as_str(), head.body_length), ("POST", "/jobs?x=1", 12));
    assert_eq!(head.headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(head.keep_alive && !head.expects_continue);
}

#[test]
fn requests_that_two_readers_could_understand_differently_are_refused() {
    let post = |rest: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{rest}\r\n");
    let cases = [
        (post(""), 200),
        (post("Content-Length: 0\r\n"), 200),
        (post("Content-Length: 1048576\r\n"), 200),
        (post("Content-Length: 1048577\r\n"), 413),
        (post("Content-Length: 100000000000\r\n"), 413),
        (post("Content-Length: 99999999999999999999999999\r\n"), 413),
        (post("Content-Length: 5\r\nContent-Length: 5\r\n"), 400),
        (post("Content-Length: 5\r\ncontent-length: 6\r\n"), 400),
        (post("Content-Length: 5, 5\r\n"), 400),
        (post("Content-Length: -1\r\n"), 400),
        (post("Content-Length: +5\r\n"), 400),
        (post("Content-Length: 5 5\r\n"), 400),
        (post("Content-Length: 0x5\r\n"), 400),
        (post("Content-Length: 5.0\r\n"), 400),
        (post("Content-Length:\r\n"), 400),
        (post("Content-Length : 5\r\n"), 400),
        (post("Transfer-Encoding: chunked\r\n"), 501),
        (post("Transfer-Encoding: identity\r\n"), 501),
        (post("Transfer-Encoding:\r\n"), 501),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 501),
        (post("Content-Length: 5\r\ntransfer-ENCODING: xchunked\r\n"), 501),
        (post("Transfer-Encoding : chunked\r\n"), 400),
        (post("X: a\r\n Transfer-Encoding: chunked\r\n"), 400),
        (post("X: a\r\n\tb\r\n"), 400),
        (post("X: a\nContent-Length: 5\r\n"), 400),
        (post("X: a\rContent-Length: 5\r\n"), 400),
        (post("X: a\0b\r\n"), 400),
        (post("X: a\x7f\r\n"), 400),
        (post("X: caf\u{e9}\r\n"), 400),
        (post("Host: a\r\n"), 400),
        (post("Authorization: Basic YQ==\r\nAuthorization: Basic Yg==\r\n"), 400),
        (post("Accept: a/b\r\nAccept: c/d\r\n"), 200),
        (post("Expect: 100-continue\r\n"), 200),
        (post("Expect: 200-ok\r\n"), 417),
        (post(": x\r\n"), 400),
        (post("no colon\r\n"), 400),
        (post(&"X: y\r\n".repeat(63)), 200),
        (post(&"X: y\r\n".repeat(64)), 431),
    ];
    for (head, expected) in cases {
        assert_eq!(status(&head), expected, "{head:?}");
    }
}

#[test]
fn request_lines_are_taken_by_the_letter() {
    let cases = [
        ("GET / HTTP/1.1", 200),
        ("GET / HTTP/1.0", 200),
        ("M-SEARCH / HTTP/1.1", 200),
        ("GET /a%20b/%C3%A9?q=a/b?c HTTP/1.1", 200),
        ("GET / HTTP/2.0", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/3", 505),
        ("GET / HTTP/0.9", 505),
        ("GET / http/1.1", 400),
        ("GET / HTTP/", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET\t/ HTTP/1.1", 400),
        ("GET /", 400),
        ("GET / x HTTP/1.1", 400),
        ("get / HTTP/1.1", 400),
        ("G@T / HTTP/1.1", 400),
        (" / HTTP/1.1", 400),
        ("GET http://a/ HTTP/1.1", 400),
        ("CONNECT a:443 HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1", 400),
        ("GET /a%2 HTTP/1.1", 400),
        ("GET /a%zz HTTP/1.1", 400),
        ("GET /a#b HTTP/1.1", 400),
        ("GET /a\\b HTTP/1.1", 400),
        ("GET /<a> HTTP/1.1", 400),
    ];
    for (line, expected) in cases {
        assert_eq!(status(&format!("{line}\r\nHost: a\r\n\r\n")), expected, "{line:?}");
    }
}

#[test]
fn the_host_is_one_and_plausible() {
    let cases = [
        ("HTTP/1.1\r\n", 400),
        ("HTTP/1.0\r\n", 200),
        ("HTTP/1.0\r\nHost: a\r\nHost: a\r\n", 400),
        ("HTTP/1.1\r\nHost:\r\n", 400),
        ("HTTP/1.1\r\nHost: a b\r\n", 400),
        ("HTTP/1.1\r\nHost: a/b\r\n", 400),
        ("HTTP/1.1\r\nHost: a@b\r\n", 400),
        ("HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n", 200),
        ("HTTP/1.1\r\nHost : a\r\n", 400),
    ];
    for (rest, expected) in cases {
        assert_eq!(status(&format!("GET / {rest}\r\n")), expected, "{rest:?}");
    }
}

#[test]
fn connections_stay_open_as_the_version_and_the_client_say() {
    let cases = [
        ("HTTP/1.1\r\nHost: a\r\n", true),
        ("HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", false),
        ("HTTP/1.1\r\nHost: a\r\nConnection: foo , Close\r\n", false),
        ("HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: close\r\n", false),
        ("HTTP/1.0\r\nConnection: keep-alive\r\n", false),
    ];
    for (rest, expected) in cases {
        let head = parse(format!("GET / {rest}\r\n").as_bytes(), 0).unwrap();
        assert_eq!(head.keep_alive, expected, "{rest:?}");
    }
}

#[test]
fn the_end_is_found_however_the_bytes_arrive() {
    let cases =
        [("A\r\n\r\nrest", Some(5)), ("A\n\nrest", Some(3)), ("A\r\nB\n\r\n", Some(7)), ("A\r\nB: c\r\n", None), ("", None)];
    for (text, expected) in cases {
        let bytes = text.as_bytes();
        assert_eq!(end(bytes, 0), expected, "{text:?}");
        let first = (0..=bytes.len()).find_map(|length| end(&bytes[..length], length.saturating_sub(1)));
        assert_eq!(first, expected, "{text:?}, byte by byte");
    }
}

#[test]
fn what_is_no_request_is_known_by_its_first_byte() {
    assert!(check_start(b"").is_ok() && check_start(b"G").is_ok());
    for bytes in [&b"\x16\x03\x01"[..], b"\r\n", b" GET", b"\0", b"get"] {
        assert_eq!(check_start(bytes).unwrap_err().status, 400, "{bytes:?}");
    }
}

#[test]
fn a_handler_sees_get_for_head_and_the_path_apart_from_the_query() {
    let cases = [
        ("HEAD /x", "GET", "/x", None),
        ("GET /x?a=b?c", "GET", "/x", Some("a=b?c")),
        ("POST /?", "POST", "/", Some("")),
        ("DELETE /a%3fb", "DELETE", "/a%3fb", None),
    ];
    for (line, method, path, query) in cases {
        let head = parse(format!("{line} HTTP/1.0\r\nAccept: a\r\n\r\n").as_bytes(), 0).unwrap();
        assert_eq!(head.wants_head_only(), line.starts_with("HEAD"));
        let request = head.into_request(b"b".into(), [10, 0, 0, 1].into());
        assert_eq!((&*request.method, &*request.path, request.query.as_deref()), (method, path, query), "{line}");
        assert_eq!((request.header("accept"), &*request.body), (Some("a"), &b"b"[..]));
        assert_eq!(request.peer, IpAddr::from([10, 0, 0, 1]));
    }
}

/// Text that is a request about every other time, and otherwise nearly one.
fn near_requests() -> impl Strategy<Value = Vec<u8>> {
    let method = prop_oneof![20 => "(GET|POST|HEAD|[A-Z-]{1,5})", 1 => "[ -~]{0,3}"];
    let target = prop_oneof![
        10 => "/[a-zA-Z0-9/._~!$&'()*+,;=:@?-]{0,20}",
        5 => "/(%2F|%[0-9A-F]{2}){0,3}\\?[a-z=&]{0,9}",
        1 => "(/|%)[!-~]{0,9}",
    ];
    let version = prop_oneof![15 => Just("HTTP/1.1".to_owned()), 1 => "HTTP/[0-9]\\.[0-9]"];
    let header = prop_oneof![
        40 => "(Content-Type|Accept|Authorization|Keyhole-[A-Z]|X-[a-z]|Connection|Guard-Peer|TE):[ \t]{0,2}[!-~]{0,6}[ \t]?",
        4 => "Content-Length: [0-9]{1,4}",
        1 => "(Host|Content-Length|Expect): ?[a-z0-9,+-]{0,4}",
        1 => "[!-~]{0,5}[: \t][ -~]{0,9}",
        1 => "Transfer-Encoding: chunked",
    ];
    let ending = prop_oneof![49 => Just("\r\n"), 1 => Just("\n")];
    (method, target, version, prop::bool::weighted(0.95), prop::collection::vec((header, ending), 0..5)).prop_map(
        |(method, target, version, host, headers)| {
            let mut text = format!("{method} {target} {version}\r\n{}", if host { "Host: h\r\n" } else { "" });
            headers.into_iter().for_each(|(header, ending)| text += &(header + ending));
            (text + "\r\n").into_bytes()
        },
    )
}

/// What another reader makes of the same bytes: the same request, and no byte beyond it.
fn read_again(head: &Head, bytes: &[u8]) {
    let mut space = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut space);
    assert_eq!(request.parse(bytes).unwrap(), httparse::Status::Complete(bytes.len()));
    assert_eq!((request.method, request.path), (Some(head.method.as_str()), Some(head.target.as_str())));
    let fields: Vec<_> = request.headers.iter().map(|header| (header.name, std::str::from_utf8(header.value).unwrap())).collect();
    let values = |name: &str| -> Vec<&str> {
        fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value).collect()
    };
    assert_eq!(values("content-length").iter().map(|length| length.parse::<usize>().unwrap()).sum::<usize>(), head.body_length);
    assert!(values("transfer-encoding").is_empty());
    for (name, value) in &head.headers {
        assert!(values(name) == [value.as_str()] || name == "accept", "{name}: {value}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (check_start(&bytes), end(&bytes, bytes.len() / 2), parse(&bytes, MOST_BODY).is_ok());
    }

    #[test]
    fn what_is_accepted_is_one_request_for_every_reader(bytes in near_requests()) {
        if let Ok(head) = parse(&bytes, MOST_BODY) {
            read_again(&head, &bytes);
        }
    }
}
