//! The ratios that were measured last, in the repository: the short form fails if one got much worse.

use crate::figures::{Figure, Goal};
use bwvisu_tests::bed::repository;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// So many times worse than recorded is too much.
const WORSE: f64 = 1.5;

fn path() -> PathBuf {
    repository().join("tests/bench/recorded.json")
}

/// What got worse, in sentences. Each figure must be recorded, so that none is left out.
pub fn compare(figures: &[Figure]) -> Vec<String> {
    let text = std::fs::read_to_string(path()).unwrap_or_else(|error| panic!("{}: {error}", path().display()));
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let judge = |figure: &Figure| match recorded[&figure.row].as_f64() {
        None => Some(format!("{} is not in tests/bench/recorded.json", figure.row)),
        Some(before) => worse(figure, before),
    };
    figures.iter().filter(|figure| figure.failure.is_none()).filter_map(judge).collect()
}

fn worse(figure: &Figure, before: f64) -> Option<String> {
    let times = match figure.goal {
        // Far better than the goal is good enough: a thousandth of nothing may be twice as much tomorrow.
        Goal::AtMost(most) => figure.ratio / before.max(most / 10.0),
        Goal::AtLeast(_) => before / figure.ratio,
    };
    let said = format!("{}: the ratio is {:.3}, recorded is {before:.3}: {times:.1} times worse", figure.row, figure.ratio);
    (times > WORSE).then_some(said)
}

/// Writes all ratios down.
pub fn write(figures: &[Figure]) {
    let ratios: Map<String, Value> =
        figures.iter().map(|figure| (figure.row.clone(), json!((figure.ratio * 1e4).round() / 1e4))).collect();
    std::fs::write(path(), format!("{:#}\n", Value::Object(ratios))).unwrap();
}
