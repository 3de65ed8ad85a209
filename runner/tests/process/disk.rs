//! `serve` on a disk that is full, and on one whose calls fail.

use crate::caused::{Tracer, fill_up, seen_by, small_disks_work, tracing_works};
use crate::cluster::Cluster;
use crate::slurm::job;
use crate::world::{Answer, Served, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;

fn accepted(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["job-id"].as_str().unwrap().to_owned()
}

/// A job whose record needs room.
fn large() -> Value {
    let mut job = job("alice");
    (0..30).for_each(|number| job["variables"][format!("more_{number}")] = json!("x".repeat(1000)));
    job
}

/// Submits until the store has no room left in its file, and adds all ids that were answered to `known`.
fn submit_until_refused(served: &Served, known: &mut Vec<String>) -> Answer {
    for _ in 0..2000 {
        let answer = served.post(&large());
        if answer.status != 200 {
            return answer;
        }
        known.push(accepted(&answer));
    }
    panic!("the disk is never full");
}

#[test]
fn on_a_full_disk_submissions_are_refused_nothing_is_lost_and_room_mends_it() {
    if !small_disks_work() {
        return;
    }
    let mut cluster = Cluster::new();
    cluster.bench.set("limits", json!({"jobs-per-user": 0}));
    let served = cluster.bench.serve_on_a_small_disk(24 << 10);
    let state = seen_by(served.pid(), &cluster.bench.path("state"));
    let mut known = vec![accepted(&served.post(&job("alice")))];
    for round in 0..2 {
        let filler = fill_up(&state);
        for refusals in 0..6 {
            let before = known.len();
            let refused = submit_until_refused(&served, &mut known);
            // What a refused job had taken of the file is free again when the watcher has put the job away.
            assert!(refusals == 0 || known.len() - before <= refusals, "{} of the next jobs had room", known.len() - before);
            assert_eq!(refused.status, 503, "{refused:?}");
            let detail = refused.body["detail"].as_str().unwrap();
            assert!(detail.contains("No space left on device") && detail.contains("make room"), "{detail}");
            let listed = served.get("/jobs");
            let there = |id: &String| listed.body["jobs"].as_array().is_some_and(|jobs| jobs.contains(&json!(id)));
            assert!(listed.status == 200 && known.iter().all(there), "round {round}: reads go on: {listed:?}\n{}", served.log());
            assert_eq!(served.job(&known[0])["state"], "submitted");
        }
        fs::remove_file(filler).unwrap();
        // By itself: without a restart, and the watcher too.
        known.push(accepted(&served.post(&job("alice"))));
        let last = known.last().unwrap().clone();
        let scheduler_id = served.job(&last)["scheduler-job-id"].as_str().unwrap().to_owned();
        cluster.show(&scheduler_id, "State", "RUNNING");
        served.await_state(&last, "running");
        // A job that was written down, but whose acceptance was not any more, is cancelled: its caller was told 503.
        let known = json!({"jobs": known});
        until("nothing is left but what was answered", || (served.get("/jobs").body == known).then_some(()), || served.log());
    }
    let names: Vec<String> = cluster.called("sbatch").into_iter().map(|call| call[2].clone()).collect();
    let (submitted, different) = (names.len(), names.into_iter().collect::<BTreeSet<_>>().len());
    assert!(submitted >= known.len() && submitted == different, "{submitted} submissions of {different} jobs");
}

#[test]
fn on_a_disk_whose_calls_fail_submissions_are_refused_and_all_goes_on_when_it_works() {
    if !tracing_works() {
        return;
    }
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    let mut known = vec![accepted(&served.post(&job("alice")))];
    for (error, words) in
        [("EIO", "Input/output error"), ("EROFS", "Read-only file system"), ("ENOSPC", "No space left on device")]
    {
        let submitted = cluster.scripts();
        let tracer = Tracer::fail(served.pid(), "pwrite64,fdatasync,fallocate,ftruncate", error);
        for _ in 0..3 {
            let refused = served.post(&job("alice"));
            assert_eq!(refused.status, 503, "{refused:?}");
            assert!(refused.body["detail"].as_str().unwrap().contains(words), "{words}: {refused:?}");
        }
        drop(tracer);
        let list = || Some(served.get("/jobs")).filter(|answer| answer.status == 200);
        assert_eq!(until("it reads again", list, || served.log()).body, json!({"jobs": known}), "{error}");
        assert_eq!(cluster.scripts(), submitted, "{error}: nothing goes to the scheduler that is not written down");
        known.push(accepted(&served.post(&job("alice"))));
    }
    assert_eq!(cluster.scripts(), known.len(), "each job was submitted once");
    let others = cluster.called("connect").into_iter().filter(|call| call[1] != "runner@cmd0").count();
    assert_eq!(others, 0, "what cannot be written down is no reason to ask another node");
    served.kill();
    assert_eq!(cluster.bench.serve().get("/jobs").body, json!({"jobs": known}));
}
