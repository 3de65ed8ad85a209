//! Power loss: what the store wrote is recorded (strace), and then put on a disk that lost any part of what was not yet synced, down to
//! single sectors, at every moment of the run.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use bwvisu_runner::store::embedded::Embedded;

use crate::caused::{quick_folder, tracing_works};
use crate::walk::{again, ended, is_child, said, script, state, states};

const SECTOR: usize = 512;
/// So many different losses are tried at each moment.
const LOSSES: u64 = 2;

/// What the child did, in order.
enum Event {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    /// The file's new length; what it grew by is zeros.
    Length(usize),
    Sync,
    /// A line of the child's about a change: begun, or answered.
    Begins,
    Done,
}

/// Reads a log of strace's; `-xx` makes every byte `\xHH`.
fn events(log: &str) -> Vec<Event> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut events = Vec::new();
    for line in log.lines() {
        let (pid, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        if let Some(first) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, first);
        } else if let Some((_, rest)) = call.split_once(" resumed>") {
            events.extend(event(&format!("{}{rest}", begun.remove(pid).unwrap())));
        } else {
            events.extend(event(call));
        }
    }
    events
}

fn event(call: &str) -> Option<Event> {
    let (name, rest) = call.split_once('(')?;
    let (words, result) = rest.rsplit_once(") ")?;
    assert!(!result.contains("-1 "), "it failed: {name} {result}");
    let words: Vec<&str> = words.split(", ").collect();
    let number = |index: usize| words[index].parse::<usize>().unwrap();
    match name {
        "pwrite64" => {
            let bytes = bytes(words[1]);
            assert_eq!(bytes.len(), number(2), "the log holds all of it");
            Some(Event::Write { offset: number(3), bytes })
        }
        "fallocate" => Some(Event::Length(number(2) + number(3))),
        "ftruncate" => Some(Event::Length(number(1))),
        "fsync" | "fdatasync" => Some(Event::Sync),
        "write" => {
            let text = String::from_utf8_lossy(&bytes(words[1])).into_owned();
            if text.contains("child: begins") { Some(Event::Begins) } else { text.contains("child: done").then_some(Event::Done) }
        }
        other => panic!("{other}"),
    }
}

fn bytes(quoted: &str) -> Vec<u8> {
    let hex = quoted.trim_matches('"').split("\\x").skip(1);
    hex.map(|byte| u8::from_str_radix(&byte[..2], 16).unwrap()).collect()
}

fn put(disk: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if disk.len() < end {
        disk.resize(end, 0);
    }
    disk[offset..end].copy_from_slice(bytes);
}

/// Numbers by which a loss can be repeated (xorshift).
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 & 64 == 0
    }
}

/// The disk after a loss: of what was not synced, some sectors are there and others are not, whatever their order was.
fn after_loss(synced: &[u8], since: &[&Event], dice: &mut Dice) -> Vec<u8> {
    let mut disk = synced.to_vec();
    for event in since {
        match event {
            Event::Write { offset, bytes } => {
                for (index, sector) in bytes.chunks(SECTOR).enumerate().filter(|_| dice.throw()).collect::<Vec<_>>() {
                    put(&mut disk, offset + index * SECTOR, sector);
                }
            }
            Event::Length(length) if dice.throw() => disk.resize(*length, 0),
            _ => {}
        }
    }
    disk
}

#[test]
fn power_lost_at_any_moment_a_store_has_all_that_was_answered_and_nothing_by_halves() {
    if is_child() || !tracing_works() {
        return;
    }
    let test = "power::power_lost_at_any_moment_a_store_has_all_that_was_answered_and_nothing_by_halves";
    let seed = env::var("SEED").map_or_else(|_| u64::from(std::process::id()) + 1, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let folder = quick_folder();
    let (path, log) = (folder.path().join("store"), folder.path().join("log"));
    let states = states(&folder.path().join("model"));
    drop(Embedded::open(&path).unwrap());
    let begin = fs::read(&path).unwrap();
    record(test, &path, &log);
    let events = events(&fs::read_to_string(&log).unwrap());

    let (mut synced, mut last_sync, mut begun, mut done) = (begin, 0, 0, 0);
    let (mut losses, mut absent, mut there) = (0, 0, 0);
    for (index, event) in events.iter().enumerate() {
        match event {
            Event::Begins => begun += 1,
            Event::Done => done += 1,
            Event::Sync => {
                let since: Vec<&Event> = events[last_sync..index].iter().collect();
                since.iter().for_each(|event| match event {
                    Event::Write { offset, bytes } => put(&mut synced, *offset, bytes),
                    Event::Length(length) => synced.resize(*length, 0),
                    _ => {}
                });
                last_sync = index;
            }
            _ => {}
        }
        let since: Vec<&Event> = events[last_sync..=index].iter().collect();
        for loss in 0..if since.len() > 1 { LOSSES } else { 1 } {
            let mut dice = Dice((seed << 24) ^ ((index as u64) << 4) ^ loss ^ 0x9e37_79b9_7f4a_7c15);
            fs::write(&path, after_loss(&synced, &since, &mut dice)).unwrap();
            let found = state(&path);
            let after = states[done..=begun].iter().position(|state| *state == found);
            let after = after.unwrap_or_else(|| panic!("SEED={seed}, event {index}, loss {loss}: {done} of {begun} answered"));
            losses += 1;
            absent += usize::from(begun > done && after == 0);
            there += after;
        }
    }
    assert_eq!((begun, done), (script().len(), script().len()), "the whole run was recorded");
    println!(
        "{losses} losses at {} moments: the change under way was absent {absent} times, and there, whole, {there} times",
        events.len()
    );
    assert!(losses > 300 && absent > 100 && there > 5, "{losses} losses, {absent} absent, {there} there");
}

/// Has a child work on the store, and every byte that it writes written into `log`.
fn record(test: &str, path: &Path, log: &Path) {
    let mut tracer = Command::new("strace");
    tracer.args(["-f", "-qq", "-xx", "-s", "16777216", "-e", "signal=none", "-e"]);
    tracer.arg("trace=write,pwrite64,pwritev,fsync,fdatasync,ftruncate,fallocate").arg("-o").arg(log).arg("--");
    let mut child = again(tracer.arg(env::current_exe().unwrap()), test, "work", path);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(ended(&said(child.stdout.as_mut().unwrap())));
    child.wait().unwrap();
}
