//! The credentials in front of a listener: who does not know them gets an answer, and nothing else.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bwvisu_runner::config::Secret;
use bwvisu_runner::http::credentials::{API_USER, Credentials};
use bwvisu_runner::http::guard::{Asked, Limits, Service};

use crate::world::{Client, World, handler};

fn both(limits: &Limits) -> [World; 2] {
    [false, true].map(|tls| {
        let credentials = Credentials::new(Some(&Secret::new("right".into())), None);
        let screen = Arc::new(move |asked: &Asked<'_>| credentials.check(asked.headers, asked.peer).map(Some));
        World::of(limits.clone(), tls, Service { handler: handler(), screen: Some(screen), routes: |_, _| "other" })
    })
}

fn request(path: &str, password: &str, rest: &str) -> String {
    let credentials = STANDARD.encode(format!("{API_USER}:{password}"));
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {credentials}\r\n{rest}\r\n")
}

fn ask(client: &mut Client, password: &str) -> u16 {
    client.send(request("/hello", password, "Content-Length: 0\r\n"));
    client.answer().status
}

#[test]
fn a_body_is_not_waited_for_without_the_right_password() {
    for world in both(&Limits::default()) {
        let without = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n".to_owned();
        let cases = [
            without,
            request("/echo", "wrong", "Content-Length: 200000\r\n"),
            request("/echo", "wrong", "Content-Length: 200000\r\nExpect: 100-continue\r\n"),
        ];
        for head in cases {
            let begun = Instant::now();
            let answer = world.answer_to(format!("{head}abc").as_bytes());
            answer.assert_problem(401, &head);
            assert_eq!(answer.header("connection"), Some("close"), "{head}");
            assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        }
        let mut client = world.connect();
        client.send(request("/echo", "right", "Content-Length: 3\r\n") + "abc");
        assert_eq!(client.answer().json()["body"], "abc");
        assert_eq!(ask(&mut client, "right"), 200, "on the same connection");
    }
}

#[test]
fn guessing_becomes_slow_and_costs_neither_a_worker_nor_the_right_password_time() {
    for world in both(&Limits { workers: 1, ..Limits::default() }) {
        let begun = Instant::now();
        let tries = |count: usize| (0..count).for_each(|_| assert_eq!(ask(&mut world.connect(), "wrong"), 401));
        tries(10);
        // The next wait 20, 40, 60 ms …: 3.6 s together, were it one after the other.
        tries(18);
        assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
        thread::scope(|scope| {
            let guessers: Vec<_> = (0..20).map(|_| scope.spawn(|| tries(4))).collect();
            let mut waits = Vec::new();
            while guessers.iter().any(|guesser| !guesser.is_finished()) {
                let begun = Instant::now();
                assert_eq!(ask(&mut world.connect(), "right"), 200, "from the same address");
                waits.push(begun.elapsed());
                thread::sleep(Duration::from_millis(50));
            }
            waits.sort();
            assert!(waits[waits.len() / 2] < Duration::from_millis(500), "{waits:?}");
        });
    }
}
