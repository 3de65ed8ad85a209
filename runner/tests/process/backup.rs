//! `store backup` and `store restore`: with the service and without, on what they refuse, and killed at every step.

use crate::api::demo;
use crate::caused::{CHANGING, Tracer, calls_in, killed_at, quick_folder, tracing_works, walk, watched};
use crate::world::{Bench, Ended, PROGRAM, ended, fetch, user};
use bwvisu_runner::store::backup::{Backup, read};
use bwvisu_runner::store::embedded::{Embedded, hold};
use bwvisu_runner::store::{Backend, Change};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub type Entries = Vec<(String, Vec<u8>)>;

fn whole(file: &Path) -> Backup {
    read(fs::read(file).unwrap().as_slice()).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

pub fn refused(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "one line: {}", ended.stderr);
    words.iter().for_each(|word| assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr));
}

pub fn backup(bench: &Bench, words: &[&str]) -> Ended {
    bench.run(&[&["store", "backup"], words].concat())
}

pub fn restore(bench: &Bench, words: &[&str]) -> Ended {
    bench.run(&[&["store", "restore"], words].concat())
}

/// With the service's address, which is another one each time.
fn backup_of_running(bench: &Bench, url: &str, words: &[&str]) -> Ended {
    backup(bench, &[&["--url", url], words].concat())
}

#[test]
fn a_running_service_is_backed_up_and_restored_with_its_jobs_and_their_ports() {
    let bench = Bench::new();
    let served = bench.serve();
    let id = served.submit(&user().name, "template_demo.txt", demo());
    let before = served.await_state(&id, "available");
    let (file, path) = (bench.path("backup.jsonl"), bench.path("backup.jsonl").display().to_string());

    let made = backup_of_running(&bench, &served.url, &[&path]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(made.stdout.contains("holds the jobs' tokens"), "{made:?}");
    assert_eq!(mode(&file), 0o600);
    let keys: Vec<String> = whole(&file).entries.into_iter().map(|(key, _)| key).collect();
    for key in ["clusters/default/jobs/1", "clusters/default/grants/1", "next-job-id"] {
        assert!(keys.iter().any(|found| found == key), "{key}: {keys:?}");
    }
    let answer = served.back_up();
    assert_eq!(
        (answer.status, answer.body.as_object().unwrap().len()),
        (200, 2),
        "a name and a number, nothing else: {answer:?}"
    );
    let copy = bench.path("state/backups").join(answer.body["backup"].as_str().unwrap());
    assert_eq!((mode(&copy), mode(copy.parent().unwrap())), (0o600, 0o700));
    assert_eq!(whole(&copy).entries.len(), answer.body["records"].as_u64().unwrap() as usize);

    refused(&backup_of_running(&bench, &served.url, &[&path]), &["is there already", "--force"]);
    assert_eq!(backup_of_running(&bench, &served.url, &["--force", &path]).code, Some(0));
    let printed = backup_of_running(&bench, &served.url, &["-"]);
    assert_eq!((printed.code, read(printed.stdout.as_bytes()).unwrap().entries.len()), (Some(0), keys.len()), "{printed:?}");
    for words in [&[path.as_str()][..], &["--replace", &path]] {
        refused(&restore(&bench, words), &["is in use", "stop the service"]);
    }

    assert_eq!(served.terminate().0, Some(0));
    refused(&restore(&bench, &[&path]), &["holds jobs", "--replace"]);
    let done = restore(&bench, &["--replace", &path]);
    assert_eq!(done.code, Some(0), "{done:?}");
    for words in ["records of 20", ".before-restore-", "the next job gets the id 1011", "not known any more"] {
        assert!(done.stdout.contains(words), "{words}: {done:?}");
    }
    let served = bench.serve();
    let after = served.await_state(&id, "available");
    assert_eq!((&after["services"], &after["scheduler-job-id"]), (&before["services"], &before["scheduler-job-id"]));
    assert!(fetch(&after["services"][0]).contains("It works"));
    assert_eq!(served.submit(&user().name, "template_sleeper.txt", json!({"word": "a"})), "1011");
}

#[test]
fn without_the_service_the_store_itself_is_read() {
    let bench = Bench::plain();
    furnish(&store(&bench), "first");
    let file = bench.path("backup.jsonl");
    let made = backup(&bench, &[&file.display().to_string()]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert_eq!(whole(&file).entries, contents(&store(&bench)));
    // The other way round through pipes, into an installation that has no store yet.
    let other = Bench::plain();
    let mut command = other.command();
    command.args(["store", "restore", "-"]).stdin(fs::File::open(&file).unwrap());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(contents(&store(&other)), moved_on(whole(&file).entries));
    assert_eq!([mode(&store(&other)), mode(store(&other).parent().unwrap())], [0o600, 0o700]);
}

#[test]
fn what_cannot_be_backed_up_or_restored_is_said_in_one_line() {
    let mut bench = Bench::plain();
    let file = bench.path("backup.jsonl").display().to_string();
    refused(&backup(&bench, &[&file]), &["store.redb", "No such file"]);
    furnish(&store(&bench), "first");
    let held = Embedded::open(&store(&bench)).unwrap();
    let silent = backup_of_running(&bench, "http://127.0.0.1:1", &[&file]);
    refused(&silent, &["the store is in use, and whoever uses it was asked for a backup", "refused"]);
    drop(held);
    refused(&backup(&bench, &["/no/such/folder/file"]), &["/no/such/folder/file cannot be written"]);
    refused(&restore(&bench, &["/no/such/file"]), &["/no/such/file: No such file"]);
    for (name, text) in [("text", "no backup\n"), ("empty", ""), ("store", "redb")] {
        bench.write(name, text, 0o600);
        let path = bench.path(name).display().to_string();
        refused(&restore(&bench, &["--replace", &path]), &[&path, "line 1 of the backup", "no backup of the runner's store"]);
    }
    assert_eq!(contents(&store(&bench)), contents(&store(&bench)));
    bench.set("etcd-servers", json!([{"ip": "127.0.0.1", "port": 1}]));
    refused(&backup(&bench, &[&file]), &["the records are in etcd", "etcdctl snapshot"]);
    refused(&restore(&bench, &[&file]), &["the records are in etcd", "etcdctl snapshot"]);
}

#[test]
fn restored_by_root_the_store_belongs_to_the_services_account() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return eprintln!("*** NOT TESTED: restoring as root, since this is not root ***");
    }
    let bench = Bench::plain();
    furnish(&store(&bench), "first");
    let file = bench.path("backup.jsonl").display().to_string();
    assert_eq!(backup(&bench, &[&file]).code, Some(0));
    chown(bench.path("state"), Some(user().uid), Some(user().gid)).unwrap();
    assert_eq!(restore(&bench, &["--replace", &file]).code, Some(0));
    let restored = fs::metadata(store(&bench)).unwrap();
    assert_eq!((restored.uid(), restored.gid(), restored.mode() & 0o777), (user().uid, user().gid, 0o600));
}

#[test]
fn a_store_of_another_account_is_refused_with_both_accounts() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return eprintln!("*** NOT TESTED: another account's store, since this is not root ***");
    }
    let bench = Bench::plain();
    furnish(&store(&bench), "first");
    chown(bench.path("state"), Some(user().uid), Some(user().gid)).unwrap();
    chown(bench.path("settings.json"), Some(user().uid), Some(user().gid)).unwrap();
    let serve = bench.command();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user().uid.to_string(), "--clear-groups", "--"]).arg(serve.get_program()).args(serve.get_args());
    command.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?)))).arg("serve");
    let own = user().uid.to_string();
    let said = ended(&mut command);
    let words = said.stderr.lines().last().unwrap_or_default();
    for part in
        ["store.redb cannot be opened", "it belongs to user 0 with mode 0600", &format!("this is user {own}"), "give it to"]
    {
        assert!(said.code == Some(1) && words.contains(part), "{part}: {said:?}");
    }
}

pub fn store(bench: &Bench) -> PathBuf {
    bench.path("state/store.redb")
}

pub fn furnish(store: &Path, word: &str) {
    let opened = Embedded::open(store).unwrap();
    let record =
        |key: String| (key, format!("{{\"version\":1,\"word\":\"{word}\",\"much\":\"{}\"}}", "x".repeat(3000)).into_bytes());
    let mut put: Entries = (0..20).map(|job| record(format!("clusters/default/jobs/{job}"))).collect();
    put.push(("next-job-id".into(), br#"{"next":21,"version":1}"#.to_vec()));
    assert!(opened.commit(&Change { put, ..Change::default() }).unwrap());
}

pub fn contents(store: &Path) -> Entries {
    hold(store).unwrap().expect("nobody has it").contents.unwrap()
}

pub fn moved_on(mut entries: Entries) -> Entries {
    entries.last_mut().unwrap().1 = br#"{"next":1021,"version":1}"#.to_vec();
    entries
}

/// The files of a folder.
pub fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A place for a walk: a store with records, and the command line's words for a configuration that knows it.
struct Place {
    bench: Bench,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let (mut bench, folder) = (Bench::plain(), quick_folder());
        bench.set("state-dir", folder.path().join("state").display().to_string());
        drop(bench.command());
        Self { bench, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the program, by `tracer`, which knows how to start it; whether it ended by itself.
    fn run(&self, tracer: &mut Command, words: &[&str]) -> bool {
        tracer
            .arg("--config")
            .arg(self.bench.path("config.json"))
            .args(words)
            .env("BWVISU_INSTALL_DIR", self.bench.path("install"));
        tracer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    fn walk(&self, words: &[&str], prepare: impl Fn(), check: impl Fn(&str)) -> (usize, BTreeSet<String>) {
        let log = self.path("calls");
        prepare();
        assert!(self.run(&mut watched(CHANGING, &log, Path::new(PROGRAM)), words));
        let calls = calls_in(&log);
        let points = walk(&calls, |call, nth| {
            prepare();
            let ended = self.run(&mut killed_at(call, nth, Path::new(PROGRAM)), words);
            check(&format!("{words:?} killed at {call} {nth}"));
            ended
        });
        (points, calls)
    }
}

#[test]
fn killed_at_any_step_of_a_backup_there_is_a_whole_one_or_none_and_the_store_is_as_it_was() {
    if !tracing_works() {
        return;
    }
    let place = Place::new();
    let (store, folder) = (place.path("state/store.redb"), place.path("backups"));
    furnish(&store, "first");
    let before = contents(&store);
    let file = folder.join("backup");
    let old = b"an old one".to_vec();
    for force in [false, true] {
        let prepare = || {
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir(&folder).unwrap();
            if force {
                fs::write(&file, &old).unwrap();
            }
        };
        let check = |story: &str| {
            assert_eq!(contents(&store), before, "{story}");
            match fs::read(&file) {
                Ok(bytes) if force && bytes == old => {}
                Ok(bytes) => assert_eq!(read(bytes.as_slice()).expect(story).entries, before, "{story}"),
                Err(_) => assert!(!force, "{story}: the old one is gone"),
            }
            assert!(names(&folder).iter().all(|name| name == "backup" || name.starts_with(".draft-")), "{story}");
        };
        let path = file.display().to_string();
        let words = ["store", "backup", "--force", &path];
        let words = if force { &words[..] } else { &["store", "backup", &path] };
        let (points, calls) = place.walk(words, prepare, check);
        println!("backup, {}: killed at {points} steps ({calls:?})", if force { "over another" } else { "new" });
        assert!(points > 15 && calls.contains("fsync"), "{points}, {calls:?}");
    }
}

#[test]
fn killed_at_any_step_of_a_restoration_there_is_the_old_store_or_the_new_one() {
    if !tracing_works() {
        return;
    }
    let place = Place::new();
    let (state, file) = (place.path("state"), place.path("backup"));
    let store = state.join("store.redb");
    furnish(&store, "first");
    let path = file.display().to_string();
    assert!(place.run(&mut Command::new(PROGRAM), &["store", "backup", &path]));
    let new = moved_on(contents(&store));
    fs::remove_file(&store).unwrap();
    furnish(&store, "second");
    let (old, bytes) = (contents(&store), fs::read(&store).unwrap());
    for replace in [true, false] {
        let prepare = || {
            fs::remove_dir_all(&state).unwrap();
            fs::create_dir(&state).unwrap();
            fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
            if replace {
                fs::write(&store, &bytes).unwrap();
            }
        };
        let words = ["store", "restore", "--replace", &path];
        let check = |story: &str| {
            if store.exists() {
                let found = contents(&store);
                assert!(found == new || replace && found == old, "{story}: neither the old one nor the new one");
            } else {
                assert!(!replace, "{story}: there is none any more");
            }
            let kept = names(&state).into_iter().filter(|name| name.contains(".before-restore-"));
            kept.for_each(|name| assert_eq!(contents(&state.join(name)), old, "{story}"));
            // Once more, and nothing is left of the first attempt but what was kept.
            assert!(place.run(&mut Command::new(PROGRAM), &words), "{story}");
            let found = contents(&store);
            assert!(found == new, "{story}");
            let drafts = names(&state).into_iter().filter(|name| name.starts_with(".draft-")).count();
            assert!(drafts == 0 || !replace, "{story}: {:?}", names(&state));
        };
        let (points, calls) = place.walk(&words, prepare, check);
        println!("restoration, {}: killed at {points} steps ({calls:?})", if replace { "over another" } else { "new" });
        assert!(
            points > 30 && calls.iter().any(|call| call.starts_with("rename") || call.starts_with("link")),
            "{points}, {calls:?}"
        );
    }
}

#[test]
fn killed_at_any_step_of_a_backup_the_service_loses_nothing_and_makes_the_next_one() {
    if !tracing_works() {
        return;
    }
    let bench = Bench::plain();
    furnish(&store(&bench), "first");
    let backups = bench.path("state/backups");
    // What the making of a backup consists of, as the walk over the command shows; sockets are not written to by these.
    let calls: BTreeSet<String> = ["write", "fsync", "renameat2", "linkat", "link", "unlink", "mkdir"].map(str::to_owned).into();
    let points = walk(&calls, |call, nth| {
        let _ = fs::remove_dir_all(&backups);
        let served = bench.serve_with(&["--only", "api"]);
        let tracer = Tracer::kill_at(served.pid(), call, nth);
        let ended = served.try_back_up();
        drop(tracer);
        served.kill();
        let left = if backups.is_dir() { names(&backups) } else { BTreeSet::new() };
        for name in left {
            assert!(name.starts_with(".draft-") || whole(&backups.join(&name)).entries.len() > 20, "{call} {nth}: {name}");
        }
        let served = bench.serve_with(&["--only", "api"]);
        let answer = served.back_up();
        assert_eq!(answer.status, 200, "{call} {nth}: {answer:?}");
        assert!(names(&backups).iter().all(|name| name.starts_with("store-")), "{call} {nth}: drafts are cleared away");
        assert_eq!(served.terminate().0, Some(0));
        ended
    });
    println!("the service killed at {points} steps while it made a backup");
    assert!(points > 5, "{points}");
}
