//! The trail on a real database of its own: what the verbs that take, move and free ports write down.

use super::embedded::Embedded;
use super::*;
use crate::domain::grant::{GRANT_VERSION, Grant, GrantState};
use crate::domain::job::{Job, Outcome};
use crate::domain::ports::Span;
use crate::domain::trail::Trace;
use jiff::{SignedDuration, Timestamp};
use std::thread;

const FIRST: &str = "10.0.0.1";
const SECOND: &str = "10.0.0.2";

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(Box::new(Embedded::open(&folder.path().join("store.redb")).unwrap()));
    (folder, store)
}

fn create(store: &Store, user: &str) -> u64 {
    let job = Job { id: store.new_id().unwrap(), cluster: "default".into(), user: user.into(), ..Job::default() };
    assert_eq!(store.create_job(&job, None, usize::MAX).unwrap(), Created::New);
    job.id
}

fn grant(job: u64, gateway: &str, external: u16, run: u32) -> Grant {
    Grant {
        version: GRANT_VERSION,
        cluster: "default".into(),
        job,
        run,
        nonce: format!("n{run}"),
        state: GrantState::Claimed,
        confirmed: false,
        attempt: 0,
        gateway: gateway.into(),
        external_ip: format!("192.0.2.{}", &gateway[7..]),
        nodes: vec!["c0".into()],
        target: "c0-ib0".into(),
        spans: vec![Span { external, internal: external - 10_000, count: 3 }],
        granted_at: Timestamp::UNIX_EPOCH,
    }
}

/// A moment of its own: before and after it are other times.
fn moment() -> Timestamp {
    thread::sleep(Duration::from_millis(2));
    let now = Timestamp::now();
    thread::sleep(Duration::from_millis(2));
    now
}

/// Job and user of who had the port then.
fn who(store: &Store, gateway: &str, port: u16, at: Timestamp) -> Vec<(u64, u32, Option<String>)> {
    let traces = store.who("default", gateway, port, at).unwrap().traces;
    traces.into_iter().map(|trace| (trace.job, trace.run.unwrap(), trace.user)).collect()
}

fn alice(job: u64, run: u32) -> Vec<(u64, u32, Option<String>)> {
    vec![(job, run, Some("alice".into()))]
}

#[test]
fn a_port_is_its_jobs_from_the_claim_until_its_rules_are_gone_and_then_the_next_ones() {
    let (_folder, store) = store();
    let (first, second) = (create(&store, "alice"), create(&store, "bob"));
    let before = moment();
    assert!(store.claim(&grant(first, FIRST, 50_000, 0)).unwrap());
    let during = moment();
    let closing = store.close_grant(&grant(first, FIRST, 50_000, 0)).unwrap().unwrap();
    let given_up = moment();
    // The job is gone before its trace ends.
    let end = |job: &mut Job| job.finish(Outcome::Completed, None, "", Timestamp::UNIX_EPOCH);
    store.update_job("default", first, "test", end).unwrap();
    let ever = (Timestamp::MAX, Timestamp::MAX);
    store.remove_finished("default", ever, &mut Progress::default(), Instant::now()).unwrap();
    store.release(&closing).unwrap();
    let between = moment();
    assert!(store.claim(&grant(second, FIRST, 50_002, 0)).unwrap());
    let after = moment();
    for at in [during, given_up] {
        for gateway in [FIRST, "192.0.2.1"] {
            assert_eq!(who(&store, gateway, 50_002, at), alice(first, 0), "{gateway} at {at}");
        }
    }
    assert_eq!(who(&store, FIRST, 50_002, after), [(second, 0, Some("bob".into()))]);
    for (port, at) in [(50_002, before), (50_002, between), (50_000, after), (50_003, during), (40_000, during)] {
        assert_eq!(who(&store, FIRST, port, at), [], "{port} at {at}");
    }
    assert_eq!(who(&store, SECOND, 50_002, during), []);
    let trace = store.who("default", FIRST, 50_000, during).unwrap().traces.remove(0);
    assert_eq!((trace.given_up, trace.led_to(FIRST, 50_001, during)), (Some(closing.since), Some(40_001)));
    assert!(trace.from.unwrap() > before && trace.until.unwrap() > given_up && trace.until.unwrap() < between, "{trace:?}");
    store.release(&closing).unwrap();
    assert_eq!(who(&store, FIRST, 50_002, Timestamp::now()).len(), 1, "a release that comes again writes nothing");
}

#[test]
fn a_job_that_is_requeued_has_an_interval_for_each_run() {
    let (_folder, store) = store();
    let job = create(&store, "alice");
    assert!(store.claim(&grant(job, FIRST, 50_000, 0)).unwrap());
    let first = moment();
    let closing = store.close_grant(&grant(job, FIRST, 50_000, 0)).unwrap().unwrap();
    assert!(store.claim(&grant(job, FIRST, 50_010, 1)).unwrap());
    let both = moment();
    store.release(&closing).unwrap();
    let last = moment();
    assert_eq!([first, both, last].map(|at| who(&store, FIRST, 50_000, at)), [alice(job, 0), alice(job, 0), vec![]]);
    assert_eq!([first, both, last].map(|at| who(&store, FIRST, 50_010, at)), [vec![], alice(job, 1), alice(job, 1)]);
}

#[test]
fn a_moved_job_is_known_on_both_gateways_as_long_as_both_may_lead_to_it() {
    let (_folder, store) = store();
    let job = create(&store, "alice");
    let there = Grant { state: GrantState::Moving, ..grant(job, SECOND, 50_000, 0) };
    assert!(store.claim(&grant(job, FIRST, 50_000, 0)).unwrap());
    let before = moment();
    assert!(store.move_grant(&grant(job, FIRST, 50_000, 0), &there).unwrap());
    let both = moment();
    let left = store.closings("default", FIRST).unwrap().remove(0);
    store.release(&left).unwrap();
    let after = moment();
    // And back again, while the second one is still to be cleared.
    let back = Grant { state: GrantState::Moving, ..grant(job, FIRST, 50_000, 0) };
    assert!(store.move_grant(&there, &back).unwrap());
    let last = moment();
    let times = [before, both, after, last];
    let (it, nobody) = (alice(job, 0), Vec::new());
    assert_eq!(times.map(|at| who(&store, FIRST, 50_001, at)), [it.clone(), it.clone(), nobody.clone(), it.clone()]);
    assert_eq!(times.map(|at| who(&store, SECOND, 50_001, at)), [nobody, it.clone(), it.clone(), it]);
}

#[test]
fn what_was_granted_before_there_was_a_trail_is_known_from_its_grant_and_at_least_by_its_end() {
    let (_folder, store) = store();
    let job = create(&store, "alice");
    let forget = || {
        let open = keys::open_trace("default", FIRST, 50_000);
        assert!(store.backend.commit(&Change { delete: vec![open], ..Change::default() }).unwrap());
    };
    assert!(store.claim(&grant(job, FIRST, 50_000, 0)).unwrap());
    forget();
    let closing = store.close_grant(&grant(job, FIRST, 50_000, 0)).unwrap().unwrap();
    assert_eq!(store.open_traces("default").unwrap()[0].from, Some(Timestamp::UNIX_EPOCH));
    forget();
    let during = moment();
    store.release(&closing).unwrap();
    let trace = store.who("default", FIRST, 50_000, during).unwrap().traces.remove(0);
    assert_eq!((trace.job, trace.from, trace.user), (job, None, None));
}

/// A trace that ended so many days ago.
fn ended(store: &Store, days: i64, count: u16) {
    let until = Timestamp::now() - SignedDuration::from_hours(24 * days);
    for port in 0..count {
        let trace = Trace::begin(&grant(7, FIRST, 50_000 + port, 0), None, until).end(None, until);
        let mut change = Change::default();
        super::trail::put_past(&trace, &mut change).unwrap();
        assert!(store.backend.commit(&change).unwrap());
    }
}

fn begin(store: &Store) -> Option<Timestamp> {
    store.who("default", FIRST, 1, Timestamp::now()).unwrap().known_since
}

#[test]
fn old_traces_go_some_at_a_time_and_the_trail_says_how_far_back_it_goes() {
    let (_folder, store) = store();
    assert_eq!(begin(&store), None);
    let trim = |before, progress: &mut Progress| store.trim_trail("default", before, progress, Instant::now()).unwrap();
    let mut progress = Progress::default();
    trim(Timestamp::MAX, &mut progress);
    assert!(progress.is_done() && progress.removed() == 0);
    assert!(begin(&store).is_some_and(|since| since <= Timestamp::now()), "the first call begins it");
    let days_ago = |days: i64| Timestamp::now() - SignedDuration::from_hours(24 * days);
    store
        .set_trail_begin(
            "default",
            store.read::<crate::domain::trail::TrailBegin>(&keys::trail_begin("default")).unwrap().1,
            days_ago(30),
        )
        .unwrap();
    for (days, count) in [(20, 700), (19, 100), (10, 5), (2, 5)] {
        ended(&store, days, count);
    }
    let count = || store.backend.scan("clusters/default/trail/past/").unwrap().len();
    let mut progress = Progress::default();
    // A day at a time, or a page of one.
    while progress.removed() == 0 {
        trim(days_ago(15), &mut progress);
    }
    assert_eq!((progress.removed(), count(), progress.is_done()), (500, 310, false), "not all at once");
    assert!(begin(&store).unwrap() <= days_ago(19), "what is left of a day is not forgotten");
    while !progress.is_done() {
        trim(days_ago(15), &mut progress);
    }
    assert_eq!((progress.removed(), count()), (800, 10));
    let since = begin(&store).unwrap();
    assert!(since <= days_ago(15) && since > days_ago(17), "{since}");
    assert_eq!(who_ended(&store, days_ago(10)), 1);
    assert_eq!(who_ended(&store, days_ago(20)), 0);
}

fn who_ended(store: &Store, at: Timestamp) -> usize {
    let before = store.who("default", FIRST, 50_000, at).unwrap().traces.len();
    // It began as it ended.
    let traces = store.backend.scan("clusters/default/trail/past/").unwrap();
    let day = at.strftime("%Y-%m-%d").to_string();
    let first = traces.iter().filter(|(key, _)| key.contains(&day)).find_map(|(_, found)| {
        let trace: Trace = decode("x", &found.value).unwrap();
        (trace.first_port() == 50_000).then_some(trace.until.unwrap())
    });
    assert_eq!(before, 0, "a moment before or after");
    first.map_or(0, |until| store.who("default", FIRST, 50_000, until).unwrap().traces.len())
}
