//! The copy of etcd that a program keeps in memory: never a mixture of two moments, never older than what the program itself wrote, and
//! given up when the watch is silent. Each test has a server of its own.

use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::store::etcd::{Etcd, EtcdConfig};
use bwvisu_runner::store::{Backend, Change};

use crate::contract::{check_all, put, read};
use crate::proxy::{Net, Proxy};
use crate::server::{EtcdServer, Kind, etcd_is_there};

/// How long a reader waits for the copy.
const PATIENCE: Duration = Duration::from_millis(25);
/// After two seconds of silence the copy is old; it may have been silent for some time when a test looks.
const SILENCE: Duration = Duration::from_secs(1);
const JOBS: &str = "clusters/default/jobs/";

fn job(id: usize) -> String {
    format!("{JOBS}{id}")
}

/// A program that keeps a copy, once it has one.
fn mirrored(config: EtcdConfig) -> Etcd {
    let program = Etcd::connect(config).unwrap().mirrored();
    wait("the first copy", || told(&program, &job(0)).is_some());
    program
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What the copy says of one key, in words; nothing when it does not tell.
fn told(program: &Etcd, key: &str) -> Option<Option<String>> {
    let found = program.recent(&[key.to_owned()])?.remove(0);
    Some(found.map(|found| String::from_utf8(found.value.to_vec()).unwrap()))
}

fn tells(program: &Etcd, key: &str, value: &str) -> bool {
    told(program, key) == Some(Some(value.to_owned()))
}

#[test]
fn with_a_copy_the_contract_is_kept() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    drop(server.client());
    check_all(&mirrored(server.config()), &mirrored(server.config()));
}

#[test]
fn what_the_program_wrote_or_met_with_is_in_its_copy_when_it_reads() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let other = server.client();
    let program = mirrored(server.config());
    let (mut from_memory, mut heard) = (0, Instant::now());
    for round in 0..300 {
        let (begin, value) = (Instant::now(), round.to_string());
        assert!(program.commit(&put(&job(1), &value)).unwrap());
        let asked = Instant::now();
        match told(&program, &job(1)) {
            Some(found) => {
                assert_eq!(found, Some(value), "round {round}");
                (from_memory, heard) = (from_memory + 1, begin);
            }
            // A busy machine needs longer than a reader waits for the copy, or than the watch may be silent. Nothing else is excused.
            None => {
                assert!(asked.elapsed() >= PATIENCE || heard.elapsed() >= SILENCE, "round {round}: the copy is given up at once")
            }
        }
        let version = read(&other, &job(1)).unwrap().version;
        assert!(other.commit(&put(&job(1), "theirs")).unwrap());
        let old = Change { expect: vec![(job(1), version)], ..put(&job(1), "ours") };
        assert!(!program.commit(&old).unwrap());
        assert!(told(&program, &job(1)).is_none_or(|found| found.as_deref() == Some("theirs")), "round {round}");
    }
    assert!(from_memory > 30, "only {from_memory} of 300 reads were answered from memory");
}

#[test]
fn a_scan_shows_what_others_wrote_before_it_and_every_read_is_of_one_moment() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let other = server.client();
    let program = mirrored(server.config());
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..500_u32 {
                let both = Change { put: [1, 2].map(|id| (job(id), round.to_string().into_bytes())).into(), ..Change::default() };
                assert!(other.commit(&both).unwrap());
                // Another program's own business, which moves etcd's revision and is not watched.
                if round % 50 == 0 {
                    server.ctl(None, &["put", "/another-program", "x"]);
                }
                let scanned = program.scan(JOBS).unwrap();
                assert!(scanned.iter().all(|(_, found)| *found.value == *round.to_string().as_bytes()), "round {round}");
            }
        });
        let mut looks = 0;
        while !writer.is_finished() {
            if let Some(found) = program.recent(&[job(1), job(2)]) {
                assert_eq!(found[0], found[1]);
                looks += 1;
            }
        }
        writer.join().unwrap();
        assert!(looks > 100, "{looks} looks");
    });
}

#[test]
fn a_copy_that_hears_nothing_is_not_used_and_is_made_anew_when_the_net_is_back() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let other = server.client();
    let proxy = Proxy::start(server.client_address());
    let program = mirrored(EtcdConfig { endpoints: vec![proxy.endpoint()], ..server.config() });
    assert!(other.commit(&put(&job(1), "before")).unwrap());
    wait("what another wrote", || tells(&program, &job(1), "before"));
    proxy.set(Net::Silent);
    assert!(other.commit(&put(&job(1), "meanwhile")).unwrap());
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(told(&program, &job(1)), None, "two and a half seconds after the last word");
    proxy.set(Net::Whole);
    wait("what was written meanwhile", || tells(&program, &job(1), "meanwhile"));
}

#[test]
fn it_survives_a_server_that_is_killed_compacted_and_put_back_to_an_earlier_time() {
    if !etcd_is_there() {
        return;
    }
    let mut server = EtcdServer::start(Kind::Plain);
    let other = server.client();
    let program = mirrored(server.config());
    for round in 0..20 {
        assert!(other.commit(&put(&job(1), round.to_string())).unwrap());
    }
    let revision = read(&other, &job(1)).unwrap().version;
    server.kill();
    assert!(server.start_again());
    server.wait_for(&other);
    server.ctl(None, &["compact", &revision.to_string()]);
    assert!(other.commit(&put(&job(1), "after the kill")).unwrap());
    wait("what was written after the kill", || tells(&program, &job(1), "after the kill"));
    server.kill();
    std::fs::remove_dir_all(server.path("data")).unwrap();
    assert!(server.start_again());
    server.wait_for(&other);
    assert!(other.commit(&put(&job(2), "in the empty one")).unwrap());
    wait("the empty database", || tells(&program, &job(2), "in the empty one") && told(&program, &job(1)) == Some(None));
    assert!(program.commit(&put(&job(1), "ours")).unwrap());
    wait("what the program itself wrote there", || tells(&program, &job(1), "ours"));
}

#[test]
fn what_only_grows_is_not_copied_but_for_the_latest_finished_jobs() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let other = server.client();
    let in_cluster = |name: &str| format!("clusters/default/{name}");
    for number in 0..700 {
        for name in ["finished", "keys", "trail/past/2026-01-01/gw"] {
            assert!(other.commit(&put(&in_cluster(&format!("{name}/{number:03}")), "old")).unwrap());
        }
    }
    assert!(other.commit(&put(&in_cluster("owners/alice"), "kept")).unwrap());
    assert!(other.commit(&put(&in_cluster("trail/since"), "kept")).unwrap());
    let program = mirrored(server.config());
    for name in ["owners/alice", "trail/since"] {
        wait("what is behind what is left out", || tells(&program, &in_cluster(name), "kept"));
    }
    for name in ["finished/001", "keys/001", "trail/past/2026-01-01/gw/001"] {
        assert_eq!(told(&program, &in_cluster(name)), None, "{name}");
        assert!(read(&program, &in_cluster(name)).is_some(), "{name} is there all the same");
    }
    assert_eq!(program.scan(&in_cluster("finished/")).unwrap().len(), 700);
    assert_eq!(program.scan("clusters/").unwrap().len(), 2102);
    for number in 0..2100 {
        assert!(program.commit(&put(&in_cluster(&format!("finished/new-{number}")), "new")).unwrap());
    }
    wait("the latest", || tells(&program, &in_cluster("finished/new-2099"), "new"));
    assert_eq!(told(&program, &in_cluster("finished/new-0")), None, "of the finished ones the oldest goes first");
    assert!(other.commit(&Change { delete: vec![in_cluster("finished/new-2099")], ..Change::default() }).unwrap());
    wait("a removal", || told(&program, &in_cluster("finished/new-2099")).is_none());
}
