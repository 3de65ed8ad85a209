//! `kill -9` between any two of the store's writes, one after another, until a run ends without being reached: whatever was answered is
//! there, what was not begun is not there, and each change is whole or absent.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::{env, fs, process};

use bwvisu_runner::store::embedded::Embedded;
use bwvisu_runner::store::{Backend, Change, Versioned};

use crate::caused::{CHANGING, Tracer, WRITING, calls_in, killed_at, quick_folder, tracing_works, walk, watched};

/// Tells a test that is run again as a child what to do, and where.
const CHILD: &str = "STORE_WALK_CHILD";
const FILE: &str = "STORE_WALK_FILE";

pub type State = Vec<(String, Versioned)>;

/// Changes as jobs cause them: a submission, what was seen, a claim over several ledgers, its end, a finished job that is removed. One value
/// is larger than all others, so the file grows.
pub fn script() -> Vec<Change> {
    let mut script = Vec::new();
    for job in 1..=3 {
        let job_key = format!("clusters/default/jobs/{job}");
        let finished = format!("clusters/default/finished/{job}");
        let grant = format!("clusters/default/grants/{job}");
        let ledgers =
            ["gateways/10.0.0.1/load", "gateways/10.0.0.1/blocks/500", "gateways/10.0.0.1/blocks/501", "nodes/7", "nodes/9"];
        let ledgers = ledgers.map(|name| format!("clusters/default/{name}"));
        let record = |name: &str| format!("{{\"version\":1,\"of\":{job},\"is\":\"{name}\"}}").into_bytes();
        let claim: Vec<_> = ledgers.iter().map(|key| (key.clone(), record("claimed"))).collect();
        script.push(Change {
            put: vec![("next-job-id".into(), record("counter")), (job_key.clone(), record("submitted"))],
            ..Change::default()
        });
        let details = vec![b'x'; if job == 2 { 3 << 20 } else { 2000 }];
        script.push(Change { put: vec![(job_key.clone(), details)], ..Change::default() });
        script.push(Change {
            put: [claim, vec![(grant.clone(), record("claimed"))]].concat(),
            expect: vec![(grant.clone(), 0)],
            ..Change::default()
        });
        script.push(Change { put: vec![(grant.clone(), record("active"))], ..Change::default() });
        script.push(Change {
            put: vec![(ledgers[0].clone(), record("load"))],
            delete: [&ledgers[1..], &[grant]].concat(),
            ..Change::default()
        });
        script.push(Change { put: vec![(finished.clone(), record("finished"))], delete: vec![job_key], ..Change::default() });
        if job % 2 == 0 {
            script.push(Change { delete: vec![finished], ..Change::default() });
        }
    }
    script
}

/// The store before the script and after each of its changes.
pub fn states(path: &Path) -> Vec<State> {
    let store = Embedded::open(path).unwrap();
    let mut states = vec![store.scan("").unwrap()];
    for change in script() {
        assert!(store.commit(&change).unwrap());
        states.push(store.scan("").unwrap());
    }
    states
}

pub fn state(path: &Path) -> State {
    Embedded::open(path).unwrap_or_else(|error| panic!("it does not open: {error}")).scan("").unwrap()
}

/// What a child does.
fn child(what: &str, path: &Path) {
    let store = Embedded::open(path).unwrap();
    match what {
        "open" => {}
        "work" => {
            await_go();
            for (number, change) in script().iter().enumerate() {
                say(&format!("begins {number}"));
                assert!(store.commit(change).unwrap());
                say(&format!("done {number}"));
            }
        }
        "close" => {
            assert!(store.commit(&script()[0]).unwrap());
            await_go();
            drop(store);
        }
        other => panic!("{other}"),
    }
    say("ended");
    // Nothing more is written.
    process::exit(0);
}

fn say(line: &str) {
    std::io::stdout().lock().write_all(format!("child: {line}\n").as_bytes()).unwrap();
}

fn await_go() {
    say("ready");
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
}

pub fn is_child() -> bool {
    let what = env::var(CHILD).ok();
    if let Some(what) = &what {
        child(what, Path::new(&env::var_os(FILE).unwrap()));
    }
    what.is_some()
}

pub fn again(command: &mut Command, test: &str, what: &str, path: &Path) -> Child {
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, what).env(FILE, path);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// A child that has reached the place where it waits.
struct Waiting {
    child: Child,
    stdin: ChildStdin,
    lines: BufReader<process::ChildStdout>,
}

impl Waiting {
    fn new(test: &str, what: &str, path: &Path) -> Self {
        let mut child = again(&mut Command::new(env::current_exe().unwrap()), test, what, path);
        let (stdin, mut lines) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut line = String::new();
        while !line.contains("child: ready") {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the child ended early");
        }
        Self { child, stdin, lines }
    }

    /// Lets it go on until it is killed at its `nth` such call or ends; what it said.
    fn killed_at(mut self, call: &str, nth: usize) -> Vec<String> {
        let _tracer = Tracer::kill_at(self.child.id(), call, nth);
        self.stdin.write_all(b"go\n").unwrap();
        let said = said(&mut self.lines);
        self.child.wait().unwrap();
        said
    }
}

pub fn said(from: &mut impl Read) -> Vec<String> {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text.lines().filter_map(|line| line.split_once("child: ").map(|(_, line)| line.to_owned())).collect()
}

pub fn ended(said: &[String]) -> bool {
    said.last().is_some_and(|line| line == "ended")
}

/// A child from its start, killed at its `nth` such call, unless it ends before.
fn started(call: &str, nth: usize, test: &str, what: &str, path: &Path) -> bool {
    let mut child = again(&mut killed_at(call, nth, &env::current_exe().unwrap()), test, what, path);
    let said = said(child.stdout.as_mut().unwrap());
    child.wait().unwrap();
    ended(&said)
}

/// The names of the calls that a child makes.
fn calls(of: &str, test: &str, what: &str, path: &Path) -> BTreeSet<String> {
    let log = path.with_extension("calls");
    let mut child = again(&mut watched(of, &log, &env::current_exe().unwrap()), test, what, path);
    // Not every child waits for it.
    let _ = child.stdin.take().unwrap().write_all(b"go\n");
    let said = said(child.stdout.as_mut().unwrap());
    assert!(child.wait().unwrap().success() && ended(&said), "{said:?}");
    let calls = calls_in(&log);
    fs::remove_file(log).unwrap();
    calls
}

#[test]
fn killed_at_any_write_a_store_has_all_that_was_answered_and_nothing_by_halves() {
    if is_child() || !tracing_works() {
        return;
    }
    let test = "walk::killed_at_any_write_a_store_has_all_that_was_answered_and_nothing_by_halves";
    let folder = quick_folder();
    let states = states(&folder.path().join("model"));
    let calls = calls(WRITING, test, "work", &folder.path().join("watched"));
    let empty = folder.path().join("empty");
    drop(Embedded::open(&empty).unwrap());
    let (mut absent, mut there) = (0, 0);
    let points = walk(&calls, |call, nth| {
        let path = folder.path().join(format!("{call}-{nth}"));
        fs::copy(&empty, &path).unwrap();
        let said = Waiting::new(test, "work", &path).killed_at(call, nth);
        let count = |word: &str| said.iter().filter(|line| line.starts_with(word)).count();
        let (begun, done) = (count("begins "), count("done "));
        let found = state(&path);
        let after = states[done..=begun].iter().position(|state| *state == found);
        let after = after.unwrap_or_else(|| panic!("killed at {call} {nth}, {done} of {begun} answered: {found:?}"));
        absent += usize::from(begun > done && after == 0);
        there += after;
        if let Some(next) = script().get(done + after) {
            assert!(Embedded::open(&path).unwrap().commit(next).unwrap(), "it goes on from there");
            assert_eq!(values(state(&path)), values(states[done + after + 1].clone()));
        }
        fs::remove_file(&path).unwrap();
        ended(&said)
    });
    println!(
        "killed at {points} writes ({calls:?}): the change under way was absent {absent} times, and there, whole, {there} times"
    );
    assert!(points > 100 && absent > 80 && there > 15, "{points} writes, {absent} absent, {there} there");
}

fn values(state: State) -> Vec<(String, Vec<u8>)> {
    state.into_iter().map(|(key, found)| (key, found.value.to_vec())).collect()
}

#[test]
fn killed_at_any_step_of_making_a_store_there_is_a_whole_one_or_none() {
    if is_child() || !tracing_works() {
        return;
    }
    let test = "walk::killed_at_any_step_of_making_a_store_there_is_a_whole_one_or_none";
    let folder = quick_folder();
    let calls = calls(CHANGING, test, "open", &folder.path().join("watched"));
    let mut without = 0;
    let points = walk(&calls, |call, nth| {
        let state_dir = folder.path().join(format!("{call}-{nth}"));
        let path = state_dir.join("store.redb");
        let ended = started(call, nth, test, "open", &path);
        without += usize::from(!path.exists());
        assert_eq!(state(&path), [], "killed at {call} {nth}");
        let names = fs::read_dir(&state_dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let strange: Vec<_> = names.filter(|name| name != "store.redb" && !name.starts_with(".store-")).collect();
        assert!(strange.is_empty(), "killed at {call} {nth}: {strange:?}");
        ended
    });
    println!("killed at {points} steps of making a store ({calls:?}); at {without} there was none yet");
    assert!(points > 20 && without > 10 && without < points, "{points} steps, {without} without a store");
}

#[test]
fn killed_at_any_write_of_closing_and_of_opening_what_that_left_nothing_changes() {
    if is_child() || !tracing_works() {
        return;
    }
    let test = "walk::killed_at_any_write_of_closing_and_of_opening_what_that_left_nothing_changes";
    let folder = quick_folder();
    let path = folder.path().join("store");
    let closing = calls(WRITING, test, "close", &path);
    let mut opened = 0;
    let closed = walk(&closing, |call, nth| {
        let said = Waiting::new(test, "close", &path).killed_at(call, nth);
        let left = fs::read(&path).unwrap();
        let opening = calls(WRITING, test, "open", &path);
        opened += walk(&opening, |call, nth| {
            fs::write(&path, &left).unwrap();
            started(call, nth, test, "open", &path)
        });
        let keys: Vec<String> = state(&path).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["clusters/default/jobs/1", "next-job-id"], "killed at {call} {nth} of closing");
        ended(&said)
    });
    println!("killed at {closed} writes of closing, and at {opened} of opening what was left");
    assert!(closed > 4 && opened > 20, "{closed}, {opened}");
}
