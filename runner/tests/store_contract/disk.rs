//! The embedded store on a disk that is full, and on one whose system calls fail: really caused, with a small tmpfs and with strace.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use bwvisu_runner::error::{Error, ErrorKind};
use bwvisu_runner::store::embedded::Embedded;
use bwvisu_runner::store::{Backend, Change};

use crate::caused::{Tracer, fill_up, on_a_small_disk, small_disks_work, tracing_works};
use crate::contract::{put, value};

/// Names its folder to a test that is run again as a child, and so tells it that it is one.
const CHILD: &str = "STORE_DISK_CHILD";

fn run_child(test: &str, folder: &Path, small: Option<u32>) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, folder);
    if let Some(kib) = small {
        command = on_a_small_disk(&command, folder, kib);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("child: all right"), "{text}");
    text.lines().filter_map(|line| line.split_once("child: ")).for_each(|(_, line)| println!("{line}"));
}

/// Commits records of two keys each until the store refuses; what was answered is added to `kept`.
fn commit_until_refused(store: &Embedded, kept: &mut BTreeMap<String, Vec<u8>>) -> Error {
    for _ in 0..10_000 {
        let number = kept.len();
        let pair = [(format!("a/{number:05}"), vec![7; 900]), (format!("b/{number:05}"), vec![8; 900])];
        match store.commit(&Change { put: pair.to_vec(), ..Change::default() }) {
            Ok(done) => {
                assert!(done);
                kept.extend(pair);
            }
            Err(error) => return error,
        }
    }
    panic!("the disk is never full");
}

fn everything(store: &Embedded) -> BTreeMap<String, Vec<u8>> {
    store.scan("").unwrap().into_iter().map(|(key, found)| (key, found.value.to_vec())).collect()
}

#[test]
fn on_a_full_disk_changes_are_refused_reads_go_on_and_room_mends_it() {
    if let Some(folder) = env::var_os(CHILD) {
        return fill_and_mend(Path::new(&folder));
    }
    if small_disks_work() {
        let folder = tempfile::tempdir().unwrap();
        run_child("disk::on_a_full_disk_changes_are_refused_reads_go_on_and_room_mends_it", folder.path(), Some(12 << 10));
    }
}

fn fill_and_mend(folder: &Path) {
    let path = folder.join("store.redb");
    let mut store = Embedded::open(&path).unwrap();
    let mut kept = BTreeMap::new();
    let (mut refused, mut answered) = (0, 0);
    for round in 0..3 {
        let filler = fill_up(folder);
        for attempt in 0..4 {
            let before = kept.len();
            let error = commit_until_refused(&store, &mut kept);
            answered += kept.len() - before;
            refused += 1;
            assert_eq!(error.kind, ErrorKind::Unavailable, "it certainly did not happen: {error}");
            for words in [path.to_str().unwrap(), "No space left on device", "make room"] {
                assert!(error.message.contains(words), "{words}: {error}");
            }
            assert!(
                everything(&store) == kept,
                "round {round}, attempt {attempt}: reads show what was answered and nothing else"
            );
        }
        if round % 2 == 0 {
            // Ended and begun again on the full disk.
            drop(store);
            store = Embedded::open(&path).unwrap();
            assert!(everything(&store) == kept, "round {round}");
        }
        fs::remove_file(filler).unwrap();
        let after = [(format!("after/{round}"), vec![1; 2000])];
        assert!(store.commit(&Change { put: after.to_vec(), ..Change::default() }).unwrap(), "it goes on by itself");
        kept.extend(after);
        // Most of it is finished some day.
        let old: Vec<String> = kept.keys().filter(|key| !key.starts_with("after/")).cloned().collect();
        for keys in old.chunks(100) {
            assert!(store.commit(&Change { delete: keys.to_vec(), ..Change::default() }).unwrap());
        }
        kept.retain(|key, _| key.starts_with("after/"));
    }
    drop(store);
    assert!(everything(&Embedded::open(&path).unwrap()) == kept);
    println!("child: {refused} changes refused, {answered} records written meanwhile into room that the file had");
    println!("child: all right");
}

#[test]
fn no_store_is_made_on_a_full_disk_and_the_reason_is_said() {
    if let Some(folder) = env::var_os(CHILD) {
        let folder = Path::new(&folder);
        fill_up(folder);
        let error = Embedded::open(&folder.join("store.redb")).err().unwrap();
        assert!(error.kind == ErrorKind::Unavailable && error.message.contains("No space left"), "{error}");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "no half store is left");
        return println!("child: all right");
    }
    if small_disks_work() {
        let folder = tempfile::tempdir().unwrap();
        run_child("disk::no_store_is_made_on_a_full_disk_and_the_reason_is_said", folder.path(), Some(1 << 10));
    }
}

#[test]
fn a_disk_whose_calls_fail_is_an_error_and_passes() {
    if let Some(folder) = env::var_os(CHILD) {
        return fail_and_mend(Path::new(&folder));
    }
    if tracing_works() {
        let folder = tempfile::tempdir().unwrap();
        run_child("disk::a_disk_whose_calls_fail_is_an_error_and_passes", folder.path(), None);
    }
}

fn fail_and_mend(folder: &Path) {
    const ALL: &str = "pwrite64,fdatasync,fsync,fallocate,ftruncate";
    // A large change makes the file grow before it is committed; a small one fails in the commit itself.
    const LARGE: usize = 4 << 20;
    let cases = [
        ("pwrite64", 10),
        ("fdatasync,fsync", 10),
        ("pwrite64", LARGE),
        ("fdatasync,fsync", LARGE),
        ("fallocate,ftruncate", LARGE),
        (ALL, LARGE),
    ];
    let mut turned_up = 0;
    for error in ["EIO", "EROFS", "ENOSPC", "EDQUOT"] {
        for (calls, size) in cases {
            let case = format!("{error} of {calls}, {size} bytes");
            let path = folder.join(&case);
            let store = Embedded::open(&path).unwrap();
            assert!(store.commit(&put("first", "kept")).unwrap());
            let tracer = Tracer::fail(std::process::id(), calls, error);
            let refused = store.commit(&put("refused", vec![b'x'; size])).unwrap_err();
            drop(tracer);
            assert_eq!(value(&store, "first").as_deref(), Some("kept"), "{case}");
            let there = value(&store, "refused").is_some();
            assert!(matches!(refused.kind, ErrorKind::Unavailable | ErrorKind::Unknown), "{case}: {refused}");
            assert!(!there || refused.kind == ErrorKind::Unknown, "{case}: certainly not written, and there: {refused}");
            assert!(store.commit(&put("after", "kept")).unwrap(), "{case}: it goes on by itself");
            drop(store);
            let store = Embedded::open(&path).unwrap();
            assert_eq!(value(&store, "after").as_deref(), Some("kept"), "{case}");
            assert_eq!(value(&store, "refused").is_some(), there, "{case}: it does not turn up later");
            turned_up += usize::from(there);
            println!("child: {case}: {:?}, {}", refused.kind, if there { "there" } else { "absent" });
        }
    }
    assert!(turned_up > 0, "only the answer was lost where the last sync failed");
    println!("child: all right");
}

#[test]
fn a_file_that_was_moved_away_or_replaced_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let (path, aside) = (folder.path().join("state/store.redb"), folder.path().join("aside"));
    let state = path.parent().unwrap();
    let store = Embedded::open(&path).unwrap();
    assert!(store.commit(&put("k", "1")).unwrap());
    fs::rename(state, &aside).unwrap();
    let error = store.commit(&put("k", "2")).unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message.contains("No such file"), "the folder has vanished: {error}");
    drop(Embedded::open(&path).unwrap());
    let error = store.commit(&put("k", "2")).unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message.contains("was replaced by another file"), "{error}");
    assert_eq!(value(&store, "k").as_deref(), Some("1"), "what it has can be read");
    fs::remove_dir_all(state).unwrap();
    fs::rename(&aside, state).unwrap();
    assert!(store.commit(&put("k", "3")).unwrap(), "back in its place it goes on");
}
