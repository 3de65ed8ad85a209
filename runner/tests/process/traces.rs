//! What a request leaves behind in the log: a line of its own, and its id in every line that it causes.

use crate::cluster::Cluster;
use crate::world::{Bench, Served, until};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

/// The lines that bear this id, the last of which is the request's own.
fn lines_of(served: &Served, id: &str) -> Vec<String> {
    let found = || served.log().lines().filter(|line| line.ends_with(&format!("[{id}]"))).map(str::to_owned).collect::<Vec<_>>();
    until(
        "the request's lines",
        || Some(found()).filter(|lines| lines.iter().any(|line| line.contains("INFO  api: "))),
        || served.log(),
    )
}

#[test]
fn an_id_leads_from_the_answer_through_the_log_down_to_the_command_on_another_machine() {
    let cluster = Cluster::new();
    cluster.play("refuse.sbatch", "sbatch: error: Batch job submission failed: no");
    let served = cluster.bench.serve_with(&["--only", "api,keyhole"]);
    let answer = served.post(&crate::slurm::job("alice"));
    answer.assert_problem(502, "Bad Gateway", "Batch job submission failed");
    let lines = lines_of(&served, &answer.id);
    for words in ["ssh cmd0: getent", "sbatch --parsable", "WARN  POST /jobs from 127.0.0.1: ", "api: POST /jobs 502, "] {
        assert!(lines.iter().any(|line| line.contains(words)), "{words}: {lines:#?}\n{}", served.log());
    }
    let ssh: Vec<_> = served.log().lines().filter(|line| line.contains(" ssh cmd")).map(str::to_owned).collect();
    assert!(ssh.iter().all(|line| line.ends_with(&format!("[{}]", answer.id)) && line.contains(" ms ")), "{ssh:#?}");
}

#[test]
fn a_front_end_may_name_its_request_and_strangers_may_not() {
    let bench = Bench::plain();
    let served = bench.serve_with(&["--only", "api,keyhole"]);
    for good in ["a", "front-end_17.x", &"x".repeat(64)] {
        assert_eq!(served.get_named(good, "/jobs").id, good);
        assert!(lines_of(&served, good)[0].contains("INFO  api: GET /jobs 200, "), "{}", served.log());
    }
    for bad in ["two words", &"x".repeat(65), "a]", ""] {
        let answer = served.get_named(bad, "/jobs/x");
        answer.assert_problem(404, "Not Found", "");
        assert_eq!(answer.id.len(), 16, "{bad:?}: {answer:?}");
    }
    let stranger = served.raw("GET /jobs HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nConnection: close\r\n\r\n");
    assert!(stranger.starts_with("HTTP/1.1 401 ") && !stranger.contains("mine"), "{stranger}");
    let twice = format!(
        "GET /jobs HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\nX-Request-Id: a\r\nX-Request-Id: b\r\nConnection: close\r\n\r\n",
        served.password()
    );
    let answer = served.raw(&twice);
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("X-Request-Id: a\r\n"), "{answer}");
}

#[test]
fn what_the_guard_refuses_has_an_id_and_a_line_too_and_a_flood_of_it_few_lines() {
    let bench = Bench::plain();
    let served = bench.serve_with(&["--only", "api,keyhole"]);
    let answer = served.raw("GET /a b HTTP/1.1\r\n\r\n");
    let id = answer.split("X-Request-Id: ").nth(1).unwrap().split("\r\n").next().unwrap();
    assert!(answer.contains(&format!("\"request-id\":\"{id}\"")), "{answer}");
    assert!(lines_of(&served, id)[0].contains("INFO  api: - - 400, "), "{}", served.log());
    (0..200).for_each(|_| drop(served.raw("GET /a b HTTP/1.1\r\n\r\n")));
    let lines = served.log().lines().filter(|line| line.contains(" api: - - 400, ")).count();
    assert!((2..=64).contains(&lines), "{lines} lines");
    // Who knows the password has a line for each request meanwhile.
    (0..40).for_each(|at| drop(served.get_named(&format!("known-{at}"), "/jobs")));
    (0..40).for_each(|at| drop(lines_of(&served, &format!("known-{at}"))));
}

#[test]
fn a_log_for_programs_is_an_object_per_line_with_the_values_of_each_request() {
    let bench = Bench::plain();
    let served = bench.serve_with(&["--log-format", "json"]);
    served.get_named("r-1", "/jobs/7?x=1").assert_problem(404, "Not Found", "");
    let objects = || served.log().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>();
    let access = || objects().into_iter().find(|line| line["target"] == "access");
    let line = until("the access line", access, || served.log());
    for (member, expected) in [
        ("level", "info"),
        ("request-id", "r-1"),
        ("listener", "api"),
        ("method", "GET"),
        ("path", "/jobs/7?x=1"),
        ("route", "/jobs/<id>"),
        ("client", "127.0.0.1"),
        ("user", "bwvisu-web"),
    ] {
        assert_eq!(line[member], expected, "{line:#}");
    }
    assert_eq!(line["status"], 404);
    assert!(line["ms"].is_u64() && line["bytes"].as_u64().is_some_and(|bytes| bytes > 50), "{line:#}");
    assert!(objects().iter().all(|line| line["time"].is_string() && line["message"].is_string()), "{}", served.log());
}

#[test]
fn priorities_are_written_where_stderr_is_the_journal_and_nowhere_else() {
    let bench = Bench::plain();
    let file = bench.path("journal");
    for (device, priorities) in [(0, true), (1, false)] {
        let log = File::create(&file).unwrap();
        let found = log.metadata().unwrap();
        let mut command = bench.command();
        command.arg("serve").env("JOURNAL_STREAM", format!("{}:{}", found.dev() + device, found.ino())).stderr(log);
        let mut child = command.spawn().unwrap();
        let text = || fs::read_to_string(&file).unwrap();
        until("it is ready", || text().contains("ready\n").then_some(()), text);
        child.kill().unwrap();
        child.wait().unwrap();
        let begins = |line: &str| line.starts_with("<6>INFO  ") || line.starts_with("<4>WARN  ");
        assert!(text().lines().all(|line| begins(line) == priorities), "{}", text());
    }
}

#[test]
fn the_cycles_of_watchers_have_ids_too() {
    let bench = Bench::plain();
    let served = bench.serve();
    let id = served.submit(&crate::world::user().name, "template_sleeper.txt", json!({"word": "x"}));
    served.await_state(&id, "running");
    let line = || served.log().lines().find(|line| line.contains("INFO  job 1: Running")).map(str::to_owned);
    let line = until("the watcher says so", line, || served.log());
    assert!(line.contains(" [jobs-watch-default-"), "{line}");
}
