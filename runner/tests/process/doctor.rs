//! `doctor` where there is no other machine: the local scheduler and the relay.

use crate::world::{Bench, Ended, user};
use serde_json::Value;

fn lines(ended: &Ended) -> Vec<(String, String)> {
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let word = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    report["checks"].as_array().unwrap().iter().map(|line| (word(line, "check"), word(line, "result"))).collect()
}

#[test]
fn without_a_cluster_what_applies_is_looked_at_and_a_job_goes_the_whole_way() {
    let bench = Bench::plain();
    let served = bench.serve();
    let url = format!("--url={}", served.url);
    let ended = bench.run(&["doctor", "--json", &url, "--user", &user().name, "--with-job"]);
    let found = lines(&ended);
    let bad: Vec<_> = found.iter().filter(|(_, result)| result != "ok").collect();
    assert!(bad.is_empty() && ended.code == Some(0), "{ended:?}");
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    for name in
        ["store", "scheduler", "relay", "service", "job-keyhole", "job-folder", "job-available", "job-connection", "job-end"]
    {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    for name in ["reachable", "sudo", "slurm", "iptables", "ssh-key"] {
        assert!(!names.contains(&name), "there is no other machine: {names:?}");
    }
    assert_eq!(served.get("/jobs").body["jobs"], serde_json::json!([]), "nothing is left of it");
}

#[test]
fn before_the_first_start_the_missing_state_folder_and_service_are_named_and_nothing_is_made() {
    let bench = Bench::new();
    let ended = bench.run(&["doctor", "--json", "--user", &user().name, "--with-job"]);
    let found = lines(&ended);
    let failed: Vec<&str> = found.iter().filter(|(_, result)| result == "failed").map(|(name, _)| name.as_str()).collect();
    assert_eq!(failed, ["state-folder", "service"], "{ended:?}");
    assert_eq!(ended.code, Some(1));
    assert!(!bench.path("state").exists(), "a look changes nothing");
    let table = bench.run(&["doctor"]).stdout;
    assert!(table.contains("install -d -o bwvisurunner") && table.contains("1 failed"), "{table}");
}
