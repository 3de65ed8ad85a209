//! What well-behaved clients may rely on.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::http::guard::{self, Limits};
use serde_json::json;

use crate::world::{FOE, World, eventually, handler};

#[test]
fn a_request_reaches_the_handler_as_it_was_sent() {
    for world in World::both(&Limits::default()) {
        let mut client = world.connect_from(FOE);
        client.send(
            "POST /echo?a=b%20c HTTP/1.1\r\nHost: localhost:4242\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\
             Keyhole-Signature: ab\r\nCookie: dropped\r\n\r\n\"hi\"",
        );
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        let headers = json!([["host", "localhost:4242"], ["content-type", "application/json"], ["keyhole-signature", "ab"]]);
        let expected = json!({
            "method": "POST", "path": "/echo", "query": "a=b%20c", "peer": FOE.to_string(), "headers": headers,
            "length": 4, "body": "\"hi\"",
        });
        assert_eq!(answer.json(), expected);
    }
}

#[test]
fn answers_carry_the_headers_of_the_guard() {
    for world in World::both(&Limits::default()) {
        let answer = world.get("/hello");
        let expected = [
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", "5"),
            ("connection", "keep-alive"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
        ];
        for (name, value) in expected {
            assert_eq!(answer.header(name), Some(value), "{}", answer.head);
        }
        assert!(answer.header("date").is_some() && answer.header("server").is_none(), "{}", answer.head);
        world.get("/none").assert_problem(404, "a handler's own error");
    }
}

#[test]
fn a_handlers_header_cannot_split_an_answer() {
    let answer = World::plain(Limits::default()).get("/split");
    assert_eq!((answer.text(), answer.header("x-evil"), answer.header("x-split")), ("split", None, None));
}

#[test]
fn the_largest_body_and_a_large_answer_pass() {
    for world in World::both(&Limits::default()) {
        let mut client = world.connect();
        let body = "y".repeat(1 << 20);
        client.send(format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        assert_eq!(client.answer().json()["length"], 1 << 20);
        assert_eq!(client.get("/big/5000000").body.len(), 5_000_000, "on the same connection");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_and_bodies_do_not_spill() {
    for world in World::both(&Limits::default()) {
        let mut client = world.connect();
        let post = |body: &str| format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let inner = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n";
        client.send(post("one") + "GET /echo?two HTTP/1.1\r\nHost: a\r\n\r\n" + &post(inner) + &post(""));
        let bodies = [(); 4].map(|()| client.answer().json()["body"].as_str().unwrap().to_owned());
        assert_eq!(bodies, ["one", "", inner, ""]);
        assert_eq!(client.get("/hello").text(), "hello", "and nothing is left over");
    }
}

#[test]
fn a_connection_ends_when_the_client_says_so() {
    for world in World::both(&Limits::default()) {
        for request in
            ["GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"]
        {
            let answer = world.answer_to(request.as_bytes());
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{request:?}");
        }
    }
}

#[test]
fn head_is_answered_like_get_without_the_body() {
    for world in World::both(&Limits::default()) {
        let mut client = world.connect();
        client.send("HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.answer_without_body();
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("5")));
        assert_eq!(client.get("/hello").text(), "hello");
    }
}

#[test]
fn a_client_that_waits_before_its_body_is_told_to_go_on_or_why_not() {
    for world in World::both(&Limits::default()) {
        let head =
            |length: usize| format!("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n");
        let mut client = world.connect();
        client.send(head(3));
        assert_eq!(client.answer_without_body().status, 100);
        client.send("abc");
        assert_eq!(client.answer().json()["body"], "abc");
        client.send(head(3) + "abc");
        assert_eq!(client.answer().json()["body"], "abc", "who does not wait is not told");
        client.send(head((1 << 20) + 1));
        client.answer().assert_problem(413, "too long to be wanted");
        client.assert_closed();
    }
}

#[test]
fn bursts_of_connections_that_stay_open_are_all_answered() {
    const CLIENTS: usize = 60;
    for world in World::both(&Limits::default()) {
        let start = Arc::new(Barrier::new(CLIENTS));
        let answered: usize = thread::scope(|scope| {
            let burst = || {
                let mut client = world.connect();
                start.wait();
                (0..20).filter(|_| client.get("/hello").text() == "hello").count()
            };
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(burst)).collect();
            clients.into_iter().map(|client| client.join().unwrap()).sum()
        });
        assert_eq!(answered, CLIENTS * 20);
    }
}

#[test]
fn stopping_lets_requests_in_flight_end_and_lets_nobody_in() {
    for tls in [false, true] {
        // The moment is a second, and over where the machine stands still for it. Within it, all are answered.
        assert!((0..5).any(|_| who_could_not_know_still_has_a_moment_at_the_end(tls)));
    }
}

/// Whether all were answered that should have been.
fn who_could_not_know_still_has_a_moment_at_the_end(tls: bool) -> bool {
    let (world, gate) = World::gated(&Limits::default(), tls);
    let (mut working, mut idle, mut late, mut silent) = (world.connect(), world.connect(), world.connect(), world.connect());
    for client in [&mut idle, &mut late] {
        assert_eq!(client.get("/hello").status, 200);
    }
    working.ask("/held");
    eventually("it is worked on", || gate.entered() == 1);
    let start = Instant::now();
    let (server, address) = (world.server, world.address);
    let stopping = thread::spawn(move || server.stop(Duration::from_secs(30)));
    while std::net::TcpStream::connect(address).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(15), "nobody is let in");
        thread::sleep(Duration::from_millis(5));
    }
    // On a kept connection or on a fresh one.
    let answers = [&mut late, &mut silent].map(|client| client.try_get("/hello"));
    let moment = start.elapsed();
    assert!(answers.iter().all(Result::is_ok) || moment >= Duration::from_secs(1), "{:?} after {moment:?}", answers);
    for answer in answers.iter().flatten() {
        assert_eq!((answer.text(), answer.header("connection")), ("hello", Some("close")));
    }
    gate.open();
    let answer = working.answer();
    assert_eq!((answer.text(), answer.header("connection")), ("hello", Some("close")));
    drop((working, late, silent));
    idle.assert_closed();
    stopping.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "who only waits is not waited for: {:?}", start.elapsed());
    answers.iter().all(Result::is_ok)
}

#[test]
fn stopping_does_not_wait_longer_than_it_was_told() {
    let (world, gate) = World::gated(&Limits::default(), false);
    let mut client = world.connect();
    client.ask("/held");
    eventually("it is worked on", || gate.entered() == 1);
    let start = Instant::now();
    world.server.stop(Duration::from_millis(300));
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(client.drain(), 0, "cut off without an answer");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let world = World::plain(Limits::default());
    let again = guard::start("second", world.address, None, Limits::default(), handler());
    let message = again.err().unwrap().message;
    assert!(message.starts_with(&format!("second: cannot listen on {}: ", world.address)), "{message}");
}
