//! What Prometheus and load balancers are told: counters that move, pages for everybody, and who may see what.

use crate::api::demo;
use crate::cluster::Cluster;
use crate::promtool::complaints;
use crate::world::{Answer, Bench, PASSWORD, Served, basic, until, user};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const METRICS_PASSWORD: &str = "of-the-metrics-4711";

fn with_password() -> Bench {
    let bench = Bench::plain();
    let settings = json!({"api-password": PASSWORD, "metrics-password": METRICS_PASSWORD});
    bench.write("settings.json", &settings.to_string(), 0o600);
    bench
}

fn text(served: &Served) -> String {
    let answer = served.get("/metrics");
    assert_eq!((answer.status, answer.kind.as_str()), (200, "text/plain; version=0.0.4"));
    answer.body.as_str().unwrap().to_owned()
}

/// Every series with its value.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// Waits until these series have these values.
fn await_values(served: &Served, expected: &[(&str, f64)]) {
    let all = || {
        let series = series(&text(served));
        expected.iter().all(|(name, value)| series.get(*name) == Some(value)).then_some(())
    };
    until("the metrics are as they should be", all, || format!("{expected:#?}\n{}\n{}", text(served), served.log()));
}

#[test]
fn a_job_moves_what_is_counted_from_its_submission_to_its_end() {
    let bench = with_password();
    let served = bench.serve();
    await_values(
        &served,
        &[
            ("bwvisu_jobs{cluster=\"default\",state=\"available\"}", 0.0),
            ("bwvisu_gateway_ports_used{cluster=\"default\",gateway=\"localhost\"}", 0.0),
            ("bwvisu_gateway_ports_free{cluster=\"default\",gateway=\"localhost\"}", 20.0),
            ("bwvisu_leader{role=\"jobs-watch-default\"}", 1.0),
            ("bwvisu_leader{role=\"keyhole-watch-default\"}", 1.0),
            ("bwvisu_keyhole_grants_total", 0.0),
        ],
    );
    let id = served.submit(&user().name, "template_demo.txt", demo());
    served.await_state(&id, "available");
    await_values(
        &served,
        &[
            ("bwvisu_jobs{cluster=\"default\",state=\"available\"}", 1.0),
            ("bwvisu_gateway_ports_used{cluster=\"default\",gateway=\"localhost\"}", 1.0),
            ("bwvisu_gateway_ports_free{cluster=\"default\",gateway=\"localhost\"}", 19.0),
            ("bwvisu_gateway_rules{cluster=\"default\",gateway=\"localhost\"}", 1.0),
            ("bwvisu_gateway_silent{cluster=\"default\",gateway=\"localhost\"}", 0.0),
            ("bwvisu_keyhole_grants_total", 1.0),
            ("bwvisu_http_requests_total{listener=\"api\",method=\"POST\",route=\"/jobs\",status=\"200\"}", 1.0),
            ("bwvisu_http_request_seconds_count{listener=\"api\",route=\"/jobs\"}", 1.0),
            ("bwvisu_http_requests_total{listener=\"keyhole\",method=\"POST\",route=\"/v1/ports\",status=\"200\"}", 1.0),
            ("bwvisu_submissions_in_flight", 0.0),
            ("bwvisu_store_failures_total{verb=\"commit\"}", 0.0),
        ],
    );
    served.delete(&format!("/jobs/{id}"));
    served.await_state(&id, "finished");
    await_values(
        &served,
        &[
            ("bwvisu_jobs{cluster=\"default\",state=\"available\"}", 0.0),
            ("bwvisu_gateway_ports_used{cluster=\"default\",gateway=\"localhost\"}", 0.0),
            ("bwvisu_gateway_rules{cluster=\"default\",gateway=\"localhost\"}", 0.0),
            ("bwvisu_gateway_closing{cluster=\"default\",gateway=\"localhost\"}", 0.0),
        ],
    );
    let series = series(&text(&served));
    for name in [
        "bwvisu_store_seconds_count{verb=\"commit\"}",
        "bwvisu_store_seconds_count{verb=\"get\"}",
        "bwvisu_store_seconds_count{verb=\"scan\"}",
        "bwvisu_watch_cycle_seconds_count{role=\"jobs-watch-default\"}",
        "bwvisu_watch_cycle_seconds_count{role=\"keyhole-watch-default\"}",
        "bwvisu_log_lines_total{level=\"info\"}",
    ] {
        assert!(series.get(name).is_some_and(|value| *value > 0.0), "{name}");
    }
    assert!(series["bwvisu_watch_last_good_cycle_age_seconds{role=\"jobs-watch-default\"}"] < 30.0);
    assert!(series["process_resident_memory_bytes"] > 1e6 && series["process_open_fds"] > 10.0);
    assert_eq!(complaints(&["check", "metrics"], text(&served).as_bytes()), None);
}

#[test]
fn nothing_that_a_client_chooses_makes_a_new_series() {
    let bench = with_password();
    let served = bench.serve_with(&["--only", "api,keyhole"]);
    let keyhole = served.listening("keyhole").unwrap();
    let ask = |round: u32| {
        for at in 0..40 {
            let name = format!("{round}-{at}");
            served.get(&format!("/jobs/{round}{at}"));
            served.get(&format!("/cluster/gateways/{name}/drain"));
            served.get_named(&name, &format!("/{name}?{name}"));
            // Of those that guess, only the first few are answered at once.
            if at < 4 {
                served.get_as(&basic(&name, &name), &format!("/jobs/{name}"));
            }
            let stranger = |method: &str| format!("{method} /{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            // Letters alone make a method.
            let method: String = name.bytes().map(|byte| char::from(b'A' + byte % 26)).collect();
            served.raw(&stranger(&method));
            raw_at(&keyhole, &stranger(&method));
            raw_at(&keyhole, &stranger("POST"));
        }
        series(&text(&served)).into_keys().collect::<BTreeSet<_>>()
    };
    // What shows the metrics is counted, too.
    text(&served);
    let first = ask(1);
    let more: Vec<String> = ask(2).difference(&first).cloned().collect();
    assert_eq!(more, [""; 0]);
    assert!(first.len() < 400, "{} series", first.len());
}

fn raw_at(address: &str, bytes: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn refusals_and_commands_on_other_machines_are_counted() {
    let cluster = Cluster::new();
    cluster.play("down.cmd0", "");
    let served = cluster.bench.serve_with(&["--only", "api,keyhole"]);
    assert_eq!(served.post(&crate::slurm::job("alice")).status, 200);
    let token = keyhole_protocol::Token::from_bytes([7; 32]);
    let nonce = keyhole_protocol::Nonce([0; 16]);
    let body = keyhole_protocol::Request { job: 99, run: 0, nonce, ports: 1, nodes: vec!["c0".into()] }.to_body();
    let signature = keyhole_protocol::sign(&token, keyhole_protocol::Purpose::Request, body.as_bytes());
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: a\r\n{}: {signature}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        keyhole_protocol::PORTS_PATH,
        keyhole_protocol::SIGNATURE_HEADER,
        body.len()
    );
    let answer = raw_at(&served.listening("keyhole").unwrap(), &head);
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let series = series(&text(&served));
    for (name, expected) in [
        ("bwvisu_keyhole_refusals_total{reason=\"unknown job\"}", 1.0),
        ("bwvisu_ssh_calls_total{node=\"cmd0\"}", 1.0),
        ("bwvisu_ssh_failures_total{node=\"cmd0\"}", 1.0),
        ("bwvisu_ssh_calls_total{node=\"cmd1\"}", 2.0),
        ("bwvisu_ssh_failures_total{node=\"cmd1\"}", 0.0),
        ("bwvisu_ssh_call_seconds_count{node=\"cmd1\"}", 2.0),
    ] {
        assert_eq!(series.get(name), Some(&expected), "{name}\n{}", text(&served));
    }
}

#[test]
fn who_may_read_metrics_may_do_nothing_else_and_strangers_see_two_pages() {
    let bench = with_password();
    let served = bench.serve_with(&["--only", "api,keyhole"]);
    let scraper = basic("bwvisu-metrics", METRICS_PASSWORD);
    assert!(served.get_as(&scraper, "/metrics").body.as_str().unwrap().contains("bwvisu_build_info"));
    for path in ["/jobs", "/jobs/1", "/cluster/gateways", "/cluster/audit", "/x", "/metrics/x"] {
        served.get_as(&scraper, path).assert_problem(403, "Forbidden", "may read /metrics and nothing else");
    }
    let wrong = [basic("bwvisu-metrics", PASSWORD), basic("bwvisu-web", METRICS_PASSWORD), basic("bwvisu-metrics", "")];
    for credentials in &wrong {
        served.get_as(credentials, "/metrics").assert_problem(401, "Unauthorized", "");
    }
    let plain = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let keyhole = served.listening("keyhole").unwrap();
    for address in [&served.address, &keyhole] {
        let health = raw_at(address, &plain("GET", "/health"));
        assert!(health.starts_with("HTTP/1.1 200 ") && health.ends_with("{\"healthy\":true}"), "{health}");
        let ready = raw_at(address, &plain("GET", "/ready"));
        assert!(ready.starts_with("HTTP/1.1 200 ") && ready.ends_with("{\"ready\":true,\"reasons\":[]}"), "{ready}");
        assert!(raw_at(address, &plain("POST", "/ready")).starts_with("HTTP/1.1 405 "));
        assert!(raw_at(address, &plain("HEAD", "/ready")).starts_with("HTTP/1.1 200 "));
    }
    assert!(served.raw(&plain("GET", "/metrics")).starts_with("HTTP/1.1 401 "));
    assert!(raw_at(&keyhole, &plain("GET", "/metrics")).starts_with("HTTP/1.1 404 "));
    // Without a password of its own the user is nobody.
    bench.write("settings.json", &json!({"api-password": PASSWORD}).to_string(), 0o600);
    assert!(served.reload().ends_with("changed: metrics-password"), "{}", served.log());
    served.get_as(&scraper, "/metrics").assert_problem(401, "Unauthorized", "");
}

fn await_ready(served: &Served, status: u16, reason: &str) -> Answer {
    let ready = || {
        let answer = served.get("/ready");
        (answer.status == status && answer.body["reasons"].to_string().contains(reason)).then_some(answer)
    };
    until("it is (not) ready", ready, || format!("{:?}\n{}", served.get("/ready"), served.log()))
}

#[test]
fn readiness_has_reasons_that_name_no_machine() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    await_ready(&served, 200, "[]");
    assert_eq!(served.post(&crate::slurm::job("alice")).status, 200);
    cluster.play("down.cmd0", "");
    cluster.play("down.cmd1", "");
    let answer = await_ready(&served, 503, "the scheduler was not heard in three looks");
    assert!(!answer.body.to_string().contains("cmd"), "{answer:?}");
    assert_eq!(served.get("/health").status, 200, "it lives");
    cluster.stop_playing("down.cmd0");
    await_ready(&served, 200, "[]");
    let url = format!("--url={}", served.url);
    assert_eq!(cluster.bench.run(&["gateway", "drain", &url, "localhost"]).code, Some(0));
    let answer = await_ready(&served, 503, "no gateway answers and takes new forwardings");
    assert!(!answer.body.to_string().contains("localhost"), "{answer:?}");
    assert_eq!(cluster.bench.run(&["gateway", "undrain", &url, "localhost"]).code, Some(0));
    await_ready(&served, 200, "[]");
}

#[test]
fn a_program_without_the_api_shows_its_metrics_where_it_is_told() {
    let mut bench = with_password();
    bench.set("metrics-listen", "127.0.0.1:0");
    let served = bench.serve_with(&["--only", "jobs-watch,keyhole-watch"]);
    let address = served.listening("metrics").unwrap();
    let ask = |path: &str, credentials: &str| {
        raw_at(&address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {credentials}\r\nConnection: close\r\n\r\n"))
    };
    for credentials in [basic("bwvisu-metrics", METRICS_PASSWORD), basic("bwvisu-web", PASSWORD)] {
        let led = || ask("/metrics", &credentials).contains("bwvisu_leader{role=\"keyhole-watch-default\"} 1").then_some(());
        until("it shows that it leads", led, || ask("/metrics", &credentials));
    }
    assert!(ask("/metrics", &basic("bwvisu-metrics", "x")).starts_with("HTTP/1.1 401 "));
    assert!(ask("/ready", "").starts_with("HTTP/1.1 200 ") && ask("/health", "").starts_with("HTTP/1.1 200 "));
    assert!(ask("/jobs", &basic("bwvisu-web", PASSWORD)).starts_with("HTTP/1.1 404 "));
}
