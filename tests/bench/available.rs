//! From `listen()` to `state: available`, as a client sees it that asks again and again.

use crate::Effort;
use crate::figures::{Figure, Goal, median};
use crate::ground::{cancel_all, setup, wait_for_chains};
use crate::kept::Kept;
use crate::keyhole::running_jobs;
use crate::store;
use bwvisu_tests::{Bed, Runner};
use serde_json::json;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

/// How often a gateway looks at a job that is starting, as installed (`watch.probe-seconds`), in seconds.
const INTERVAL: f64 = 0.5;

/// The longest of some jobs' times; in the short form the second longest, since the machine may stand still during one of them.
pub fn measure(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let runner = Runner::with(&bed, &setup(&[crate::ground::IDLE], &json!({})));
    wait_for_chains(&runner, 1);
    let jobs = running_jobs(&bed, &runner, effort.rounds(16, 6));
    let mut front_end = Kept::open(&bed, &runner);
    let mut times = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        job.ask(&bed, 1);
        // Somewhere between two looks.
        thread::sleep(Duration::from_millis(137 * (number as u64 * 5 % 16)));
        let (_, grant) = store::read(&bed, &format!("grants/{}", job.id)).remove(0);
        let port = u16::try_from(grant["spans"][0]["internal"].as_u64().unwrap()).unwrap();
        let door = bed.at(&job.nodes[0], || TcpListener::bind(("0.0.0.0", port))).unwrap();
        let begun = Instant::now();
        while front_end.job(&job.id.to_string())["state"] != "available" {
            assert!(begun.elapsed().as_secs() < 30, "job {} is not available after 30 s", job.id);
            thread::sleep(Duration::from_millis(3));
        }
        times.push(begun.elapsed().as_secs_f64());
        drop(door);
    }
    cancel_all(&bed);
    times.sort_by(f64::total_cmp);
    let (judged, word) =
        if effort.short { (times[times.len() - 2], "second longest") } else { (times[times.len() - 1], "longest") };
    let least = times[0];
    let notes = format!(
        "the {word} of {} jobs, p50 {:.2} s, the shortest {least:.2} s; a gateway looks every {INTERVAL} s at jobs that are starting; what a look costs stands with health-1000",
        times.len(),
        median(&times)
    );
    let figure = Figure::plain("listen-available", "one interval and 100 ms", "s", judged, Goal::AtMost(1.0));
    vec![
        Figure {
            baseline: Some(INTERVAL + 0.1),
            ratio: judged / (INTERVAL + 0.1),
            // It is this one alone that counts, so there is nothing to choose from.
            spread: (judged / (INTERVAL + 0.1), judged / (INTERVAL + 0.1)),
            ..figure
        }
        .noting(notes),
    ]
}
