//! The store in etcd: the contract, and what a server on the net may do to us. Each test has a server of its own.

use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::error::{Error, ErrorKind};
use bwvisu_runner::store::Backend;
use bwvisu_runner::store::etcd::{Etcd, EtcdConfig};

use crate::contract::{check_all, claim, put, read, value};
use crate::server::{EtcdServer, Kind, etcd_is_there};
use crate::tries::{REST, one_takes_less_than};

const SHORT: Duration = Duration::from_secs(2);
/// Calls to a silent server end after two seconds here, those to a dead one at once; the rest is for a busy machine.
const BOUND: Duration = Duration::from_secs(10);

#[test]
fn etcd_keeps_the_contract() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    check_all(&server.client(), &server.client());
    let count = |range: [&str; 2]| {
        let json = server.ctl(None, &["get", range[0], range[1], "--keys-only", "--write-out=json"]);
        json.rsplit_once("\"count\":").unwrap().1.trim().to_owned()
    };
    assert_eq!(count(["", "--from-key"]), count(["/bwvisu-runner/", "--prefix"]), "all keys are below our prefix");
    assert_eq!(count(["/bwvisu-runner/large/", "--prefix"]), "1200}");
}

#[test]
fn large_values_are_scanned_in_smaller_pages() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let client = server.client();
    for number in 0..80 {
        assert!(client.commit(&put(&format!("big/{number:02}"), vec![number; 1 << 20])).unwrap());
    }
    let found = client.scan("big/").unwrap();
    assert_eq!(found.len(), 80);
    assert!(
        found
            .iter()
            .zip(0..)
            .all(|((key, found), number)| *key == format!("big/{number:02}") && *found.value == *vec![number; 1 << 20])
    );
}

#[test]
fn a_change_that_is_too_large_for_etcd_is_refused_with_advice() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let client = server.client();
    let error = client.commit(&put("k", vec![0; 3 << 20])).unwrap_err();
    assert!(error.kind == ErrorKind::Internal && error.message.contains("--max-request-bytes"), "{error:?}");
    assert_eq!(read(&client, "k"), None);
}

#[test]
fn it_starts_without_a_server_and_finds_it_when_it_comes() {
    if !etcd_is_there() {
        return;
    }
    let mut server = EtcdServer::start(Kind::Plain);
    // A server killed in its very first second has half a membership on disk, and never gets up again.
    drop(server.client());
    server.kill();
    let client = Etcd::connect(server.config()).unwrap();
    assert_down(&client, &[ErrorKind::Unavailable]);
    assert!(server.start_again());
    server.wait_for(&client);
    assert!(client.commit(&put("k", "v")).unwrap());
}

#[test]
fn a_killed_server_is_unavailable_in_time_and_found_again_with_its_data() {
    if !etcd_is_there() {
        return;
    }
    let mut server = EtcdServer::start(Kind::Plain);
    let client = server.client();
    for round in 0..3 {
        let key = format!("k/{round}");
        assert!(client.commit(&put(&key, "kept")).unwrap());
        server.kill();
        // The first one may meet the connection as it breaks.
        assert_down(&client, &[ErrorKind::Unavailable, ErrorKind::Unknown]);
        assert_down(&client, &[ErrorKind::Unavailable]);
        assert!(server.start_again());
        server.wait_for(&client);
        assert_eq!(value(&client, &key).as_deref(), Some("kept"));
    }
}

#[test]
fn a_frozen_server_is_unavailable_in_time_and_goes_on_when_thawed() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let client = Etcd::connect(EtcdConfig { timeout: SHORT, ..server.config() }).unwrap();
    server.wait_for(&client);
    server.freeze();
    for _ in 0..2 {
        assert_down(&client, &[ErrorKind::Unknown]);
    }
    server.thaw();
    let begin = Instant::now();
    while !client.commit(&put("k", "v")).is_ok_and(|done| done) {
        assert!(begin.elapsed() < Duration::from_secs(20), "it does not go on");
        thread::sleep(REST);
    }
}

/// Every call fails within the time it has; a write with one of `write` kinds.
pub fn assert_down(client: &Etcd, write: &[ErrorKind]) {
    let timed = |call: &dyn Fn() -> Error| {
        let begin = Instant::now();
        let error = call();
        assert!(begin.elapsed() < BOUND, "{error} after {:?}", begin.elapsed());
        assert!(!error.to_string().contains("secret"), "no key or value is in {error}");
        (error.kind, error)
    };
    let change = claim("secret-key", "secret-value");
    let (kind, error) = timed(&|| client.commit(&change).unwrap_err());
    assert!(write.contains(&kind), "{kind:?}: {error}");
    let reads: [&dyn Fn() -> Error; 3] =
        [&|| client.get(&["secret-key".to_owned()]).unwrap_err(), &|| client.scan("secret-key").unwrap_err(), &|| {
            client.lead("secret-role").unwrap_err()
        }];
    for read in reads {
        let (kind, error) = timed(read);
        assert_eq!(kind, ErrorKind::Unavailable, "{error}");
    }
}

#[test]
fn many_threads_wait_no_longer_than_one() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    server.freeze();
    let user = Some(("user".to_owned(), "opensesame".to_owned()));
    let client = Etcd::connect(EtcdConfig { timeout: SHORT, user, ..server.config() }).unwrap();
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(client.commit(&put("k", "v")).unwrap_err().kind, ErrorKind::Unavailable, "never sent"));
        }
    });
    // One after another they would take 16 times two seconds.
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
}

#[test]
fn the_next_member_is_asked_in_the_same_call() {
    if !etcd_is_there() {
        return;
    }
    let (alive, frozen) = (EtcdServer::start(Kind::Plain), EtcdServer::start(Kind::Plain));
    let mut dead = EtcdServer::start(Kind::Plain);
    dead.kill();
    frozen.freeze();
    let endpoints = [&dead, &frozen, &alive].map(EtcdServer::endpoint).to_vec();
    let client = Etcd::connect(EtcdConfig { endpoints, ..alive.config() }).unwrap();
    assert_eq!(client.get(&["k".to_owned()]).unwrap(), [None]);
    // It stays with the one that answers: the frozen one would cost seconds each time.
    one_takes_less_than(Duration::from_secs(1), |_| {
        let begin = Instant::now();
        assert!(client.commit(&put("k", "v")).unwrap());
        begin.elapsed()
    });
}
