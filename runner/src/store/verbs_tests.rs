//! The verbs on a real database of their own.

use super::embedded::Embedded;
use super::*;
use crate::domain::grant::{GRANT_VERSION, Grant, GrantState};
use crate::domain::job::Outcome;
use crate::domain::ports::Span;
use std::collections::BTreeSet;

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(Box::new(Embedded::open(&folder.path().join("store.redb")).unwrap()));
    (folder, store)
}

fn job(id: u64) -> Job {
    Job { id, cluster: "default".into(), ..Job::default() }
}

fn grant(job: u64, external: u16, nodes: &[&str]) -> Grant {
    Grant {
        version: GRANT_VERSION,
        cluster: "default".into(),
        job,
        run: 0,
        nonce: "n".into(),
        state: GrantState::Claimed,
        confirmed: false,
        gateway: "10.0.0.1".into(),
        external_ip: "203.0.113.1".into(),
        nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        target: nodes[0].into(),
        spans: vec![Span { external, internal: external, count: 5 }],
        granted_at: Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn ids_are_counted_up_from_one_also_by_many_at_once() {
    let (_folder, store) = store();
    let ids = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| (0..5).map(|_| store.create_job(job).unwrap().id).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<BTreeSet<_>>()
    });
    assert_eq!(ids, (1..=40).collect());
}

#[test]
fn a_finished_job_leaves_the_list_can_be_read_and_goes_after_its_time() {
    let (_folder, store) = store();
    let id = store.create_job(job).unwrap().id;
    let now = Timestamp::from_second(1000).unwrap();
    store.update_job("default", id, |job| job.finish(Outcome::Completed, Some(0), "done", now)).unwrap().unwrap();
    assert!(store.active_jobs("default").unwrap().is_empty());
    assert_eq!(store.job(&["default"], id).unwrap().unwrap().message, "done");
    assert_eq!(store.update_job("default", id, |job| job.message.clear()).unwrap(), None, "a finished job is not changed");
    assert_eq!(store.remove_finished("default", now).unwrap(), 0);
    assert_eq!(store.remove_finished("default", Timestamp::from_second(1001).unwrap()).unwrap(), 1);
    assert_eq!(store.job(&["default"], id).unwrap(), None);
}

#[test]
fn changes_by_many_at_once_all_count() {
    let (_folder, store) = store();
    let id = store.create_job(job).unwrap().id;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..5).for_each(|_| drop(store.update_job("default", id, |job| job.message.push('x')).unwrap())));
        }
    });
    assert_eq!(store.job(&["default"], id).unwrap().unwrap().message.len(), 40);
}

#[test]
fn a_port_is_given_once_on_a_gateway_and_once_on_a_node() {
    let (_folder, store) = store();
    assert!(store.claim(&grant(1, 50000, &["c0", "c1"])).unwrap());
    assert!(!store.claim(&grant(2, 50004, &["c9"])).unwrap(), "taken on the gateway");
    let elsewhere = |job, nodes| Grant { gateway: "10.0.0.2".into(), ..grant(job, 50000, nodes) };
    assert!(!store.claim(&elsewhere(3, &["c1", "c2"])).unwrap(), "taken on a node");
    assert!(store.claim(&elsewhere(4, &["c2"])).unwrap());
    assert!(!store.claim(&grant(1, 51000, &["c0"])).unwrap(), "a job has one grant");
    assert_eq!(store.loads("default", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]).unwrap(), [5, 5, 0]);
}

#[test]
fn closing_keeps_the_ports_and_releasing_frees_them_and_both_may_be_repeated() {
    let (_folder, store) = store();
    let first = grant(1, 50098, &["c0"]);
    assert!(store.claim(&first).unwrap());
    for _ in 0..2 {
        store.close_grant(&first).unwrap();
        assert_eq!(store.grant("default", 1).unwrap().unwrap().state, GrantState::Closing);
        assert!(!store.claim(&grant(2, 50098, &["c1"])).unwrap());
    }
    for _ in 0..2 {
        store.release_grant(&first).unwrap();
    }
    assert!(store.gateway_blocks("default", "10.0.0.1").unwrap().is_empty());
    assert!(store.claim(&grant(2, 50098, &["c0"])).unwrap());
    store.release_grant(&first).unwrap();
    assert_eq!(store.loads("default", &["10.0.0.1"]).unwrap(), [5], "a late release touches nobody else's ports");
}

#[test]
fn many_claims_at_once_never_share_a_port() {
    let (_folder, store) = store();
    let given = std::thread::scope(|scope| {
        let claim = |job: u64| store.claim(&grant(job, 50000 + u16::try_from(job % 4).unwrap() * 5, &["c0"])).unwrap();
        let threads: Vec<_> = (1..=16).map(|job| scope.spawn(move || claim(job))).collect();
        threads.into_iter().filter(|_| true).map(|thread| thread.join().unwrap()).filter(|&won| won).count()
    });
    assert_eq!(given, 4);
}

#[test]
fn a_record_of_a_newer_program_is_left_alone() {
    let (_folder, store) = store();
    let id = store.create_job(|id| Job { version: 2, ..job(id) }).unwrap().id;
    let error = store.update_job("default", id, |job| job.message.clear()).unwrap_err();
    assert!(error.message.contains("upgrade"), "{error}");
}
