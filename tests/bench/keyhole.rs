//! A job's request for ports, from its first byte to the answer.

use crate::Effort;
use crate::figures::{Figure, Goal, Rounds};
use crate::ground::{IDLE, WIDE, cancel_all, numbers, setup, wait_for_chains};
use crate::kept::Kept;
use crate::store;
use bwvisu_tests::keyhole::{ask, token_of};
use bwvisu_tests::{Bed, Runner, until};
use keyhole_protocol::{Nonce, Request, Token, nodelist};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A job that runs and has not asked for ports: the bench asks in its name, from its first node.
pub struct Mute {
    /// The job's id.
    pub id: u64,
    /// Its nodes.
    pub nodes: Vec<String>,
    /// Its token.
    pub token: Token,
}

impl Mute {
    /// A job that has just been submitted, once it runs.
    pub fn wait(bed: &Bed, runner: &Runner, id: &str) -> Self {
        let job = runner.wait_for(id, "running", 60);
        let nodes = nodelist::expand(job["details"]["NodeList"].as_str().unwrap()).unwrap();
        Self { id: id.parse().unwrap(), nodes, token: token_of(bed, id) }
    }

    /// Asks for ports until there is an answer; how often it had to ask again.
    pub fn ask(&self, bed: &Bed, ports: u32) -> usize {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.id.to_be_bytes());
        let request = Request { job: self.id, run: 0, nonce: Nonce(nonce), ports, nodes: self.nodes.clone() };
        for again in 0..100 {
            let answer = ask(bed, &self.nodes[0], &self.token, &request);
            if answer.status == 200 {
                return again;
            }
            assert!([429, 503].contains(&answer.status), "job {}: {answer:?}", self.id);
            thread::sleep(Duration::from_millis(50));
        }
        panic!("job {} asked a hundred times in vain", self.id);
    }
}

/// The jobs keep running, and nobody has asked for ports: what was granted is taken back behind the runner's back, while it does not run.
fn forget_grants(bed: &Bed, runner: &mut Runner, spare: &Mute) {
    runner.terminate();
    ["grants/", "gateways/", "nodes/", "trail/"].iter().for_each(|prefix| store::delete_all(bed, prefix));
    for gateway in ["gw0", "gw1"] {
        bed.sh(gateway, "iptables-save | grep -v BWVISU | iptables-restore");
    }
    let times = runner.log().matches("chains BWVISU set up").count() / 2;
    runner.start_again();
    wait_for_chains(runner, times + 1);
    // Connections and shells are there from now on, as in a service that has been up for a while.
    spare.ask(bed, 1);
}

/// Three nodes, a hundred ports.
pub fn three_hundred_ports(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let runner = Runner::with(&bed, &setup(&[WIDE], &json!({})));
    wait_for_chains(&runner, 1);
    let rounds = effort.rounds(9, 5);
    let mut front_end = Kept::open(&bed, &runner);
    let ids: Vec<String> = (0..=rounds).map(|_| front_end.post(WIDE.0, &json!({}), &mut 0)).collect();
    let jobs: Vec<Mute> = ids.iter().map(|id| Mute::wait(&bed, &runner, id)).collect();
    let (mut seed, mut by_hand, mut asked_again) = (Rounds::default(), Rounds::default(), 0);
    for (round, job) in jobs.iter().enumerate() {
        let begun = Instant::now();
        let again = job.ask(&bed, 100);
        let ours = begun.elapsed().as_secs_f64() * 1e3;
        let hand = by_ssh(&bed, "keyhole-by-hand");
        // The first one warms up.
        if round == 0 {
            continue;
        }
        asked_again += again;
        by_hand.ours.push(ours);
        by_hand.baseline.push(hand);
        // Many seconds each: in every second round.
        if round % 2 == 1 {
            seed.ours.push(ours);
            seed.baseline.push(by_ssh(&bed, "keyhole-seed"));
        }
    }
    cancel_all(&bed);
    let notes = format!("{rounds} jobs of three nodes, 100 ports each; {asked_again} had to ask again");
    let beside = format!("{}; the seed's way beside {} of them", notes, seed.ours.len());
    vec![
        seed.theirs_by_ours("keyhole-300", "one ssh per probe and per rule over a ControlMaster", "ms", Goal::AtLeast(150.0))
            .noting(&beside),
        by_hand
            .ours_by_theirs(
                "keyhole-300 by hand",
                "one remote shell: nc on ranges, one iptables-restore",
                "ms",
                Goal::AtMost(1.5),
            )
            .noting(&notes),
    ]
}

/// Milliseconds that one of the other ways took; its rules are gone again.
fn by_ssh(bed: &Bed, script: &str) -> f64 {
    let found = numbers(bed, "runner", None, script, &[bed.get("BED_SSH_CONFIG"), &bed.ib("c0")]);
    bed.sh("gw0", "iptables-save | grep -v 'comment bench ' | iptables-restore");
    found[0] / 1e3
}

const JOBS: usize = 200;

/// Two hundred jobs, one port each.
pub fn two_hundred_jobs(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let mut runner = Runner::with(&bed, &setup(&[IDLE], &json!({})));
    let jobs = running_jobs(&bed, &runner, JOBS + 1);
    let (spare, jobs) = jobs.split_first().unwrap();
    let rounds = effort.rounds(3, 1);
    let (mut found, mut asked_again) = (Rounds::default(), 0);
    for _ in 0..rounds {
        forget_grants(&bed, &mut runner, spare);
        let (seconds, again) = all_at_once(&bed, jobs);
        found.ours.push(seconds);
        asked_again += again;
        forget_grants(&bed, &mut runner, spare);
        let begun = Instant::now();
        for job in jobs {
            job.ask(&bed, 1);
        }
        found.baseline.push(begun.elapsed().as_secs_f64());
    }
    cancel_all(&bed);
    let notes =
        format!("{JOBS} jobs on four nodes, {rounds} rounds in turns; on average {} asked again in each", asked_again / rounds);
    vec![found.theirs_by_ours("keyhole-200", "the same jobs one by one", "s", Goal::AtLeast(10.0)).noting(notes)]
}

/// So many jobs on one node each, all running.
pub fn running_jobs(bed: &Bed, runner: &Runner, count: usize) -> Vec<Mute> {
    let mut front_end = Kept::open(bed, runner);
    (0..count).for_each(|_| drop(front_end.post(IDLE.0, &json!({}), &mut 0)));
    let running = || bed.sh("cmd0", "squeue --noheader --states=R --format='%j %N'");
    let listed = until("all jobs to run", 150, running, |listed| listed.lines().count() == count);
    let nodes: BTreeMap<&str, &str> = listed.lines().filter_map(|line| line.split_once(' ')).collect();
    let mute = |(_, record): &(String, Value)| Mute {
        id: record["id"].as_u64().unwrap(),
        nodes: vec![nodes[record["name"].as_str().unwrap()].trim().to_owned()],
        token: Token::from_hex(record["token"].as_str().unwrap()).unwrap(),
    };
    store::read(bed, "jobs/").iter().map(mute).collect()
}

/// Seconds until the last one has its answer.
fn all_at_once(bed: &Bed, jobs: &[Mute]) -> (f64, usize) {
    let begin = Barrier::new(jobs.len() + 1);
    let again = AtomicUsize::new(0);
    let begun = thread::scope(|scope| {
        for job in jobs {
            let (begin, again) = (&begin, &again);
            scope.spawn(move || {
                begin.wait();
                again.fetch_add(job.ask(bed, 1), Ordering::Relaxed);
            });
        }
        let begun = Instant::now();
        begin.wait();
        begun
    });
    // The scope has waited for all of them.
    (begun.elapsed().as_secs_f64(), again.load(Ordering::Relaxed))
}
