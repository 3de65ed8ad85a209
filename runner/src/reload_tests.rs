//! What of a changed configuration counts at once, and what does not.

use super::*;
use crate::config::{check, file};
use serde_json::{Value, json};
use std::path::Path;

fn seed() -> Value {
    json!({
        "bwvisu-home-prefix": "/home",
        "gateway-nodes": [{"internal-ip": "10.0.0.1", "external-ip": "10.1.0.1", "user": "runner"}],
        "command-nodes": [{"ip": "10.0.0.2", "user": "runner"}],
        "keyholed-servers": [{"ip": "10.0.0.3", "port": 80}],
    })
}

fn config(value: &Value, password: &str) -> Config {
    let settings = file::Settings { api_password: Some(password.into()), ..file::Settings::default() };
    let path = Path::new("config.json");
    check(file::parse(&value.to_string(), path).unwrap(), settings, path).unwrap()
}

fn with(key: &str, value: Value) -> Value {
    let mut seed = seed();
    seed[key] = value;
    seed
}

fn changes(old: &Value, new: &Value) -> (Vec<&'static str>, Vec<&'static str>) {
    let Changes { taken, kept } = settle(&config(old, "a"), &mut config(new, "a"));
    (taken, kept)
}

#[test]
fn the_same_configuration_changes_nothing() {
    assert_eq!(changes(&seed(), &seed()), (vec![], vec![]));
}

#[test]
fn most_keys_count_at_once() {
    let cases = [
        ("bwvisu-home-prefix", json!("/other")),
        ("gateway-nodes", json!([{"internal-ip": "10.0.0.9", "external-ip": "10.1.0.1", "user": "runner"}])),
        ("gateway-nodes", json!([{"internal-ip": "10.0.0.1", "external-ip": "10.1.0.1", "user": "runner", "drain": true}])),
        ("command-nodes", json!([{"ip": "10.0.0.2", "user": "other"}])),
        ("keyholed-servers", json!([{"ip": "10.0.0.3", "port": 81}])),
        ("keyholed-port-range", json!({"min": 40000, "max": 41000})),
        ("keyholed-max-forwarders-per-job", json!(7)),
        ("debug", json!({"keyholed-static-forwarding": true})),
        ("forwarding-hostname-suffix", json!("-ib0")),
        ("api-tls", json!({"certificate": "c", "key": "k"})),
        ("templates", json!("/templates")),
        ("ssh", json!({"identity-file": "/key"})),
        ("users", json!({"min-uid": 500})),
        ("watch", json!({"jobs-seconds": 1})),
        ("keep-finished-jobs-days", json!(1)),
        ("gateway-down-seconds", json!(30)),
        ("limits", json!({"jobs-per-user": 1})),
    ];
    for (key, value) in cases {
        assert_eq!(changes(&seed(), &with(key, value)), (vec![key], vec![]), "{key}");
    }
    let Changes { taken, kept } = settle(&config(&seed(), "a"), &mut config(&seed(), "b"));
    assert_eq!((taken, kept), (vec!["api-password"], vec![]));
}

#[test]
fn some_keys_need_a_restart_and_are_put_back() {
    let etcd = json!([{"ip": "e", "port": 1}]);
    let cases = [
        ("api-listen", json!("127.0.0.1:1")),
        ("keyhole-listen", json!("127.0.0.1:1")),
        ("state-dir", json!("/state")),
        ("api-plain-http", json!(true)),
        ("scheduler", json!("local")),
        ("gateway", json!("relay")),
        ("iptables-chain-prefix", json!("OTHER")),
        ("local-job-slots", json!(3)),
        ("etcd-servers", etcd.clone()),
    ];
    for (key, value) in cases {
        let (old, mut new) = (config(&seed(), "a"), config(&with(key, value), "a"));
        let found = settle(&old, &mut new);
        assert_eq!((found.taken, found.kept), (vec![], vec![key]));
        assert_eq!(settle(&old, &mut new), Changes::default(), "{key} was put back");
        assert_eq!(format!("{old:?}"), format!("{new:?}"), "{key}");
    }
    let with_etcd = with("etcd-servers", etcd);
    let (mut other, mut tls) = (with_etcd.clone(), with_etcd.clone());
    other["etcd-servers"][0]["port"] = json!(2);
    tls["etcd-tls"] = json!({});
    assert_eq!(changes(&with_etcd, &other), (vec![], vec!["etcd-servers"]));
    assert_eq!(changes(&with_etcd, &tls), (vec![], vec!["etcd-tls"]));
    assert_eq!(changes(&with_etcd, &seed()), (vec![], vec!["etcd-servers"]));
}

#[test]
fn the_relay_stays_at_its_address_and_can_be_drained() {
    let mut relay = with("gateway", json!("relay"));
    relay["gateway-nodes"] = json!([{"internal-ip": "localhost", "external-ip": "127.0.0.1"}]);
    let (mut moved, mut drained) = (relay.clone(), relay.clone());
    moved["gateway-nodes"][0]["external-ip"] = json!("127.0.0.2");
    drained["gateway-nodes"][0]["drain"] = json!(true);
    assert_eq!(changes(&relay, &moved), (vec![], vec!["gateway-nodes"]));
    assert_eq!(changes(&relay, &drained), (vec!["gateway-nodes"], vec![]));
}
