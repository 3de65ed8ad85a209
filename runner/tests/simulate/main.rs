//! `make simulate`: the runner's own verbs and watchers on a real etcd, with a cluster that is only played: a scheduler and gateways that
//! answer with the delays and sizes that real ones were measured to have, and no network between. It keeps 10,000 jobs running on
//! 2,000 nodes behind 20 gateways, starts more and more of them per second, and tells where it can follow no more.
//!
//! SIMULATE_RATES (starts per second, one stage each), SIMULATE_SECONDS (of a stage) and SIMULATE_JOBS change the play.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a play that cannot go on ends")]

mod etcd;
mod gateway;
mod play;
mod report;
mod scheduler;

use play::Play;
use report::Report;
use std::time::Duration;

fn main() {
    let rates = std::env::var("SIMULATE_RATES").unwrap_or_else(|_| "25 50 100 200 400".into());
    let rates: Vec<u32> = rates.split_whitespace().map(|rate| rate.parse().expect("SIMULATE_RATES holds numbers")).collect();
    let number = |name: &str, default: u32| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
    };
    let seconds = number("SIMULATE_SECONDS", 30);
    let jobs = number("SIMULATE_JOBS", 10_000) as usize;
    let etcd = etcd::Server::start();
    let play = Play::new(&etcd);
    println!("{jobs} jobs are started, on 2,000 nodes behind 20 gateways");
    play.populate(jobs);
    let mut report = Report::new(jobs);
    for rate in rates {
        let stage = play.stage(rate, Duration::from_secs(seconds.into()), jobs);
        report.add(stage);
        play.settle();
    }
    report.write();
}
