//! The health of a thousand available jobs: how long a cycle takes that looks at all of them, and what it costs.

use crate::Effort;
use crate::figures::{Figure, Goal, Rounds};
use crate::ground::{IDLE, baseline, cpu_seconds, family, numbers, on_host, setup};
use crate::kept::Kept;
use crate::rules::real_job;
use crate::store::{self, Forward};
use bwvisu_tests::bed::Background;
use bwvisu_tests::gateway::GATEWAYS;
use bwvisu_tests::{Bed, Runner, Setup, until};
use serde_json::json;
use std::thread;
use std::time::{Duration, Instant};

const JOBS: u16 = 1000;
const FIRST: u16 = 50000;
/// Looks at all jobs in each round.
const LOOKS: f64 = 8.0;
const ROLE: &str = "keyhole-watch-default";

/// Time and CPU of one look at all of them.
pub fn measure(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let _listeners = listen(&bed);
    put_jobs(&bed);
    // Every job in every cycle: how much rarer it is by default is another matter.
    let config = json!({"watch": {"keyhole-seconds": 1.0}});
    let runner = Runner::with(&bed, &Setup { parts: "api,keyhole-watch", ..setup(&[IDLE], &config) });
    let available = || store::read(&bed, "jobs/").iter().filter(|(_, job)| job["state"] == "available").count();
    until("all jobs to be available", 90, available, |count| *count == usize::from(JOBS));
    let mut front_end = Kept::open(&bed, &runner);
    let rounds = effort.rounds(3, 1);
    let (mut found, mut cpu) = (Rounds::default(), Vec::new());
    for _ in 0..rounds {
        let (cycle, used) = cycles(&bed, &runner, &mut front_end);
        found.ours.push(cycle);
        cpu.push(used);
        found.baseline.push(numbers(&bed, "runner", None, "health", &[bed.get("BED_SSH_CONFIG"), &JOBS.to_string()])[0] / 1e6);
    }
    let used = |which: fn(&(f64, f64)) -> f64| crate::figures::median(&cpu.iter().map(which).collect::<Vec<_>>());
    let notes = format!(
        "CPU per job and cycle: runner {:.0} µs, gateways {:.0} µs; {rounds} rounds in turns; 1,000 records with listeners behind all ports, not 1,000 jobs in Slurm",
        used(|pair| pair.0),
        used(|pair| pair.1)
    );
    vec![found.theirs_by_ours("health-1000", "one nc -z per job over a ControlMaster", "s", Goal::AtLeast(200.0)).noting(notes)]
}

fn node(i: u16) -> String {
    format!("c{}", i % 4)
}

fn listen(bed: &Bed) -> Vec<Background> {
    let path = baseline("listeners.py");
    let on = |i: u16| {
        let (first, last) = ((FIRST + i).to_string(), (FIRST + JOBS - 1).to_string());
        bed.spawn(&node(i), &["python3", path.to_str().unwrap(), &first, &last, "4"])
    };
    (0..4).map(on).collect()
}

/// A thousand jobs that run, as the store has them, with a port each, half of them on each gateway.
fn put_jobs(bed: &Bed) {
    let real = real_job(bed);
    let id = |i: u16| 1000 + u64::from(i);
    let jobs: Vec<_> = (0..JOBS).map(|i| store::job_like(&real, id(i), "1", &node(i))).collect();
    store::put(bed, &jobs);
    for (half, gateway) in GATEWAYS.iter().enumerate() {
        let mine = (0..JOBS).filter(|i| usize::from(i / 4 % 2) == half);
        let forwards: Vec<Forward> = mine.map(|i| Forward { job: id(i), port: FIRST + i, node: node(i) }).collect();
        store::put(bed, &store::granted(bed, gateway, &forwards));
    }
}

/// What has been counted so far.
struct Count {
    /// Seconds of all cycles.
    cycles: f64,
    /// Connections that the nodes accepted, each a look at one job.
    looks: f64,
    runner: f64,
    gateways: f64,
}

impl Count {
    fn now(bed: &Bed, runner: &Runner, front_end: &mut Kept) -> Self {
        let opened = "awk '$1 == \"Tcp:\" && $7 ~ /^[0-9]+$/ { print $7 }' /proc/net/snmp";
        Self {
            cycles: front_end.metric(&format!("bwvisu_watch_cycle_seconds_sum{{role=\"{ROLE}\"}}")),
            looks: (0..4).map(|i| bed.sh(&node(i), opened).trim().parse::<f64>().unwrap()).sum(),
            runner: cpu_seconds(&family(runner.pid())),
            gateways: GATEWAYS.iter().map(|gateway| cpu_seconds(&on_host(bed, gateway))).sum(),
        }
    }
}

/// Seconds for a look at all jobs, and microseconds of CPU for each job, of the runner and of the gateways. However the looks are shared out to
/// cycles: all their time is counted, and by how often each node was really asked.
fn cycles(bed: &Bed, runner: &Runner, front_end: &mut Kept) -> (f64, (f64, f64)) {
    let before = Count::now(bed, runner, front_end);
    let begun = Instant::now();
    let after = loop {
        thread::sleep(Duration::from_millis(500));
        let now = Count::now(bed, runner, front_end);
        if now.looks - before.looks >= f64::from(JOBS) * LOOKS {
            break now;
        }
        assert!(begun.elapsed().as_secs() < 90, "only {} looks in 90 s", now.looks - before.looks);
    };
    let looks = after.looks - before.looks;
    let each = |seconds: f64| seconds / looks * 1e6;
    let cycle = (after.cycles - before.cycles) / looks * f64::from(JOBS);
    (cycle, (each(after.runner - before.runner), each(after.gateways - before.gateways)))
}
