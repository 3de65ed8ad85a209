//! One broken rule at a time, on a snapshot that fits together.

use super::compare::compare;
use super::*;
use crate::domain::grant::{BUCKETS, GRANT_VERSION, GrantState, bucket};
use crate::domain::job::{Outcome, Phase, State};
use crate::domain::ports::Span;
use crate::gateway::Rule;
use crate::keyhole::rules;

const SPAN: Span = Span { external: 50000, internal: 50000, count: 2 };

fn job() -> Job {
    Job {
        cluster: "default".into(),
        id: 7,
        user: "alice".into(),
        name: "bwvisu-7-ab1200000000".into(),
        scheduler_job_id: Some("41".into()),
        state: State::Available,
        ..Job::default()
    }
}

fn seen(job: &Job, phase: Phase) -> Seen {
    Seen {
        scheduler_job_id: job.scheduler_job_id.clone().unwrap(),
        name: job.name.clone(),
        user: job.user.clone(),
        phase,
        run: 0,
        nodes: vec!["c0".into()],
        exit_code: None,
        reason: None,
        details: serde_json::Map::new(),
    }
}

fn grant() -> Grant {
    Grant {
        version: GRANT_VERSION,
        cluster: "default".into(),
        job: 7,
        run: 0,
        nonce: "n".into(),
        state: GrantState::Active,
        confirmed: true,
        attempt: 0,
        gateway: "gw0".into(),
        external_ip: "203.0.113.1".into(),
        nodes: vec!["c0".into()],
        target: "c0".into(),
        spans: vec![SPAN],
        granted_at: Timestamp::UNIX_EPOCH,
    }
}

fn installed(blocks: &BTreeMap<u16, GatewayBlock>) -> Installed {
    let blocks = blocks.iter().map(|(number, block)| (*number, rules("default", &block.forwardings))).collect();
    Installed { blocks, ready: true }
}

/// A running job with two ports on one of two gateways.
fn snapshot() -> Snapshot {
    let mut block = GatewayBlock::new("default", "gw0", 500);
    block.add(&grant());
    let mut taken = NodeBucket::new("default", bucket("c0"));
    taken.add(&grant());
    assert!(taken.bucket < BUCKETS && !taken.nodes.is_empty());
    let blocks = BTreeMap::from([(500, block)]);
    let gw0 = GatewaySnapshot {
        before: Some(installed(&blocks)),
        after: Some(installed(&blocks)),
        blocks,
        closings: Vec::new(),
        condition: Condition { ports: 2, ..Condition::default() },
    };
    let owner = Owner { version: 1, cluster: "default".into(), user: "alice".into(), jobs: BTreeSet::from([7]) };
    Snapshot {
        names: vec![job().name],
        seen: Some(vec![seen(&job(), Phase::Running)]),
        jobs: vec![job()],
        grants: vec![grant()],
        owners: vec![owner],
        buckets: vec![taken],
        traces: vec![Trace::begin(&grant(), None, Timestamp::UNIX_EPOCH)],
        trail_since: Some(Timestamp::MIN),
        gateways: BTreeMap::from([("gw0".to_owned(), gw0)]),
        ..Snapshot::default()
    }
}

#[test]
fn a_view_that_fits_together_has_no_disagreement() {
    assert_eq!(compare(&snapshot()), []);
    assert_eq!(compare(&Snapshot::default()), []);
}

#[test]
fn a_scheduler_and_gateways_that_do_not_answer_say_nothing() {
    let mut snapshot = snapshot();
    (snapshot.seen, snapshot.names) = (None, Vec::new());
    for gateway in snapshot.gateways.values_mut() {
        (gateway.before, gateway.after) = (None, None);
    }
    assert_eq!(compare(&snapshot), []);
}

type Fault = (&'static [&'static str], fn(&mut Snapshot));

fn gw0(snapshot: &mut Snapshot) -> &mut GatewaySnapshot {
    snapshot.gateways.get_mut("gw0").unwrap()
}

fn finish(snapshot: &mut Snapshot) {
    let mut job = snapshot.jobs.remove(0);
    job.finish(Outcome::Completed, None, "", Timestamp::UNIX_EPOCH);
    snapshot.finished.push(job);
}

#[test]
fn every_kind_of_disagreement_is_found_by_its_name() {
    let faults: &[Fault] = &[
        (&["submission-open"], |v| {
            v.now = Timestamp::from_second(1000).unwrap();
            v.jobs.push(Job { id: 8, version: 1, submitted_at: Some(Timestamp::UNIX_EPOCH), ..Job::default() });
        }),
        (&["job-without-scheduler-job"], |v| v.seen = Some(Vec::new())),
        (&["unknown-scheduler-job"], |v| v.names.push("bwvisu-9-ab1299999999".into())),
        (&["finished-but-alive", "grant-without-job", "owner-of-no-job"], finish),
        (&["submitted-twice"], |v| {
            let twin = Seen { scheduler_job_id: "42".into(), ..seen(&job(), Phase::Waiting) };
            v.seen.as_mut().unwrap().push(twin);
        }),
        (&["grant-without-job"], |v| v.jobs[0].state = State::Submitted),
        (&["available-without-grant", "move-open"], |v| v.grants[0].state = GrantState::Moving),
        (&["job-without-owner"], |v| v.owners.clear()),
        (&["owner-of-no-job"], |v| v.owners[0].jobs.extend([99])),
        (&["node-port-twice", "node-port-without-grant"], |v| v.buckets[0].add(&Grant { job: 8, ..grant() })),
        (&["grant-without-node-port"], |v| v.buckets.clear()),
        (&["port-twice", "forwarding-without-grant", "load-wrong", "rule-without-job"], |v| {
            let gateway = gw0(v);
            gateway.blocks.get_mut(&500).unwrap().add(&Grant { job: 8, ..grant() });
            gateway.before.as_mut().unwrap().blocks.get_mut(&500).unwrap().insert(Rule {
                cluster: "default".into(),
                job: 99,
                span: SPAN,
                target: "c3".into(),
            });
        }),
        (&["grant-without-forwarding", "load-wrong", "rule-without-job", "trace-without-forwarding"], |v| gw0(v).blocks.clear()),
        (&["trace-without-forwarding"], |v| {
            let gone = Grant { job: 5, spans: vec![Span { external: 50070, ..SPAN }], ..grant() };
            v.traces.push(Trace::begin(&gone, None, Timestamp::UNIX_EPOCH));
        }),
        (&["forwarding-without-trace"], |v| v.traces.clear()),
        (&[], |v| {
            // Granted before there was a trail.
            v.traces.clear();
            v.trail_since = Some(Timestamp::MAX);
        }),
        (&["load-wrong"], |v| gw0(v).condition.ports = 5),
        (&["rule-missing"], |v| gw0(v).after.as_mut().unwrap().blocks.clear()),
        (&["gateway-not-set-up"], |v| gw0(v).after.as_mut().unwrap().ready = false),
        (&["grant-without-forwarding", "rule-to-remove", "forwarding-without-trace"], |v| {
            let closing = Grant { job: 6, nodes: Vec::new(), spans: vec![Span { external: 50050, ..SPAN }], ..grant() };
            gw0(v).closings.push(closing.closing(Timestamp::UNIX_EPOCH));
        }),
    ];
    for (expected, fault) in faults {
        let mut snapshot = snapshot();
        fault(&mut snapshot);
        let found: BTreeSet<&str> = compare(&snapshot).iter().map(|disagreement| disagreement.kind).collect();
        assert_eq!(found, expected.iter().copied().collect(), "{:?}", compare(&snapshot));
    }
}

#[test]
fn a_job_that_ended_and_was_forgotten_here_is_no_stranger_in_the_scheduler_and_one_that_runs_is() {
    for (phase, expected) in [(Phase::Ended(Outcome::Completed), 0), (Phase::Completing, 0), (Phase::Running, 1)] {
        let old = Job { id: 3, name: "bwvisu-3-ab1200000003".into(), ..job() };
        let mut snapshot = snapshot();
        snapshot.names.push(old.name.clone());
        snapshot.seen.as_mut().unwrap().push(seen(&old, phase.clone()));
        assert_eq!(compare(&snapshot).len(), expected, "{phase:?}: {:?}", compare(&snapshot));
    }
}

#[test]
fn jobs_of_other_installations_are_not_ours() {
    let cases = [
        ("bwvisu-7-ab1200000000", true),
        ("bwvisu-7-ab13deadbeef", false),
        ("bwvisu-7-deadbeef", false),
        ("bwvisu--ab1200000000", false),
        ("bwvisu-7-ab120000000g", false),
        ("bwvisu-x-ab1200000000", false),
        ("other", false),
    ];
    for (name, ours) in cases {
        assert_eq!(is_ours(name, "ab12"), ours, "{name}");
    }
}
