//! What strangers do. In each test an ordinary client is served at once, during the attack and after it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::http::guard::Limits;

use crate::world::{Client, FOE, FRIEND, PATIENCE, World, eventually, socket};

#[test]
fn what_is_no_valid_request_is_refused_with_the_reason_and_the_connection_closed() {
    let get = |rest: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{rest}\r\n");
    let cases = [
        ("huge length without a body", get("Content-Length: 100000000000\r\n"), 413),
        ("length beyond all numbers", get("Content-Length: 999999999999999999999999\r\n"), 413),
        ("two equal lengths", get("Content-Length: 3\r\nContent-Length: 3\r\n") + "abc", 400),
        ("two lengths", get("Content-Length: 3\r\nContent-Length: 30\r\n") + "abc", 400),
        ("negative length", get("Content-Length: -1\r\n"), 400),
        ("length with plus", get("Content-Length: +3\r\n") + "abc", 400),
        ("garbage length", get("Content-Length: 3abc\r\n") + "abc", 400),
        ("listed length", get("Content-Length: 3, 3\r\n") + "abc", 400),
        ("chunks", get("Transfer-Encoding: chunked\r\n") + "0\r\n\r\nGET /evil HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("chunks and length", get("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 501),
        ("length and chunks", get("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") + "0\r\n\r\n", 501),
        ("odd chunks", get("Transfer-Encoding: \tchunked\r\n"), 501),
        ("chunks with a blank", get("Transfer-Encoding : chunked\r\n"), 400),
        ("preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
        ("HTTP/2 in words", "GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), 505),
        ("HTTP/0.9", "GET /\r\n\r\n".into(), 400),
        ("bare line feeds", "GET / HTTP/1.1\nHost: a\n\n".into(), 400),
        ("one bare line feed", get("X: a\nContent-Length: 5\r\n"), 400),
        ("folded header", get("X: a\r\n b\r\n"), 400),
        ("NUL", get("X: a\0b\r\n"), 400),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("two hosts", get("Host: b\r\n"), 400),
        ("a proxy's request", "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("too many headers", get(&"X: y\r\n".repeat(100)), 431),
        ("long header", get(&format!("X: {}\r\n", "y".repeat(17_000))), 431),
        ("TLS in TLS, or on the plain port", "\x16\x03\x01\x02\x00\x01".into(), 400),
        ("nothing but line ends", "\r\n\r\n".into(), 400),
    ];
    for world in World::both(&Limits::default()) {
        for (what, bytes, status) in &cases {
            let answer = world.answer_to(bytes.as_bytes());
            answer.assert_problem(*status, what);
            assert_eq!(answer.header("connection"), Some("close"), "{what}");
        }
        world.assert_serves();
    }
}

#[test]
fn a_header_without_end_is_cut_off_after_some_kilobytes() {
    for world in World::both(&Limits::default()) {
        let mut client = world.connect_from(FOE);
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ");
        let chunk = [b'x'; 64 * 1024];
        let sent = (0..3200).take_while(|_| client.try_send(&chunk).is_ok()).count();
        assert!(sent < 320, "{} MiB of 200 were taken", sent / 16);
        world.assert_serves();
    }
}

#[test]
fn a_client_that_dribbles_is_cut_off_at_the_deadline() {
    let head = "GET /hello HTTP/1.1\r\nX: ";
    let body = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
    let second = Duration::from_secs(1);
    for world in World::both(&Limits { head: second, body: second, ..Limits::default() }) {
        for start in [head, body] {
            let begin = |_| {
                let socket = socket(world.address, FOE);
                let shared = socket.try_clone().unwrap();
                let mut client = Client::new(socket, world.tls.as_ref()).unwrap();
                client.send(start);
                // From now on a look whether there is an answer yet.
                shared.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                client
            };
            let mut clients: Vec<_> = (0..20).map(begin).collect();
            let begun = Instant::now();
            let mut lost = 0;
            while !clients.is_empty() {
                clients.retain_mut(|client| match client.try_answer(false) {
                    Ok(answer) => {
                        answer.assert_problem(408, start);
                        false
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        let _ = client.try_send(b"x");
                        true
                    }
                    // The listener had answered and closed when this client, held up by the machine, sent one byte more. Its
                    // system then throws away what it has not read: the answer.
                    Err(_) => {
                        lost += 1;
                        false
                    }
                });
                // It would go on for ever.
                assert!(begun.elapsed() < Duration::from_secs(15), "{} are left", clients.len());
                world.assert_serves();
                thread::sleep(Duration::from_millis(30));
            }
            assert!(lost < 10, "{lost} of 20 heard no reason");
        }
    }
}

#[test]
fn connections_on_which_nothing_is_asked_are_closed_in_time() {
    let moment = Duration::from_secs(4);
    for world in World::both(&Limits { head: moment, idle: moment, ..Limits::default() }) {
        let begun = Instant::now();
        let (mut fresh, mut used) = (world.connect_from(FOE), world.connect_from(FOE));
        assert_eq!(used.get("/hello").status, 200);
        assert_eq!((fresh.drain(), used.drain()), (0, 0));
        assert!((3800..15_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }
}

/// More than the system keeps for a client that does not read.
const SIZE: usize = 12_000_000;

/// Six clients that ask for much and read nothing.
fn do_not_read(world: &World) -> Vec<Client> {
    let mut clients: Vec<_> = (0..6).map(|_| world.connect_from(FOE)).collect();
    clients.iter_mut().for_each(|client| client.ask(&format!("/big/{SIZE}")));
    clients
}

#[test]
fn clients_that_do_not_read_hold_no_worker() {
    // Longer than all that ordinary clients try below: a worker that is held stays so.
    for world in World::both(&Limits { workers: 2, write: 6 * PATIENCE, ..Limits::default() }) {
        let clients = do_not_read(&world);
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(100));
            world.assert_serves();
        }
        drop(clients);
    }
}

#[test]
fn clients_that_do_not_read_are_cut_off() {
    for world in World::both(&Limits { workers: 2, write: Duration::from_secs(1), ..Limits::default() }) {
        let clients = do_not_read(&world);
        // Longer than they have, by so much that a busy machine has begun to write to all of them.
        thread::sleep(Duration::from_secs(5));
        for mut client in clients {
            let got = client.drain();
            assert!(got < SIZE, "{got} bytes arrived, though nobody read them in time");
        }
    }
}

#[test]
fn those_who_never_shake_hands_cost_nobody_else_anything() {
    let world = World::tls(Limits { handshake: Duration::from_secs(1), ..Limits::default() });
    let hello: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let mut silent: Vec<_> = (0..60).map(|_| socket(world.address, FOE)).collect();
    silent.iter_mut().step_by(2).for_each(|socket| socket.write_all(hello).unwrap());
    let begun = Instant::now();
    for _ in 0..5 {
        world.assert_serves();
    }
    for mut socket in silent {
        assert_ne!(socket.read_to_end(&mut Vec::new()).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn plain_http_on_the_tls_port_is_closed_at_once() {
    let world = World::tls(Limits::default());
    let mut stranger = socket(world.address, FOE);
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut got = Vec::new();
    let _ = stranger.read_to_end(&mut got);
    assert!(got.len() < 16 && !got.starts_with(b"HTTP"), "{got:?}");
    world.assert_serves();
}

#[test]
fn a_flood_from_one_address_leaves_room_for_the_others() {
    for world in World::both(&Limits { per_address: 8, head: Duration::from_secs(30), ..Limits::default() }) {
        let seated: Vec<_> = (0..8).map(|_| world.connect_from(FOE)).collect();
        for _ in 0..100 {
            assert_turned_away(&world, FOE);
        }
        world.assert_serves();
        assert!(world.server.refused() >= 100, "{}", world.server.refused());
        drop(seated);
        eventually("there is room for the address again", || world.is_serving(FOE));
    }
}

#[test]
fn those_who_hang_up_halfway_and_do_not_read_get_no_more_seats_for_it() {
    const SHARE: usize = 8;
    let world = World::plain(Limits { per_address: SHARE, ..Limits::default() });
    let half = |_| {
        let mut socket = socket(world.address, FOE);
        let _ = socket.write_all(b"GET /big/12000000 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(5).as_slice());
        let _ = socket.shutdown(Shutdown::Write);
        socket
    };
    let halves: Vec<_> = (0..40).map(half).collect();
    // For a moment, a few of them have not begun to wait for their clients.
    eventually("most are turned away", || world.server.refused() >= 40 - 2 * SHARE as u64);
    world.assert_serves();
    eventually("all that are there wait for their clients", || !world.is_serving(FOE));
    drop(halves);
    eventually("there is room for the address again", || world.is_serving(FOE));
}

/// What those send who take seats and never ask for anything.
const HALF_REQUESTS: [&str; 3] =
    ["", "GET / HTTP/1.1\r\nHost: x\r\n", "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\nabc"];

#[test]
fn those_who_take_all_seats_and_ask_nothing_lose_them_to_whoever_asks() {
    let minute = Duration::from_secs(60);
    let patient = Limits { handshake: minute, head: minute, body: minute, idle: minute, ..Limits::default() };
    let patient = Limits { connections: 128, per_address: 32, ..patient };
    for world in World::both(&patient) {
        for sent in HALF_REQUESTS {
            // 20 addresses, each with more connections than its share in a crowd.
            let mut seated: Vec<_> =
                (0..20 * 10).map(|n| socket(world.address, Ipv4Addr::new(127, 0, 2, 1 + n as u8 % 20))).collect();
            seated.iter_mut().for_each(|socket| drop(socket.write_all(sent.as_bytes())));
            for _ in 0..20 {
                world.assert_serves();
            }
            drop(seated);
        }
    }
}

#[test]
fn nobody_loses_the_seat_while_the_answer_is_made() {
    let (world, gate) = World::gated(&Limits { connections: 8, workers: 8, ..Limits::default() }, false);
    let mut asking: Vec<_> = (0..4).map(|_| world.connect()).collect();
    asking.iter_mut().for_each(|client| client.ask("/held"));
    eventually("the answers are being made", || gate.entered() == 4);
    let flood: Vec<_> = (0..200).map(|n| socket(world.address, Ipv4Addr::new(127, 0, 3, 1 + n as u8))).collect();
    eventually("who comes after the flood is served", || world.is_serving(FRIEND));
    gate.open();
    for mut client in asking {
        assert_eq!(client.answer().text(), "hello");
    }
    drop(flood);
}

#[test]
fn more_requests_than_there_is_room_for_are_turned_away_until_there_is() {
    let limits = Limits { connections: 20, workers: 20, ..Limits::default() };
    for (world, gate) in World::both_gated(&limits) {
        let from = |number: usize| Ipv4Addr::new(127, 0, 1, number as u8);
        let mut asking: Vec<_> = (0..20).map(|number| world.connect_from(from(number))).collect();
        asking.iter_mut().for_each(|client| client.ask("/held"));
        eventually("all are at work", || gate.entered() == 20);
        assert_turned_away(&world, from(200));
        gate.open();
        asking.iter_mut().for_each(|client| assert_eq!(client.answer().text(), "hello"));
        eventually("there is room again", || world.is_serving(from(200)));
    }
}

/// A 503 on the plain port; a connection that ends on the other.
fn assert_turned_away(world: &World, from: Ipv4Addr) {
    match world.try_connect(from).and_then(|mut client| client.try_answer(false)) {
        Ok(answer) => {
            answer.assert_problem(503, "no room");
            assert!(answer.header("retry-after").is_some() && world.tls.is_none());
        }
        Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock, "left hanging"),
    }
}

#[test]
fn a_handler_that_panics_costs_one_answer() {
    for world in World::both(&Limits { workers: 2, ..Limits::default() }) {
        let mut client = world.connect();
        for _ in 0..10 {
            client.get("/panic").assert_problem(500, "a panic");
        }
        assert_eq!(client.get("/hello").text(), "hello", "on the same connection, by the same workers");
    }
}

#[test]
fn slow_handlers_become_503_and_hold_no_more_than_the_workers() {
    for (world, gate) in World::both_gated(&Limits { workers: 2, handle: Duration::from_secs(1), ..Limits::default() }) {
        let mut clients: Vec<_> = (0..6).map(|_| world.connect()).collect();
        clients.iter_mut().for_each(|client| client.ask("/held"));
        for mut client in clients {
            let answer = client.answer();
            answer.assert_problem(503, "too slow, or no worker free");
            assert!(answer.header("retry-after").is_some());
        }
        gate.open();
        eventually("the workers are free again", || world.get("/hello").status == 200);
        assert_eq!(gate.entered(), 2, "the requests without a worker were never begun");
    }
}

#[test]
fn the_clients_address_cannot_be_forged() {
    for world in World::both(&Limits::default()) {
        let mut client = world.connect_from(FOE);
        client
            .send("GET /echo HTTP/1.1\r\nHost: a\r\nguard-peer: 6.6.6.6\r\nGuard-Ticket: 0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n");
        let seen = client.answer().json();
        assert_eq!(seen["peer"], FOE.to_string());
        assert_eq!(seen["headers"], serde_json::json!([["host", "a"]]));
    }
}
