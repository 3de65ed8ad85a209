//! Ten thousand jobs: what a look at the scheduler costs, and what memory they take.

use crate::Effort;
use crate::figures::{Figure, Goal, Rounds, median, range};
use crate::ground::{IDLE, family, pss_mb, setup, status_mb};
use crate::kept::Kept;
use crate::rules::real_job;
use crate::store;
use bwvisu_tests::{Bed, Runner, until};
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};

const MANY: usize = 10_000;
const FEW: usize = 100;
/// So many of them change between two cycles.
const CHANGED: usize = 10;
const ROLE: &str = "jobs-watch-default";
/// The first of our ids.
const FIRST: u64 = 100_000;

/// A cycle of the jobs' watcher with ten thousand jobs, by one with a hundred.
pub fn watch(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let real = real_job(&bed);
    let few = hold(&bed, &real, 0, FEW);
    put(&bed, &real, 0, &few);
    let (alone, _, _) = cycles(&bed, &few, effort.rounds(10, 5));
    let mut all = few;
    all.extend(hold(&bed, &real, FEW, MANY - FEW));
    let rounds = effort.rounds(3, 1);
    let (mut found, mut longest, mut memory) = (Rounds::default(), 0.0_f64, Vec::new());
    let others: Vec<String> = (FEW..MANY).map(|i| format!("jobs/{}", FIRST + i as u64)).collect();
    for _ in 0..rounds {
        let (few_of_many, _, before) = cycles(&bed, &all[..FEW], 8);
        put(&bed, &real, FEW, &all[FEW..]);
        let (many, worst, after) = cycles(&bed, &all, 8);
        memory.push((before, after));
        store::delete(&bed, &others);
        found.baseline.push(few_of_many * 1e3);
        found.ours.push(many * 1e3);
        longest = longest.max(worst * 1e3);
    }
    end_all(&bed);
    let ratio = median(&found.ours) / (alone * 1e3);
    let beside =
        Figure::plain("watch-10000 all", "the same with 100 jobs in Slurm in all", "ms", median(&found.ours), Goal::AtMost(3.0));
    let [little, much] =
        [|pair: &(f64, f64)| pair.0, |pair: &(f64, f64)| pair.1].map(|which| memory.iter().map(which).collect::<Vec<_>>());
    let of_all_parts =
        Figure::plain("watch-10000 memory", "the same with 100 jobs of ours", "MB", median(&much), Goal::AtMost(64.0));
    let shares: Vec<f64> = found.ours.iter().map(|ours| ours / (alone * 1e3)).collect();
    vec![
        found.ours_by_theirs("watch-10000", "100 jobs of ours, 9,900 others in Slurm's queue", "ms", Goal::AtMost(3.0)).noting(format!(
            "medians of 8 cycles in each of {rounds} rounds in turns, {CHANGED} jobs changed before each; the longest cycle took {longest:.0} ms"
        )),
        Figure { baseline: Some(alone * 1e3), ratio, spread: range(&shares), ..beside }
            .noting("squeue itself takes longer the longer Slurm's queue is, whosever jobs stand there; the cycles with 100 jobs in all were measured once, before the others"),
        Figure { baseline: Some(median(&little)), spread: range(&much), ..of_all_parts }
            .noting("PSS of the runner with all its parts and ssh clients after the cycles of watch-10000, while Slurm has the 10,000 jobs"),
    ]
}

/// Submits so many jobs that nobody will start, under the names that they have with us; returns Slurm's ids.
fn hold(bed: &Bed, real: &Value, first: usize, count: usize) -> Vec<String> {
    let ids: Vec<u64> = (first..first + count).map(|i| FIRST + i as u64).collect();
    bed.sh_as("cmd0", "alice", "printf '#!/bin/sh\\nexit 0\\n' >job.sh");
    let some = |ids: &[u64]| {
        let names: Vec<String> = ids.iter().map(|id| store::name_like(real, *id)).collect();
        let script = "set -e; for name in $NAMES; do sbatch --parsable --hold --begin=now+2days --job-name=$name job.sh; done";
        let printed = bed.sh_as("cmd0", "alice", &format!("NAMES='{}'; {script}", names.join(" ")));
        printed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let some = &some;
    let found: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = ids
            .chunks(count.div_ceil(4))
            .map(|ids| ids.chunks(200).collect::<Vec<_>>())
            .map(|parts| scope.spawn(move || parts.into_iter().flat_map(some).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(found.len(), count, "Slurm took all of them");
    found
}

/// The records of these jobs, the first one of which is the `first` of ours.
fn put(bed: &Bed, real: &Value, first: usize, slurm: &[String]) {
    let waiting = |(i, id): (usize, &String)| {
        let (key, mut job) = store::job_like(real, FIRST + (first + i) as u64, id, "");
        job["state"] = "submitted".into();
        job["started-at"] = Value::Null;
        job["details"] = json!({});
        (key, job)
    };
    store::put(bed, &slurm.iter().enumerate().map(waiting).collect::<Vec<_>>());
}

/// The median and the longest of so many cycles, in seconds, with some jobs that changed before each, and the memory afterwards in MB. The
/// first cycles, in which the runner gets to know the jobs, do not count.
fn cycles(bed: &Bed, slurm: &[String], count: usize) -> (f64, f64, f64) {
    let config = json!({"watch": {"jobs-seconds": 1.0}});
    let runner = Runner::with(bed, &setup(&[IDLE], &config));
    let mut front_end = Kept::open(bed, &runner);
    let mut total = |what: &str| front_end.metric(&format!("bwvisu_watch_cycle_seconds_{what}{{role=\"{ROLE}\"}}"));
    let mut wait = |cycles: f64| {
        let begun = Instant::now();
        while total("count") < cycles {
            assert!(begun.elapsed().as_secs() < 120, "no cycle ended in 120 s");
            thread::sleep(Duration::from_millis(50));
        }
        (total("count"), total("sum"))
    };
    let (mut done, mut spent) = wait(3.0);
    let mut times = Vec::new();
    while times.len() < count {
        let verb = if times.len() % 2 == 0 { "release" } else { "hold" };
        bed.sh("cmd0", &format!("scontrol {verb} {}", slurm[slurm.len() - CHANGED..].join(",")));
        let (now, sum) = wait(done + 1.0);
        // Two that ended between two looks at the metrics cannot be told apart.
        times.push((sum - spent) / (now - done));
        (done, spent) = (now, sum);
    }
    (median(&times), range(&times).1, pss_mb(&family(runner.pid())))
}

/// Slurm forgets its jobs a minute after their end; ending ten thousand takes a while, too.
fn end_all(bed: &Bed) {
    store::delete_all(bed, "jobs/");
    let begun = Instant::now();
    bed.sh("cmd0", "timeout 100 scancel --user=alice --quiet; true");
    until("Slurm to end ten thousand jobs", 150, || bed.sh("cmd0", "squeue --noheader | wc -l"), |left| left.trim() == "0");
    eprintln!("bench: all jobs ended in {} s", begun.elapsed().as_secs());
}

/// Memory with ten thousand jobs, listed a hundred times.
pub fn memory(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let real = real_job(&bed);
    // Slurm need not have them: who lists jobs does not ask it.
    let runner = Runner::with(&bed, &bwvisu_tests::Setup { parts: "api,keyhole,keyhole-watch", ..setup(&[IDLE], &json!({})) });
    let rest = settled(&runner);
    let ids: Vec<String> = (0..MANY).map(|i| i.to_string()).collect();
    put(&bed, &real, 0, &ids);
    let before = settled(&runner);
    let mut front_end = Kept::open(&bed, &runner);
    for _ in 0..effort.rounds(100, 20) {
        let (status, list) = front_end.get("/jobs");
        assert!(status == 200 && list.matches(',').count() >= MANY - 1, "{status}");
    }
    for i in 0..MANY {
        assert_eq!(front_end.get(&format!("/jobs/{}", FIRST + i as u64)).0, 200);
    }
    let during = status_mb(runner.pid(), "VmHWM:");
    let after = settled(&runner);
    let pss = pss_mb(&[runner.pid()]);
    store::delete_all(&bed, "jobs/");
    let empty = settled(&runner);
    let notes = format!(
        "at rest with no job {rest:.1}, with 10,000 jobs {before:.1}, highest {during:.1}, ten seconds after the lists {after:.1} (PSS {pss:.1}), without the jobs again {empty:.1} MB"
    );
    let back = Figure::plain("memory-10000 back", "with 10,000 jobs before they were listed", "MB", after, Goal::AtMost(1.1));
    vec![
        Figure { baseline: Some(rest), ..Figure::plain("memory-10000", "at rest with no job", "MB", after, Goal::AtMost(64.0)) }
            .noting(notes),
        Figure { baseline: Some(before), ratio: after / before, spread: (after / before, after / before), ..back },
    ]
}

/// Resident memory in MB after ten seconds in which nobody asks for anything.
fn settled(runner: &Runner) -> f64 {
    thread::sleep(Duration::from_secs(10));
    status_mb(runner.pid(), "VmRSS:")
}
