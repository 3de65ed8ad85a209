//! The whole client over a network that does as it is told.

#![allow(clippy::expect_used, reason = "helpers of tests, too, end the test when they fail")]

mod world;

use keyhole_client::{Exit, Failure, Fault};
use keyhole_protocol::{Confirm, Grant, Nonce, Purpose, Request, sign};
use proptest::prelude::*;
use std::collections::BTreeSet;
use world::{Connection, NONCE, World, answer, grant, run, signed, signed_text, token};

const SERVER: &str = "10.0.0.1:80";
const REFUSED: Connection = Connection::Fails(Fault::System(111));

fn whole(bytes: Vec<u8>) -> Connection {
    Connection::Answers(bytes, usize::MAX)
}

fn exports() -> String {
    "\
export KEYHOLE_PORT0=50000
export KEYHOLE_GATEWAY0=129.206.9.65
export KEYHOLE_EXTERNAL_PORT0=40000
export KEYHOLE_PORT1=50001
export KEYHOLE_GATEWAY1=129.206.9.65
export KEYHOLE_EXTERNAL_PORT1=40001
export KEYHOLE_NUM_PORTS=2
"
    .into()
}

fn http_request(path: &str, purpose: Purpose, body: &str) -> String {
    let signature = sign(&token(), purpose, body.as_bytes());
    format!(
        "POST {path} HTTP/1.1\r\nHost: {SERVER}\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nKeyhole-Signature: {signature}\r\n\r\n{body}",
        body.len()
    )
}

fn time_up(message: &str) -> Result<String, Failure> {
    Err(Failure { exit: Exit::TimeUp, message: message.into() })
}

#[test]
fn ports_are_asked_for_and_confirmed() {
    let mut world = World::new(&[whole(signed(&grant(2)))]);
    assert_eq!(run(&mut world, &[SERVER], &[], 1), Ok(exports()));
    let nonce = Nonce(NONCE);
    let request = Request { job: 17, run: 0, nonce, ports: 2, nodes: vec!["c0".into()] }.to_body();
    let confirm = Confirm { job: 17, run: 0, nonce }.to_body();
    let sent: Vec<_> = world.sent.iter().map(|sent| sent.bytes.as_str()).collect();
    let expected =
        [http_request("/v1/ports", Purpose::Request, &request), http_request("/v1/ports/confirm", Purpose::Confirm, &confirm)];
    assert_eq!(sent, expected);
    assert!(!world.open, "the last connection is closed");
    assert_eq!(world.pauses, []);
}

#[test]
fn an_answer_may_come_in_pieces_of_any_size() {
    let bytes = signed(&grant(2));
    for piece in 1..bytes.len() {
        let mut world = World::new(&[Connection::Answers(bytes.clone(), piece)]);
        assert_eq!(run(&mut world, &[SERVER], &[], 1), Ok(exports()), "pieces of {piece}");
    }
}

#[test]
fn an_answer_that_is_cut_anywhere_is_asked_for_again_in_the_same_words() {
    let bytes = signed(&grant(2));
    for length in 0..bytes.len() {
        let mut world = World::new(&[whole(bytes[..length].to_vec()), whole(bytes.clone())]);
        assert_eq!(run(&mut world, &[SERVER], &[], 1), Ok(exports()), "cut to {length}");
        assert_eq!(world.sent.len(), 3, "two requests and a confirmation");
        assert_eq!(world.sent[0], world.sent[1]);
    }
}

#[test]
fn an_answer_that_is_altered_anywhere_in_its_body_is_not_believed() {
    let bytes = signed(&grant(2));
    let body = grant(2).to_body().len();
    for position in bytes.len() - body..bytes.len() {
        let mut altered = bytes.clone();
        altered[position] ^= 1;
        let mut world = World::new(&[whole(altered), whole(bytes.clone())]);
        assert_eq!(run(&mut world, &[SERVER], &[], 1), Ok(exports()), "byte {position}");
        assert_eq!(world.sent.len(), 3, "byte {position}");
    }
}

/// Whatever this answer is, it is neither believed nor a refusal, and at the end it is the reason.
fn gives_up_because_of(bytes: Vec<u8>, reason: &str) {
    let mut world = World::new(&[whole(bytes)]);
    let message = format!("no keyhole server granted ports within 7 s, tried {SERVER}; the last reason, from {SERVER}: {reason}");
    assert_eq!(run(&mut world, &[SERVER], &["--give-up-after", "7"], 1), time_up(&message));
    assert!(world.sent.len() > 3, "{reason}: it was tried again");
    assert!(world.sent.iter().all(|sent| *sent == world.sent[0]), "{reason}: in the same words, and never confirmed");
}

#[test]
fn answers_that_are_not_the_protocols_are_not_believed() {
    let text = |text: &str| text.as_bytes().to_vec();
    let head = |lines: &str| text(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n"));
    let mut not_text = answer("200 OK", None, "xx");
    *not_text.last_mut().expect("a byte") = 0xff;
    let mut longer = signed(&grant(2));
    longer.push(b'\n');
    for (bytes, reason) in [
        (text(""), "the connection ended before the answer did"),
        (text("SSH-2.0-OpenSSH_9.2\r\n\r\n"), "this is no HTTP/1.1 answer"),
        (text("HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"), "this is no HTTP/1.1 answer"),
        (text("HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"), "this is no HTTP/1.1 answer"),
        (text("HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n"), "this is no HTTP/1.1 answer"),
        (head(""), "the answer has no good Content-Length"),
        (head("Content-Length: 1048577\r\n"), "the answer has no good Content-Length"),
        (head("Content-Length: 99999999999999999999\r\n"), "the answer has no good Content-Length"),
        (head("Content-Length: -1\r\n"), "the answer has no good Content-Length"),
        (head("Content-Length: +1\r\n"), "the answer has no good Content-Length"),
        (head("Content-Length: 0x1\r\n"), "the answer has no good Content-Length"),
        (head("Content-Length: 0, 0\r\n"), "the answer has no good Content-Length"),
        (head("Content-Length: 0\r\ncontent-length: 0\r\n"), "a header of the answer comes twice"),
        (head("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"), "the answer has a Transfer-Encoding"),
        (head("Content-Length : 0\r\n"), "a header of the answer is malformed"),
        (head("Content-Length: 0\r\n folded: 1\r\n"), "a header of the answer is malformed"),
        (head("no header\r\n"), "a header of the answer is malformed"),
        (text(&"HTTP/1.1 200 OK\r\nX: y\r\n".repeat(1000)), "the head of the answer is too long"),
        (longer, "the answer is longer than announced"),
        (not_text, "the answer is no text"),
        (answer("200 OK", None, &grant(2).to_body()), "the answer is not signed with the job's token"),
        (answer("200 OK", Some(&"0".repeat(64)), &grant(2).to_body()), "the answer is not signed with the job's token"),
        (
            answer("200 OK", Some(&sign(&token(), Purpose::Request, grant(2).to_body().as_bytes())), &grant(2).to_body()),
            "the answer is not signed with the job's token",
        ),
        (signed(&Grant { nonce: Nonce([0; 16]), ..grant(2) }), "the answer is to another request"),
        (signed(&grant(1)), "the answer has not as many ports as were asked for"),
        (signed(&grant(3)), "the answer has not as many ports as were asked for"),
        (signed_text("keyhole 2\n"), "bad answer, line 1: expected `keyhole 1`"),
        (signed_text(""), "bad answer, line 1: missing, or not ended by a line feed"),
    ] {
        gives_up_because_of(bytes, reason);
    }
}

#[test]
fn statuses_that_may_pass_are_tried_again() {
    for status in ["100", "201", "204", "301", "408", "418", "425", "429", "500", "502", "503", "504", "999"] {
        gives_up_because_of(answer(status, None, "{\"detail\":\"x\"}"), &format!("status {status}"));
    }
}

#[test]
fn refusals_end_it_at_once_with_their_reason() {
    for status in ["400", "401", "403", "404", "409", "413", "422"] {
        let body = r#"{"status":0,"title":"No","detail":"the token\nwas \u0075sed"}"#;
        let mut world = World::new(&[whole(answer(status, None, body))]);
        let message = format!("keyhole at {SERVER} refused the request ({status}): the token was used");
        assert_eq!(run(&mut world, &[SERVER], &[], 1), Err(Failure { exit: Exit::Refused, message }));
        assert_eq!(world.sent.len(), 1, "{status}");
    }
}

#[test]
fn a_refusal_without_a_reason_is_still_a_refusal() {
    for body in ["", "<html>no</html>", "{\"detail\":7}"] {
        let mut world = World::new(&[whole(answer("403 Forbidden", None, body))]);
        let message = format!("keyhole at {SERVER} refused the request (403): it gave no reason");
        assert_eq!(run(&mut world, &[SERVER], &[], 1), Err(Failure { exit: Exit::Refused, message }));
    }
}

#[test]
fn all_servers_are_tried_in_turn_beginning_with_any() {
    let servers = ["10.0.0.1:80", "10.0.0.2:80", "[fd00::3]:80"];
    let mut first_ones = BTreeSet::new();
    for seed in 0..50 {
        let mut world = World::new(&[REFUSED, REFUSED, whole(signed(&grant(2)))]);
        assert_eq!(run(&mut world, &servers, &[], seed), Ok(exports()));
        assert_eq!(world.pauses, [], "there is no pause within a round");
        let addresses: Vec<String> = world.sent.iter().map(|sent| sent.address.to_string()).collect();
        let first = servers.iter().position(|server| *server == addresses[0]).expect("one of them");
        let expected = [0, 1, 2, 2].map(|step| servers[(first + step) % 3]);
        assert_eq!(addresses, expected, "each in turn, and the confirmation to the one that granted");
        first_ones.insert(first);
    }
    assert_eq!(first_ones.len(), 3);
}

#[test]
fn it_gives_up_in_time_whatever_the_network_does() {
    let drip = Connection::Answers(vec![b'x'; 100], 1);
    for (connection, reason) in [
        (REFUSED, "connection refused"),
        (Connection::Fails(Fault::System(113)), "no route to host"),
        (Connection::Hangs, "timed out"),
        (Connection::Silent, "timed out"),
        (drip, "the connection ended before the answer did"),
    ] {
        for seconds in [1, 2, 10, 120, 3600] {
            let mut world = World::new(std::slice::from_ref(&connection));
            let start = world.now;
            let more = ["--give-up-after", &seconds.to_string()];
            let failure = run(&mut world, &[SERVER, "10.0.0.2:80"], &more, 9).expect_err("there is no answer");
            assert_eq!(failure.exit, Exit::TimeUp);
            assert!(failure.message.ends_with(&format!(": {reason}")), "{}", failure.message);
            let took = world.now - start;
            assert!(took <= seconds * 1000 + 10, "{reason}: {took} ms for {seconds} s");
            assert!(took + 5000 >= seconds * 1000, "{reason}: {took} ms for {seconds} s");
        }
    }
}

#[test]
fn a_server_that_does_not_answer_leaves_time_for_the_next() {
    for (connection, most) in [(Connection::Hangs, 3_000), (Connection::Silent, 30_000)] {
        let mut world = World::new(&[connection, whole(signed(&grant(2)))]);
        let start = world.now;
        assert_eq!(run(&mut world, &[SERVER, "10.0.0.2:80"], &[], 1), Ok(exports()));
        assert!(world.now - start < most + 100);
    }
}

#[test]
fn pauses_grow_and_differ() {
    let pauses = |seed| {
        let mut world = World::new(&[REFUSED]);
        run(&mut world, &[SERVER], &[], seed).expect_err("there is no answer");
        world.pauses
    };
    for seed in 0..20 {
        for (index, pause) in pauses(seed).into_iter().enumerate() {
            let longest = (200 << index.min(10)).min(5000);
            assert!((longest / 2..=longest).contains(&pause), "pause {index} was {pause}");
        }
    }
    assert_ne!(pauses(2), pauses(4));
}

#[test]
fn a_confirmation_that_fails_changes_nothing_and_takes_two_seconds_at_most() {
    for confirmation in [REFUSED, Connection::Hangs, Connection::Silent, whole(answer("403 No", None, ""))] {
        let mut world = World::new(&[whole(signed(&grant(2))), confirmation]);
        let start = world.now;
        assert_eq!(run(&mut world, &[SERVER], &[], 1), Ok(exports()));
        assert_eq!(world.sent.len(), 2, "it is sent once");
        assert!(world.now - start <= 2_100);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_without_the_token_makes_ports_or_a_panic(
        start in prop_oneof![Just("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n"), Just("HTTP/1.1 403 \r\n"), Just("")],
        rest in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b':')], 0..80),
        end in prop_oneof![Just("\r\n\r\nabc"), Just("Content-Length:2\r\n\r\n{}"), Just("")],
        piece in 1..100_usize,
    ) {
        let bytes = [start.as_bytes(), &rest, end.as_bytes()].concat();
        let mut world = World::new(&[Connection::Answers(bytes, piece)]);
        prop_assert!(run(&mut world, &[SERVER], &["--give-up-after", "1"], 1).is_err());
    }

    #[test]
    fn no_words_make_the_reader_of_arguments_panic(words in prop::collection::vec("(--job|--server|--ports|\\PC{0,20}|[0-9:.\\[\\]]{0,30})", 0..9)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let Err(failure) = keyhole_client::arguments::parse(&words) {
            prop_assert!(failure.message.bytes().all(|letter| (b' '..=b'~').contains(&letter)));
        }
    }
}
