//! What was measured last, in the repository: the short form fails if a ratio got much worse.

use crate::figures::{Figure, Goal, json, read};
use bwvisu_tests::bed::repository;
use serde_json::Value;
use std::path::PathBuf;

/// So many times worse than recorded is too much: median beside median and best round beside best round, and both, since a neighbour on the
/// machine may be at work in some rounds, and what got slower is slower in all of them.
const WORSE: f64 = 1.5;

fn path() -> PathBuf {
    repository().join("tests/bench/recorded.json")
}

fn all() -> Vec<Figure> {
    let text = std::fs::read_to_string(path()).unwrap_or_else(|error| panic!("{}: {error}", path().display()));
    let recorded: Vec<Value> = serde_json::from_str(&text).unwrap();
    recorded.iter().filter_map(read).collect()
}

/// What got worse, in sentences. Each figure must be recorded, so that none is left out.
pub fn compare(figures: &[Figure]) -> Vec<String> {
    let recorded = all();
    let judge = |figure: &Figure| match recorded.iter().find(|known| known.row == figure.row) {
        None => Some(format!("{} is not in tests/bench/recorded.json", figure.row)),
        Some(before) => worse(figure, before),
    };
    figures.iter().filter(|figure| figure.failure.is_none()).filter_map(judge).collect()
}

fn worse(figure: &Figure, before: &Figure) -> Option<String> {
    let times = |now: f64, before: f64| match figure.goal {
        // Next to nothing is good enough: it may be twice as much tomorrow.
        Goal::AtMost(most) => now / before.max(most / 3.0),
        Goal::AtLeast(_) => before / now,
    };
    let best = |figure: &Figure| match figure.goal {
        Goal::AtMost(_) => figure.spread.0,
        Goal::AtLeast(_) => figure.spread.1,
    };
    let times = times(figure.ratio, before.ratio).min(times(best(figure), best(before)));
    let said = format!(
        "{}: the ratio is {:.3} ({:.3} to {:.3}), recorded is {:.3} ({:.3} to {:.3}): {times:.1} times worse",
        figure.row, figure.ratio, figure.spread.0, figure.spread.1, before.ratio, before.spread.0, before.spread.1
    );
    (times > WORSE).then_some(said)
}

/// Writes figures down beside those of the rows that were not measured now, in the order of `rows`; returns all of them.
pub fn write(figures: &[Figure], rows: &[&str]) -> Vec<Figure> {
    let of = |figure: &Figure| figure.row.split(' ').next().unwrap_or_default().to_owned();
    let now = |row: &str| figures.iter().any(|figure| of(figure) == row);
    let kept = all();
    let from = |row: &&str| if now(row) { figures.to_vec() } else { kept.clone() };
    let merged = rows.iter().flat_map(|row| from(row).into_iter().filter(|figure| of(figure) == *row)).collect::<Vec<_>>();
    std::fs::write(path(), json(&merged)).unwrap();
    merged
}
