//! The bodies and signatures, letter for letter: who changes one of these has made a new version of the protocol.

use keyhole_protocol::{
    Confirm, Grant, GrantedPort, MAX_BODY, MAX_NODES, MAX_PORTS, Nonce, Purpose, Request, Token, sign, verify,
};
use std::fmt::Debug;

const NONCE: Nonce = Nonce([0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
const NONCE_LINE: &str = "nonce 00112233445566778899aabbccddeeff\n";

fn request_body() -> String {
    format!("keyhole 1\njob 17\nrun 0\n{NONCE_LINE}ports 5\nnode c0\nnode c1\n")
}

fn grant_body() -> String {
    format!("keyhole 1\n{NONCE_LINE}port 50000 129.206.9.65 50010\nport 50001 2001:db8::1 1\n")
}

fn confirm_body() -> String {
    format!("keyhole 1\njob 17\nrun 0\n{NONCE_LINE}")
}

fn port(internal: u16, gateway: &str, external: u16) -> GrantedPort {
    GrantedPort { internal, gateway: gateway.into(), external }
}

#[test]
fn a_request_has_this_body() {
    let request = Request { job: 17, run: 0, nonce: NONCE, ports: 5, nodes: vec!["c0".into(), "c1".into()] };
    assert_eq!(request.to_body(), request_body());
    assert_eq!(Request::parse(&request_body()), Ok(request));
}

#[test]
fn a_grant_has_this_body() {
    let grant = Grant { nonce: NONCE, ports: vec![port(50000, "129.206.9.65", 50010), port(50001, "2001:db8::1", 1)] };
    assert_eq!(grant.to_body(), grant_body());
    assert_eq!(Grant::parse(&grant_body()), Ok(grant));
}

#[test]
fn a_confirmation_has_this_body() {
    let confirm = Confirm { job: 17, run: 0, nonce: NONCE };
    assert_eq!(confirm.to_body(), confirm_body());
    assert_eq!(Confirm::parse(&confirm_body()), Ok(confirm));
}

/// Parses the body after one replacement, and returns the error as people see it.
fn refusal<T: Debug, E: ToString>(body: &str, from: &str, to: &str, parse: fn(&str) -> Result<T, E>) -> String {
    assert!(body.contains(from), "{from:?} is not in {body:?}");
    match parse(&body.replacen(from, to, 1)) {
        Ok(value) => panic!("{from:?} -> {to:?} was read as {value:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn altered_requests_are_refused_with_the_line() {
    const JOB: &str = "line 2: expected `job` and a decimal number below 2^64";
    const RUN: &str = "line 3: expected `run` and a decimal number below 2^32";
    const NONCE: &str = "line 4: expected `nonce` and 32 lowercase hexadecimal digits";
    const PORTS: &str = "line 5: expected `ports` and a decimal number from 1 to 1000";
    const NODE: &str = "line 7: expected `node` and a host name";
    for (from, to, error) in [
        ("keyhole 1", "keyhole 2", "line 1: expected `keyhole 1`"),
        ("keyhole 1", "\u{feff}keyhole 1", "line 1: expected `keyhole 1`"),
        ("keyhole 1\n", "keyhole 1\r\n", "line 1: expected `keyhole 1`"),
        ("keyhole 1\n", "", "line 1: expected `keyhole 1`"),
        ("keyhole 1\n", "keyhole 1\n\n", JOB),
        ("job 17", "job 017", JOB),
        ("job 17", "job +17", JOB),
        ("job 17", "job  17", JOB),
        ("job 17", "job 17 ", JOB),
        ("job 17", "job", JOB),
        ("job 17", "job ", JOB),
        ("job 17", "job 18446744073709551616", JOB),
        ("job 17\n", "", JOB),
        ("job 17\nrun 0\n", "run 0\njob 17\n", JOB),
        ("run 0", "run 4294967296", RUN),
        ("run 0", "run -1", RUN),
        ("job 17\n", "job 17\njob 17\n", RUN),
        ("run 0", "Run 0", RUN),
        ("00112233", "0011223", NONCE),
        ("aabbccdd", "AABBCCDD", NONCE),
        ("ports 5", "ports 0", PORTS),
        ("ports 5", "ports 1001", PORTS),
        ("ports 5", "ports 4294967301", PORTS),
        ("node c1", "node -c1", "line 7: this node is no host name"),
        ("node c1", "node c1 ", "line 7: this node is no host name"),
        ("node c1", "node 10.0.0.1", "line 7: this node is no host name"),
        ("node c1", "node ", "line 7: this node is no host name"),
        ("node c1", "node c0", "line 7: this node comes twice"),
        ("node c1", "nodes c1", NODE),
        ("node c1\n", "node c1\n\n", "line 8: expected `node` and a host name"),
        ("node c1\n", "node c1\nextra 1\n", "line 8: expected `node` and a host name"),
        ("node c1\n", "node c1", "line 7: missing, or not ended by a line feed"),
        ("node c0\nnode c1\n", "", "line 6: missing, or not ended by a line feed"),
    ] {
        assert_eq!(refusal(&request_body(), from, to, Request::parse), error, "{from:?} -> {to:?}");
    }
    assert_eq!(Request::parse("").map_err(|error| error.line()), Err(1));
}

#[test]
fn altered_grants_are_refused_with_the_line() {
    const PORT: &str = "line 4: expected `port`, a port, a gateway and a port";
    let too_long = format!("50001 {} 1", "g".repeat(256));
    for (from, to, error) in [
        ("keyhole 1\n", "keyhole 1\njob 17\n", "line 2: expected `nonce` and 32 lowercase hexadecimal digits"),
        ("50001 2001:db8::1 1", "0 2001:db8::1 1", PORT),
        ("50001 2001:db8::1 1", "65536 2001:db8::1 1", PORT),
        ("50001 2001:db8::1 1", "50001 2001:db8::1 0", PORT),
        ("50001 2001:db8::1 1", "50001 2001:db8::1 01", PORT),
        ("50001 2001:db8::1 1", "50001 2001:db8::1", PORT),
        ("50001 2001:db8::1 1", "50001  1", PORT),
        ("50001 2001:db8::1 1", "50001 a b 1", PORT),
        ("50001 2001:db8::1 1", "50001 $(id) 1", PORT),
        ("50001 2001:db8::1 1", "50001 a;b 1", PORT),
        ("50001 2001:db8::1 1", "50001 a_b 1", PORT),
        ("50001 2001:db8::1 1", &too_long, PORT),
        ("50001 2001:db8::1 1", "50000 2001:db8::1 1", "line 4: this port comes twice"),
        ("2001:db8::1 1", "129.206.9.65 50010", "line 4: this port comes twice"),
        ("2001:db8::1 1\n", "2001:db8::1 1", "line 4: missing, or not ended by a line feed"),
        ("2001:db8::1 1\n", "2001:db8::1 1\n\n", "line 5: expected `port`, a port, a gateway and a port"),
    ] {
        assert_eq!(refusal(&grant_body(), from, to, Grant::parse), error, "{from:?} -> {to:?}");
    }
    let empty = format!("keyhole 1\n{NONCE_LINE}");
    assert_eq!(Grant::parse(&empty).map_err(|error| error.line()), Err(3));
}

#[test]
fn altered_confirmations_are_refused_with_the_line() {
    for (from, to, error) in [
        ("eeff\n", "eeff\nports 1\n", "line 5: expected the end"),
        ("eeff\n", "eeff\n\n", "line 5: expected the end"),
        ("eeff\n", "eeff", "line 4: missing, or not ended by a line feed"),
        ("run 0\n", "", "line 3: expected `run` and a decimal number below 2^32"),
    ] {
        assert_eq!(refusal(&confirm_body(), from, to, Confirm::parse), error, "{from:?} -> {to:?}");
    }
}

#[test]
fn a_request_may_be_as_large_as_the_limits_and_no_larger() {
    let nodes = (0..MAX_NODES).map(|number| format!("n{number}")).collect();
    let mut request = Request { job: u64::MAX, run: u32::MAX, nonce: NONCE, ports: MAX_PORTS, nodes };
    assert_eq!(Request::parse(&request.to_body()), Ok(request.clone()));
    request.nodes.push("one-more".into());
    let error = Request::parse(&request.to_body()).map_err(|error| error.to_string());
    assert_eq!(error, Err(format!("line {}: too many nodes", MAX_NODES + 6)));
}

#[test]
fn a_grant_may_be_as_large_as_the_limits_and_no_larger() {
    let gateway = "g".repeat(255);
    let ports = (1..=MAX_PORTS as u16).map(|number| port(number, &gateway, number)).collect();
    let mut grant = Grant { nonce: NONCE, ports };
    assert_eq!(Grant::parse(&grant.to_body()), Ok(grant.clone()));
    grant.ports.push(port(50000, &gateway, 50000));
    let error = Grant::parse(&grant.to_body()).map_err(|error| error.to_string());
    assert_eq!(error, Err(format!("line {}: too many ports", MAX_PORTS + 3)));
}

#[test]
fn a_body_that_is_too_long_is_refused_unread() {
    let error = Request::parse(&"x".repeat(MAX_BODY + 1)).map_err(|error| error.to_string());
    assert_eq!(error, Err("line 1: the body is too long".into()));
}

/// Made with `printf 'keyhole-request\n%s' BODY | openssl dgst -sha256 -mac HMAC -macopt hexkey:a5a5…`.
#[test]
fn signatures_are_those_that_other_programs_make() {
    let token = Token::from_bytes([0xa5; 32]);
    for (purpose, body, expected) in [
        (Purpose::Request, request_body(), "24cedb3f2396a03101a64a9223895b9225354ac39547d7532141cf5abfcf0840"),
        (Purpose::Grant, grant_body(), "fff46a900623f372a06fc9152826c7028be841cf74ee89974030ccbf68e0283d"),
        (Purpose::Confirm, confirm_body(), "a421742e1d8735bf3bb099cf2212d9f6a5882b8e163a38015edf297d382228d3"),
        (Purpose::Request, String::new(), "d63746299afcb9e8e8c2e4a3fb8b7b4610f45de063191419583fe376b213551c"),
    ] {
        assert_eq!(sign(&token, purpose, body.as_bytes()), expected, "{purpose:?}");
        assert!(verify(&token, purpose, body.as_bytes(), expected), "{purpose:?}");
    }
}

#[test]
fn a_signature_holds_for_one_token_purpose_and_body() {
    let token = Token::from_bytes([1; 32]);
    let signature = sign(&token, Purpose::Grant, b"body");
    assert!(verify(&token, Purpose::Grant, b"body", &signature));
    assert!(!verify(&Token::from_bytes([2; 32]), Purpose::Grant, b"body", &signature));
    assert!(!verify(&token, Purpose::Request, b"body", &signature));
    assert!(!verify(&token, Purpose::Confirm, b"body", &signature));
    assert!(!verify(&token, Purpose::Grant, b"bodz", &signature));
    for other in [&signature.to_uppercase(), "", &signature[1..], &format!("{signature}0"), &format!(" {signature}")] {
        assert!(!verify(&token, Purpose::Grant, b"body", other), "{other:?}");
    }
}
