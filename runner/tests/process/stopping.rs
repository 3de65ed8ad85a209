//! SIGTERM while something is under way: what can be finished in bounded time is finished, and nothing is lost.

use crate::cluster::Cluster;
use crate::slurm::job;
use crate::world::{Bench, until};
use serde_json::json;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_slow_submission_gets_its_answer_after_sigterm() {
    let cluster = Cluster::new();
    cluster.play("slow.sbatch", "");
    let served = cluster.bench.serve();
    thread::scope(|scope| {
        let post = scope.spawn(|| served.post(&job("alice")));
        until("sbatch works", || (!cluster.called("sbatch").is_empty()).then_some(()), || served.log());
        served.signal("-TERM");
        until("it ends", || served.log().contains("SIGTERM: ending").then_some(()), || served.log());
        thread::sleep(Duration::from_secs(2));
        assert!(!post.is_finished());
        cluster.stop_playing("slow.sbatch");
        let answer = post.join().unwrap();
        assert_eq!((answer.status, &answer.body["job-id"]), (200, &json!("1")), "{answer:?}");
    });
    assert_eq!(served.wait().0, Some(0));
    assert_eq!(cluster.bench.serve().job("1")["scheduler-job-id"], "41", "it was written down before the end");
}

#[test]
fn a_submission_that_hangs_is_cut_off_and_its_job_is_found_after_the_restart() {
    let cluster = Cluster::new();
    cluster.play("slow.sbatch", "");
    let served = cluster.bench.serve();
    let (body, url) = (job("alice").to_string(), format!("{}/jobs", served.url));
    let post = thread::spawn(move || {
        let authorization = crate::world::basic("bwvisu-web", crate::world::PASSWORD);
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let request = agent.post(url).content_type("application/json").header("Authorization", authorization);
        request.send(body).map(|answer| answer.status().as_u16())
    });
    until("sbatch works", || (!cluster.called("sbatch").is_empty()).then_some(()), || served.log());
    let (code, time) = served.terminate();
    assert_eq!(code, Some(0));
    assert!(time > Duration::from_secs(15) && time < Duration::from_secs(35), "{time:?}");
    assert!(!post.join().unwrap().is_ok_and(|status| status == 200), "nobody was told that it went well");
    cluster.stop_playing("slow.sbatch");

    let served = cluster.bench.serve();
    let adopted = || Some(served.job("1")).filter(|job| job["scheduler-job-id"] == "41");
    let found = until("the job is adopted", adopted, || format!("{:#}\n{}", served.job("1"), served.log()));
    assert_eq!(found["state"], "submitted", "{found:#}");
    assert_eq!(cluster.called("sbatch").len(), 1, "it was submitted once");
}

#[test]
fn a_configuration_that_cannot_be_read_to_its_end_does_not_hold_up_the_end() {
    let bench = Bench::plain();
    let served = bench.serve();
    std::fs::remove_file(bench.path("config.json")).unwrap();
    // Who opens it waits for somebody that writes.
    assert!(Command::new("mkfifo").arg(bench.path("config.json")).status().unwrap().success());
    served.signal("-HUP");
    let reading = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", served.pid())).unwrap().flatten();
        let stuck = |wchan: String| wchan.contains("fifo") || wchan.contains("pipe");
        let mut reload = tasks.filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|n| n == "reload\n"));
        // Where the kernel does not tell, some time must do.
        reload.any(|task| stuck(std::fs::read_to_string(task.path().join("wchan")).unwrap_or_default()))
    };
    let begin = Instant::now();
    while !reading() && begin.elapsed() < Duration::from_secs(1) {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(served.get("/jobs").status, 200, "it serves meanwhile");
    let (code, time) = served.terminate();
    assert_eq!(code, Some(0));
    assert!(time < Duration::from_secs(15), "{time:?}");
}
