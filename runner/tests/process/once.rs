//! One job for one request, however often it is made; so many jobs per user; what is known, and since when.

use crate::cluster::Cluster;
use crate::slurm::job;
use crate::world::{Answer, Served, until};
use serde_json::{Value, json};
use std::thread;
use std::time::Duration;

fn accepted(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["job-id"].as_str().unwrap().to_owned()
}

/// How many jobs the scheduler ever took.
fn taken(cluster: &Cluster) -> usize {
    cluster.called("sbatch").len()
}

#[test]
fn the_same_key_and_body_give_the_same_job_and_another_body_is_refused() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    let first = accepted(&served.post_as("key one", &job("alice")));
    for _ in 0..3 {
        assert_eq!(accepted(&served.post_as("key one", &job("alice"))), first);
    }
    let reordered = r#"{"variables": {"word": "a-b_c/1.2"}, "template-name": "template_sleeper.txt", "uid": "alice"}"#;
    assert_eq!(accepted(&served.post_text_as("key one", reordered)), first, "the order of members means nothing");
    served.post_as("key one", &job("bob")).assert_problem(409, "Conflict", "this Idempotency-Key was used for another request");
    assert_ne!(accepted(&served.post_as("key two", &job("alice"))), first);
    assert_ne!(accepted(&served.post(&job("alice"))), first, "without a key each request is a job");
    assert_eq!(taken(&cluster), 3);
    // The job's end changes nothing.
    assert_eq!(served.delete(&format!("/jobs/{first}")).status, 200);
    served.await_state(&first, "finished");
    assert_eq!(accepted(&served.post_as("key one", &job("alice"))), first);
}

#[test]
fn a_key_survives_the_runner() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    let first = accepted(&served.post_as("k", &job("alice")));
    served.kill();
    let served = cluster.bench.serve();
    assert_eq!(accepted(&served.post_as("k", &job("alice"))), first);
    assert_eq!(taken(&cluster), 1);
}

#[test]
fn a_key_that_is_none_is_refused() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    for key in ["", &"k".repeat(256)] {
        served.post_as(key, &job("alice")).assert_problem(400, "Bad Request", "Idempotency-Key: it must be 1 to 255");
    }
    assert_eq!(taken(&cluster), 0);
}

#[test]
fn a_request_that_was_certainly_not_accepted_may_be_made_again_under_its_key() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    cluster.play("refuse.sbatch", "sbatch: error: Batch job submission failed: Invalid account");
    assert_eq!(served.post_as("k", &job("alice")).status, 502);
    served.post_as("k", &job("bob")).assert_problem(409, "Conflict", "another request");
    cluster.stop_playing("refuse.sbatch");
    let id = accepted(&served.post_as("k", &job("alice")));
    assert_eq!(accepted(&served.post_as("k", &job("alice"))), id);
    assert_eq!(id, "2", "the first one stays as it was: {:#}", served.job("1"));
    assert_eq!((&served.job("1")["state"], &served.job("1")["outcome"]), (&json!("finished"), &json!("failed")));
}

#[test]
fn a_job_whose_answer_was_lost_is_adopted_when_its_request_is_repeated() {
    let cluster = Cluster::new();
    // Without a watcher, so that the repetition itself finds it.
    let served = cluster.bench.serve_with(&["--only", "api,keyhole"]);
    cluster.play("lose.sbatch", "");
    cluster.play("refuse.squeue", "slurm_load_jobs error: Unable to contact slurm controller");
    let open = served.post_as("k", &job("alice"));
    open.assert_problem(503, "Service Unavailable", "repeat the request with the same key");
    assert_eq!(served.job("1")["state"], "submitted", "it is not given up");
    assert_eq!(served.post_as("k", &job("alice")).status, 503, "nobody knows yet");
    cluster.stop_playing("refuse.squeue");
    assert_eq!(accepted(&served.post_as("k", &job("alice"))), "1");
    assert_eq!(served.job("1")["scheduler-job-id"], "41");
    assert_eq!((taken(&cluster), cluster.called("scancel").len()), (1, 0));
}

#[test]
fn a_request_that_comes_again_while_it_is_under_way_makes_no_second_job() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve_with(&["--only", "api,keyhole"]);
    cluster.play("slow.sbatch", "");
    let ids = thread::scope(|scope| {
        let first = scope.spawn(|| accepted(&served.post_as("k", &job("alice"))));
        until("sbatch is at it", || (taken(&cluster) == 1).then_some(()), || served.log());
        // The scheduler shows it already, or not yet; in both cases nothing is submitted.
        let second = served.post_as("k", &job("alice"));
        assert!([200, 503].contains(&second.status), "{second:?}");
        cluster.stop_playing("slow.sbatch");
        [first.join().unwrap(), accepted(&served.post_as("k", &job("alice")))]
    });
    assert_eq!((ids, taken(&cluster)), (["1".to_owned(), "1".to_owned()], 1));
}

#[test]
fn a_user_with_too_many_jobs_gets_429_until_one_has_ended() {
    let mut cluster = Cluster::new();
    cluster.bench.set("limits", json!({"jobs-per-user": 2}));
    let served = cluster.bench.serve();
    let first = accepted(&served.post(&job("alice")));
    accepted(&served.post(&job("alice")));
    let refused = served.post(&job("alice"));
    refused.assert_problem(429, "Too Many Requests", "user alice has 2 jobs that are not finished, and may have 2 at a time");
    assert!(refused.headers.contains(r#""retry-after": "5""#), "{refused:?}");
    // The number is the same user.
    assert_eq!(served.post(&job("2001")).status, 429);
    accepted(&served.post(&job("bob")));
    assert_eq!(served.delete(&format!("/jobs/{first}")).status, 200);
    served.await_state(&first, "finished");
    accepted(&served.post(&job("alice")));
    assert_eq!(taken(&cluster), 4);
}

fn fresh(served: &Served, id: &str) -> (Value, bool) {
    let job = served.job(id);
    (job["observed-at"].clone(), job["stale"].as_bool().unwrap())
}

#[test]
fn a_job_says_when_it_was_observed_and_that_it_is_stale_when_the_scheduler_is_not_heard() {
    let mut cluster = Cluster::new();
    cluster.bench.set("watch", json!({"jobs-seconds": 0.1, "keyhole-seconds": 0.1}));
    let served = cluster.bench.serve();
    let id = accepted(&served.post(&job("alice")));
    let (first, _) = until("it was observed", || Some(fresh(&served, &id)).filter(|(at, _)| at.is_string()), || served.log());
    let later = || Some(fresh(&served, &id)).filter(|(at, _)| at.as_str() > first.as_str()).map(|(_, stale)| stale);
    assert!(!until("it is observed again", later, || served.log()));
    let before = served.job(&id);
    cluster.play("refuse.squeue", "slurm_load_jobs error: Unable to contact slurm controller");
    let stale = || Some(served.job(&id)).filter(|job| job["stale"] == true);
    let job = until("it is stale", stale, || served.log());
    assert!(job["message"].as_str().unwrap().starts_with("the scheduler has not been heard since 20"), "{job:#}");
    assert_eq!((&job["state"], &job["details"]), (&before["state"], &before["details"]), "a failed look changes nothing");
    cluster.stop_playing("refuse.squeue");
    until("it is fresh again", || (!fresh(&served, &id).1).then_some(()), || served.log());
    assert_eq!(served.delete(&format!("/jobs/{id}")).status, 200);
    let job = served.await_state(&id, "finished");
    assert_eq!((&job["observed-at"], &job["stale"]), (&job["finished-at"], &json!(false)));
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(served.job(&id)["observed-at"], job["observed-at"], "a finished job is not looked at any more");
}
