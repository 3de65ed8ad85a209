//! Faults of a real cluster of three, under load: members that die, freeze, stumble or cannot be reached. No call may take longer
//! than it has, no write may be lost or happen twice, and everything goes on by itself.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::store::etcd::{Etcd, EtcdConfig};
use bwvisu_runner::store::{Backend, Change};

use crate::contract::{claim, put, value};
use crate::proxy::{Net, Proxy};
use crate::server::{EtcdCluster, EtcdServer, PATIENT, etcd_is_there};
use crate::tries::{REST, SetAtEnd, one_takes_less_than};

/// What a call has unless an operator says otherwise.
const TIMEOUT: Duration = EtcdConfig::DEFAULT_TIMEOUT;
/// How much longer a call may take than it has, on a busy machine.
const SLACK: Duration = Duration::from_secs(5);
const WRITERS: usize = 6;

/// What all calls came to.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    unavailable: u64,
    unknown: u64,
    /// Failures of one writer in a row are one.
    outages: u64,
    longest: Duration,
}

impl Tally {
    fn failed(&self) -> u64 {
        self.unavailable + self.unknown
    }

    fn note(&mut self, took: Duration, kind: Option<ErrorKind>, out: &mut bool) {
        self.longest = self.longest.max(took);
        let was_out = std::mem::replace(out, kind.is_some());
        self.outages += u64::from(*out && !was_out);
        match kind {
            None => self.done += 1,
            Some(ErrorKind::Unavailable) => self.unavailable += 1,
            Some(ErrorKind::Unknown) => self.unknown += 1,
            Some(other) => panic!("a fault of etcd's is {other:?}"),
        }
    }
}

/// Counts up in keys of many writers while `fault` is at work; each key must hold as much as was answered with success. The calls of these
/// clients have so long.
fn under_load(name: &str, clients: &[&Etcd], timeout: Duration, fault: impl FnOnce()) -> Tally {
    let (over, tally) = (AtomicBool::new(false), Mutex::new(Tally::default()));
    thread::scope(|scope| {
        let _writers_end = SetAtEnd(&over);
        for writer in 0..WRITERS {
            let (client, over, tally) = (clients[writer % clients.len()], &over, &tally);
            scope.spawn(move || count_up(client, &format!("{name}/{writer}"), over, tally));
        }
        thread::sleep(Duration::from_millis(500));
        fault();
    });
    let tally = tally.into_inner().unwrap();
    println!("{name}: {tally:?}");
    assert!(tally.longest < timeout + SLACK, "{tally:?}");
    tally
}

/// Plays up to three rounds, until no more calls failed than this. Where calls have the default time, a machine that stands still may
/// fail some, but not in each round.
fn one_of_three_fails_at_most(most: u64, mut round: impl FnMut(usize) -> Tally) {
    assert!((1..=3).any(|number| round(number).failed() <= most), "in each of three rounds more than {most} calls failed");
}

fn count_up(client: &Etcd, key: &str, over: &AtomicBool, tally: &Mutex<Tally>) {
    let (mut count, mut doubts, mut out) = (0, 0, false);
    while !over.load(Ordering::SeqCst) {
        let begin = Instant::now();
        let outcome = client.get(&[key.to_owned()]);
        tally.lock().unwrap().note(begin.elapsed(), outcome.as_ref().err().map(|error| error.kind), &mut out);
        let Ok(mut found) = outcome else {
            thread::sleep(REST);
            continue;
        };
        let (now, version) = found.remove(0).map_or((0, 0), |found| (number(&found.value), found.version));
        assert!((count..=count + doubts).contains(&now), "{key}: {now}, after {count} and {doubts} of unknown fate");
        // What was not answered may still be on its way; it is settled when it is seen, or when the next one is done in its place.
        (count, doubts) = if now > count { (now, 0) } else { (count, doubts) };
        let change = Change { expect: vec![(key.to_owned(), version)], ..put(key, (now + 1).to_string()) };
        let begin = Instant::now();
        let outcome = client.commit(&change);
        tally.lock().unwrap().note(begin.elapsed(), outcome.as_ref().err().map(|error| error.kind), &mut out);
        match outcome {
            Ok(true) => (count, doubts) = (count + 1, 0),
            Ok(false) => assert_eq!(doubts, 1, "{key}: nobody else writes it"),
            Err(error) if error.kind == ErrorKind::Unknown => doubts = 1,
            Err(_) => {}
        }
    }
    let end = value_later(client, key);
    assert!((count..=count + doubts).contains(&end), "{key}: {end} in the end, after {count} and {doubts} of unknown fate");
}

fn number(value: &[u8]) -> u64 {
    String::from_utf8_lossy(value).parse().unwrap()
}

/// Once etcd answers again.
fn value_later(client: &Etcd, key: &str) -> u64 {
    let begin = Instant::now();
    while let Err(error) = client.get(&[key.to_owned()]) {
        assert!(begin.elapsed() < Duration::from_secs(60), "{error}");
        thread::sleep(REST);
    }
    value(client, key).map_or(0, |value| number(value.as_bytes()))
}

#[test]
fn a_member_that_is_killed_fails_no_call_leader_or_not() {
    if !etcd_is_there() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    let [patient, hasty] = [PATIENT, TIMEOUT].map(|timeout| [cluster.client_with(timeout), cluster.client_with(timeout)]);
    for (name, from_leader) in [("leader killed", 0), ("follower killed", 1)] {
        let mut round = |name: &str, [one, other]: &[Etcd; 2], timeout| {
            let member = (cluster.leader() + from_leader) % 3;
            under_load(name, &[one, other], timeout, || {
                cluster.members[member].kill();
                thread::sleep(Duration::from_secs(3));
                assert!(cluster.members[member].start_again());
                thread::sleep(Duration::from_millis(500));
            })
        };
        let tally = round(name, &patient, PATIENT);
        assert_eq!(tally.failed(), 0, "{name}: {tally:?}");
        one_of_three_fails_at_most(0, |number| round(&format!("{name}, {number}"), &hasty, TIMEOUT));
    }
}

#[test]
fn a_leader_that_freezes_costs_each_caller_one_outage_at_most() {
    if !etcd_is_there() {
        return;
    }
    let cluster = EtcdCluster::start();
    let (one, other) = (cluster.client_with(TIMEOUT), cluster.client_with(TIMEOUT));
    // The others notice its silence after one to two seconds, and may need two elections: longer than that call has.
    one_of_three_fails_at_most(WRITERS as u64, |number| {
        let leader = &cluster.members[cluster.leader()];
        let tally = under_load(&format!("leader frozen, {number}"), &[&one, &other], TIMEOUT, || {
            leader.freeze();
            let begin = Instant::now();
            thread::sleep(Duration::from_secs(6));
            while !one.commit(&put("k", "v")).is_ok_and(|done| done) {
                assert!(begin.elapsed() < Duration::from_secs(20), "the others do not go on without it");
                thread::sleep(REST);
            }
            leader.thaw();
            thread::sleep(Duration::from_secs(1));
        });
        assert!(tally.outages <= WRITERS as u64, "{tally:?}");
        tally
    });
}

/// As with a disk that takes a third of a second for each write.
#[test]
fn a_leader_that_stumbles_slows_calls_and_fails_none() {
    if !etcd_is_there() {
        return;
    }
    let cluster = EtcdCluster::start();
    let round = |name: &str, timeout| {
        let (client, leader) = (cluster.client_with(timeout), &cluster.members[cluster.leader()]);
        under_load(name, &[&client], timeout, || {
            for _ in 0..12 {
                leader.freeze();
                thread::sleep(Duration::from_millis(300));
                leader.thaw();
                thread::sleep(Duration::from_millis(50));
            }
        })
    };
    let tally = round("leader slow", PATIENT);
    assert_eq!(tally.failed(), 0, "{tally:?}");
    one_of_three_fails_at_most(0, |number| round(&format!("leader slow, {number}"), TIMEOUT));
}

#[test]
fn without_a_quorum_calls_fail_in_time_and_work_again_when_a_member_is_back() {
    if !etcd_is_there() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    let client = cluster.client_with(TIMEOUT);
    let tally = under_load("quorum lost", &[&client], TIMEOUT, || {
        cluster.members[..2].iter_mut().for_each(EtcdServer::kill);
        thread::sleep(Duration::from_secs(5));
        for key in ["a", "b"] {
            let begin = Instant::now();
            let error = client.get(&[key.to_owned()]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
            println!("quorum lost: a call fails after {:?}: {error}", begin.elapsed());
        }
        assert!(cluster.members[0].start_again());
    });
    assert!(tally.unavailable > 0, "{tally:?}");
    // The one that is still dead refuses at once. What the outage left behind must not slow the calls after it, nor fail them.
    one_takes_less_than(Duration::from_secs(1), |number| {
        let begin = Instant::now();
        assert!(client.commit(&claim(&format!("k/{number}"), "v")).unwrap());
        begin.elapsed()
    });
}

/// A member that is dead refuses at once and must not use up the attempts of a call that has time for those that are silent, as they
/// are while they elect.
#[test]
fn a_dead_member_does_not_shorten_the_patience_with_silent_ones() {
    if !etcd_is_there() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    cluster.client();
    // A follower dies. It is the first, which is asked first, as it never failed.
    let dead = (cluster.leader() + 1) % 3;
    let nets = [dead, (dead + 1) % 3, (dead + 2) % 3].map(|member| Proxy::start(cluster.members[member].client_address()));
    let endpoints = nets.iter().map(Proxy::endpoint).collect();
    let client = Etcd::connect(EtcdConfig { endpoints, timeout: PATIENT, ..cluster.config() }).unwrap();
    assert!(client.get(&["k".to_owned()]).is_ok());
    cluster.members[dead].kill();
    nets[1..].iter().for_each(|net| net.set(Net::Silent));
    let begin = Instant::now();
    thread::scope(|scope| {
        let call = scope.spawn(|| client.commit(&claim("k", "v")));
        // After two thirds of the time each silent member has had its turn, and the dead one two.
        thread::sleep(PATIENT * 11 / 15);
        nets.iter().for_each(|net| net.set(Net::Whole));
        assert!(call.join().unwrap().unwrap(), "after {:?}", begin.elapsed());
    });
    println!("written after {:?}", begin.elapsed());
    assert!(begin.elapsed() < PATIENT + SLACK);
}

/// Silence costs attempts: those that are left have time enough for members that answer slowly.
#[test]
fn a_silent_member_leaves_the_slow_ones_their_time() {
    if !etcd_is_there() {
        return;
    }
    let cluster = EtcdCluster::start();
    cluster.client();
    let nets: Vec<Proxy> = cluster.members.iter().map(|member| Proxy::start(member.client_address())).collect();
    let endpoints = nets.iter().map(Proxy::endpoint).collect();
    let client = Etcd::connect(EtcdConfig { endpoints, timeout: PATIENT, ..cluster.config() }).unwrap();
    assert!(client.get(&["k".to_owned()]).is_ok());
    nets[0].set(Net::Silent);
    // Twice that, for the first answer on a connection: more than a fourth of what is left, and less than a third.
    nets[1..].iter().for_each(|net| net.be_slow(PATIENT / 10));
    let begin = Instant::now();
    assert!(client.commit(&claim("k", "v")).unwrap());
    println!("written after {:?}", begin.elapsed());
}

#[test]
fn a_net_that_is_cut_in_silence_costs_time_and_no_call_until_all_of_it_is_cut() {
    if !etcd_is_there() {
        return;
    }
    let cluster = EtcdCluster::start();
    let nets: Vec<Proxy> = cluster.members.iter().map(|member| Proxy::start(member.client_address())).collect();
    let endpoints = nets.iter().map(Proxy::endpoint).collect();
    let config = EtcdConfig { endpoints, ..cluster.config() };
    let [client, hasty] = [PATIENT, TIMEOUT].map(|timeout| Etcd::connect(EtcdConfig { timeout, ..config.clone() }).unwrap());
    [&client, &hasty].iter().for_each(|client| cluster.members[0].wait_for(client));
    for (cut, net) in nets.iter().enumerate() {
        let round = |name: &str, client, timeout| {
            under_load(name, &[client], timeout, || {
                net.set(Net::Silent);
                // Longer than one member is waited for.
                thread::sleep(timeout * 2 / 5);
                net.set(Net::Whole);
            })
        };
        let tally = round(&format!("net {cut} cut"), &client, PATIENT);
        assert_eq!(tally.failed(), 0, "{tally:?}");
        one_of_three_fails_at_most(0, |number| round(&format!("net {cut} cut, {number}"), &hasty, TIMEOUT));
    }
    let tally = under_load("all nets cut", &[&hasty], TIMEOUT, || {
        nets.iter().for_each(|net| net.set(Net::Silent));
        // A call without an end would take longer than is allowed.
        thread::sleep(TIMEOUT + SLACK + Duration::from_secs(2));
        nets.iter().for_each(|net| net.set(Net::Whole));
    });
    assert!(tally.failed() > 0, "{tally:?}");
    assert!(client.commit(&claim("k", "v")).unwrap());
}
