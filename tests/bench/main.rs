//! `make bench`: what we cost beside what `ssh`, `sbatch`, `nc` and `iptables` cost by themselves, and beside peers, on the bed.
//!
//! * `BENCH_ROWS=post-one,client` picks rows; without it all are measured;
//! * `BENCH_SHORT=1` measures those that are cheap, with few rounds, and fails if a ratio is 1.5 times worse than the one recorded in
//!   `tests/bench/recorded.json`;
//! * `BENCH_WRITE=1` writes the figures into `docs/performance.md`, its picture, and `recorded.json`, where those of other rows stay.
//!
//! What stands in results is a ratio of two things that were measured in turns in the same minutes: the machine is shared, and its
//! speed is not ours. A row that fails is reported as failed, and the others are measured.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a row ends where something is not as it should be")]

mod available;
mod client;
mod document;
mod figures;
mod get_job;
mod ground;
mod health;
mod kept;
mod keyhole;
mod many;
mod picture;
mod post;
mod recorded;
mod rules;
mod store;
mod stub;

use figures::Figure;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// The short form.
    pub short: bool,
}

impl Effort {
    /// So many rounds in full, so many in the short form.
    pub fn rounds(self, full: usize, short: usize) -> usize {
        if self.short { short } else { full }
    }
}

/// Measures a row; several figures where it has several goals.
type Measure = fn(Effort) -> Vec<Figure>;

/// Names, whether the short form has it, and how. The last ones leave Slurm with ten thousand jobs that have just ended.
const ROWS: [(&str, bool, Measure); 11] = [
    ("client", true, client::measure),
    ("post-one", true, post::one_after_another),
    ("post-32", true, post::at_once),
    ("keyhole-300", true, keyhole::three_hundred_ports),
    ("keyhole-200", false, keyhole::two_hundred_jobs),
    ("get-job", true, get_job::measure),
    ("health-1000", false, health::measure),
    ("listen-available", true, available::measure),
    ("rules-10000", false, rules::measure),
    ("watch-10000", false, many::watch),
    ("memory-10000", false, many::memory),
];

fn main() -> ExitCode {
    let effort = Effort { short: std::env::var_os("BENCH_SHORT").is_some() };
    let picked = std::env::var("BENCH_ROWS").unwrap_or_default();
    let picked: Vec<&str> = picked.split(',').filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = picked.iter().find(|name| ROWS.iter().all(|(known, ..)| known != *name)) {
        eprintln!("bench: no row {unknown}; there are {}", ROWS.map(|(name, ..)| name).join(", "));
        return ExitCode::from(2);
    }
    let wanted = |name: &str, in_short: bool| if picked.is_empty() { in_short || !effort.short } else { picked.contains(&name) };
    let begun = Instant::now();
    let mut found = Vec::new();
    for (name, in_short, measure) in ROWS {
        if wanted(name, in_short) {
            found.extend(sure(name, effort, measure));
        }
    }
    conclude(&found, effort, begun.elapsed().as_secs())
}

/// In the short form a row that looks worse than recorded is measured again, twice at most: a neighbour on the machine may have been at work.
fn sure(name: &str, effort: Effort, measure: Measure) -> Vec<Figure> {
    let complaints =
        |figures: &[Figure]| recorded::compare(figures).len() + figures.iter().filter(|figure| figure.failure.is_some()).count();
    let mut best = one(name, effort, measure);
    for _ in 0..2 {
        if !effort.short || complaints(&best) == 0 {
            break;
        }
        let again = one(name, effort, measure);
        if complaints(&again) <= complaints(&best) {
            best = again;
        }
    }
    best
}

/// A row's figures, or one that says that it failed.
fn one(name: &str, effort: Effort, measure: Measure) -> Vec<Figure> {
    let begun = Instant::now();
    eprintln!("bench: {name} …");
    let figures = catch_unwind(|| measure(effort)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        let first = said.as_deref().and_then(|text| text.lines().next()).unwrap_or("it panicked").to_owned();
        vec![Figure::failed(name, &first)]
    });
    eprintln!("bench: {name}: {} s", begun.elapsed().as_secs());
    eprint!("{}", figures::table(&figures));
    figures
}

fn conclude(found: &[Figure], effort: Effort, seconds: u64) -> ExitCode {
    println!("\n{}\n{} figures in {seconds} s", figures::table(found), found.len());
    let folder = ground::results_folder();
    std::fs::write(folder.join("results.json"), figures::json(found)).unwrap();
    std::fs::write(folder.join("results.svg"), picture::draw(found)).unwrap();
    println!("{}/results.json and results.svg are written", folder.display());
    let mut fine = found.iter().all(|figure| figure.failure.is_none());
    if effort.short {
        let worse = recorded::compare(found);
        worse.iter().for_each(|line| eprintln!("bench: {line}"));
        fine &= worse.is_empty();
    }
    if std::env::var_os("BENCH_WRITE").is_some() {
        assert!(fine && !effort.short, "only full rounds in which no row failed are written down");
        document::write(&recorded::write(found, &ROWS.map(|(name, ..)| name)));
    }
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
