//! Gateways and audits, over the API and on the command line.

use crate::api::demo;
use crate::cluster::Cluster;
use crate::slurm::job;
use crate::world::{Bench, until, user};
use serde_json::json;
use std::thread;
use std::time::Duration;

#[test]
fn a_drained_gateway_gets_nothing_new_and_keeps_what_it_has() {
    let mut bench = Bench::plain();
    bench.set("watch", json!({"jobs-seconds": 0.2, "keyhole-seconds": 0.2}));
    let served = bench.serve();
    let first = served.submit(&user().name, "template_demo.txt", demo());
    served.await_state(&first, "available");
    let url = format!("--url={}", served.url);
    let drained = bench.run(&["gateway", "drain", &url, "localhost"]);
    assert!(drained.code == Some(0) && drained.stdout.contains("drained by an admin"), "{drained:?}");
    let gateways = served.get("/cluster/gateways").body;
    assert_eq!((&gateways["gateways"][0]["drained"], &gateways["gateways"][0]["ports"]), (&json!("by an admin"), &json!(1)));

    let second = served.submit(&user().name, "template_demo.txt", demo());
    until("it is told why it gets no ports", || served.log().contains("all gateways are drained").then_some(()), || served.log());
    assert_eq!(served.job(&first)["state"], "available");
    thread::sleep(Duration::from_millis(500));
    assert_ne!(served.job(&second)["state"], "available");
    assert_eq!(bench.run(&["gateway", "undrain", &url, "localhost"]).code, Some(0));
    // The client in the job has not stopped asking.
    served.await_state(&second, "available");
}

#[test]
fn only_gateways_that_are_there_are_drained_and_the_configuration_s_drain_is_not_lifted() {
    let mut bench = Bench::plain();
    let mut gateways = bench.config["gateway-nodes"].clone();
    gateways[0]["drain"] = json!(true);
    bench.set("gateway-nodes", gateways);
    let served = bench.serve();
    let url = format!("--url={}", served.url);
    let unknown = bench.run(&["gateway", "drain", &url, "10.9.9.9"]);
    assert!(unknown.code == Some(1) && unknown.stderr.contains("no gateway 10.9.9.9 is configured"), "{unknown:?}");
    let listed = bench.run(&["gateway", "list", &url]);
    assert!(listed.stdout.contains("drained by the configuration"), "{listed:?}");
    let lifted = bench.run(&["gateway", "undrain", &url, "localhost"]);
    assert!(lifted.code == Some(1) && lifted.stderr.contains("change it there"), "{lifted:?}");
    for (method, path, allowed) in [("PATCH", "/cluster/gateways", "GET"), ("GET", "/cluster/gateways/x/drain", "PUT, DELETE")] {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nConnection: close\r\n\r\n", served.password());
        let answer = served.raw(&head);
        assert!(answer.starts_with("HTTP/1.1 405") && answer.contains(&format!("Allow: {allowed}\r\n")), "{answer}");
    }
}

#[test]
fn an_audit_of_a_running_service_is_clean_and_needs_the_service_or_its_store() {
    let bench = Bench::plain();
    let served = bench.serve();
    let id = served.submit(&user().name, "template_demo.txt", demo());
    served.await_state(&id, "available");
    let clean = bench.run(&["audit", &format!("--url={}", served.url)]);
    assert_eq!(clean.code, Some(0), "{clean:?}");
    assert!(
        clean.stdout.contains("0 disagreements; compared: 0 closings, 0 finished-jobs, 1 grants, 1 jobs, 1 rules"),
        "{clean:?}"
    );
    let offline = bench.run(&["audit", "--offline"]);
    assert!(offline.code == Some(1) && offline.stderr.contains("in use by another process"), "{offline:?}");
}

#[test]
fn an_audit_names_what_does_not_fit_and_a_fix_does_what_the_watchers_would() {
    let cluster = Cluster::new();
    // Nobody watches.
    let served = cluster.bench.serve_with(&["--only", "api,keyhole"]);
    let answer = served.post(&job("alice"));
    assert_eq!(answer.status, 200, "{answer:?}");
    let report = served.get("/cluster/audit").body;
    assert_eq!((&report["disagreements"], &report["not-looked-at"]), (&json!([]), &json!([])), "{report:#}");

    let name = cluster.called("sbatch")[0][2].strip_prefix("--job-name=").unwrap().to_owned();
    // As if the store had been put back from a copy that is older than this job.
    let installation = &name["bwvisu-1-".len()..][..4];
    let lost = format!("bwvisu-99-{installation}00000000");
    cluster.add_foreign("77", &lost, "alice", "RUNNING");
    cluster.add_foreign("78", "bwvisu-5-deadbeef", "alice", "RUNNING");
    cluster.forget("41");
    let report = served.get("/cluster/audit").body;
    let kinds: Vec<_> = report["disagreements"].as_array().unwrap().iter().map(|found| found["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["job-without-scheduler-job", "unknown-scheduler-job"], "{report:#}");
    assert!(report["disagreements"][1]["what"].as_str().unwrap().contains(&lost), "{report:#}");
    assert_eq!(served.job("1")["state"], "submitted", "a look changes nothing");

    let url = format!("--url={}", served.url);
    let fixed = cluster.bench.run(&["audit", "--fix", &url]);
    assert!(fixed.code == Some(1) && !fixed.stdout.contains("job-without-scheduler-job"), "{fixed:?}");
    assert!(fixed.stdout.contains("unknown-scheduler-job") && fixed.stdout.contains("1 disagreements"), "{fixed:?}");
    assert_eq!(served.job("1")["state"], "finished");
    cluster.forget("77");
    assert_eq!(cluster.bench.run(&["audit", &url]).code, Some(0));
    served.kill();
    assert_eq!(cluster.bench.run(&["audit", "--offline"]).code, Some(0));
    cluster.play("refuse.squeue", "slurm_load_jobs error: Unable to contact slurm controller");
    let blind = cluster.bench.run(&["audit", "--offline"]);
    assert!(blind.code == Some(2) && blind.stdout.contains("NOT LOOKED AT"), "{blind:?}");
}
