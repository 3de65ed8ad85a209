use super::*;
use std::collections::BTreeSet;

/// The value of a line, by what it begins with.
fn value(text: &str, begin: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(begin)?.trim().parse().ok())
}

fn families(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn every_metric_is_shown_once_it_has_happened_and_moves() {
    let metrics = Metrics::new();
    metrics.request(("api", "GET", "/jobs"), 200, Some(Duration::from_millis(3)));
    let connection = Present::new(metrics.http_connections.with_label_values(&["api"]));
    metrics.http_refused.with_label_values(&["api"]).inc();
    metrics.jobs.with_label_values(&["default", "running"]).set(2);
    let submission = Present::new(metrics.submissions.clone());
    metrics.of_gateways().iter().for_each(|family| family.with_label_values(&["default", "10.0.0.1"]).set(5));
    metrics.ssh("cmd0", Duration::from_secs(2), true);
    metrics.keyhole_grants.inc();
    metrics.keyhole_refusals.with_label_values(&["unknown job"]).inc();
    metrics.leads("jobs-watch-default", true);
    metrics.cycle("jobs-watch-default", Duration::from_millis(20), true);
    metrics.cycle("jobs-watch-default", Duration::from_millis(20), false);
    metrics.store("commit", Duration::from_millis(1), true);
    metrics.log_lines.with_label_values(&["warn"]).inc();
    let text = metrics.text();
    let cases = [
        ("bwvisu_build_info{version=\"0.1.0\"}", 1.0),
        ("bwvisu_http_requests_total{listener=\"api\",method=\"GET\",route=\"/jobs\",status=\"200\"}", 1.0),
        ("bwvisu_http_request_seconds_count{listener=\"api\",route=\"/jobs\"}", 1.0),
        ("bwvisu_http_connections{listener=\"api\"}", 1.0),
        ("bwvisu_http_connections_refused_total{listener=\"api\"}", 1.0),
        ("bwvisu_jobs{cluster=\"default\",state=\"running\"}", 2.0),
        ("bwvisu_submissions_in_flight", 1.0),
        ("bwvisu_gateway_ports_used{cluster=\"default\",gateway=\"10.0.0.1\"}", 5.0),
        ("bwvisu_gateway_ports_free{cluster=\"default\",gateway=\"10.0.0.1\"}", 5.0),
        ("bwvisu_gateway_silent{cluster=\"default\",gateway=\"10.0.0.1\"}", 5.0),
        ("bwvisu_gateway_drained{cluster=\"default\",gateway=\"10.0.0.1\"}", 5.0),
        ("bwvisu_gateway_rules{cluster=\"default\",gateway=\"10.0.0.1\"}", 5.0),
        ("bwvisu_gateway_closing{cluster=\"default\",gateway=\"10.0.0.1\"}", 5.0),
        ("bwvisu_ssh_calls_total{node=\"cmd0\"}", 1.0),
        ("bwvisu_ssh_failures_total{node=\"cmd0\"}", 1.0),
        ("bwvisu_ssh_call_seconds_sum{node=\"cmd0\"}", 2.0),
        ("bwvisu_keyhole_grants_total", 1.0),
        ("bwvisu_keyhole_refusals_total{reason=\"unknown job\"}", 1.0),
        ("bwvisu_watch_cycle_seconds_count{role=\"jobs-watch-default\"}", 2.0),
        ("bwvisu_watch_cycle_failures_total{role=\"jobs-watch-default\"}", 1.0),
        ("bwvisu_leader{role=\"jobs-watch-default\"}", 1.0),
        ("bwvisu_store_seconds_count{verb=\"commit\"}", 1.0),
        ("bwvisu_store_failures_total{verb=\"commit\"}", 1.0),
        ("bwvisu_store_failures_total{verb=\"get\"}", 0.0),
        ("bwvisu_log_lines_total{level=\"warn\"}", 1.0),
    ];
    for (begin, expected) in cases {
        assert_eq!(value(&text, begin), Some(expected), "{begin}\n{text}");
    }
    assert!(value(&text, "bwvisu_watch_last_good_cycle_age_seconds{role=\"jobs-watch-default\"}").is_some_and(|age| age < 60.0));
    for (begin, least) in [
        ("process_resident_memory_bytes", 1e5),
        ("process_open_fds", 3.0),
        ("process_max_fds", 3.0),
        ("process_threads", 1.0),
        ("process_start_time_seconds", 1e9),
    ] {
        assert!(value(&text, &format!("{begin} ")).is_some_and(|value| value >= least), "{begin}\n{text}");
    }
    let known: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(families(&text), known);
    drop((connection, submission));
    let text = metrics.text();
    assert_eq!(value(&text, "bwvisu_http_connections{listener=\"api\"}"), Some(0.0));
    assert_eq!(value(&text, "bwvisu_submissions_in_flight"), Some(0.0));
}

#[test]
fn who_does_not_lead_any_more_shows_nothing_of_the_cluster() {
    let metrics = Metrics::new();
    let shown = |metrics: &Metrics| {
        let text = metrics.text();
        ["bwvisu_jobs{", "bwvisu_gateway_ports_used{", "bwvisu_watch_last_good_cycle_age_seconds{"]
            .map(|begin| text.lines().filter(|line| line.starts_with(begin)).count())
    };
    for role in ["jobs-watch-default", "keyhole-watch-default"] {
        metrics.leads(role, true);
    }
    metrics.jobs.with_label_values(&["default", "running"]).set(2);
    for gateway in ["10.0.0.1", "10.0.0.2"] {
        metrics.of_gateways().iter().for_each(|family| family.with_label_values(&["default", gateway]).set(5));
    }
    assert_eq!(shown(&metrics), [1, 2, 2]);
    metrics.forget_gateway("default", "10.0.0.2");
    metrics.forget_gateway("default", "10.0.0.3");
    assert_eq!(shown(&metrics), [1, 1, 2]);
    metrics.leads("jobs-watch-default", false);
    assert_eq!(shown(&metrics), [0, 1, 1]);
    metrics.leads("keyhole-watch-default", false);
    assert_eq!(shown(&metrics), [0, 0, 0]);
    assert_eq!(value(&metrics.text(), "bwvisu_leader{role=\"keyhole-watch-default\"}"), Some(0.0));
}

#[test]
fn a_method_that_a_stranger_invents_is_no_label() {
    let metrics = Metrics::new();
    ["BREW", "X-1", "X-2"].iter().for_each(|method| metrics.request(("api", method, "other"), 404, None));
    let text = metrics.text();
    assert_eq!(
        value(&text, "bwvisu_http_requests_total{listener=\"api\",method=\"other\",route=\"other\",status=\"404\"}"),
        Some(3.0)
    );
    assert!(!text.contains("BREW"));
}
