//! Who leads, with several programs on one real etcd: each `Etcd` value is a program of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::store::etcd::Etcd;
use bwvisu_runner::store::{Backend, Change, LEASE_SECONDS, Store};
use bwvisu_runner::watch::{Stop, repeat_within};

use crate::contract::{claim, put, read, value};
use crate::server::{EtcdCluster, EtcdServer, Kind, etcd_is_there};

/// What is promised after a crash.
const HANDOVER: Duration = Duration::from_secs(10);

/// Asks until one of these leads; which, and how long it took.
fn successor(others: &[&Etcd], role: &str) -> (usize, Duration) {
    let begin = Instant::now();
    loop {
        let leads: Vec<bool> = others.iter().map(|other| other.lead(role).unwrap_or(false)).collect();
        assert!(leads.iter().filter(|&&leads| leads).count() <= 1, "never two: {leads:?}");
        if let Some(leader) = leads.iter().position(|&leads| leads) {
            return (leader, begin.elapsed());
        }
        assert!(begin.elapsed() < HANDOVER, "nobody takes over");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_lead_is_one_programs_and_passes_on_when_it_hangs() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let (a, b, c) = (server.client(), server.client(), server.client());
    for _ in 0..3 {
        assert!(a.lead("watch").unwrap());
        assert!(!b.lead("watch").unwrap() && !c.lead("watch").unwrap());
    }
    let name = value(&b, "leaders/watch").unwrap();
    assert!(name.contains(&format!(":{} ", std::process::id())), "{name}");
    // `a` stops calling.
    let (leader, time) = successor(&[&b, &c], "watch");
    println!("hand-over after a leader that stopped asking: {time:?}");
    assert!(time > Duration::from_secs(LEASE_SECONDS - 2), "not before the lease has ended: {time:?}");
    assert!(!a.lead("watch").unwrap(), "it comes back, and follows");
    assert!([&b, &c][leader].lead("watch").unwrap());
}

#[test]
fn a_role_that_hangs_is_lost_and_the_programs_other_roles_are_not() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let (a, b) = (server.client(), server.client());
    assert!(a.lead("hung").unwrap() && a.lead("alive").unwrap());
    let leases = server.ctl(None, &["lease", "list"]);
    assert!(leases.starts_with("found 2 leases"), "{leases}");
    let begin = Instant::now();
    while !b.lead("hung").unwrap() {
        assert!(a.lead("alive").unwrap(), "who goes on calling keeps it");
        assert!(!b.lead("alive").unwrap());
        assert!(begin.elapsed() < HANDOVER, "nobody takes over");
        thread::sleep(Duration::from_millis(200));
    }
    println!("hand-over of one role of two: {:?}", begin.elapsed());
    assert!(!a.lead("hung").unwrap() && a.lead("alive").unwrap());
    let leases = server.ctl(None, &["lease", "list"]);
    assert!(leases.starts_with("found 2 leases"), "who follows holds none: {leases}");
}

#[test]
fn who_resigns_is_followed_at_once_and_takes_nothing_any_more() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let (a, b) = (server.client(), server.client());
    assert!(a.lead("one").unwrap() && a.lead("two").unwrap());
    assert!(!b.lead("one").unwrap());
    let begin = Instant::now();
    a.resign();
    assert!(!a.lead("one").unwrap(), "a watcher that asks on its way out gets nothing");
    assert!(b.lead("one").unwrap() && b.lead("two").unwrap());
    println!("hand-over after resigning: {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(1));
    a.resign();
    assert!(b.lead("one").unwrap(), "resigning twice takes nothing from the successor");
}

#[test]
fn a_lease_that_was_lost_is_replaced() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let a = server.client();
    assert!(a.lead("watch").unwrap());
    let lease = server.ctl(None, &["lease", "list"]).lines().last().unwrap().to_owned();
    server.ctl(None, &["lease", "revoke", &lease]);
    assert!(a.lead("watch").unwrap());
    server.ctl(None, &["del", "/bwvisu-runner/leaders/watch"]);
    assert!(a.lead("watch").unwrap(), "nor does a deleted key end it");
}

#[test]
fn two_threads_of_a_program_lead_their_roles_side_by_side() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let client = server.client();
    thread::scope(|scope| {
        for role in ["jobs-watch", "keyhole-watch"] {
            let client = &client;
            scope.spawn(move || (0..20).for_each(|_| assert!(client.lead(role).unwrap())));
        }
    });
    let leases = server.ctl(None, &["lease", "list"]);
    assert!(leases.starts_with("found 2 leases"), "one for each role: {leases}");
}

#[test]
fn a_lead_survives_the_death_of_etcds_own_leader() {
    if !etcd_is_there() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    let (a, b) = (cluster.client(), cluster.client());
    assert!(a.lead("watch").unwrap());
    let leader = cluster.leader();
    cluster.members[leader].kill();
    let begin = Instant::now();
    // Beyond the lease's end, as it would have been.
    while begin.elapsed() < Duration::from_secs(LEASE_SECONDS + 3) {
        // A call may fail during the election; the next one comes before the lease ends.
        let kept = a.lead("watch");
        assert!(kept.as_ref().is_ok_and(|&kept| kept) || begin.elapsed() < Duration::from_secs(4), "{kept:?}");
        assert!(!b.lead("watch").unwrap_or(false), "never two");
        thread::sleep(Duration::from_millis(300));
    }
}

/// A leader that was stopped between a read and a write, and went on when another led already.
#[test]
fn what_a_former_leader_still_writes_has_no_effect() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let (a, b) = (server.client(), server.client());
    assert!(a.lead("watch").unwrap());
    assert!(a.commit(&claim("job", "first")).unwrap());
    let version = read(&a, "job").unwrap().version;
    successor(&[&b], "watch");
    assert!(b.commit(&put("job", "of the new leader")).unwrap());
    let late = Change { expect: vec![("job".to_owned(), version)], ..put("job", "of the old leader") };
    assert!(!a.commit(&late).unwrap());
    assert_eq!(value(&b, "job").as_deref(), Some("of the new leader"));
}

/// Three programs' watchers, with cycles that take as long as the test wants them to.
#[test]
fn a_long_cycle_keeps_its_lead_and_a_hung_one_is_replaced() {
    const PATIENCE: Duration = Duration::from_secs(LEASE_SECONDS + 4);
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let stop = Stop::default();
    let (entered, entries) = mpsc::channel();
    let (released, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let start = |name: &'static str, entered: mpsc::Sender<&'static str>, wait: Option<Mutex<mpsc::Receiver<()>>>| {
        let store = Arc::new(Store::new(Box::new(server.client())));
        let every = || Duration::from_millis(200);
        repeat_within(PATIENCE, "watch".to_owned(), every, store, stop.clone(), move || {
            let _ = entered.send(name);
            if let Some(gate) = &wait {
                let _ = gate.lock().unwrap().recv();
            }
            Ok(())
        })
        .unwrap()
    };
    let hangs = start("hangs", entered.clone(), Some(gate));
    assert_eq!(entries.recv_timeout(HANDOVER).unwrap(), "hangs");
    let begin = Instant::now();
    let others = [start("second", entered.clone(), None), start("third", entered, None)];
    let next = entries.recv_timeout(PATIENCE + HANDOVER).unwrap();
    let time = begin.elapsed();
    println!("a cycle that hangs is replaced after {time:?}, of which {PATIENCE:?} are patience");
    assert!(time > PATIENCE, "a cycle longer than the lease ({LEASE_SECONDS} s) keeps the lead: {time:?}");
    assert_ne!(next, "hangs");
    // It gets on, and sees that it leads no more.
    drop(released);
    thread::sleep(Duration::from_secs(1));
    assert!(entries.try_iter().all(|entered| entered == next), "one leads");
    stop.stop();
    for watcher in others.into_iter().chain([hangs]) {
        watcher.join().unwrap();
    }
}

/// A watcher that cannot ask etcd leads no longer than its lease.
#[test]
fn without_etcd_nobody_begins_a_cycle() {
    if !etcd_is_there() {
        return;
    }
    let mut server = EtcdServer::start(Kind::Plain);
    let store = Arc::new(Store::new(Box::new(server.client())));
    let (stop, cycles) = (Stop::default(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&cycles);
    let watcher = repeat_within(
        HANDOVER,
        "watch".to_owned(),
        || Duration::from_millis(100),
        store,
        stop.clone(),
        move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        },
    )
    .unwrap();
    let at_work = |begin: Instant| {
        let before = cycles.load(Ordering::SeqCst);
        while cycles.load(Ordering::SeqCst) < before + 3 {
            assert!(begin.elapsed() < HANDOVER, "no cycles");
            thread::sleep(Duration::from_millis(20));
        }
    };
    at_work(Instant::now());
    server.kill();
    thread::sleep(Duration::from_secs(LEASE_SECONDS));
    let before = cycles.load(Ordering::SeqCst);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(cycles.load(Ordering::SeqCst), before);
    assert!(server.start_again());
    at_work(Instant::now());
    stop.stop();
    watcher.join().unwrap();
}
