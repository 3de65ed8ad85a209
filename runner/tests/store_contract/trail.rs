//! The trail on both stores: the largest claims and moves still fit into one change, and each is known afterwards.

use std::thread;
use std::time::Duration;

use bwvisu_runner::domain::grant::{Grant, GrantState};
use bwvisu_runner::domain::ports::Span;
use bwvisu_runner::store::embedded::Embedded;
use bwvisu_runner::store::{Backend, Store};
use jiff::Timestamp;

use crate::server::{EtcdServer, Kind, etcd_is_there};
use crate::throng::grant;

/// One port in each of 33 blocks, on nodes that lie in all buckets: more than a search ever claims.
fn largest(job: u64, gateway: &str, first: u16) -> Grant {
    let nodes: Vec<String> = (0..240).map(|node| format!("n{node}")).collect();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let spans = (0..33).map(|block| Span { external: first + block * 100, internal: 40_000 + block, count: 1 }).collect();
    Grant { spans, ..grant(job, gateway, 50_000, &nodes, "nonce") }
}

fn moment() -> Timestamp {
    thread::sleep(Duration::from_millis(2));
    let now = Timestamp::now();
    thread::sleep(Duration::from_millis(2));
    now
}

fn check(backend: Box<dyn Backend>) {
    let store = Store::new(backend);
    let had = |gateway: &str, port: u16, at| store.who("default", gateway, port, at).unwrap().traces.len();
    let from = largest(1, "10.0.0.1", 50_000);
    assert!(store.claim(&from).unwrap());
    let claimed = moment();
    let to = Grant { state: GrantState::Moving, ..largest(1, "10.0.0.2", 54_000) };
    assert!(store.move_grant(&from, &to).unwrap());
    let moved = moment();
    let left = store.closings("default", "10.0.0.1").unwrap().remove(0);
    store.release(&left).unwrap();
    let released = moment();
    store.release(&store.close_grant(&to).unwrap().unwrap()).unwrap();
    let over = moment();
    let times = [claimed, moved, released, over];
    assert_eq!(times.map(|at| had("10.0.0.1", 53_200, at)), [1, 1, 0, 0]);
    assert_eq!(times.map(|at| had("10.0.0.2", 57_200, at)), [0, 1, 1, 0]);
    assert!(store.open_traces("default").unwrap().is_empty());
}

#[test]
fn the_largest_jobs_leave_a_trail_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    check(Box::new(Embedded::open(&folder.path().join("store.redb")).unwrap()));
}

#[test]
fn the_largest_jobs_leave_a_trail_in_etcd() {
    if etcd_is_there() {
        check(Box::new(EtcdServer::start(Kind::Plain).client()));
    }
}
