//! Who is looked at when, and when the store hears of it.

use super::*;
use crate::domain::grant::GRANT_VERSION;
use crate::domain::ports::Span;

const CYCLE: Duration = Duration::from_secs(2);

fn grant(job: u64, ports: &[u16]) -> Grant {
    Grant {
        version: GRANT_VERSION,
        cluster: "default".into(),
        job,
        run: 0,
        nonce: "00".into(),
        state: GrantState::Active,
        confirmed: true,
        attempt: 0,
        gateway: "gw".into(),
        external_ip: "gw".into(),
        nodes: vec!["c0".into()],
        target: "c0".into(),
        spans: ports.iter().map(|&port| Span { external: port, internal: port, count: 1 }).collect(),
        granted_at: Timestamp::UNIX_EPOCH,
    }
}

fn seconds(count: f64) -> Duration {
    Duration::from_secs_f64(count)
}

/// How long after each look the next one is due, if a job is seen like this every time.
fn pauses(seen: &[(Seen, f64)]) -> Vec<f64> {
    let mut now = Instant::now();
    let mut schedule = Schedule::default();
    schedule.add([grant(1, &[7])], now);
    let mut next = |&(seen, later): &(Seen, f64)| {
        now += seconds(later);
        schedule.note(&[(1, seen)], CYCLE, now);
        schedule.watched[&1].next.duration_since(now).as_secs_f64()
    };
    seen.iter().map(&mut next).collect()
}

#[test]
fn starting_jobs_are_looked_at_every_time_and_available_ones_less_and_less() {
    let starting = [(Seen::Closed, 1.0), (Seen::Closed, 500.0), (Seen::Closed, 100.0)];
    assert_eq!(pauses(&starting), [0.0, 0.0, 1.8], "it may never listen");
    let available = [(Seen::Listens, 3.0), (Seen::Listens, 60.0), (Seen::Listens, 180.0), (Seen::Listens, 10_000.0)];
    assert_eq!(pauses(&available), [5.0, 5.0, 10.0, 30.0]);
    assert_eq!(pauses(&[(Seen::Listens, 1.0), (Seen::Listens, 9e3), (Seen::Closed, 30.0)])[2], 0.0, "it starts anew, perhaps");
    assert_eq!(pauses(&[(Seen::Listens, 1.0), (Seen::Listens, 240.0), (Seen::Silent, 240.0)])[2], 20.0, "silence says nothing");
}

#[test]
fn the_store_is_told_the_first_time_and_of_changes() {
    let now = Instant::now();
    let mut schedule = Schedule::default();
    schedule.add([grant(1, &[7])], now);
    let mut news = |seen| !schedule.note(&[(1, seen)], CYCLE, now).is_empty();
    let cases = [
        (Seen::Closed, true),
        (Seen::Closed, false),
        (Seen::Listens, true),
        (Seen::Listens, false),
        (Seen::Silent, true),
        (Seen::Silent, false),
        (Seen::Listens, true),
        (Seen::Closed, true),
    ];
    for (at, (seen, expected)) in cases.into_iter().enumerate() {
        assert_eq!(news(seen), expected, "{at}: {seen:?}");
    }
    schedule.forget(1);
    assert_eq!(schedule.note(&[(1, Seen::Closed)], CYCLE, now).len(), 1, "it could not be told");
    assert!(schedule.note(&[(9, Seen::Listens)], CYCLE, now).is_empty(), "a job that has gone meanwhile");
}

#[test]
fn who_was_silent_is_looked_at_apart_until_it_answers() {
    let now = Instant::now();
    let mut schedule = Schedule::default();
    schedule.add([grant(1, &[7, 9]), grant(2, &[8])], now);
    let silent = Probe { open: [("c0".to_owned(), 8)].into(), unreachable: ["c0".to_owned()].into() };
    let seen: Vec<_> = schedule.due("gw", false, now).iter().map(|watched| (watched.grant.job, watched.seen(&silent))).collect();
    schedule.note(&seen, CYCLE, now);
    let later = now + seconds(60.0);
    let jobs = |doubtful| schedule.due("gw", doubtful, later).iter().map(|watched| watched.grant.job).collect::<Vec<_>>();
    assert_eq!((jobs(false), jobs(true)), (vec![2], vec![1]));
    assert!(schedule.due("other", false, later).is_empty());
    let open = Probe { open: [("c0".to_owned(), 9)].into(), ..Probe::default() };
    let doubtful = schedule.due("gw", true, later);
    assert_eq!(seen_apart(&doubtful, &[silent, open]), [(1, Seen::Listens)], "one of its ports is enough");
}
