//! Ten thousand malformed requests on each listener of the real program, from clients side by side, while an ordinary client wants its
//! answers. Nothing may come of them: no job, no thread, no descriptor, no panic.
//!
//! The requests are the corpora of the fuzz targets, damaged by the same means. `FUZZ_SEED` repeats a run.

mod line;
#[path = "../../src/fuzz/mutate.rs"]
mod mutate;
mod requests;

use crate::world::{Bench, Served, until, user};
use line::{Door, Heard};
use mutate::Dice;
use requests::{Attack, Material};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Malformed requests on each listener.
const REQUESTS: usize = 10_000;
/// Clients side by side on each listener.
const CLIENTS: usize = 8;
/// An ordinary client gets its answer within this time, whatever the others do.
const PATIENCE: Duration = Duration::from_secs(15);

/// What became of the requests on one listener: status, or how the connection ended, and how often.
type Counts = BTreeMap<String, usize>;

#[test]
fn ten_thousand_malformed_requests_on_each_listener_leave_nothing_behind() {
    let mut bench = Bench::new();
    bench.set("users", json!({"min-uid": user().uid}));
    let served = bench.serve();
    let doors = [Door::api(&served.address, &bench.path("state/tls/certificate.pem")), Door::keyhole(&keyhole(&served))];
    assert_healthy(&served, &doors);
    let spool = spool(&bench);
    let (threads, descriptors) = settled(&served, (usize::MAX, usize::MAX));

    let seed = seed();
    println!("malformed requests: seed {seed:#x}");
    let begin = Instant::now();
    let (counts, asked) = storm(&served, &doors, seed);
    println!("malformed requests: {:.1} s, and {asked} ordinary ones in between", begin.elapsed().as_secs_f64());
    for (door, counts) in doors.iter().zip(&counts) {
        println!("{}: {counts:?}", door.name);
        let malformed: usize = counts.iter().filter(|(kind, _)| !kind.starts_with('2')).map(|(_, count)| count).sum();
        assert_eq!(malformed, REQUESTS, "{}: {counts:?}", door.name);
        let refusal = if door.is_tls() { "401" } else { "403" };
        for (status, least) in [("400", 1000), ("404", 10), (refusal, 10), ("closed", 100)] {
            assert!(counts.get(status).is_some_and(|count| *count >= least), "{}: hardly any {status}: {counts:?}", door.name);
        }
        assert!(!counts.contains_key("500") && !counts.contains_key("502"), "{}: {counts:?}", door.name);
    }
    assert!(asked >= 20, "the ordinary client asked {asked} times only");

    assert_healthy(&served, &doors);
    let log = served.log();
    assert!(!log.contains("panicked") && !log.contains("is lost"), "{}", panics(&log));
    assert_nothing_came_of_it(&served);
    assert_eq!(self::spool(&bench), spool, "something was submitted");
    let (threads_now, descriptors_now) = settled(&served, (threads + 4, descriptors + 4));
    println!("threads {threads} before and {threads_now} after, descriptors {descriptors} before and {descriptors_now} after");
    // The first job ever, by its id.
    assert_eq!(served.submit(&user().name, "template_sleeper.txt", json!({"word": "a"})), "1");
    served.await_state("1", "running");
    assert_eq!(served.terminate().0, Some(0));
}

fn keyhole(served: &Served) -> String {
    served.listening("keyhole").expect("it listens")
}

fn seed() -> u64 {
    match std::env::var("FUZZ_SEED") {
        Ok(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("FUZZ_SEED is a hexadecimal number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64),
    }
}

/// All clients on both doors, and an ordinary one beside them; how often that one was answered.
fn storm(served: &Served, doors: &[Door; 2], seed: u64) -> ([Counts; 2], usize) {
    let over = AtomicBool::new(false);
    let asked = AtomicUsize::new(0);
    let counts = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_healthy(served, doors);
                asked.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(50));
            }
        });
        // Also when a client panics, the ordinary one must come to its end.
        let ending = Ending(&over);
        let counts = thread::scope(|scope| {
            let begun = doors.each_ref().map(|door| {
                let clients = (0..CLIENTS).map(|number| scope.spawn(move || client(door, number, seed)));
                clients.collect::<Vec<_>>()
            });
            begun.map(|clients| sum(clients.into_iter().map(|client| client.join().unwrap())))
        });
        drop(ending);
        counts
    });
    (counts, asked.into_inner())
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn sum(all: impl Iterator<Item = Counts>) -> Counts {
    let mut sum = Counts::new();
    all.flatten().for_each(|(kind, count)| *sum.entry(kind).or_default() += count);
    sum
}

/// One client's share. What happens to be a good question after all (it is answered with 200) does not count.
fn client(door: &Door, number: usize, seed: u64) -> Counts {
    let mut dice = Dice::new(seed ^ (number as u64) << 8 ^ door.name.len() as u64);
    let material = Material::of(door);
    let mut counts = Counts::new();
    let mut malformed = 0;
    let mut kept = None;
    while malformed < REQUESTS / CLIENTS {
        let attack = material.attack(&mut dice);
        let heard = perform(door, &attack, &mut kept);
        malformed += usize::from(!heard.0.starts_with('2'));
        *counts.entry(heard.0).or_default() += 1;
    }
    counts
}

fn perform(door: &Door, attack: &Attack, kept: &mut Option<line::Line>) -> Heard {
    let heard = match attack {
        Attack::Kept(bytes) => door.ask(kept, bytes),
        Attack::Once(bytes) => door.once(bytes),
        Attack::FromAfar(bytes, from) => door.ask_from(bytes, *from),
        Attack::Raw(bytes) => door.raw(bytes),
        Attack::Underneath(bytes) => door.underneath(bytes),
    };
    heard.unwrap_or_else(|error| panic!("{}: {error}: {attack:?}", door.name))
}

fn assert_healthy(served: &Served, doors: &[Door; 2]) {
    let begin = Instant::now();
    let answer = served.get("/jobs");
    assert_eq!((answer.status, &answer.body), (200, &json!({"jobs": []})), "{answer:?}");
    let heard = doors[1].once(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(heard.0, "404");
    assert!(begin.elapsed() < PATIENCE, "an ordinary client waited for {:?}", begin.elapsed());
}

fn assert_nothing_came_of_it(served: &Served) {
    assert_eq!(served.get("/jobs").body, json!({"jobs": []}));
    for id in 1..4 {
        assert_eq!(served.get(&format!("/jobs/{id}")).status, 404);
    }
}

/// The names in the scheduler's folder, where each job gets one.
fn spool(bench: &Bench) -> BTreeSet<String> {
    let entries = fs::read_dir(bench.path("state/local-jobs")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name != "lock").collect()
}

/// The lines of the log that speak of a panic, and those around them.
fn panics(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let at = lines.iter().position(|line| line.contains("panicked") || line.contains("is lost")).unwrap_or(0);
    lines[at.saturating_sub(3)..lines.len().min(at + 6)].join("\n")
}

/// The fewest threads and descriptors that the process is seen with, once they are no more than that and do not get fewer any more. Now and then
/// it has one more, whenever its watchers look around.
fn settled(served: &Served, most: (usize, usize)) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", served.pid())).unwrap().count();
    let fewest = Mutex::new(((usize::MAX, usize::MAX), Instant::now()));
    let look = || {
        let (now, mut fewest) = ((count("task"), count("fd")), fewest.lock().unwrap());
        let fewer = (now.0.min(fewest.0.0), now.1.min(fewest.0.1));
        if fewer != fewest.0 {
            *fewest = (fewer, Instant::now());
        }
        let is_calm = fewest.1.elapsed() > Duration::from_millis(1500);
        (is_calm && fewer.0 <= most.0 && fewer.1 <= most.1).then_some(fewer)
    };
    until("threads and descriptors settle", look, || format!("{:?}, and at most {most:?} are expected", fewest.lock().unwrap()))
}
