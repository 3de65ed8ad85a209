//! Submitting to Slurm: what is called on the command nodes, and what follows when something goes wrong there.

use crate::cluster::{Cluster, counts};
use crate::world::{Answer, Served, until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Without watchers, so that every call is the API's own.
fn api_alone(cluster: &Cluster) -> Served {
    cluster.bench.serve_with(&["--only", "api,keyhole"])
}

pub fn job(user: &str) -> Value {
    json!({"uid": user, "template-name": "template_sleeper.txt", "variables": {"word": "a-b_c/1.2"}})
}

fn id(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["job-id"].as_str().unwrap().to_owned()
}

fn words(call: &[String]) -> Vec<&str> {
    call.iter().map(String::as_str).collect()
}

#[test]
fn a_job_is_submitted_as_its_owner_with_the_script_on_standard_input_alone() {
    let cluster = Cluster::new();
    cluster
        .bench
        .template("template_ports.txt", "#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 1\n: ${HOME}'s \"quotes\" `date` $(id) \\\n");
    let served = api_alone(&cluster);
    let answer = served.post(&json!({"uid": "2001", "template-name": "template_ports.txt", "variables": {}}));
    assert_eq!(id(&answer), "1");
    let job = served.job("1");
    assert_eq!((&job["scheduler-job-id"], &job["uid"], &job["state"]), (&json!("41"), &json!("2001"), &json!("submitted")));

    let calls = cluster.calls();
    let kinds: Vec<&str> = calls.iter().map(|call| call[0].as_str()).collect();
    assert_eq!(kinds, ["connect", "run", "getent", "connect", "run", "sudo", "sbatch"]);
    let name = calls[6][2].strip_prefix("--job-name=").unwrap();
    let (id, random) = name.strip_prefix("bwvisu-").unwrap().split_once('-').unwrap();
    assert!(id == "1" && random.len() == 12 && random.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
    let chdir = "--chdir=/srv/home_1/all.users-2/alice";
    let sbatch = ["sbatch", "--parsable", &format!("--job-name={name}"), chdir, "--output=bwvisu-job-1.out"];
    assert_eq!(words(&calls[5]), [&["sudo", "-n", "-u", "alice"], &sbatch[..]].concat());
    assert_eq!(words(&calls[6]), sbatch);
    assert_eq!(words(&calls[0]), ["connect", "runner@cmd0"]);

    let script = cluster.script("41");
    assert!(script.starts_with("#!/bin/bash\n") && script.contains(": ${HOME}'s \"quotes\" `date` $(id) \\\n"), "altered");
    let (_, token) = script.split_once("KEYHOLE_TOKEN=").unwrap();
    let token = &token[..64];
    assert!(token.bytes().all(|b| b.is_ascii_hexdigit()), "{token}");
    assert!(calls.iter().flatten().all(|word| !word.contains(token) && !word.contains("KEYHOLE")), "{calls:?}");
}

#[test]
fn two_connections_carry_many_submissions_of_two_users() {
    let connections = || {
        let cluster = Cluster::new();
        let served = api_alone(&cluster);
        for (at, user) in ["alice", "bob", "alice", "bob"].iter().enumerate() {
            assert_eq!(id(&served.post(&job(user))), (at + 1).to_string());
        }
        let owners: Vec<_> = cluster.called("sudo").iter().map(|call| call[3].clone()).collect();
        assert_eq!(owners, ["alice", "bob", "alice", "bob"]);
        // What is known of an account is believed for a while.
        assert_eq!(cluster.called("getent").len(), 2);
        cluster.called("connect").len()
    };
    counts(2, connections, "one for what is ours, one for what is users'");
}

#[test]
fn only_accounts_that_may_use_the_service_get_as_far_as_sbatch() {
    let cluster = Cluster::new();
    let served = api_alone(&cluster);
    served.post(&job("sys")).assert_problem(400, "Bad Request", "uid: sys has user id 99, below 1000");
    served.post(&job("99")).assert_problem(400, "Bad Request", "system accounts may not submit jobs");
    served.post(&job("carol")).assert_problem(400, "Bad Request", "there is no user carol");
    assert_eq!(served.get("/cluster/check-user/alice").body, json!({"response": "success"}));
    served.get("/cluster/check-user/carol").assert_problem(404, "Not Found", "there is no user carol");
    served.get("/cluster/check-user/sys").assert_problem(404, "Not Found", "below 1000");
    assert!(cluster.called("sbatch").is_empty());
}

#[test]
fn what_sbatch_refuses_is_told_and_tried_on_no_other_node() {
    let cluster = Cluster::new();
    let words = "sbatch: error: invalid partition specified: gone\nsbatch: error: Batch job submission failed: Invalid partition name specified";
    cluster.play("refuse.sbatch", words);
    let served = api_alone(&cluster);
    served.post(&job("alice")).assert_problem(
        502,
        "Bad Gateway",
        "Batch job submission failed: Invalid partition name specified",
    );
    assert_eq!(cluster.called("sbatch").len(), 1);
    assert!(cluster.called("connect").iter().all(|call| call[1] == "runner@cmd0"));
    let job = served.job("1");
    assert_eq!((&job["state"], &job["outcome"]), (&json!("finished"), &json!("failed")));
    assert!(job["message"].as_str().unwrap().contains("Invalid partition name"), "{job:#}");
    assert_eq!(served.get("/jobs").body, json!({"jobs": []}));
}

#[test]
fn the_second_command_node_takes_the_job_in_the_same_request_when_the_first_is_down() {
    let connections = || {
        let cluster = Cluster::new();
        cluster.play("down.cmd0", "");
        let served = api_alone(&cluster);
        id(&served.post(&job("alice")));
        assert_eq!(cluster.called("sbatch").len(), 1);
        // The node that failed is asked last for a while, although it is back.
        cluster.stop_playing("down.cmd0");
        id(&served.post(&job("alice")));
        cluster.called("connect")
    };
    let expected = vec![["connect", "runner@cmd1"].map(str::to_owned).to_vec(); 2];
    counts(expected, connections, "one for us, one for users");
}

#[test]
fn a_command_node_that_dies_between_two_requests_costs_no_request() {
    let connections = || {
        let cluster = Cluster::new();
        let served = api_alone(&cluster);
        id(&served.post(&job("alice")));
        cluster.play("down.cmd0", "");
        id(&served.post(&job("alice")));
        assert_eq!(cluster.called("sbatch").len(), 2);
        cluster.called("connect")
    };
    let expected = ["cmd0", "cmd0", "cmd1"].map(|node| vec!["connect".to_owned(), format!("runner@{node}")]);
    counts(expected.to_vec(), connections, "two to the first node, and one to the second when the first is dead");
}

#[test]
fn without_any_command_node_the_answer_is_503_with_the_reason() {
    let cluster = Cluster::new();
    cluster.play("down.cmd0", "");
    cluster.play("down.cmd1", "");
    let served = api_alone(&cluster);
    let answer = served.post(&job("alice"));
    answer.assert_problem(503, "Service Unavailable", "no command node could do it: cmd0 cannot be reached by ssh");
    assert!(answer.body["detail"].as_str().unwrap().contains("cmd1 cannot be reached"), "{answer:?}");
    assert!(answer.headers.contains("retry-after"), "{answer:?}");
    assert!(served.log().contains("Connection refused"), "{}", served.log());
    served.get("/cluster/check-user/alice").assert_problem(503, "Service Unavailable", "no command node");
    assert_eq!(served.get("/jobs").body, json!({"jobs": []}));
    // By itself, once a node is back.
    cluster.stop_playing("down.cmd1");
    id(&served.post(&job("alice")));
}

#[test]
fn a_node_whose_slurm_does_not_answer_is_passed_over_before_anything_happened() {
    let cluster = Cluster::new();
    for (at, words) in [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sudo: a password is required",
        "sh: 1: sbatch: not found",
    ]
    .iter()
    .enumerate()
    {
        cluster.play("refuse.sbatch", words);
        let served = api_alone(&cluster);
        served.post(&job("alice")).assert_problem(503, "Service Unavailable", words);
        assert_eq!(cluster.called("sbatch").len(), 2 * (at + 1), "both nodes are tried: {words}");
        cluster.stop_playing("refuse.sbatch");
    }
}

#[test]
fn a_submission_whose_answer_is_lost_is_found_by_its_name_and_never_repeated() {
    let cluster = Cluster::new();
    cluster.play("lose.sbatch", "");
    let served = api_alone(&cluster);
    let id = id(&served.post(&job("alice")));
    assert_eq!(cluster.called("sbatch").len(), 1);
    let job = served.job(&id);
    assert_eq!((&job["scheduler-job-id"], &job["state"]), (&json!("41"), &json!("submitted")), "{job:#}");
    let name = cluster.called("sbatch")[0][2].strip_prefix("--job-name=").unwrap().to_owned();
    assert!(cluster.called("squeue")[0].contains(&format!("--name={name}")), "{:?}", cluster.called("squeue"));
}

#[test]
fn a_lost_submission_that_is_somebody_elses_by_name_is_not_taken_for_ours() {
    let cluster = Cluster::new();
    cluster.play("lose-before.sbatch", "");
    let served = cluster.bench.serve();
    let answer = std::thread::scope(|scope| {
        let posted = scope.spawn(|| served.post(&job("alice")));
        let name = until(
            "sbatch is called",
            || cluster.called("sbatch").first().map(|call| call[2].replace("--job-name=", "")),
            || served.log(),
        );
        cluster.add_foreign("900", &name, "bob", "RUNNING");
        posted.join().unwrap()
    });
    answer.assert_problem(503, "Service Unavailable", "the scheduler does not show the job");
    assert_eq!((cluster.called("sbatch").len(), served.job("1")["scheduler-job-id"].is_null()), (1, true));
    assert!(cluster.called("scancel").is_empty());

    // It turns up after all: nobody waits for it any more.
    let name = cluster.called("sbatch")[0][2].replace("--job-name=", "");
    cluster.add_foreign("41", &name, "alice", "PENDING");
    served.await_state("1", "finished");
    assert_eq!(served.job("1")["outcome"], "cancelled");
    // A look that had begun before may have told it once more.
    let told = cluster.called("scancel");
    assert!(!told.is_empty() && told.iter().all(|call| call[1..] == ["41"]), "{told:?}");
    assert_eq!(served.job("1")["scheduler-job-id"], "41");
}

#[test]
fn a_job_that_slurm_takes_after_it_was_given_up_is_cancelled() {
    let cluster = Cluster::new();
    cluster.play("slow.sbatch", "");
    // No look may come between and find 41.
    cluster.play("hang.squeue", "");
    let served = cluster.bench.serve();
    let answer = std::thread::scope(|scope| {
        let posted = scope.spawn(|| served.post(&job("alice")));
        let taken = || cluster.bench.path("fake/queue/41/Name").exists().then_some(());
        until("sbatch has it", taken, || served.log());
        // Its record ends with another one of the same name before sbatch answers.
        let name = cluster.called("sbatch")[0][2].replace("--job-name=", "");
        cluster.forget("41");
        cluster.add_foreign("900", &name, "alice", "FAILED");
        cluster.stop_playing("hang.squeue");
        served.await_state("1", "finished");
        cluster.show("900", "Name", "other");
        std::fs::rename(cluster.bench.path("fake/gone.41"), cluster.bench.path("fake/queue/41")).unwrap();
        cluster.stop_playing("slow.sbatch");
        posted.join().unwrap()
    });
    answer.assert_problem(503, "Service Unavailable", "it had been given up");
    assert_eq!(cluster.called("scancel"), [["scancel", "41"]]);
}

#[test]
fn a_cancel_is_carried_out_as_the_owner_and_repeated_when_it_could_not_be() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    let first = id(&served.post(&job("bob")));
    let answer = served.delete(&format!("/jobs/{first}"));
    assert_eq!((answer.status, &answer.body), (200, &json!({"response": "job cancelled"})));
    assert!(cluster.called("sudo").iter().any(|call| words(call) == ["sudo", "-n", "-u", "bob", "scancel", "41"]));
    assert_eq!(served.await_state(&first, "finished")["outcome"], "cancelled");

    let second = id(&served.post(&job("bob")));
    cluster.play("refuse.scancel", "scancel: error: slurm_kill_job2: Unable to contact slurm controller (connect failure)");
    let answer = served.delete(&format!("/jobs/{second}"));
    answer.assert_problem(503, "Service Unavailable", "the cancellation is noted and will be repeated");
    assert_eq!(served.job(&second)["message"], "being cancelled");
    cluster.stop_playing("refuse.scancel");
    assert_eq!(served.await_state(&second, "finished")["outcome"], "cancelled");
}

#[test]
fn cancelling_a_job_that_slurm_has_forgotten_is_no_error() {
    let cluster = Cluster::new();
    let served = api_alone(&cluster);
    let id = id(&served.post(&job("alice")));
    cluster.forget("41");
    assert_eq!(served.delete(&format!("/jobs/{id}")).status, 200);
}

#[test]
fn who_has_too_many_jobs_costs_the_command_nodes_nothing() {
    let mut cluster = Cluster::new();
    cluster.bench.set("limits", json!({"jobs-per-user": 1}));
    let served = api_alone(&cluster);
    id(&served.post(&job("alice")));
    for refused in [served.post(&job("alice")), served.post_as("a key", &job("alice"))] {
        refused.assert_problem(429, "Too Many Requests", "user alice has 1 jobs");
    }
    assert_eq!(cluster.called("sbatch").len(), 1);
    assert_eq!(served.post(&job("bob")).status, 200);
}

#[test]
fn a_cluster_that_hangs_leaves_room_for_those_who_look_at_jobs() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    assert_eq!(served.post(&job("alice")).status, 200);
    cluster.play("hang.sbatch", "");
    std::thread::scope(|scope| {
        let posts: Vec<_> = (0..40).map(|_| scope.spawn(|| served.post(&job("alice")))).collect();
        until("sbatch hangs", || (cluster.called("sbatch").len() > 8).then_some(()), || served.log());
        // Those who find no room are told so, after two seconds at most.
        until("16 are told", || (posts.iter().filter(|post| post.is_finished()).count() == 16).then_some(()), || served.log());
        let begin = Instant::now();
        let looks: Vec<_> = (0..10).map(|_| (served.get("/jobs").status, served.get("/jobs/1").status)).collect();
        let time = begin.elapsed();
        cluster.stop_playing("hang.sbatch");
        assert_eq!((looks, time < Duration::from_secs(15)), (vec![(200, 200); 10], true), "{time:?}");
        let (taken, refused): (Vec<_>, Vec<_>) =
            posts.into_iter().map(|post| post.join().unwrap()).partition(|answer| answer.status == 200);
        assert_eq!((taken.len(), refused.len()), (24, 16), "{refused:?}");
        for answer in refused {
            answer.assert_problem(429, "Too Many Requests", "24 submissions are under way already");
            assert!(answer.headers.contains("retry-after"), "{}", answer.headers);
        }
    });
}
