//! The service begins on a store that an earlier version wrote.

use crate::cluster::Cluster;
use crate::slurm::job;
use bwvisu_runner::store::embedded::Embedded;
use bwvisu_runner::store::{Backend, Change};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// The files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn furnish(store: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/records/v1");
    let key = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().trim_end_matches(".json").to_owned();
    let put = files(&root).iter().map(|path| (key(path), fs::read(path).unwrap())).collect();
    assert!(Embedded::open(store).unwrap().commit(&Change { put, ..Change::default() }).unwrap());
}

#[test]
fn a_store_of_version_1_is_served_and_its_jobs_end() {
    let mut cluster = Cluster::new();
    // Those that finished long ago are to be seen.
    cluster.bench.set("keep-finished-jobs-days", 36_500);
    furnish(&cluster.bench.path("state/store.redb"));
    for id in 1..=8 {
        cluster.add_foreign(&format!("{}", 4700 + id), &format!("bwvisu-{id}-0a1b2c{id:02x}"), "alice", "RUNNING");
    }
    let served = cluster.bench.serve_with(&["--only", "api,jobs-watch"]);
    assert_eq!(served.get("/jobs").body, json!({"jobs": ["1", "2", "3", "4", "5", "7", "8"]}));
    assert_eq!(served.job("4")["state"], "available");
    assert_eq!((&served.job("6")["outcome"], &served.job("6")["exit-code"]), (&json!("failed"), &json!(3)));
    // It was written down, and its submission cut off: it is found by its name.
    assert_eq!(served.await_state("1", "running")["scheduler-job-id"], "4701");
    cluster.show("4703", "State", "COMPLETED");
    assert_eq!(served.await_state("3", "finished")["outcome"], "completed");
    assert_eq!(served.delete("/jobs/2").status, 200);
    assert_eq!(served.await_state("2", "finished")["outcome"], "cancelled");
    assert_eq!(served.post(&job("alice")).body["job-id"], "9");
}
