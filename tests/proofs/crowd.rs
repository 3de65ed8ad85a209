//! Two hundred jobs that begin in the same second.

use bwvisu_tests::gateway::{GATEWAYS, all_forwardings, forwardings, records};
use bwvisu_tests::slurm::Queue;
use bwvisu_tests::wait::until;
use bwvisu_tests::{Bed, Runner};
use serde_json::json;
use std::collections::BTreeSet;
use std::thread;
use std::time::Instant;

const JOBS: usize = 200;

/// Waits to be released, says what it was given, and lives on.
const TINY: (&str, &str) = (
    "tiny.txt",
    "#!/bin/bash\n#SBATCH --time=10 --nodes=1 --ntasks=1 --hold\n#KEYHOLE-REQUEST-PORTS 1\n\
     echo \"has $KEYHOLE_GATEWAY0 $KEYHOLE_EXTERNAL_PORT0 $(hostname) $KEYHOLE_PORT0\"\nexec sleep 600\n",
);

/// What a job printed of its ports: gateway, external port, node, internal port.
fn given(runner: &Runner, user: &str, id: &str) -> Option<[String; 4]> {
    let log = runner.job_log(user, id);
    let words: Vec<String> = log.lines().find_map(|line| line.strip_prefix("has "))?.split(' ').map(str::to_owned).collect();
    words.try_into().ok()
}

fn submit_all(runner: &Runner) -> Vec<(&'static str, String)> {
    let some = |user: &'static str| {
        move || (0..JOBS / 8).map(|_| (user, runner.api.submit(user, TINY.0, &json!({})))).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        // Each user may have a hundred.
        let threads: Vec<_> = (0..8).map(|i| scope.spawn(some(["alice", "bob"][i % 2]))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn two_hundred_jobs_that_begin_at_once_all_have_ports_of_their_own() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::start(&bed, &[TINY]);
    let begun = Instant::now();
    let jobs = submit_all(&runner);
    println!("{JOBS} submissions accepted in {:.1?}", begun.elapsed());
    assert_eq!(queue.alive().len(), JOBS, "Slurm has each of them once");
    let begun = Instant::now();
    bed.sh("ctl", "squeue --noheader --format=%A | xargs scontrol release");
    let served = || jobs.iter().filter_map(|(user, id)| given(&runner, user, id)).collect::<Vec<_>>();
    let given = until("all jobs to have their ports", 175, served, |given| given.len() == JOBS);
    println!("the last of {JOBS} jobs had its ports {:.1?} after their release", begun.elapsed());
    println!("when Slurm started them:\n{}", bed.sh("ctl", "squeue --noheader --format=%S | sort | uniq -c"));
    let outside: BTreeSet<_> = given.iter().map(|[gateway, external, _, _]| (gateway, external)).collect();
    let inside: BTreeSet<_> = given.iter().map(|[_, _, node, internal]| (node, internal)).collect();
    assert_eq!((outside.len(), inside.len()), (JOBS, JOBS), "no port was given twice");
    let per_gateway = GATEWAYS.map(|gateway| forwardings(&bed, gateway).len());
    println!("rules on the gateways: {per_gateway:?}");
    let grants = records(&bed, "grants/").lines().filter(|line| line.starts_with("/bwvisu-runner/")).count();
    assert_eq!((per_gateway.iter().sum::<usize>(), grants), (JOBS, JOBS), "as many rules as grants as jobs");
    assert_eq!(queue.jobs().len(), JOBS);

    let begun = Instant::now();
    bed.sh("ctl", "squeue --noheader --format=%A | xargs scancel");
    until("all jobs to be finished", 150, || runner.api.jobs().len(), |left| *left == 0);
    until("all rules to be gone", 120, || all_forwardings(&bed), Vec::is_empty);
    until("all ports to be free", 20, || records(&bed, "gateways/").contains("\"job\":"), |taken| !taken);
    println!("all ended, all rules gone, {:.1?} after the end began", begun.elapsed());
}
