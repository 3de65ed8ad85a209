//! etcd's past and its space: compactions, and a database that is full.

use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::store::etcd::{Etcd, EtcdConfig};
use bwvisu_runner::store::{Backend, Change};

use crate::contract::{put, value};
use crate::leads::leads;
use crate::proxy::{Net, Proxy};
use crate::server::{EtcdServer, Kind, etcd_is_there};

/// A scan reads its pages as of one moment. If that moment is compacted away between two pages, it begins anew.
#[test]
fn a_scan_that_a_compaction_overtakes_begins_anew_and_comes_back_whole() {
    const KEYS: usize = 2000;
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let direct = server.client();
    for first in (0..KEYS).step_by(100) {
        let put = (first..first + 100).map(|number| (format!("past/{number:04}"), b"v".to_vec())).collect();
        assert!(direct.commit(&Change { put, ..Change::default() }).unwrap());
    }
    let net = Proxy::start(server.client_address());
    let client = Etcd::connect(EtcdConfig { endpoints: vec![net.endpoint()], ..server.config() }).unwrap();
    server.wait_for(&client);
    // The first page is read and under way, and the next cannot be asked for.
    net.be_silent_at("past/");
    let found = thread::scope(|scope| {
        let scan = scope.spawn(|| client.scan("past/").unwrap());
        let begin = Instant::now();
        while !net.is_silent() {
            assert!(begin.elapsed() < Duration::from_secs(20), "no page comes");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(direct.commit(&put("past/", "written meanwhile")).unwrap());
        let revision = server.ctl(None, &["get", "/bwvisu-runner/past/", "--write-out=json"]);
        let revision: serde_json::Value = serde_json::from_str(&revision).unwrap();
        server.ctl(None, &["compact", &revision["header"]["revision"].to_string()]);
        assert!(!scan.is_finished(), "the compaction came too late to disturb it");
        net.set(Net::Whole);
        scan.join().unwrap()
    });
    assert_eq!(found.first().map(|(key, _)| key.as_str()), Some("past/"), "it was begun anew, or this would not be in it");
    assert!(found[1..].iter().map(|(key, _)| key.clone()).eq((0..KEYS).map(|number| format!("past/{number:04}"))));
}

#[test]
fn a_full_database_says_what_to_do_and_works_again_when_that_is_done() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::LittleSpace);
    let (client, leader) = (server.client(), server.client());
    let filled = (0..200).find_map(|_| {
        assert!(leads(&leader, "watch"));
        client.commit(&put("filling", vec![b'x'; 256 << 10])).map(|done| assert!(done)).err()
    });
    let error = filled.expect("four megabytes are full some time");
    println!("{error}");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    for advice in ["full", "etcdctl compact", "etcdctl defrag", "etcdctl alarm disarm", "--quota-backend-bytes"] {
        assert!(error.message.contains(advice), "{advice}: {error}");
    }
    // Reading goes on, what is led stays led, and what ends may be removed.
    assert_eq!(value(&client, "filling").map(|value| value.len()), Some(256 << 10));
    assert!(leads(&leader, "watch"));
    assert!((0..5).any(|_| client.lead("new-role").unwrap_err().message.contains("full")));
    assert!(client.commit(&Change { delete: vec!["filling".to_owned()], ..Change::default() }).unwrap());
    let status = server.ctl(None, &["endpoint", "status", "--write-out=json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    server.ctl(None, &["compact", &status[0]["Status"]["header"]["revision"].to_string()]);
    server.ctl(None, &["defrag"]);
    server.ctl(None, &["alarm", "disarm"]);
    assert!(client.commit(&put("k", "v")).unwrap());
    assert!(leads(&client, "new-role"));
}
