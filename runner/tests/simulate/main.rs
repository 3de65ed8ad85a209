//! `make simulate`: the runner's own verbs and watchers on a real etcd, with a cluster that is only played: a scheduler and gateways that
//! answer with the delays and sizes that real ones were measured to have, and no network between. It keeps 10,000 jobs running on
//! 2,000 nodes behind 20 gateways, starts more and more of them per second, and tells where it can follow no more.
//!
//! SIMULATE_RATES (starts per second, one stage each) and SIMULATE_SECONDS (of a stage) change the play; SIMULATE_JOBS, SIMULATE_GATEWAYS,
//! SIMULATE_RUNNERS (a single one does everything; of several the first only watches, and the others answer) and SIMULATE_JOBS_SECONDS (between two looks at the scheduler) the
//! centre.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a play that cannot go on ends")]

mod etcd;
mod gateway;
mod play;
mod report;
mod scheduler;

use play::Play;
use report::Report;
use std::time::Duration;

/// What the play is about.
pub struct Centre {
    /// That run all the time.
    pub jobs: usize,
    /// How many gateways there are.
    pub gateways: usize,
    /// A single one does everything; of several the first only watches, and the others answer.
    pub runners: usize,
    /// `watch.jobs-seconds`
    pub jobs_interval: Duration,
}

fn number(name: &str, default: u32) -> u32 {
    let number = std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")));
    assert_ne!(number, 0, "{name} is to be 1 at least");
    number
}

fn main() {
    let rates = std::env::var("SIMULATE_RATES").unwrap_or_else(|_| "25 50 100 200 400".into());
    let rates: Vec<u32> = rates.split_whitespace().map(|rate| rate.parse().expect("SIMULATE_RATES holds numbers")).collect();
    let seconds = number("SIMULATE_SECONDS", 30);
    let centre = Centre {
        jobs: number("SIMULATE_JOBS", 10_000) as usize,
        gateways: number("SIMULATE_GATEWAYS", 20) as usize,
        runners: number("SIMULATE_RUNNERS", 1) as usize,
        jobs_interval: Duration::from_secs(number("SIMULATE_JOBS_SECONDS", 5).into()),
    };
    let etcd = etcd::Server::start();
    let play = Play::new(&etcd, &centre);
    println!(
        "{} jobs are started, on 2,000 nodes behind {} gateways; {} runner(s), a look at the scheduler every {:?}",
        centre.jobs, centre.gateways, centre.runners, centre.jobs_interval
    );
    play.populate(centre.jobs);
    let mut report = Report::new(&centre);
    for rate in rates {
        let stage = play.stage(rate, Duration::from_secs(seconds.into()), centre.jobs);
        report.add(stage);
        play.settle();
    }
    report.write();
}
