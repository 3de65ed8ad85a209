//! Answers that are lost: the change happened, and its writer does not know. What the store finds out by itself, what it calls
//! unknown, and what the verbs make of it when they are called again.

use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::domain::job::Job;
use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::store::etcd::{Etcd, EtcdConfig};
use bwvisu_runner::store::{Backend, Change, Created, RepeatKey, Store};

use crate::contract::{claim, put, read, value};
use crate::proxy::{Net, Proxy};
use crate::server::{EtcdServer, Kind, etcd_is_there};
use crate::throng::{grant, ports};
use crate::tries::REST;

/// Where all answers are lost.
const SHORT: Duration = Duration::from_secs(2);
/// Where one is lost and the next one counts: an attempt has half of it.
const ENOUGH: Duration = Duration::from_secs(8);

/// A server behind a net that loses the answers to questions which name this.
const MARK: &str = "marked-for-loss";

fn behind(net: &Proxy, server: &EtcdServer, timeout: Duration) -> Etcd {
    let config = EtcdConfig { endpoints: vec![net.endpoint()], timeout, ..server.config() };
    let client = Etcd::connect(config).unwrap();
    server.wait_for(&client);
    client
}

#[test]
fn a_change_whose_answer_is_lost_once_is_found_out_about() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let net = Proxy::start(server.client_address());
    let (client, direct) = (behind(&net, &server, ENOUGH), server.client());
    net.lose_answers_to(MARK, 1);
    assert!(client.commit(&claim("k", MARK)).unwrap(), "it happened at the first attempt, and the second one tells");
    assert_eq!(net.lost(), 1);
    let found = read(&direct, "k").unwrap();
    assert_eq!(*found.value, *MARK.as_bytes());
    // One that somebody else has made impossible is refused, where that can be told, and else unknown.
    let stale = ("k".to_owned(), found.version - 1);
    net.lose_answers_to(MARK, 1);
    assert!(!client.commit(&Change { expect: vec![stale.clone(), ("free".to_owned(), 0)], ..put("free", MARK) }).unwrap());
    net.lose_answers_to(MARK, 1);
    let error = client.commit(&Change { expect: vec![stale], ..put("k", format!("other {MARK}")) }).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unknown, "{error}");
    assert_eq!(read(&direct, "k"), Some(found));
}

#[test]
fn a_change_whose_answers_are_all_lost_is_unknown_in_time_and_happens_once() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let net = Proxy::start(server.client_address());
    let (client, direct) = (behind(&net, &server, SHORT), server.client());
    net.lose_answers_to(MARK, u64::MAX);
    for (key, change) in [("guarded", claim("guarded", MARK)), ("plain", put("plain", MARK))] {
        let begin = Instant::now();
        let error = client.commit(&change).unwrap_err();
        println!("{key}: {error} after {:?}", begin.elapsed());
        assert_eq!(error.kind, ErrorKind::Unknown, "{error}");
        // Without an end of its own, the call would wait for ever.
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        let begin = Instant::now();
        while value(&direct, key).as_deref() != Some(MARK) {
            assert!(begin.elapsed() < Duration::from_secs(20), "it happened all the same");
            thread::sleep(REST);
        }
    }
    // Each happened once: the versions are the numbers of the only two changes since.
    let versions = ["guarded", "plain"].map(|key| read(&direct, key).unwrap().version);
    assert_eq!(versions[1], versions[0] + 1, "a change that may be there already is repeated only if it cannot happen twice");
}

/// What was sent before the net was cut arrives when it is mended, after the writer was told that nobody knows.
#[test]
fn a_change_that_arrives_late_overwrites_nothing() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let net = Proxy::start(server.client_address());
    let (client, direct) = (behind(&net, &server, SHORT), server.client());
    assert!(direct.commit(&claim("k", "first")).unwrap());
    let version = read(&direct, "k").unwrap().version;
    net.set(Net::Silent);
    let late = Change { expect: vec![("k".to_owned(), version)], ..put("k", "late") };
    assert_eq!(client.commit(&late).unwrap_err().kind, ErrorKind::Unknown);
    assert!(direct.commit(&put("k", "newer")).unwrap());
    let arrived = net.forwarded();
    net.set(Net::Whole);
    server.wait_for(&client);
    assert!(net.forwarded() > arrived, "it did arrive");
    assert_eq!(value(&direct, "k").as_deref(), Some("newer"));
}

#[test]
fn the_verbs_are_repeated_after_a_lost_answer_without_harm() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let net = Proxy::start(server.client_address());
    let store = Store::new(Box::new(behind(&net, &server, ENOUGH)));

    // A job whose number nobody was told: it is there, and will be found to have no scheduler's id. The same key finds it; without a
    // key the next try gets its own.
    let key = RepeatKey { key: "digest of the key", body: "digest of the body", instead_of: None };
    assert_eq!([store.new_id().unwrap(), store.new_id().unwrap()], [1, 2]);
    let create = |id, key| {
        let job = Job { id, cluster: "default".into(), user: "alice".into(), name: MARK.into(), ..Job::default() };
        store.create_job(&job, key, 9)
    };
    net.lose_answers_to(MARK, u64::MAX);
    assert_eq!(create(1, Some(key)).unwrap_err().kind, ErrorKind::Unknown);
    assert_eq!(store.job(&["default"], 1).unwrap().map(|job| job.scheduler_job_id), Some(None));
    net.lose_answers_to(MARK, 0);
    assert!(matches!(create(2, Some(key)).unwrap(), Created::Before(before) if before.job == 1));
    assert_eq!(create(2, None).unwrap(), Created::New);

    // A change of a job: the repetition finds it made, and writes nothing.
    let accept = |job: &mut Job| job.scheduler_job_id = Some(MARK.into());
    net.lose_answers_to(MARK, u64::MAX);
    assert_eq!(store.update_job("default", 2, "test", accept).unwrap_err().kind, ErrorKind::Unknown);
    net.lose_answers_to(MARK, 0);
    let direct = server.client();
    let version = || read(&direct, "clusters/default/jobs/2").unwrap().version;
    let before = version();
    let now = store.update_job("default", 2, "test", accept).unwrap().unwrap();
    assert_eq!((now.scheduler_job_id.as_deref(), version()), (Some(MARK), before));

    // A claim: the repetition is refused, since the job has its grant, which carries the request's own nonce; no port is taken twice.
    let wanted = grant(2, "10.0.0.1", 50000, &["c0"], MARK);
    net.lose_answers_to(MARK, u64::MAX);
    assert_eq!(store.claim(&wanted).unwrap_err().kind, ErrorKind::Unknown);
    net.lose_answers_to(MARK, 0);
    assert!(!store.claim(&wanted).unwrap());
    assert_eq!(store.grant("default", 2).unwrap().as_ref(), Some(&wanted));
    assert_eq!(ports(&store, "10.0.0.1"), wanted.ports());
    // With one answer lost, nobody notices.
    net.lose_answers_to(MARK, 1);
    let other = grant(1, "10.0.0.1", 51000, &["c0"], MARK);
    assert!(store.claim(&other).unwrap());
    // So it is with an end: what has ended already ends no second time, and its ports are free.
    net.lose_answers_to("\"since\"", 1);
    for grant in [&wanted, &other] {
        let closing = store.close_grant(grant).unwrap().unwrap();
        assert_eq!(store.close_grant(grant).unwrap(), None);
        (0..2).for_each(|_| store.release(&closing).unwrap());
    }
    assert_eq!(ports(&store, "10.0.0.1"), 0);
}
