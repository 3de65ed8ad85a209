//! Watching Slurm: what looks at the queue do to jobs, and what they must not do.

use crate::cluster::Cluster;
use crate::slurm::job;
use crate::world::{Served, until};
use serde_json::{Value, json};

/// A cluster with one running job: ours is 1, Slurm's 41.
fn running() -> (Cluster, Served) {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    assert_eq!(served.post(&job("alice")).status, 200);
    run(&cluster);
    served.await_state("1", "running");
    (cluster, served)
}

fn run(cluster: &Cluster) {
    cluster.show("41", "NodeList", "c[0-1]");
    cluster.show("41", "State", "RUNNING");
}

fn name(cluster: &Cluster) -> String {
    cluster.called("sbatch")[0][2].replace("--job-name=", "")
}

#[test]
fn a_jobs_states_details_and_reasons_follow_slurm() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    served.post(&job("alice"));
    let waits = || Some(served.job("1")).filter(|job| job["message"].as_str().unwrap().contains("Priority"));
    let waiting = until("it says why it waits", waits, || served.log());
    assert_eq!(waiting["state"], "submitted");
    run(&cluster);
    cluster.show("41", "Partition", "gpu");
    let job = served.await_state("1", "running");
    assert_eq!((&job["details"]["NodeList"], &job["details"]["State"]), (&json!("c[0-1]"), &json!("RUNNING")));
    assert!(job["started-at"].is_string() && job["message"].as_str().unwrap().contains("/alice/bwvisu-job-1.out"), "{job:#}");
    for word in ["SUSPENDED", "RESIZING", "STOPPED", "SIGNALING"] {
        cluster.show("41", "State", word);
        let follows = || (served.job("1")["details"]["State"] == word).then_some(());
        until("the details follow", follows, || served.log());
        assert_eq!(served.job("1")["state"], "running", "{word}");
    }
    cluster.show("41", "State", "COMPLETING");
    served.await_state("1", "completing");
    cluster.show("41", "exit_code", "768");
    cluster.show("41", "Reason", "NonZeroExitCode");
    cluster.show("41", "State", "FAILED");
    let job = served.await_state("1", "finished");
    assert_eq!((&job["outcome"], &job["exit-code"]), (&json!("failed"), &json!(3)), "{job:#}");
    assert_eq!(served.get("/jobs").body, json!({"jobs": []}));
    // Without jobs nothing is asked.
    let looks = cluster.called("squeue").len();
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert!(cluster.called("squeue").len() <= looks + 1);
}

#[test]
fn every_way_to_end_has_its_outcome() {
    let ends = [
        ("COMPLETED", "completed"),
        ("CANCELLED", "cancelled"),
        ("CANCELLED by 2001", "cancelled"),
        ("TIMEOUT", "timeout"),
        ("OUT_OF_MEMORY", "out-of-memory"),
        ("NODE_FAIL", "node-fail"),
        ("BOOT_FAIL", "boot-fail"),
        ("DEADLINE", "deadline"),
        ("PREEMPTED", "preempted"),
    ];
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    for (at, (word, _)) in ends.iter().enumerate() {
        assert_eq!(served.post(&job("alice")).status, 200);
        cluster.show(&(41 + at).to_string(), "State", word);
    }
    for (at, (word, outcome)) in ends.iter().enumerate() {
        assert_eq!(served.await_state(&(at + 1).to_string(), "finished")["outcome"], *outcome, "{word}");
    }
}

#[test]
fn a_state_that_nobody_knows_keeps_the_last_one_and_is_logged_once() {
    let (cluster, served) = running();
    cluster.show("41", "State", "LEVITATING");
    cluster.looks(4);
    assert_eq!(served.job("1")["state"], "running");
    let lines = served.log().lines().filter(|line| line.contains("LEVITATING")).count();
    assert_eq!(lines, 1, "{}", served.log());
    cluster.show("41", "State", "COMPLETED");
    served.await_state("1", "finished");
}

/// The job, but for when it was looked at.
fn unobserved(served: &Served) -> Value {
    let mut job = served.job("1");
    for member in ["observed-at", "stale", "message"] {
        assert!(job.as_object_mut().unwrap().remove(member).is_some(), "{member}");
    }
    job
}

#[test]
fn a_look_that_failed_or_cannot_be_read_changes_nothing() {
    let (cluster, served) = running();
    let before = unobserved(&served);
    let half = "41|bwvisu-1-";
    for text in
        ["garbage\n", half, &format!("{half}\n"), "\n\n", "slurm_load_jobs error: Socket timed out\n", "41|x|alice|FAILED|\n"]
    {
        cluster.play("squeue.text", text);
        cluster.looks(3);
        assert_eq!(unobserved(&served), before, "{text:?}");
    }
    cluster.stop_playing("squeue.text");
    for (number, text) in ["garbage\n", half, "41|x|alice|FAILED|\n"].into_iter().enumerate() {
        cluster.play("details.text", text);
        // The overview says that there is something new.
        cluster.show("41", "NodeList", &format!("n{number}"));
        cluster.looks(4);
        assert_eq!(unobserved(&served), before, "{text:?}");
    }
    cluster.stop_playing("details.text");
    until("the details follow", || (served.job("1")["details"]["NodeList"] == "n2").then_some(()), || served.log());
    let before = unobserved(&served);
    cluster.play("refuse.squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)");
    cluster.looks(4);
    assert_eq!(unobserved(&served), before);
    assert!(served.log().contains("Unable to contact slurm controller"), "{}", served.log());
    cluster.stop_playing("refuse.squeue");
    cluster.play("down.cmd0", "");
    cluster.play("down.cmd1", "");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(unobserved(&served), before);
}

#[test]
fn a_job_that_is_missing_in_one_look_is_still_there() {
    let (cluster, served) = running();
    for _ in 0..3 {
        cluster.play("blind.squeue", "");
        cluster.looks(3);
        assert!(!cluster.bench.path("fake/blind.squeue").exists(), "the empty look was never taken");
        assert_eq!(served.job("1")["state"], "running");
    }
}

#[test]
fn a_job_that_is_missing_in_two_looks_has_finished_nobody_knows_how() {
    let (cluster, served) = running();
    cluster.forget("41");
    let job = served.await_state("1", "finished");
    assert_eq!((&job["outcome"], job["exit-code"].is_null()), (&json!("unknown"), true));
    assert!(job["message"].as_str().unwrap().contains("bwvisu-job-1.out"), "{job:#}");
}

#[test]
fn jobs_of_others_are_never_taken_for_ours_whatever_their_names() {
    let (cluster, served) = running();
    cluster.add_foreign("77", &name(&cluster), "bob", "FAILED");
    cluster.add_foreign("78", &name(&cluster), "alice", "FAILED");
    cluster.add_foreign("79", "somebodys-job", "alice", "RUNNING");
    cluster.looks(4);
    let job = served.job("1");
    assert_eq!((&job["state"], &job["scheduler-job-id"]), (&json!("running"), &json!("41")), "{job:#}");
    assert_eq!(served.get("/jobs").body, json!({"jobs": ["1"]}));
    served.delete("/jobs/1");
    served.await_state("1", "finished");
    // The watcher may have told it once more.
    let told = cluster.called("scancel");
    assert!(!told.is_empty() && told.iter().all(|call| call[1..] == ["41"]), "{told:?}");
}

#[test]
fn nothing_that_a_jobs_owner_may_write_freely_is_asked_for() {
    let (cluster, _served) = running();
    cluster.looks(3);
    let calls = cluster.called("squeue");
    let mut overviews = 0;
    for call in &calls {
        let format = call.iter().find(|word| word.starts_with("--Format=")).unwrap();
        for field in ["WorkDir", "Comment", "Command", "StdOut", "StdErr", "StdIn", "Dependency", "Feature", "Licenses", "WCKey"]
        {
            assert!(!format.contains(&format!("{field}:")), "{field} in {format}");
        }
        // The name is the exception where exact names are asked for: it is matched whole.
        let named = call.iter().any(|word| word.starts_with("--name="));
        assert_eq!(format.contains(",Name:"), named, "{call:?}");
        overviews += usize::from(!named);
    }
    assert!(overviews > 0 && overviews < calls.len(), "{calls:?}");
}

#[test]
fn a_requeued_job_is_submitted_again_and_then_runs_again() {
    let (cluster, served) = running();
    cluster.show("41", "RestartCnt", "1");
    cluster.show("41", "NodeList", "");
    cluster.show("41", "Reason", "BeginTime");
    cluster.show("41", "State", "PENDING");
    let job = served.await_state("1", "submitted");
    assert!(job["started-at"].is_null() && job["message"].as_str().unwrap().contains("BeginTime"), "{job:#}");
    run(&cluster);
    assert!(served.await_state("1", "running")["started-at"].is_string());
}

#[test]
fn a_job_whose_submission_a_crash_cut_off_is_adopted() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    // The answer does not come until the runner is gone: sbatch has the job, the store only its name.
    cluster.play("slow.sbatch", "");
    std::thread::scope(|scope| {
        let url = served.url.clone();
        scope.spawn(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
            let request = agent.post(format!("{url}/jobs")).content_type("application/json");
            let authorization = crate::world::basic("bwvisu-web", crate::world::PASSWORD);
            assert!(request.header("Authorization", authorization).send(job("alice").to_string()).is_err());
        });
        let taken = || cluster.bench.path("fake/queue/41/Name").exists().then_some(());
        until("sbatch has it", taken, || format!("{:?}", cluster.calls()));
        served.kill();
    });
    cluster.stop_playing("slow.sbatch");
    let served = cluster.bench.serve();
    run(&cluster);
    assert_eq!(served.await_state("1", "running")["scheduler-job-id"], "41");
    assert_eq!(cluster.called("sbatch").len(), 1);
}

#[test]
fn a_look_at_several_jobs_of_which_one_cannot_be_asked_for_says_nothing_of_any() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    let (ids, jobs) = (["41", "42", "43", "44", "45", "46"], ["1", "2", "3", "4", "5", "6"]);
    for id in ids {
        assert_eq!(served.post(&job("alice")).status, 200);
        cluster.show(id, "State", "RUNNING");
    }
    let shown = |field: &str| jobs.map(|job| served.job(job)["details"][field].as_str().unwrap_or_default().to_owned());
    let all = |field: &str, value: &str| shown(field).iter().all(|shown| shown == value).then_some(());
    until("all jobs to be seen", || all("State", "RUNNING"), || served.log());
    cluster.hold("squeue");
    let before = cluster.called("squeue").len();
    cluster.play("refuse.job.44", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)");
    ids.iter().for_each(|id| cluster.show(id, "NodeList", "c5"));
    cluster.release("squeue");
    cluster.looks(4);
    let asked = cluster.called("squeue").split_off(before);
    assert!(ids.iter().all(|id| asked.iter().flatten().any(|word| *word == format!("--jobs={id}"))), "{asked:?}");
    assert!(shown("NodeList").iter().all(|nodes| nodes != "c5"), "{:?}", shown("NodeList"));
    assert!(jobs.iter().all(|job| served.job(job)["state"] == "running"));
    cluster.stop_playing("refuse.job.44");
    until("all to be seen on their new node", || all("NodeList", "c5"), || served.log());
}

#[test]
fn many_jobs_cost_one_overview_per_look_and_one_question_for_what_changed() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    for number in 0..12 {
        assert_eq!(served.post(&job("alice")).status, 200);
        // Those that run are not asked for again for a minute without a reason.
        cluster.show(&(41 + number).to_string(), "State", "RUNNING");
    }
    let known = || (1..=12).all(|id| served.job(&id.to_string())["details"]["State"] == "RUNNING").then_some(());
    until("all jobs to be seen", known, || served.log());
    cluster.looks(2);
    let questions = |since: usize| cluster.called("squeue").split_off(since);
    let about = |call: &Vec<String>, word: &str| call.iter().find_map(|part| part.strip_prefix(word)).map(str::to_owned);
    let quiet = cluster.called("squeue").len();
    cluster.looks(4);
    assert!(questions(quiet).iter().all(|call| about(call, "--name=").is_none()), "{:?}", questions(quiet));
    for (ids, asked) in [(41..=51, 11), (52..=52, 1)] {
        // All change between two looks.
        cluster.hold("squeue");
        let before = cluster.called("squeue").len();
        ids.clone().for_each(|id| cluster.show(&id.to_string(), "NodeList", "c5"));
        cluster.release("squeue");
        cluster.looks(4);
        let names: Vec<String> = questions(before).iter().filter_map(|call| about(call, "--name=")).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(names[0].split(',').count(), asked, "{names:?}");
    }
    let last = questions(quiet);
    assert!(
        last.iter().any(|call| about(call, "--jobs=").as_deref() == Some("52")),
        "a single job is asked for by its id: {last:?}"
    );
}
