//! What both stores promise. Each check has keys of its own, and two handles, which in etcd's case are two programs.

use std::thread;

use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::store::{Backend, Change, Versioned};

/// The most keys in one list of a change, as the door promises.
const MAX_KEYS: usize = 120;

type Check = fn(&dyn Backend, &dyn Backend);

const CHECKS: &[(&str, Check)] = &[
    ("an absent key is none, in its place", absent),
    ("what was put is read, also by the other", put_and_get),
    ("a scan is ordered and ends where the prefix ends", scan_borders),
    ("a scan of nothing is empty", scan_of_nothing),
    ("a change whose expectations hold happens, else nothing of it", all_or_nothing),
    ("an expectation alone is answered and changes nothing", expectation_alone),
    ("a deleted key is absent, and its version is not used again", deletion),
    ("versions grow", versions_grow),
    ("a version that was never there is not met", foreign_version),
    ("32 threads lose no increment", increments),
    ("two that claim the same never both get it", claims),
    ("120 keys of each kind are one change", largest_change),
    ("too many keys and double writes are refused", refusals),
    ("a value of a megabyte comes back", megabyte),
    ("a scan of many megabytes comes back whole", large_scan),
    ("values are any bytes and keys any text", any_bytes),
    ("pages hold all keys, each once and in order", pages),
];

/// Runs all checks; `other` is a second handle on the same database.
pub fn check_all(one: &dyn Backend, other: &dyn Backend) {
    for (name, check) in CHECKS {
        println!("{name}");
        check(one, other);
    }
}

pub fn put(key: &str, value: impl AsRef<[u8]>) -> Change {
    Change { put: vec![(key.to_owned(), value.as_ref().to_owned())], ..Change::default() }
}

pub fn claim(key: &str, value: &str) -> Change {
    Change { expect: vec![(key.to_owned(), 0)], ..put(key, value) }
}

pub fn read(store: &dyn Backend, key: &str) -> Option<Versioned> {
    store.get(&[key.to_owned()]).unwrap().remove(0)
}

pub fn value(store: &dyn Backend, key: &str) -> Option<String> {
    read(store, key).map(|found| String::from_utf8(found.value.to_vec()).unwrap())
}

fn version(store: &dyn Backend, key: &str) -> u64 {
    read(store, key).map_or(0, |found| found.version)
}

fn keys(store: &dyn Backend, prefix: &str) -> Vec<String> {
    store.scan(prefix).unwrap().into_iter().map(|(key, _)| key).collect()
}

fn absent(one: &dyn Backend, _: &dyn Backend) {
    assert!(one.commit(&put("absent/b", "here")).unwrap());
    let found = one.get(&["absent/a", "absent/b", "absent/c"].map(str::to_owned)).unwrap();
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
    assert!(one.get(&[]).unwrap().is_empty());
}

fn put_and_get(one: &dyn Backend, other: &dyn Backend) {
    assert!(one.commit(&put("put/a", "first")).unwrap());
    assert_eq!(value(other, "put/a").as_deref(), Some("first"));
    assert!(other.commit(&put("put/a", "")).unwrap());
    assert_eq!(value(one, "put/a").as_deref(), Some(""), "an empty value is not an absent one");
}

fn scan_borders(one: &dyn Backend, other: &dyn Backend) {
    for key in ["a/10", "a/1", "a/2", "a0", "a", "b/1", "a/1/x", "a/\u{10ffff}", "A/1"] {
        assert!(one.commit(&put(&format!("scan/{key}"), key)).unwrap());
    }
    let expected = ["scan/a/1", "scan/a/1/x", "scan/a/10", "scan/a/2", "scan/a/\u{10ffff}"];
    assert_eq!(keys(other, "scan/a/"), expected);
    assert_eq!(keys(other, "scan/a/1"), expected[..3]);
    assert_eq!(keys(other, "scan/a").len(), 7);
    for (key, found) in one.scan("scan/").unwrap() {
        assert_eq!(read(one, &key), Some(found), "{key}: as a read finds it");
    }
}

fn scan_of_nothing(one: &dyn Backend, _: &dyn Backend) {
    assert!(one.scan("nothing/").unwrap().is_empty());
}

fn all_or_nothing(one: &dyn Backend, other: &dyn Backend) {
    assert!(one.commit(&put("all/a", "1")).unwrap());
    assert!(one.commit(&put("all/b", "1")).unwrap());
    let [a, b] = ["all/a", "all/b"].map(|key| version(other, key));
    let change = Change {
        expect: vec![("all/a".to_owned(), a), ("all/b".to_owned(), b), ("all/c".to_owned(), 0)],
        put: vec![("all/a".to_owned(), b"2".to_vec()), ("all/c".to_owned(), b"2".to_vec())],
        delete: vec!["all/b".to_owned()],
    };
    assert!(other.commit(&change).unwrap());
    let after = one.scan("all/").unwrap();
    assert_eq!(after.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["all/a", "all/c"]);
    assert!(!other.commit(&change).unwrap(), "it was made from older versions");
    assert_eq!(one.scan("all/").unwrap(), after, "nothing is half-written");
}

fn expectation_alone(one: &dyn Backend, _: &dyn Backend) {
    assert!(one.commit(&put("alone/a", "1")).unwrap());
    let expect = |key: &str, version| Change { expect: vec![(key.to_owned(), version)], ..Change::default() };
    let version = version(one, "alone/a");
    for (change, holds) in [
        (expect("alone/a", version), true),
        (expect("alone/a", version + 1), false),
        (expect("alone/a", 0), false),
        (expect("alone/none", 0), true),
        (expect("alone/none", version), false),
        (Change::default(), true),
    ] {
        assert_eq!(one.commit(&change).unwrap(), holds, "{change:?}");
    }
    assert_eq!(read(one, "alone/a").unwrap().version, version);
}

fn deletion(one: &dyn Backend, other: &dyn Backend) {
    let delete = Change { delete: vec!["deletion/a".to_owned()], ..Change::default() };
    assert!(one.commit(&delete).unwrap(), "an absent key may be deleted");
    assert!(one.commit(&put("deletion/a", "1")).unwrap());
    let first = version(one, "deletion/a");
    assert!(one.commit(&delete).unwrap());
    assert_eq!(read(other, "deletion/a"), None);
    assert!(other.commit(&claim("deletion/a", "2")).unwrap(), "it counts as never written");
    assert!(version(one, "deletion/a") > first);
}

fn versions_grow(one: &dyn Backend, other: &dyn Backend) {
    let mut last = 0;
    for round in 0..10 {
        let writer = if round % 2 == 0 { one } else { other };
        assert!(writer.commit(&put("grow/a", "same")).unwrap());
        let version = version(one, "grow/a");
        assert!(version > last, "{version} after {last}");
        last = version;
    }
    assert!(one.commit(&put("grow/b", "another key")).unwrap());
    assert_eq!(version(one, "grow/a"), last, "others' changes are not this key's");
}

fn foreign_version(one: &dyn Backend, _: &dyn Backend) {
    assert!(one.commit(&put("foreign/a", "1")).unwrap());
    let change = Change { expect: vec![("foreign/a".to_owned(), u64::MAX)], ..put("foreign/a", "2") };
    assert!(!one.commit(&change).unwrap());
    assert_eq!(value(one, "foreign/a").as_deref(), Some("1"));
}

fn increments(one: &dyn Backend, other: &dyn Backend) {
    const THREADS: usize = 32;
    const EACH: usize = 5;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = if thread % 2 == 0 { one } else { other };
            scope.spawn(move || (0..EACH).for_each(|_| increment(store)));
        }
    });
    assert_eq!(value(one, "increments/a"), Some((THREADS * EACH).to_string()));
}

fn increment(store: &dyn Backend) {
    loop {
        let before = read(store, "increments/a");
        let number: u64 = before.as_ref().map_or(0, |found| String::from_utf8_lossy(&found.value).parse().unwrap());
        let expect = vec![("increments/a".to_owned(), before.map_or(0, |found| found.version))];
        if store.commit(&Change { expect, ..put("increments/a", (number + 1).to_string()) }).unwrap() {
            return;
        }
    }
}

fn claims(one: &dyn Backend, other: &dyn Backend) {
    for round in 0..30 {
        // Each claims two keys in the other's order: all of both, or none.
        let keys = [format!("claims/{round}/a"), format!("claims/{round}/b")];
        let both = |name: &str, order: [usize; 2]| Change {
            expect: order.map(|index| (keys[index].clone(), 0)).to_vec(),
            put: order.map(|index| (keys[index].clone(), name.as_bytes().to_vec())).to_vec(),
            delete: Vec::new(),
        };
        let (ours, theirs) = (both("one", [0, 1]), both("other", [1, 0]));
        let won = thread::scope(|scope| {
            let theirs = scope.spawn(|| other.commit(&theirs).unwrap());
            [one.commit(&ours).unwrap(), theirs.join().unwrap()]
        });
        assert_eq!(won.iter().filter(|&&won| won).count(), 1, "round {round}: {won:?}");
        let winner = if won[0] { "one" } else { "other" };
        assert!(keys.iter().all(|key| value(one, key).as_deref() == Some(winner)), "round {round}");
    }
}

fn largest_change(one: &dyn Backend, other: &dyn Backend) {
    let names = |kind: &str| (0..MAX_KEYS).map(|number| format!("largest/{kind}/{number:03}")).collect::<Vec<_>>();
    let write = |kind: &str| names(kind).into_iter().map(|key| (key, b"1".to_vec())).collect::<Vec<_>>();
    assert!(one.commit(&Change { put: write("old"), ..Change::default() }).unwrap());
    let expect = one.scan("largest/old/").unwrap().into_iter().map(|(key, found)| (key, found.version)).collect();
    let mut change = Change { expect, put: write("new"), delete: names("old") };
    assert!(other.commit(&change).unwrap());
    assert_eq!(keys(one, "largest/"), names("new"));
    assert_eq!(one.get(&names("new")).unwrap().iter().flatten().count(), MAX_KEYS);
    // The last of many expectations fails: none of it happens.
    change.expect =
        names("new").into_iter().zip(one.scan("largest/").unwrap()).map(|(key, (_, found))| (key, found.version)).collect();
    change.expect.last_mut().unwrap().1 += 1;
    (change.put, change.delete) = (write("newer"), names("new"));
    assert!(!other.commit(&change).unwrap());
    assert_eq!(keys(one, "largest/"), names("new"));
}

fn refusals(one: &dyn Backend, _: &dyn Backend) {
    let names: Vec<String> = (0..=MAX_KEYS).map(|number| format!("refusals/{number}")).collect();
    let writes = |names: &[String]| names.iter().map(|name| (name.clone(), Vec::new())).collect::<Vec<_>>();
    let twice = writes(&[names[0].clone(), names[0].clone()]);
    for change in [
        Change { put: writes(&names), ..Change::default() },
        Change { delete: names.clone(), ..Change::default() },
        Change { expect: names.iter().map(|name| (name.clone(), 0)).collect(), ..Change::default() },
        Change { put: twice, ..Change::default() },
        Change { put: writes(&names[..1]), delete: names[..1].to_vec(), ..Change::default() },
    ] {
        assert_eq!(one.commit(&change).unwrap_err().kind, ErrorKind::Internal, "{change:?}");
    }
    assert_eq!(one.get(&names).unwrap_err().kind, ErrorKind::Internal);
    assert!(one.scan("refusals/").unwrap().is_empty());
}

fn megabyte(one: &dyn Backend, other: &dyn Backend) {
    let value = bytes(1 << 20);
    assert!(one.commit(&put("megabyte/a", &value)).unwrap());
    assert!(read(other, "megabyte/a").unwrap().value[..] == value[..]);
}

/// Above the 4 MiB that gRPC takes in one answer, and above one page in keys.
fn large_scan(one: &dyn Backend, other: &dyn Backend) {
    for first in (0..1200).step_by(100) {
        let put = (first..first + 100).map(|number| (format!("large/{number:04}"), bytes(10_000))).collect();
        assert!(one.commit(&Change { put, ..Change::default() }).unwrap());
    }
    let found = other.scan("large/").unwrap();
    assert!(found.iter().map(|(key, _)| key.clone()).eq((0..1200).map(|number| format!("large/{number:04}"))));
    assert!(found.iter().all(|(_, found)| found.value[..] == bytes(10_000)[..]));
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 31 % 256) as u8).collect()
}

fn any_bytes(one: &dyn Backend, other: &dyn Backend) {
    let all: Vec<u8> = (0..=255).collect();
    for key in ["bytes/ü/日本", "bytes/\0/\n", "bytes/ \"'$(x)", "bytes/..", "bytes//", "bytes/\u{7f}\u{10ffff}"] {
        assert!(one.commit(&put(key, &all)).unwrap());
        assert_eq!(*read(other, key).unwrap().value, *all, "{key:?}");
        assert_eq!(keys(other, key), [key], "{key:?}");
    }
}

/// All keys with a prefix, by pages of so many at most; and how many pages there were.
fn paged(store: &dyn Backend, prefix: &str, most: usize) -> (Vec<String>, usize) {
    let (mut found, mut pages) = (Vec::<String>::new(), 0);
    loop {
        let page = store.page(prefix, found.last().map_or("", String::as_str), most).unwrap();
        assert!(page.len() <= most);
        if page.is_empty() {
            return (found, pages);
        }
        assert!(page.iter().all(|(key, entry)| read(store, key).as_ref() == Some(entry)));
        found.extend(page.into_iter().map(|(key, _)| key));
        pages += 1;
    }
}

fn pages(one: &dyn Backend, other: &dyn Backend) {
    for key in ["a/1", "a/10", "a/1/x", "a/2", "a/3", "a", "a0", "b/1"] {
        assert!(one.commit(&put(&format!("page/{key}"), key)).unwrap());
    }
    assert_eq!(paged(other, "page/a/", 2), (keys(one, "page/a/"), 3));
    assert_eq!(paged(other, "page/a/", 5), (keys(one, "page/a/"), 1));
    assert_eq!(paged(other, "page/none/", 5), (Vec::new(), 0));
    assert_eq!(other.page("page/a/", "page/a/2", 9).unwrap().len(), 1, "what comes after");
    assert!(other.page("page/a/", "page/b/1", 9).unwrap().is_empty(), "nothing after all of them");
    assert_eq!(other.page("page/a/", "page/a", 9).unwrap().len(), 5, "all come after a smaller key");
}
