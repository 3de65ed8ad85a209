//! Backups: what is written is read, what is not whole is refused, and a store is replaced only where that was said.

use super::super::embedded::Embedded;
use super::super::{Change, Created, Store};
use super::*;
use crate::domain::job::Job;
use crate::error::ErrorKind;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

fn entries() -> Vec<Entry> {
    let entry = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
    vec![
        entry("clusters/default/jobs/1", r#"{"version":1,"uid":"älice\n\u0000","token":"00ff","big":18446744073709551615}"#),
        entry("clusters/default/jobs/ü \"x\"", r#"{"z":1.50,"version":1,"a":[ ]}"#),
        entry("next-job-id", r#"{"version":1,"next":2}"#),
    ]
}

fn text(entries: &[Entry]) -> Vec<u8> {
    let mut text = Vec::new();
    write(&mut text, entries, Timestamp::UNIX_EPOCH).unwrap();
    text
}

#[test]
fn a_backup_is_read_back_byte_by_byte() {
    for entries in [entries(), Vec::new()] {
        let backup = read(text(&entries).as_slice()).unwrap();
        assert_eq!((backup.entries, backup.at), (entries, Timestamp::UNIX_EPOCH));
        assert_eq!(backup.program, env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn a_backup_cut_off_anywhere_is_refused() {
    let whole = text(&entries());
    for length in 0..whole.len() {
        let error = read(&whole[..length]).unwrap_err();
        assert!(error.kind == ErrorKind::BadInput && error.message.starts_with("line "), "{length}: {error}");
    }
}

#[test]
fn a_backup_with_any_bit_flipped_is_refused() {
    let whole = text(&entries());
    for place in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[place / 8] ^= 1 << (place % 8);
        let error = read(bytes.as_slice()).map(|backup| backup.entries).unwrap_err();
        assert!(error.message.starts_with("line "), "{place}: {error}");
    }
}

/// A backup whose checksum is right, whatever is in it.
fn sealed(lines: &[&str]) -> Vec<u8> {
    let mut text: Vec<u8> = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"]).flatten().copied().collect();
    let hash = hex(&Sha256::digest(&text));
    text.extend(format!("{{\"sha256\":\"{hash}\"}}\n").bytes());
    text
}

#[test]
fn what_is_wrong_with_a_backup_is_said_with_its_line() {
    const HEAD: &str =
        r#"{"format":"bwvisu-runner store backup","version":1,"program":"0","at":"2026-11-22T00:00:00Z","records":2}"#;
    const A: &str = r#"{"key":"a","value":{"version":1}}"#;
    const B: &str = r#"{"key":"b","value":{"version":1}}"#;
    let newer_form = HEAD.replace("\"version\":1", "\"version\":2");
    let whole = sealed(&[HEAD, A, B]);
    assert_eq!(read(whole.as_slice()).unwrap().entries.len(), 2);
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("nothing", Vec::new(), "line 1 of the backup: this is no backup"),
        ("text", b"id,name\n1,alice\n".to_vec(), "line 1 of the backup: this is no backup"),
        ("a store itself", b"redb\x1a\n\xa9\r\n".to_vec(), "line 1 of the backup: this is no backup"),
        ("another's JSON", b"{\"format\":\"mysql\",\"version\":1}\n".to_vec(), "line 1 of the backup: this is no backup"),
        ("a newer form", sealed(&[&newer_form, A, B]), "line 1 of the backup: it was made by a newer program, in the form 2"),
        ("a newer record", sealed(&[HEAD, A, &B.replace(":1}", ":99}")]), "line 3 of the backup: record b has the form 99"),
        ("no version", sealed(&[HEAD, A, r#"{"key":"b","value":{}}"#]), "line 3 of the backup: record b: missing field"),
        ("a missing record", sealed(&[HEAD, A]), "line 3 of the backup: it ends here, and 1 of 2 records are missing"),
        (
            "too many",
            sealed(&[HEAD, A, B, r#"{"key":"c","value":{"version":1}}"#]),
            "line 4 of the backup: the checksum is missing",
        ),
        ("twice the same", sealed(&[HEAD, A, A]), "line 3 of the backup: the key a is not behind"),
        ("another order", sealed(&[HEAD, B, A]), "line 3 of the backup: the key a is not behind"),
        ("no JSON", sealed(&[HEAD, A, "{\"key\":\"b\",\"value\":{\"version\":1}"]), "line 3 of the backup: damaged:"),
        ("a strange member", sealed(&[HEAD, r#"{"key":"a","value":{"version":1},"x":1}"#, B]), "line 2 of the backup: damaged:"),
        ("a tail", [whole.as_slice(), b"{}\n"].concat(), "line 5 of the backup: there is something behind the end"),
        (
            "altered",
            String::from_utf8(whole.clone()).unwrap().replace("\"b\"", "\"c\"").into_bytes(),
            "line 4 of the backup: the checksum",
        ),
    ];
    for (name, bytes, expected) in cases {
        let error = read(bytes.as_slice()).unwrap_err();
        assert!(error.message.contains(expected), "{name}: {error}");
    }
}

fn store_with_a_job(path: &Path) {
    let store = Store::new(Box::new(Embedded::open(path).unwrap()));
    create(&store);
}

fn create(store: &Store) -> u64 {
    let job = Job { id: store.new_id().unwrap(), cluster: "default".into(), user: "alice".into(), ..Job::default() };
    assert_eq!(store.create_job(&job, None, 100).unwrap(), Created::New);
    job.id
}

fn everything(path: &Path) -> Vec<Entry> {
    embedded::hold(path).unwrap().unwrap().contents.unwrap()
}

fn backup() -> Backup {
    read(text(&entries()).as_slice()).unwrap()
}

fn moved_on(by: u64) -> Vec<Entry> {
    let mut expected = entries();
    expected[2].1 = format!(r#"{{"next":{},"version":1}}"#, 2 + by).into_bytes();
    expected
}

#[test]
fn a_store_is_restored_where_none_is_and_where_no_job_ever_was() {
    let folder = tempfile::tempdir().unwrap();
    for (name, prepare) in [("absent", None), ("empty", Some(()))] {
        let path = folder.path().join(name).join("store.redb");
        if prepare.is_some() {
            drop(Embedded::open(&path).unwrap());
        }
        let done = restore(backup(), &path, false, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((done.records, done.next_job, done.kept.is_some()), (3, 1002, prepare.is_some()), "{name}");
        assert_eq!(everything(&path), moved_on(1000), "{name}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_store_with_jobs_is_replaced_only_where_that_is_said_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    store_with_a_job(&path);
    let before = everything(&path);
    let error = restore(backup(), &path, false, Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(error.kind == ErrorKind::Conflict && error.message.contains("--replace"), "{error}");
    assert_eq!(everything(&path), before);
    fs::write(folder.path().join(".draft-left"), "by a restoration that was killed").unwrap();
    let kept = restore(backup(), &path, true, Timestamp::UNIX_EPOCH).unwrap().kept.unwrap();
    assert_eq!((everything(&path), everything(&kept)), (moved_on(1000), before));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    let store = Store::new(Box::new(Embedded::open(&path).unwrap()));
    assert_eq!(create(&store), 1002);
}

#[test]
fn a_damaged_store_can_be_replaced_and_one_in_use_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path).unwrap();
    for replace in [false, true] {
        let error = restore(backup(), &path, replace, Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(error.kind == ErrorKind::Conflict && error.message.contains("in use: stop the service"), "{error}");
    }
    // Also where what lies on the disk was damaged while it was in use.
    let bytes = fs::read(&path).unwrap();
    fs::File::options().write(true).open(&path).unwrap().write_all(&[0xa5; 64]).unwrap();
    let error = restore(backup(), &path, true, Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(error.message.contains("in use: stop the service"), "{error}");
    fs::File::options().write(true).open(&path).unwrap().write_all(&bytes[..64]).unwrap();
    drop(store);
    fs::write(&path, "damaged").unwrap();
    let error = restore(backup(), &path, false, Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(error.message.contains("is damaged: add --replace"), "{error}");
    let kept = restore(backup(), &path, true, Timestamp::UNIX_EPOCH).unwrap().kept.unwrap();
    assert_eq!((everything(&path), fs::read(kept).unwrap()), (moved_on(1000), b"damaged".to_vec()));
}

#[test]
fn nobody_opens_a_store_that_is_held_however_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(Embedded::open(&path).unwrap());
    for damage in [false, true] {
        if damage {
            fs::write(&path, "damaged").unwrap();
        }
        let held = embedded::hold(&path).unwrap().unwrap();
        assert_eq!(held.contents.is_err(), damage);
        let error = Embedded::open(&path).err().unwrap();
        assert!(error.message.contains("in use by another process"), "{damage}: {error}");
    }
}

#[test]
fn a_backup_without_a_counter_or_with_a_strange_one_is_met() {
    let mut none = Vec::new();
    assert_eq!(leave_out_ids(&mut none).unwrap(), 1001);
    assert_eq!(none[0].0, "next-job-id");
    for bad in [r#"{"version":1}"#, r#"{"version":1,"next":18446744073709551615}"#, r#"{"version":1,"next":"x"}"#, "[]", "7"] {
        let mut entries = vec![("next-job-id".to_owned(), bad.as_bytes().to_vec())];
        assert_eq!(leave_out_ids(&mut entries).unwrap_err().kind, ErrorKind::BadInput, "{bad}");
    }
}

#[test]
fn the_service_keeps_the_newest_of_its_backups() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path).unwrap();
    let value = br#"{"version":1,"next":2}"#.to_vec();
    store.commit(&Change { put: vec![("next-job-id".into(), value)], ..Change::default() }).unwrap();
    let backups = super::folder(&path);
    make_private(&backups).unwrap();
    fs::write(backups.join(".draft-left"), "by a service that was killed").unwrap();
    fs::write(backups.join("mine.txt"), "not ours").unwrap();
    let made: Vec<String> = (1..=8).map(|second| make(&store, Timestamp::from_second(second).unwrap()).unwrap().name).collect();
    let mut left: Vec<String> = names(&backups).collect();
    left.sort();
    assert_eq!(left, [&["mine.txt".to_owned()], &made[3..]].concat());
    for name in &made[3..] {
        assert!(is_name(name), "{name}");
        assert_eq!(fs::metadata(backups.join(name)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(read(fs::read(backups.join(&made[7])).unwrap().as_slice()).unwrap().entries, everything_of(&store));
    assert_eq!(fs::metadata(&backups).unwrap().permissions().mode() & 0o777, 0o700);
    // A clock that was set back does not make the newest one the oldest.
    let early = make(&store, Timestamp::UNIX_EPOCH).unwrap().name;
    assert!(backups.join(early).exists());
    let error = make(&store, Timestamp::from_second(8).unwrap()).unwrap_err();
    assert!(error.message.contains("is there already"), "{error}");
    fs::set_permissions(&backups, Permissions::from_mode(0o777)).unwrap();
    assert!(make(&store, Timestamp::now()).unwrap_err().message.contains("may be written by others"));
}

fn everything_of(store: &Embedded) -> Vec<Entry> {
    store.scan("").unwrap().into_iter().map(|(key, found)| (key, found.value.to_vec())).collect()
}

#[test]
fn only_names_of_our_own_making_are_looked_for() {
    assert!(is_name("store-20261122T043000123456Z.jsonl"));
    for bad in ["", "store-.jsonl", "store-../x.jsonl", "store-a/b.jsonl", "/etc/passwd", "store-a.jsonl\n", "store-.a.jsonl"] {
        assert!(!is_name(bad), "{bad:?}");
    }
}

#[test]
fn a_file_is_saved_for_its_owner_alone_and_never_over_another_unless_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    save(&file, false, |out| out.write_all(b"one")).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let error = save(&file, false, |out| out.write_all(b"two")).unwrap_err();
    assert!(error.kind == ErrorKind::Conflict && error.message.contains("--force"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"one");
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    save(&file, true, |out| out.write_all(b"two")).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"two");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(save(&file, true, |_| Err(io::Error::from(io::ErrorKind::StorageFull))).unwrap_err().message.contains("make room"));
    assert!(save(Path::new("/no/such/folder/file"), true, |_| Ok(())).is_err());
    assert_eq!(names(folder.path()).collect::<Vec<_>>(), ["backup"], "no draft is left");
}
