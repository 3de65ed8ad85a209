//! What Prometheus and Grafana are given (packaging/monitoring) fits what the program shows.

// All of this is test, also what stands outside of test functions.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

#[path = "support/promtool.rs"]
mod promtool;

use bwvisu_runner::metrics::NAMES;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/monitoring").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// All names of ours in a text, without what a histogram adds.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let ours = words.filter(|word| word.starts_with("bwvisu_") || word.starts_with("process_"));
    let of_histogram = |word: &str| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        base.filter(|base| NAMES.contains(base)).map(str::to_owned)
    };
    ours.map(|word| of_histogram(word).unwrap_or_else(|| word.to_owned())).collect()
}

#[test]
fn every_metric_that_is_asked_for_exists_and_the_dashboard_shows_all() {
    let known: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    for file in ["dashboard.json", "alerts.yml", "alerts_test.yml"] {
        let asked = metrics(&read(file));
        assert!(asked.len() > 10, "{file}: {asked:?}");
        let unknown: Vec<_> = asked.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
    }
    let left_out: Vec<_> = known.difference(&metrics(&read("dashboard.json"))).cloned().collect();
    assert!(left_out.is_empty(), "the dashboard does not show {left_out:?}");
}

#[test]
fn a_dashboard_has_panels_with_questions_and_units_that_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut cells = BTreeSet::new();
    for panel in panels {
        assert!(panel["title"].as_str().is_some_and(|title| !title.is_empty()), "{panel:#}");
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for (x, y) in (0..place("w")).flat_map(|x| (0..place("h")).map(move |y| (x, y))) {
            assert!(cells.insert((place("x") + x, place("y") + y)) && place("x") + x < 24, "{}", panel["title"]);
        }
        if panel["type"] != "row" {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty() && panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel:#}");
            assert!(
                targets.iter().all(|target| !metrics(target["expr"].as_str().unwrap()).is_empty()
                    || target["expr"].as_str().unwrap().contains("up{")),
                "{panel:#}"
            );
        }
    }
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
}

/// What the panels ask, as rules, which promtool can read; the variable is Grafana's.
fn questions(dashboard: &str) -> String {
    let dashboard: Value = serde_json::from_str(dashboard).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let rules = targets.enumerate().map(|(number, target)| {
        let question = target["expr"].as_str().unwrap().replace("$job", ".*");
        assert!(!question.contains('$'), "an unknown variable: {question}");
        serde_json::json!({"record": format!("panel:{number}"), "expr": question})
    });
    serde_json::json!({"groups": [{"name": "panels", "rules": rules.collect::<Vec<_>>()}]}).to_string()
}

#[test]
fn promtool_understands_every_question_of_the_dashboard() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("panels.yml");
    fs::write(&rules, questions(&read("dashboard.json"))).unwrap();
    assert_eq!(promtool::complaints(&["check", "rules", rules.to_str().unwrap()], b""), None);
}

/// The names behind `word`.
fn names(text: &str, word: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.trim().strip_prefix(word)).map(str::to_owned).collect()
}

#[test]
fn every_alert_is_tried_and_explained() {
    let alerts = names(&read("alerts.yml"), "- alert: ");
    assert!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(names(&read("alerts_test.yml"), "- name: "), alerts);
    let page = fs::read_to_string(path("../../docs/operate.md")).unwrap();
    let rows = page.lines().filter_map(|line| Some(line.strip_prefix("| `Bwvisu")?.split_once('`')?.0));
    assert_eq!(rows.map(|name| format!("Bwvisu{name}")).collect::<BTreeSet<_>>(), alerts);
}

#[test]
fn promtool_is_content_with_the_rules_what_they_do_and_the_configuration() {
    let (rules, tests) = (path("alerts.yml"), path("alerts_test.yml"));
    assert_eq!(promtool::complaints(&["check", "rules", rules.to_str().unwrap()], b""), None);
    assert_eq!(promtool::complaints(&["test", "rules", tests.to_str().unwrap()], b""), None);
    let config = path("prometheus.yml");
    assert_eq!(promtool::complaints(&["check", "config", "--syntax-only", config.to_str().unwrap()], b""), None);
}
