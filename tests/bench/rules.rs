//! A new connection through a gateway that forwards ten thousand ports, each by a rule of its own, against one that forwards one.

use crate::Effort;
use crate::figures::{Figure, Goal, Rounds, median};
use crate::ground::{IDLE, baseline, setup};
use crate::store::{self, Forward};
use bwvisu_tests::gateway::forwardings;
use bwvisu_tests::{Bed, Runner, Setup, until};
use serde_json::json;
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

const FIRST: u16 = 50000;
const LAST: u16 = 59999;
const CONNECTIONS: usize = 400;

/// Time of a connection to the last port.
pub fn measure(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    install(&bed);
    let path = baseline("listeners.py");
    let last = LAST.to_string();
    let _listener = bed.spawn("c0", &["python3", path.to_str().unwrap(), &last, &last, "1"]);
    let address = bed.external("gw0");
    let reached = || bed.at("outside", || TcpStream::connect_timeout(&(address, LAST).into(), Duration::from_secs(1)).is_ok());
    until("the last port to be reached", 20, reached, |reached| *reached);
    // All of ours but what leads to the last port: the other chains are as empty as on a gateway with one rule.
    bed.sh("gw0", "iptables-save >/tmp/many && grep -vE -- '-A BWVISU-[0-9]+ ' /tmp/many >/tmp/none");
    bed.sh("gw0", &format!("grep -E -- '-A BWVISU-599 .*--dport {LAST} ' /tmp/many >/tmp/rule && [ $(wc -l </tmp/rule) = 1 ]"));
    bed.sh("gw0", "awk 'FNR == NR { rule = $0; next } /^\\*/ { table = $0 } $0 == \"COMMIT\" && table == \"*nat\" { print rule } { print }' /tmp/rule /tmp/none >/tmp/one");
    let rounds = effort.rounds(9, 3);
    let mut found = Rounds::default();
    for round in 0..=rounds {
        let (many, one) = (microseconds(&bed, "many", address), microseconds(&bed, "one", address));
        if round > 0 {
            found.ours.push(many);
            found.baseline.push(one);
        }
    }
    let notes = format!(
        "p50 of {CONNECTIONS} connections to the last port in each of {rounds} rounds in turns; the rules were written by the runner, from records of 100 jobs"
    );
    vec![found.ours_by_theirs("rules-10000", "the same gateway with one rule", "µs", Goal::AtMost(1.1)).noting(notes)]
}

/// Ten thousand rules on gw0, by the runner's watcher; it has ended when this returns.
fn install(bed: &Bed) {
    let real = real_job(bed);
    let jobs: Vec<_> = (0..100).map(|i| store::job_like(&real, 1000 + i, "1", "c0")).collect();
    let forward = |port: u16| Forward { job: 1000 + u64::from((port - FIRST) / 100), port, node: "c0".to_owned() };
    let forwards: Vec<Forward> = (FIRST..=LAST).map(forward).collect();
    store::put(bed, &jobs);
    store::put(bed, &store::granted(bed, "gw0", &forwards));
    let _runner = Runner::with(bed, &Setup { parts: "api,keyhole-watch", ..setup(&[IDLE], &json!({})) });
    until("ten thousand rules to be installed", 60, || forwardings(bed, "gw0").len(), |count| *count == forwards.len());
}

/// The record of a job that runs, made by the runner.
pub fn real_job(bed: &Bed) -> serde_json::Value {
    let runner = Runner::with(bed, &setup(&[IDLE], &json!({})));
    let id = runner.api.submit("alice", IDLE.0, &json!({}));
    runner.wait_for(&id, "running", 30);
    let (_, record) = store::read(bed, &format!("jobs/{id}")).remove(0);
    assert_eq!(runner.api.cancel(&id).status, 200);
    runner.wait_for(&id, "finished", 60);
    record
}

fn microseconds(bed: &Bed, tables: &str, address: Ipv4Addr) -> f64 {
    bed.sh("gw0", &format!("iptables-restore </tmp/{tables}"));
    let one = || {
        let begun = Instant::now();
        TcpStream::connect_timeout(&(address, LAST).into(), Duration::from_secs(2)).expect("the port is forwarded");
        begun.elapsed().as_secs_f64() * 1e6
    };
    let times: Vec<f64> = bed.at("outside", || (0..CONNECTIONS).map(|_| one()).collect());
    median(&times)
}
