//! `POST /jobs` against `sbatch` as it is typed on the command node, with the very same script.

use crate::Effort;
use crate::figures::{Figure, Goal, Rounds, median};
use crate::ground::{HELD, cancel_all, numbers, setup};
use crate::kept::Kept;
use bwvisu_tests::{Bed, Runner};
use serde_json::json;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

const AT_ONCE: usize = 32;
/// So many each of the 32 submits, one after another.
const EACH: usize = 3;

/// A runner, and the script of one of its jobs on the command node, readable for the account that types `sbatch`.
fn prepare<'b>(bed: &'b Bed) -> (Runner<'b>, Kept) {
    let runner = Runner::with(bed, &setup(&[HELD], &json!({})));
    let mut front_end = Kept::open(bed, &runner);
    let id = front_end.post(HELD.0, &json!({}), &mut 0);
    let slurm = front_end.job(&id)["scheduler-job-id"].as_str().unwrap().to_owned();
    bed.sh("cmd0", &format!("scontrol write batch_script {slurm} /tmp/bench-script && chmod 644 /tmp/bench-script"));
    (runner, front_end)
}

fn typed(bed: &Bed, script: &str, count: usize) -> Vec<f64> {
    let home = format!("{}/alice", bed.get("BED_HOME_PREFIX"));
    numbers(bed, "cmd0", Some("bwvisurunner"), script, &[&count.to_string(), "/tmp/bench-script", &home])
}

/// One after another over one connection, p50.
pub fn one_after_another(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let (runner, mut front_end) = prepare(&bed);
    let (rounds, each) = (effort.rounds(7, 5), 25);
    let mut found = Rounds::default();
    for round in 0..=rounds {
        let mut ours = Vec::new();
        for _ in 0..each {
            let begun = Instant::now();
            front_end.post(HELD.0, &json!({}), &mut 0);
            ours.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let theirs = typed(&bed, "post-one", each);
        // The first one warms up.
        if round > 0 {
            found.ours.push(median(&ours));
            found.baseline.push(median(&theirs) / 1e3);
        }
    }
    cancel_all(&bed);
    drop(runner);
    let notes =
        format!("p50 of {each} in each of {rounds} rounds, in turns; the script is the same, and so are name, folder and log");
    vec![found.ours_by_theirs("post-one", "sudo sbatch typed on the command node", "ms", Goal::AtMost(1.15)).noting(notes)]
}

/// Thirty-two at once, jobs per second.
pub fn at_once(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let (runner, _front_end) = prepare(&bed);
    let rounds = effort.rounds(5, 3);
    let mut front_ends: Vec<Kept> = (0..AT_ONCE).map(|_| Kept::open(&bed, &runner)).collect();
    let (mut found, mut refused) = (Rounds::default(), 0);
    let jobs = (AT_ONCE * EACH) as f64;
    for round in 0..=rounds {
        let (seconds, again) = storm(&mut front_ends);
        let theirs = typed(&bed, "post-32", EACH);
        if round > 0 {
            refused += again;
            found.ours.push(jobs / seconds);
            found.baseline.push(jobs / (theirs[0] / 1e6));
        }
    }
    drop(front_ends);
    cancel_all(&bed);
    drop(runner);
    let notes = format!(
        "{AT_ONCE} clients, {EACH} jobs each, {rounds} rounds in turns; 28 submissions may be under way: {:.0} answers 429 per round, asked again after 20 ms",
        refused as f64 / rounds as f64
    );
    vec![found.ours_by_theirs("post-32", "32 shells on the command node", "jobs/s", Goal::AtLeast(0.9)).noting(notes)]
}

/// Seconds until the last one has its answers, and how often somebody had to ask again.
fn storm(front_ends: &mut [Kept]) -> (f64, usize) {
    let begin = Barrier::new(front_ends.len() + 1);
    let submit = |front_end: &mut Kept| {
        let mut refused = 0;
        begin.wait();
        (0..EACH).for_each(|_| drop(front_end.post(HELD.0, &json!({}), &mut refused)));
        refused
    };
    let submit = &submit;
    thread::scope(|scope| {
        let threads: Vec<_> = front_ends.iter_mut().map(|front_end| scope.spawn(move || submit(front_end))).collect();
        let begun = Instant::now();
        begin.wait();
        let refused = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        (begun.elapsed().as_secs_f64(), refused)
    })
}
