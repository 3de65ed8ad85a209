//! The embedded store: the contract, and what a file has to bear.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::store::embedded::Embedded;
use bwvisu_runner::store::{Backend, Change};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::caused::quick_folder;
use crate::contract::{check_all, put, read, value};
use crate::tries::SetAtEnd;

/// Names the store's file to a test that is run again as a child, and so tells it that it is one.
const CHILD: &str = "STORE_TEST_CHILD";

#[test]
fn the_embedded_store_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(&folder.path().join("store")).unwrap();
    check_all(&store, &store);
}

#[test]
fn opening_it_again_finds_everything_and_goes_on_counting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut last = 0;
    for round in 0..5 {
        let store = Embedded::open(&path).unwrap();
        assert_eq!(store.scan("r/").unwrap().len(), round);
        let key = format!("r/{round}");
        assert!(store.commit(&put(&key, "x")).unwrap());
        let version = read(&store, &key).unwrap().version;
        assert!(version > last, "{version} after {last}");
        last = version;
    }
}

#[test]
fn file_and_folder_are_for_their_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("state/deep/store");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    drop(Embedded::open(&path).unwrap());
    assert_eq!([mode(&path), mode(path.parent().unwrap())], [0o600, 0o700]);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left there");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(Embedded::open(&path).unwrap());
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn it_always_leads() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(&folder.path().join("store")).unwrap();
    assert!(store.lead("jobs-watch").unwrap());
    store.resign();
    assert!(store.lead("jobs-watch").unwrap());
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = Embedded::open(&folder.path().join("file/store")).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("file"), "{error}");
}

#[test]
fn a_file_that_is_no_store_or_is_damaged_is_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good");
    let store = Embedded::open(&good).unwrap();
    for number in 0..50 {
        assert!(store.commit(&put(&format!("k/{number}"), [7; 3000])).unwrap());
    }
    drop(store);
    let good = fs::read(&good).unwrap();
    let overwritten = |from: usize, count: usize| {
        let mut bytes = good.clone();
        bytes[from..from + count].fill(0xa5);
        bytes
    };
    let value = good.windows(3000).position(|window| window == [7; 3000]).unwrap();
    let cases = [
        ("empty", Vec::new()),
        ("text", b"{\"jobs\": []}\n".repeat(1000)),
        ("cut off", good[..good.len() / 3].to_vec()),
        ("header only", good[..512].to_vec()),
        ("magic", overwritten(0, 8)),
        ("header", overwritten(8, 400)),
        ("a value", overwritten(value + 1000, 1)),
    ];
    for (name, bytes) in cases {
        let path = folder.path().join("damaged");
        fs::write(&path, &bytes).unwrap();
        let error = Embedded::open(&path).err().unwrap_or_else(|| panic!("{name}: it was opened"));
        assert_eq!(error.kind, ErrorKind::Internal, "{name}: {error}");
        assert!(error.message.contains(path.to_str().unwrap()) && error.message.contains("damaged"), "{name}: {error}");
    }
}

#[test]
fn reads_go_on_while_others_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(&folder.path().join("store")).unwrap();
    let pair = |number: u32| Change {
        put: ["p/a", "p/b"].map(|key| (key.to_owned(), number.to_string().into_bytes())).to_vec(),
        ..Change::default()
    };
    assert!(store.commit(&pair(0)).unwrap());
    let (ended, reads) = (AtomicBool::new(false), [const { AtomicU32::new(0) }; 2]);
    thread::scope(|scope| {
        let _readers_end = SetAtEnd(&ended);
        for reads in &reads {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let found = store.scan("p/").unwrap();
                    assert_eq!(found[0].1, found[1].1, "one moment");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Readers that wait for the disk would read as often as is written; others may have been late.
        let behind = |written| reads.iter().any(|reads| reads.load(Ordering::Relaxed) <= 2 * written);
        let mut written = 0;
        while written < 50 || written < 1000 && behind(written) {
            written += 1;
            assert!(store.commit(&pair(written)).unwrap());
        }
        assert!(!behind(written), "readers do not wait for the disk: {reads:?}, {written} writes");
    });
}

#[test]
fn a_second_process_is_told_what_it_needs() {
    if let Ok(path) = std::env::var(CHILD) {
        let error = Embedded::open(Path::new(&path)).err().unwrap();
        return println!("child: {:?} {error}", error.kind);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Embedded::open(&path).unwrap();
    let (child, lines) = run_again("embedded::a_second_process_is_told_what_it_needs", &path);
    wait(child);
    let said: Vec<String> = lines.iter().collect();
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["Unavailable", path.to_str().unwrap(), "in use by another process", "need etcd"] {
        assert!(said[0].contains(part), "{part}: {said:?}");
    }
    assert!(store.commit(&put("k", "v")).unwrap(), "the first one is not disturbed");
}

/// The child runs into a limit on its files' size, as on a full disk; then there is room again.
#[test]
fn a_full_disk_is_an_error_and_passes() {
    if let Ok(path) = std::env::var(CHILD) {
        return fill_the_disk(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let (child, lines) = run_again("embedded::a_full_disk_is_an_error_and_passes", &path);
    wait(child);
    let said: Vec<String> = lines.iter().collect();
    assert!(said.last().is_some_and(|line| line == "child: recovered"), "{said:?}");
    let store = Embedded::open(&path).unwrap();
    assert_eq!(value(&store, "small").as_deref(), Some("kept"));
    assert_eq!(value(&store, "after").as_deref(), Some("kept"));
}

fn fill_the_disk(path: &Path) {
    // Else the kernel would end the process instead of failing the write.
    signal_hook::flag::register(Signal::XFSZ.as_raw(), Arc::new(AtomicBool::new(false))).unwrap();
    let store = Embedded::open(path).unwrap();
    assert!(store.commit(&put("small", "kept")).unwrap());
    let before = getrlimit(Resource::Fsize);
    let room = fs::metadata(path).unwrap().len();
    setrlimit(Resource::Fsize, Rlimit { current: Some(room), maximum: before.maximum }).unwrap();
    let error = (0..20).find_map(|number| store.commit(&put(&format!("big/{number}"), vec![1; 1 << 20])).err()).unwrap();
    println!("child: {error}");
    assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Unknown), "{error}");
    assert_eq!(value(&store, "small").as_deref(), Some("kept"), "what is there can be read");
    setrlimit(Resource::Fsize, before).unwrap();
    assert!(store.commit(&put("after", "kept")).unwrap());
    println!("child: recovered");
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    const ROUNDS: u32 = 20;
    if let Ok(path) = std::env::var(CHILD) {
        return commit_for_ever(Path::new(&path));
    }
    // No power is lost here, and on a slow disk little would be acknowledged in so short a time.
    let folder = quick_folder();
    let path = folder.path().join("store");
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let (mut child, lines) = run_again("embedded::what_was_acknowledged_survives_kill_9", &path);
        let first = lines.recv_timeout(Duration::from_secs(60)).expect("the child commits");
        thread::sleep(Duration::from_micros(u64::from(random()) % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Embedded::open(&path).unwrap_or_else(|error| panic!("round {round}: {error}"));
        acknowledged += check_acknowledged(&store, std::iter::once(first).chain(lines));
    }
    assert!(acknowledged > ROUNDS as usize, "{acknowledged} changes were acknowledged in {ROUNDS} rounds");
}

/// Four threads commit pairs of keys, and print each pair's name once it is acknowledged.
fn commit_for_ever(path: &Path) {
    let store = Embedded::open(path).unwrap();
    let run = random();
    thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in 0.. {
                    let name = format!("{run}-{thread}-{number}");
                    let pair = ["a", "b"].map(|half| (format!("{half}/{name}"), name.clone().into_bytes()));
                    assert!(store.commit(&Change { put: pair.to_vec(), ..Change::default() }).unwrap());
                    // One write of one line: it is in the pipe, whole, before the next commit begins.
                    std::io::stdout().lock().write_all(format!("child: {name}\n").as_bytes()).unwrap();
                }
            });
        }
    });
}

/// Everything that was acknowledged is there, and nothing is there by halves.
fn check_acknowledged(store: &Embedded, lines: impl Iterator<Item = String>) -> usize {
    let half = |prefix: &str| -> BTreeMap<String, Vec<u8>> {
        let found = store.scan(prefix).unwrap().into_iter();
        found.map(|(key, found)| (key[prefix.len()..].to_owned(), found.value.to_vec())).collect()
    };
    let (a, b) = (half("a/"), half("b/"));
    assert!(a == b, "half a change is there");
    let mut count = 0;
    for line in lines {
        let name = line.strip_prefix("child: ").unwrap();
        assert_eq!(a.get(name).map(Vec::as_slice), Some(name.as_bytes()), "{name} was acknowledged and is lost");
        count += 1;
    }
    count
}

/// Runs one of these tests in a process of its own, which knows by [`CHILD`] what it is; and its lines that begin with `child: `.
fn run_again(test: &str, path: &Path) -> (Child, Receiver<String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = channel();
    thread::spawn(move || {
        // The harness begins a test's line without ending it.
        let child_lines = output.lines().map_while(Result::ok).filter_map(|line| Some(line[line.find("child: ")?..].to_owned()));
        child_lines.take_while(|line| sender.send(line.clone()).is_ok()).count()
    });
    (child, lines)
}

fn wait(mut child: Child) {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the child does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).unwrap();
    u32::from_be_bytes(bytes)
}
