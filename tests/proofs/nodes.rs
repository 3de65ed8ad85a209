//! A job on several nodes with several ports, in a range where most ports are in use.

use crate::templates::WIDE;
use bwvisu_tests::gateway::forwardings_of;
use bwvisu_tests::wait::until;
use bwvisu_tests::{Bed, Runner, Setup};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{TcpListener, TcpStream};

const RANGE: (u16, u16) = (50000, 50029);
/// Where something listens already: 23 of 30 ports, and no host has more than a few of them.
const TAKEN: [(&str, &[u16]); 5] = [
    ("c0", &[50000, 50003, 50006, 50009, 50012, 50015, 50018]),
    ("c1", &[50001, 50004, 50007, 50010, 50013, 50016, 50019]),
    ("c2", &[50002, 50005, 50008, 50011, 50014, 50017]),
    ("gw0", &[50021, 50023, 50025]),
    ("gw1", &[50021, 50023, 50025]),
];

#[test]
fn five_ports_are_free_on_three_nodes_where_most_of_the_range_is_in_use() {
    let bed = Bed::take();
    let listeners: Vec<TcpListener> = TAKEN.iter().flat_map(|(host, ports)| listen(&bed, host, ports)).collect();
    assert_eq!(listeners.len(), 26);
    let runner = Runner::with(&bed, &Setup { templates: &[WIDE], ports: RANGE, max_ports: 10, ..Setup::default() });
    let id = runner.api.submit("alice", WIDE.0, &json!({}));
    let job = runner.wait_for(&id, "available", 60);

    let taken: BTreeSet<u16> = TAKEN.iter().flat_map(|(_, ports)| ports.iter().copied()).collect();
    let ports = internal_ports(&job);
    assert!(ports.len() == 5 && ports.is_disjoint(&taken), "{ports:?}");
    assert_variables(&bed, &job, &runner.job_log("alice", &id));
    let log = runner.job_log("alice", &id);
    for node in ["c0", "c1", "c2"] {
        let bound = (0..5).filter(|port| log.contains(&format!("{node} could listen on port {port}\n"))).count();
        assert_eq!(bound, 5, "{node}: {log}");
    }
    assert_rules_lead_to(&bed, &id, &bed.ib("c0"));
    for (number, service) in job["services"].as_array().unwrap().iter().enumerate() {
        let expected = format!("bytes of port {number}");
        until("the outside to reach each port", 10, || read_from(&bed, service), |bytes| *bytes == expected);
    }
}

fn listen(bed: &Bed, host: &str, ports: &[u16]) -> Vec<TcpListener> {
    bed.at(host, || ports.iter().map(|port| TcpListener::bind(("0.0.0.0", *port)).unwrap()).collect())
}

fn internal_ports(job: &Value) -> BTreeSet<u16> {
    let services = job["services"].as_array().unwrap().iter();
    services.map(|service| service["internal-port"].as_u64().unwrap() as u16).collect()
}

/// What the job saw in its environment is what the API tells.
fn assert_variables(bed: &Bed, job: &Value, log: &str) {
    let lines = log.lines().filter(|line| line.starts_with("KEYHOLE_"));
    let seen: BTreeMap<&str, &str> = lines.map(|line| line.split_once('=').unwrap()).collect();
    let mut expected = BTreeMap::from([("KEYHOLE_NUM_PORTS".to_owned(), "5".to_owned())]);
    for (i, service) in job["services"].as_array().unwrap().iter().enumerate() {
        expected.insert(format!("KEYHOLE_PORT{i}"), service["internal-port"].to_string());
        expected.insert(format!("KEYHOLE_EXTERNAL_PORT{i}"), service["external-port"].to_string());
        expected.insert(format!("KEYHOLE_GATEWAY{i}"), service["external-ip"].as_str().unwrap().to_owned());
    }
    let expected: BTreeMap<&str, &str> = expected.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(seen, expected);
    let gateways = [bed.external("gw0").to_string(), bed.external("gw1").to_string()];
    assert!(gateways.iter().any(|gateway| seen["KEYHOLE_GATEWAY0"] == gateway));
}

/// The suffix `-ib0` is honoured: the rules lead to the first node's address on that net.
fn assert_rules_lead_to(bed: &Bed, id: &str, address: &str) {
    let rules = forwardings_of(bed, id);
    assert!(!rules.is_empty());
    for rule in rules {
        assert!(rule.contains(":c0-ib0") && rule.contains(&format!("--to-destination {address}")), "{rule}");
    }
}

fn read_from(bed: &Bed, service: &Value) -> String {
    let address = format!("{}:{}", service["external-ip"].as_str().unwrap(), service["external-port"]);
    let mut text = String::new();
    // What is not there yet is looked for again.
    let _ = bed.at("outside", || TcpStream::connect(address)).and_then(|mut stream| stream.read_to_string(&mut text));
    text
}
