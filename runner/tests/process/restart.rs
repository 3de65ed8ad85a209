//! The runner ends and comes back: in order, and by `kill -9`. Jobs go on.

use crate::api::demo;
use crate::world::{Bench, Served, fetch, free_port, until, user};
use serde_json::{Value, json};
use std::time::Duration;

/// A way to end the program, and its name.
type End = (&'static str, fn(Served));

const ENDS: [End; 2] = [("SIGTERM", terminate), ("kill -9", Served::kill)];

fn terminate(served: Served) {
    let (code, time) = served.terminate();
    assert_eq!(code, Some(0));
    assert!(time < Duration::from_secs(15), "{time:?}");
}

/// Keyhole is found on the same port again.
fn bench() -> Bench {
    let mut bench = Bench::plain();
    let port = free_port();
    bench.set("keyhole-listen", format!("127.0.0.1:{port}"));
    bench.set("keyholed-servers", json!([{"ip": "127.0.0.1", "port": port}]));
    bench
}

fn as_front_ends_know_it(job: &Value) -> [&Value; 5] {
    [&job["job-id"], &job["uid"], &job["batch-script"], &job["submitted-at"], &job["scheduler-job-id"]]
}

#[test]
fn a_running_service_is_reached_again_after_a_restart_and_can_be_cancelled() {
    for (way, end) in ENDS {
        let bench = bench();
        let served = bench.serve();
        let id = served.submit(&user().name, "template_demo.txt", demo());
        let before = served.await_state(&id, "available");
        end(served);

        let served = bench.serve();
        assert_eq!(as_front_ends_know_it(&served.job(&id)), as_front_ends_know_it(&before), "{way}");
        assert_eq!(served.get("/jobs").body, json!({"jobs": [id]}), "{way}");
        let after = served.await_state(&id, "available");
        assert_eq!(after["services"], before["services"], "{way}");
        assert!(fetch(&after["services"][0]).contains("It works"), "{way}");
        assert_eq!(served.delete(&format!("/jobs/{id}")).status, 200, "{way}");
        assert_eq!(served.await_state(&id, "finished")["outcome"], "cancelled", "{way}");
        // Ids are never used twice.
        assert_eq!(
            served.submit(&user().name, "template_sleeper.txt", json!({"word": "a"})),
            "11",
            "{way}: what was taken and not used is left out"
        );
    }
}

#[test]
fn a_job_that_asks_for_its_ports_after_the_restart_becomes_available() {
    for (way, end) in ENDS {
        let bench = bench();
        let served = bench.serve();
        let mut variables = demo();
        variables["delay"] = json!("2");
        let id = served.submit(&user().name, "template_late.txt", variables);
        end(served);
        let served = bench.serve();
        let job = served.await_state(&id, "available");
        assert!(fetch(&job["services"][0]).contains("It works"), "{way}");
    }
}

#[test]
fn what_happened_while_the_runner_was_away_is_found_out() {
    let bench = bench();
    bench.template("template_brief.txt", "#!/bin/bash\nsleep 1\nexit 7\n");
    let served = bench.serve();
    let id = served.submit(&user().name, "template_brief.txt", json!({}));
    served.kill();
    std::thread::sleep(Duration::from_millis(1500));
    let served = bench.serve();
    let job = served.await_state(&id, "finished");
    assert_eq!((&job["outcome"], &job["exit-code"]), (&json!("failed"), &json!(7)));
}

#[test]
fn what_was_answered_with_success_survives_a_kill_at_once() {
    let bench = bench();
    let mut known = Vec::new();
    for _ in 0..5 {
        let served = bench.serve();
        known.push(served.submit(&user().name, "template_sleeper.txt", json!({"word": "a"})));
        served.kill();
    }
    let served = bench.serve();
    assert_eq!(served.get("/jobs").body, json!({"jobs": known}));
    for id in &known {
        assert_eq!(served.delete(&format!("/jobs/{id}")).status, 200);
    }
    let cancelled =
        served.post(&json!({"uid": user().name, "template-name": "template_sleeper.txt", "variables": {"word": "a"}}));
    let last = cancelled.body["job-id"].as_str().unwrap().to_owned();
    assert_eq!(served.delete(&format!("/jobs/{last}")).status, 200);
    served.kill();
    // The wish survives too.
    let served = bench.serve();
    until(
        "all have ended",
        || (served.get("/jobs").body == json!({"jobs": []})).then_some(()),
        || served.get("/jobs").body.to_string(),
    );
}
