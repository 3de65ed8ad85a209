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
const LOOKS: f64 = 5.0;
const ROLE: &str = "keyhole-watch-default";

/// Time and CPU of one look at all of them.
pub fn measure(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let _listeners = listen(&bed);
    put_jobs(&bed);
    // Often, so that the bench need not wait: a look itself costs the same.
    let config = json!({"watch": {"keyhole-seconds": 0.5}});
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
        // Not while the runner looks, too.
        let stopped = Stopped::new(&runner);
        found.baseline.push(numbers(&bed, "runner", None, "health", &[bed.get("BED_SSH_CONFIG"), &JOBS.to_string()])[0] / 1e6);
        drop(stopped);
    }
    let used = |which: fn(&(f64, f64)) -> f64| crate::figures::median(&cpu.iter().map(which).collect::<Vec<_>>());
    let notes = format!(
        "CPU per job and look, with all that goes on meanwhile: runner {:.0} µs, gateways {:.0} µs; {rounds} rounds in turns; 1,000 records with listeners behind all ports, not 1,000 jobs in Slurm",
        used(|pair| pair.0),
        used(|pair| pair.1)
    );
    vec![found.theirs_by_ours("health-1000", "one nc -z per job over a ControlMaster", "s", Goal::AtLeast(200.0)).noting(notes)]
}

/// A runner that does nothing until this is dropped.
struct Stopped(rustix::process::Pid);

impl Stopped {
    fn new(runner: &Runner) -> Self {
        let pid = rustix::process::Pid::from_raw(runner.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
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

/// Connections that the nodes have accepted so far.
fn accepted(bed: &Bed) -> f64 {
    let of_one = |i: u16| {
        let text = bed.at(&node(i), || std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let words: Vec<&str> = text.lines().filter(|line| line.starts_with("Tcp:")).nth(1).unwrap().split(' ').collect();
        // Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens
        words[6].parse::<f64>().unwrap()
    };
    (0..4).map(of_one).sum()
}

/// Seconds of CPU so far, of the runner and of the gateways.
fn cpu(bed: &Bed, runner: &Runner) -> (f64, f64) {
    (cpu_seconds(&family(runner.pid())), GATEWAYS.iter().map(|gateway| cpu_seconds(&on_host(bed, gateway))).sum())
}

/// Seconds that a look at all jobs takes, and microseconds of CPU for each job, of the runner and of the gateways. Cycles in which nobody is looked
/// at do not count; of the others all time counts, and as many looks as the nodes have really seen.
fn cycles(bed: &Bed, runner: &Runner, front_end: &mut Kept) -> (f64, (f64, f64)) {
    let mut total = |what: &str| front_end.metric(&format!("bwvisu_watch_cycle_seconds_{what}{{role=\"{ROLE}\"}}"));
    let (begun, cpu_before) = (Instant::now(), cpu(bed, runner));
    let (mut ended, mut spent, mut seen) = (total("count"), total("sum"), accepted(bed));
    let (mut seconds, mut looks) = (0.0, 0.0);
    while looks < f64::from(JOBS) * LOOKS {
        if begun.elapsed().as_secs() > 100 {
            assert!(looks >= f64::from(JOBS), "only {looks} looks in 100 s");
            break;
        }
        thread::sleep(Duration::from_millis(100));
        let count = total("count");
        if count > ended {
            let (sum, now) = (total("sum"), accepted(bed));
            // Slurm's own daemons connect, too, now and then.
            if now - seen > f64::from(JOBS) / 20.0 {
                (seconds, looks) = (seconds + sum - spent, looks + now - seen);
            }
            (ended, spent, seen) = (count, sum, now);
        }
    }
    let after = cpu(bed, runner);
    let each = |before: f64, after: f64| (after - before) / looks * 1e6;
    (seconds / looks * f64::from(JOBS), (each(cpu_before.0, after.0), each(cpu_before.1, after.1)))
}
