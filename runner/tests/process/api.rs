//! The API as front ends use it: routes, states, answers, over TLS and plain.

use crate::world::{Bench, PASSWORD, Served, basic, fetch, until, user};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpStream;

pub fn demo() -> Value {
    json!({"expected_runtime_in_minutes": "5", "number_of_nodes": "1", "tasks_per_node": "1"})
}

/// An RFC 3339 time in UTC, to the second.
fn is_time(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    text.len() == 20 && text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok()
}

fn assert_members(job: &Value, id: &str) {
    let expected = json!({"template-name": "template_demo.txt", "variables": demo()});
    assert_eq!((&job["job-id"], &job["uid"], &job["batch-script"]), (&json!(id), &json!(user().name), &expected));
    assert!(job["services"].is_array() && job["details"].is_object() && job["message"].is_string(), "{job:#}");
    assert!(is_time(&job["submitted-at"]), "{job:#}");
}

fn connects(service: &Value) -> bool {
    TcpStream::connect(("127.0.0.1", service["external-port"].as_u64().unwrap() as u16)).is_ok()
}

/// One job from its submission to its end.
fn whole_way(served: &Served) {
    assert_eq!(served.get("/jobs").body, json!({"jobs": []}));
    let accepted = served.post(&json!({"uid": user().name, "template-name": "template_demo.txt", "variables": demo()}));
    assert_eq!((accepted.status, accepted.kind.as_str()), (200, "application/json"), "{accepted:?}\n{}", served.log());
    assert_eq!(accepted.body, json!({"job-id": "1"}));
    assert_eq!(served.get("/jobs").body, json!({"jobs": ["1"]}));
    assert_members(&served.job("1"), "1");

    let job = served.await_state("1", "available");
    assert_members(&job, "1");
    let service = &job["services"][0];
    assert!(service["internal-port"].is_u64() && service["external-port"].is_u64(), "{job:#}");
    assert_eq!((&service["external-ip"], job["services"].as_array().unwrap().len()), (&json!("127.0.0.1"), 1));
    assert!(is_time(&job["started-at"]) && is_time(&job["available-at"]) && job["finished-at"].is_null(), "{job:#}");
    assert!(job["scheduler-job-id"].is_string() && job["outcome"].is_null(), "{job:#}");
    assert!(!job["details"].as_object().unwrap().is_empty(), "{job:#}");
    assert!(fetch(service).contains("It works"));

    assert_eq!(served.delete("/jobs/1").body, json!({"response": "job cancelled"}));
    let job = served.await_state("1", "finished");
    assert_eq!((&job["outcome"], is_time(&job["finished-at"])), (&json!("cancelled"), true), "{job:#}");
    assert!(job["message"].as_str().unwrap().contains("bwvisu-job-1.out"), "{job:#}");
    until("the port is closed", || (!connects(service)).then_some(()), || served.log());
    assert_eq!(served.get("/jobs").body, json!({"jobs": []}));
}

#[test]
fn a_job_goes_the_whole_way_over_tls_with_a_certificate_that_the_client_pins() {
    let bench = Bench::new();
    let served = bench.serve();
    assert!(served.url.starts_with("https://"));
    whole_way(&served);
    assert!(bench.home().join("bwvisu-job-1.out").exists(), "the log is not where it should be");
}

#[test]
fn a_job_goes_the_whole_way_over_plain_http() {
    let bench = Bench::plain();
    whole_way(&bench.serve());
}

#[test]
fn static_forwarding_always_gives_the_first_port_and_warns_loudly() {
    let mut bench = Bench::plain();
    bench.set("debug", json!({"keyholed-static-forwarding": "True"}));
    let served = bench.serve();
    assert!(served.log().contains("WARN  static forwarding is on"), "{}", served.log());
    let first = bench.config["keyholed-port-range"]["min"].clone();
    for id in ["1", "2"] {
        served.submit(&user().name, "template_demo.txt", demo());
        assert_eq!(served.await_state(id, "available")["services"][0]["internal-port"], first);
        served.delete(&format!("/jobs/{id}"));
        let service = served.await_state(id, "finished")["services"][0].clone();
        until("the port is closed", || (!connects(&service)).then_some(()), || served.log());
    }
}

#[test]
fn a_client_that_does_not_know_the_certificate_does_not_connect() {
    let bench = Bench::new();
    let served = bench.serve();
    let stranger: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
    let error = stranger.get(format!("{}/jobs", served.url)).header("Authorization", basic("bwvisu-web", PASSWORD)).call();
    assert!(error.unwrap_err().to_string().contains("certificate"), "not refused");
    let plain = served.raw("GET /jobs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(!plain.contains("jobs"), "{plain:?}");
}

#[test]
fn the_certificate_is_kept_over_restarts_so_that_it_can_be_pinned() {
    let bench = Bench::new();
    let first = bench.serve();
    let certificate = fs::read(bench.path("state/tls/certificate.pem")).unwrap();
    first.terminate();
    let second = bench.serve();
    assert_eq!(fs::read(bench.path("state/tls/certificate.pem")).unwrap(), certificate);
    assert_eq!(second.get("/jobs").status, 200);
}

#[test]
fn a_job_without_ports_runs_and_completes_with_its_exit_code() {
    let bench = Bench::plain();
    bench.template("template_good.txt", "#!/bin/bash\necho fine\n");
    bench.template("template_bad.txt", "#!/bin/bash\nexit 3\n");
    let served = bench.serve();
    for (template, outcome, code) in [("template_good.txt", "completed", 0), ("template_bad.txt", "failed", 3)] {
        let id = served.submit(&user().name, template, json!({}));
        let job = served.await_state(&id, "finished");
        assert_eq!((&job["outcome"], &job["exit-code"]), (&json!(outcome), &json!(code)), "{job:#}");
        assert_eq!((&job["services"], job["available-at"].is_null()), (&json!([]), true));
    }
}

#[test]
fn a_job_that_exceeds_its_time_ends_with_timeout() {
    let bench = Bench::plain();
    bench.template("template_short.txt", "#!/bin/bash\n#SBATCH --time=0:01\nexec sleep 60\n");
    let served = bench.serve();
    let id = served.submit(&user().name, "template_short.txt", json!({}));
    assert_eq!(served.await_state(&id, "finished")["outcome"], "timeout");
}

#[test]
fn cancelled_finished_and_unknown_jobs_cannot_be_cancelled() {
    let bench = Bench::plain();
    let served = bench.serve();
    let id = served.submit(&user().name, "template_sleeper.txt", json!({"word": "a"}));
    served.await_state(&id, "running");
    assert_eq!(served.delete(&format!("/jobs/{id}")).status, 200);
    served.await_state(&id, "finished");
    for id in [id.as_str(), "2", "0", "01", "-1", "1x", "x", "", "99999999999999999999", "18446744073709551616", "1%20", "%31"] {
        served.delete(&format!("/jobs/{id}")).assert_problem(404, "Not Found", "no such running job");
    }
    assert_eq!(served.delete("/jobs/2").body["detail"], "no such running job");
}

#[test]
fn job_ids_that_are_none_are_not_found() {
    let bench = Bench::plain();
    let served = bench.serve();
    for id in ["1", "0", "01", "-1", "1x", "x", "", "99999999999999999999", "1%20", "..", "%2e%2e", "1.0", "+1"] {
        let answer = served.raw(&format!(
            "GET /jobs/{id} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
            basic("bwvisu-web", PASSWORD)
        ));
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains(r#""detail":"no such job""#), "{id:?}: {answer}");
    }
}

#[test]
fn users_are_checked_by_name_and_number() {
    let bench = Bench::plain();
    let served = bench.serve();
    for name in [user().name.clone(), user().uid.to_string()] {
        let answer = served.get(&format!("/cluster/check-user/{name}"));
        assert_eq!((answer.status, answer.body), (200, json!({"response": "success"})), "{name}");
    }
    for name in ["root", "0", "no-such-account", "-u", "..", "a%20b", "a%2fb", "", "%00", "x'y", "4294967294"] {
        served.get(&format!("/cluster/check-user/{name}")).assert_problem(404, "Not Found", "uid: ");
    }
}

#[test]
fn a_number_as_uid_is_echoed_as_it_was_given() {
    let bench = Bench::plain();
    let served = bench.serve();
    let number = user().uid.to_string();
    let id = served.submit(&number, "template_sleeper.txt", json!({"word": "a"}));
    let job = served.await_state(&id, "running");
    assert_eq!(job["uid"], json!(number));
    assert!(job["message"].as_str().unwrap().contains(&user().name), "{job:#}");
}

#[test]
fn system_accounts_below_the_lowest_user_id_are_refused() {
    let mut bench = Bench::plain();
    bench.set("users", json!({"min-uid": user().uid + 1}));
    let served = bench.serve();
    let answer = served.post(&json!({"uid": user().name, "template-name": "template_sleeper.txt", "variables": {"word": "a"}}));
    answer.assert_problem(400, "Bad Request", "system accounts may not submit jobs");
}

fn method(served: &Served, method: &str, path: &str) -> String {
    let authorization = basic("bwvisu-web", PASSWORD);
    served.raw(&format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ))
}

#[test]
fn other_methods_are_refused_with_those_that_are_allowed() {
    let bench = Bench::plain();
    let served = bench.serve();
    let cases = [("/jobs", "GET, POST"), ("/jobs/1", "GET, DELETE"), ("/cluster/check-user/alice", "GET")];
    for (path, allowed) in cases {
        for other in ["PUT", "PATCH", "OPTIONS", "TRACE", "POST", "DELETE"].iter().filter(|other| !allowed.contains(**other)) {
            let answer = method(&served, other, path);
            assert!(answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{other} {path}: {answer}");
            assert!(answer.contains(&format!("Allow: {allowed}\r\n")), "{other} {path}: {answer}");
        }
    }
    let head = method(&served, "HEAD", "/jobs");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn pages_that_are_not_there_say_which_are() {
    let bench = Bench::plain();
    let served = bench.serve();
    for path in ["/", "/job", "/Jobs", "/jobs/1/log", "/cluster", "/cluster/check-user", "/../jobs", "//jobs", "/jobs%2f1"] {
        let answer = method(&served, "GET", path);
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("no such page; there are /jobs,"), "{path}: {answer}");
    }
}

#[test]
fn whoever_does_not_know_the_password_gets_401_from_every_page() {
    let bench = Bench::plain();
    let served = bench.serve();
    let wrong = [
        basic("bwvisu-web", "wrong"),
        basic("bwvisu-web", ""),
        basic("bwvisu-web", &format!("{PASSWORD} ")),
        basic("bwvisu-web", &PASSWORD[..PASSWORD.len() - 1]),
        basic("Bwvisu-web", PASSWORD),
        basic("", PASSWORD),
        basic("root", PASSWORD),
        basic("bwvisu-web", PASSWORD).replace("Basic", "Bearer"),
        basic("bwvisu-web", PASSWORD).replace("Basic ", ""),
        basic("bwvisu-web", PASSWORD).replace("Basic ", "Basic"),
        "Basic".into(),
        "Basic =".into(),
        "Basic ???".into(),
        "Basic YWJj".into(),
        "Basic gICA".into(),
        format!("Basic bwvisu-web:{}", "x".repeat(4000)),
        "Digest username=\"bwvisu-web\"".into(),
    ];
    for authorization in &wrong {
        let answer = served.get_as(authorization, "/jobs");
        answer.assert_problem(401, "Unauthorized", "the user or the password of the API is wrong");
        assert!(answer.headers.contains("Basic realm="), "{answer:?}");
    }
    for path in ["/jobs", "/jobs/1", "/cluster/check-user/alice", "/no-such-page"] {
        let none = served.raw(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert!(none.starts_with("HTTP/1.1 401 "), "{path}: {none}");
        served.get_as(&wrong[0], path).assert_problem(401, "Unauthorized", "wrong");
    }
    let right = basic("bwvisu-web", PASSWORD);
    let twice = format!("GET /jobs HTTP/1.1\r\nHost: a\r\nAuthorization: {right}\r\nAuthorization: {right}\r\n\r\n");
    assert!(served.raw(&twice).starts_with("HTTP/1.1 400 "));
    assert_eq!(served.get_as(&right.replace("Basic", "bAsIc"), "/jobs").status, 200);
}

#[test]
fn jobs_have_consecutive_ids_and_are_listed_until_they_finish() {
    let bench = Bench::plain();
    let served = bench.serve();
    for expected in ["1", "2", "3"] {
        assert_eq!(served.submit(&user().name, "template_sleeper.txt", json!({"word": expected})), expected);
    }
    served.delete("/jobs/2");
    served.await_state("2", "finished");
    assert_eq!(served.get("/jobs").body, json!({"jobs": ["1", "3"]}));
}

#[test]
fn many_clients_at_once_get_ids_of_their_own() {
    let mut bench = Bench::plain();
    bench.set("local-job-slots", 2);
    let served = bench.serve();
    let submit = |n: usize| served.submit(&user().name, "template_sleeper.txt", json!({"word": format!("w{n}")}));
    let mut ids: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12).map(|n| scope.spawn(move || submit(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    ids.sort_by_key(|id| id.parse::<u32>().unwrap());
    assert_eq!(ids, (1..=12).map(|n: u32| n.to_string()).collect::<Vec<_>>());
    for id in &ids {
        assert_eq!(served.delete(&format!("/jobs/{id}")).status, 200);
    }
    ids.iter().for_each(|id| drop(served.await_state(id, "finished")));
}
