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
use crate::tries::{REST, one_takes_less_than};

/// A lead passes on when its lease of six seconds has ended; the rest is for a busy machine. What is wrong never passes on.
const HANDOVER: Duration = Duration::from_secs(20);
/// Less than what is left of a lease that was kept a moment ago.
const AT_ONCE: Duration = Duration::from_millis(3900);

/// Whether it leads, asked until etcd answers: a call has three seconds, and a busy machine may stand still as long.
pub fn leads(program: &Etcd, role: &str) -> bool {
    let begin = Instant::now();
    loop {
        match program.lead(role) {
            Ok(leads) => return leads,
            Err(error) => assert!(begin.elapsed() < HANDOVER, "{error}"),
        }
        thread::sleep(REST);
    }
}

/// Waits until there are two leases and no more, while these questions go on. One that was granted and whose answer was lost ends by
/// itself.
fn two_leases(server: &EtcdServer, ask: impl Fn()) {
    let begin = Instant::now();
    loop {
        ask();
        let leases = server.ctl(None, &["lease", "list"]);
        if leases.starts_with("found 2 leases") {
            return;
        }
        assert!(begin.elapsed() < HANDOVER, "{leases}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Asks until one of these leads; which.
fn successor(others: &[&Etcd], role: &str) -> usize {
    let begin = Instant::now();
    loop {
        let leads: Vec<bool> = others.iter().map(|other| other.lead(role).unwrap_or(false)).collect();
        assert!(leads.iter().filter(|&&leads| leads).count() <= 1, "never two: {leads:?}");
        if let Some(leader) = leads.iter().position(|&leads| leads) {
            return leader;
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
    let mut asked = Instant::now();
    for _ in 0..3 {
        asked = Instant::now();
        assert!(leads(&a, "watch"));
        assert!(!leads(&b, "watch") && !leads(&c, "watch"));
    }
    let name = value(&b, "leaders/watch").unwrap();
    assert!(name.contains(&format!(":{} ", std::process::id())), "{name}");
    // `a` stops calling.
    let leader = successor(&[&b, &c], "watch");
    let time = asked.elapsed();
    println!("hand-over after a leader that stopped asking: {time:?}");
    assert!(time > Duration::from_secs(LEASE_SECONDS - 2), "not before the lease has ended: {time:?}");
    assert!(!leads(&a, "watch"), "it comes back, and follows");
    assert!(leads([&b, &c][leader], "watch"));
}

#[test]
fn a_role_that_hangs_is_lost_and_the_programs_other_roles_are_not() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let (a, b) = (server.client(), server.client());
    two_leases(&server, || assert!(leads(&a, "hung") && leads(&a, "alive")));
    let begin = Instant::now();
    while !b.lead("hung").unwrap_or(false) {
        assert!(a.lead("alive").unwrap_or(true), "who goes on calling keeps it");
        assert!(!b.lead("alive").unwrap_or(false), "never two");
        assert!(begin.elapsed() < HANDOVER, "nobody takes over");
        thread::sleep(Duration::from_millis(200));
    }
    println!("hand-over of one role of two: {:?}", begin.elapsed());
    // Who follows holds none.
    two_leases(&server, || {
        assert!(!leads(&a, "hung") && leads(&a, "alive"));
        assert!(leads(&b, "hung") && !leads(&b, "alive"));
    });
}

#[test]
fn who_resigns_is_followed_at_once_and_takes_nothing_any_more() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let time = one_takes_less_than(AT_ONCE, |number| resigned(&server, [&format!("one/{number}"), &format!("two/{number}")]));
    println!("hand-over after resigning: {time:?}");
}

/// How long it takes until another leads the roles of one that resigns.
fn resigned(server: &EtcdServer, roles: [&str; 2]) -> Duration {
    let (a, b) = (server.client(), server.client());
    assert!(roles.iter().all(|role| leads(&a, role)));
    assert!(!leads(&b, roles[0]));
    let begin = Instant::now();
    a.resign();
    assert!(!leads(&a, roles[0]), "a watcher that asks on its way out gets nothing");
    for role in roles {
        successor(&[&b], role);
    }
    let time = begin.elapsed();
    a.resign();
    assert!(leads(&b, roles[0]), "resigning twice takes nothing from the successor");
    time
}

#[test]
fn a_lease_that_was_lost_is_replaced() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let a = server.client();
    assert!(leads(&a, "watch"));
    let lease = server.ctl(None, &["lease", "list"]).lines().last().unwrap().to_owned();
    server.ctl(None, &["lease", "revoke", &lease]);
    assert!(leads(&a, "watch"));
    server.ctl(None, &["del", "/bwvisu-runner/leaders/watch"]);
    assert!(leads(&a, "watch"), "nor does a deleted key end it");
}

#[test]
fn two_threads_of_a_program_lead_their_roles_side_by_side() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let (client, roles) = (server.client(), ["jobs-watch", "keyhole-watch"]);
    thread::scope(|scope| {
        for role in roles {
            let client = &client;
            scope.spawn(move || (0..20).for_each(|_| assert!(leads(client, role))));
        }
    });
    // One for each role.
    two_leases(&server, || assert!(roles.iter().all(|role| leads(&client, role))));
}

#[test]
fn a_lead_survives_the_death_of_etcds_own_leader() {
    if !etcd_is_there() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    let (a, b) = (cluster.client(), cluster.client());
    assert!(leads(&a, "watch"));
    let leader = cluster.leader();
    cluster.members[leader].kill();
    let (begin, mut led) = (Instant::now(), Instant::now());
    // Beyond the lease's end, as it would have been.
    while begin.elapsed() < Duration::from_secs(LEASE_SECONDS + 8) {
        // A call may fail during the election; the next one comes before the lease ends, which the election makes longer.
        let kept = a.lead("watch");
        led = if kept.as_ref().is_ok_and(|&kept| kept) { Instant::now() } else { led };
        assert!(led.elapsed() < Duration::from_secs(10), "{kept:?}");
        assert!(!b.lead("watch").unwrap_or(false), "never two");
        thread::sleep(Duration::from_millis(300));
    }
    assert!(leads(&a, "watch"));
}

/// A leader that was stopped between a read and a write, and went on when another led already.
#[test]
fn what_a_former_leader_still_writes_has_no_effect() {
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let (a, b) = (server.client(), server.client());
    assert!(leads(&a, "watch"));
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
    thread::sleep(Duration::from_secs(LEASE_SECONDS + 2));
    let before = cycles.load(Ordering::SeqCst);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(cycles.load(Ordering::SeqCst), before);
    assert!(server.start_again());
    at_work(Instant::now());
    stop.stop();
    watcher.join().unwrap();
}
