//! The verbs on a real database of their own.

use super::embedded::Embedded;
use super::*;
use crate::domain::grant::{GRANT_VERSION, Grant, GrantState};
use crate::domain::job::{Job, Outcome};
use crate::domain::ports::Span;
use crate::error::ErrorKind;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(Box::new(Embedded::open(&folder.path().join("store.redb")).unwrap()));
    (folder, store)
}

fn job(id: u64) -> Job {
    Job { id, cluster: "default".into(), ..Job::default() }
}

fn create(store: &Store) -> u64 {
    let id = store.new_id().unwrap();
    assert_eq!(store.create_job(&owned(id, "alice"), None, usize::MAX).unwrap(), Created::New);
    id
}

fn owned(id: u64, user: &str) -> Job {
    Job { user: user.into(), ..job(id) }
}

fn remove_finished(store: &Store, before: Timestamp, with_key: Timestamp) -> usize {
    let mut progress = Progress::default();
    store.remove_finished("default", (before, with_key), &mut progress, Instant::now()).unwrap();
    progress.removed()
}

/// How many ports each of these gateways forwards.
fn loads(store: &Store, gateways: &[&str]) -> Vec<u32> {
    store.conditions("default", gateways).unwrap().iter().map(|condition| condition.ports).collect()
}

fn grant(job: u64, external: u16, nodes: &[&str]) -> Grant {
    Grant {
        version: GRANT_VERSION,
        cluster: "default".into(),
        job,
        run: 0,
        nonce: "n".into(),
        state: GrantState::Claimed,
        confirmed: false,
        attempt: 0,
        gateway: "10.0.0.1".into(),
        external_ip: "203.0.113.1".into(),
        nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        target: nodes[0].into(),
        spans: vec![Span { external, internal: external, count: 5 }],
        granted_at: Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn ids_are_counted_up_from_one_also_by_many_at_once() {
    let (_folder, store) = store();
    let ids = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..5).map(|_| create(&store)).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<BTreeSet<_>>()
    });
    assert_eq!(ids, (1..=40).collect());
}

#[test]
fn programs_on_one_database_never_give_the_same_id_also_after_it_was_put_back() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Store::new(Box::new(Embedded::open(&folder.path().join("store.redb")).unwrap()));
    let first = open();
    assert_eq!([create(&first), create(&first)], [1, 2]);
    drop(first);
    // What the first one took and did not use is left out.
    let second = open();
    let other = create(&second);
    assert!(other > 2, "{other}");
    let refused = |job: &Job| {
        let refused = second.create_job(job, None, usize::MAX).unwrap_err();
        assert!(refused.kind == ErrorKind::Unavailable && refused.message.contains("put back"), "{refused}");
    };
    // As if others had been given the same ids: nobody's job is overwritten, whether it runs or has ended.
    let [running, ended] = [second.new_id().unwrap(), second.new_id().unwrap()];
    for id in [running, ended] {
        second.create_job(&owned(id, "bob"), None, usize::MAX).unwrap();
    }
    let end = |job: &mut Job| job.finish(Outcome::Completed, None, "", Timestamp::UNIX_EPOCH);
    second.update_job("default", ended, "test", end).unwrap();
    for id in [running, ended] {
        refused(&owned(id, "alice"));
        assert_eq!(second.job(&["default"], id).unwrap().unwrap().user, "bob");
    }
    let next = create(&second);
    assert!(next > ended, "{next}");
    // As if the counter began again: ids that it has yet to give are not used.
    refused(&owned(next + 1000, "alice"));
    assert!(create(&second) > next);
}

#[test]
fn a_finished_job_leaves_the_list_can_be_read_and_goes_after_its_time() {
    let (_folder, store) = store();
    let id = create(&store);
    let now = Timestamp::from_second(1000).unwrap();
    store.update_job("default", id, "test", |job| job.finish(Outcome::Completed, Some(0), "done", now)).unwrap().unwrap();
    assert!(store.active_jobs("default").unwrap().is_empty());
    assert_eq!(store.job(&["default"], id).unwrap().unwrap().message, "done");
    assert_eq!(
        store.update_job("default", id, "test", |job| job.message.clear()).unwrap(),
        None,
        "a finished job is not changed"
    );
    assert_eq!(remove_finished(&store, now, now), 0);
    assert_eq!(remove_finished(&store, Timestamp::from_second(1001).unwrap(), Timestamp::MIN), 1);
    assert_eq!(store.job(&["default"], id).unwrap(), None);
}

#[test]
fn changes_by_many_at_once_all_count() {
    let (_folder, store) = store();
    let id = create(&store);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                (0..5).for_each(|_| drop(store.update_job("default", id, "test", |job| job.message.push('x')).unwrap()))
            });
        }
    });
    assert_eq!(store.job(&["default"], id).unwrap().unwrap().message.len(), 40);
}

#[test]
fn a_port_is_given_once_on_a_gateway_and_once_on_a_node() {
    let (_folder, store) = store();
    assert!(store.claim(&grant(1, 50000, &["c0", "c1"])).unwrap());
    assert!(!store.claim(&grant(2, 50004, &["c9"])).unwrap(), "taken on the gateway");
    let elsewhere = |job, nodes| Grant { gateway: "10.0.0.2".into(), ..grant(job, 50000, nodes) };
    assert!(!store.claim(&elsewhere(3, &["c1", "c2"])).unwrap(), "taken on a node");
    assert!(store.claim(&elsewhere(4, &["c2"])).unwrap());
    assert!(!store.claim(&grant(1, 51000, &["c0"])).unwrap(), "a job has one grant");
    assert_eq!(loads(&store, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]), [5, 5, 0]);
}

#[test]
fn closing_keeps_the_ports_and_releasing_frees_them_and_both_may_be_repeated() {
    let (_folder, store) = store();
    let first = grant(1, 50098, &["c0"]);
    assert!(store.claim(&first).unwrap());
    let closing = store.close_grant(&first).unwrap().unwrap();
    assert_eq!(store.close_grant(&first).unwrap(), None);
    assert_eq!(store.grant("default", 1).unwrap(), None, "the job may have another grant at once");
    assert_eq!(store.closings("default", "10.0.0.1").unwrap(), std::slice::from_ref(&closing));
    assert!(!store.claim(&grant(2, 50098, &["c1"])).unwrap(), "taken on the gateway until the rules are gone");
    let elsewhere = Grant { gateway: "10.0.0.2".into(), ..grant(2, 50098, &["c0"]) };
    assert!(!store.claim(&elsewhere).unwrap(), "and on the node");
    for _ in 0..2 {
        store.release(&closing).unwrap();
    }
    assert!(store.gateway_blocks("default", "10.0.0.1").unwrap().is_empty());
    assert!(store.closings("default", "10.0.0.1").unwrap().is_empty());
    assert!(store.claim(&grant(2, 50098, &["c0"])).unwrap());
    store.release(&closing).unwrap();
    assert_eq!(loads(&store, &["10.0.0.1"]), [5], "a late release touches nobody else's ports");
}

#[test]
fn a_job_that_runs_again_has_new_ports_beside_those_that_are_still_closing() {
    let (_folder, store) = store();
    let first = grant(1, 50000, &["c0"]);
    assert!(store.claim(&first).unwrap());
    let closing = store.close_grant(&first).unwrap().unwrap();
    let again = Grant { run: 1, nonce: "m".into(), ..grant(1, 50010, &["c0"]) };
    assert!(store.claim(&again).unwrap());
    assert_eq!(loads(&store, &["10.0.0.1"]), [10]);
    store.release(&closing).unwrap();
    assert_eq!(loads(&store, &["10.0.0.1"]), [5]);
    let block = &store.gateway_blocks("default", "10.0.0.1").unwrap()[&500];
    assert_eq!(block.taken().collect::<Vec<_>>(), [50010, 50011, 50012, 50013, 50014]);
    assert!(!block.forwardings[0].closing);
    assert!(!store.claim(&Grant { gateway: "10.0.0.2".into(), ..grant(2, 50010, &["c0"]) }).unwrap(), "still taken on the node");
}

#[test]
fn a_moved_grant_holds_its_ports_for_both_gateways_until_the_old_rules_are_gone() {
    let (_folder, store) = store();
    let first = grant(1, 50000, &["c0"]);
    assert!(store.claim(&first).unwrap());
    let there = |external| Grant {
        gateway: "10.0.0.2".into(),
        spans: vec![Span { external, internal: 50000, count: 2 }, Span { external: external + 10, internal: 50002, count: 3 }],
        state: GrantState::Moving,
        ..first.clone()
    };
    let neighbour = Grant { gateway: "10.0.0.2".into(), ..grant(2, 50005, &["c9"]) };
    assert!(store.claim(&neighbour).unwrap());
    assert!(!store.move_grant(&first, &there(50004)).unwrap(), "taken there");
    assert!(store.move_grant(&first, &there(51000)).unwrap());
    assert!(!store.move_grant(&first, &there(52000)).unwrap(), "it is no longer where the caller thinks");
    assert_eq!(loads(&store, &["10.0.0.1", "10.0.0.2"]), [5, 10]);
    let old = store.closings("default", "10.0.0.1").unwrap().remove(0);

    // The job ends while the old gateway is still away: its rules may still lead to the ports inside.
    let closing = store.close_grant(&there(51000)).unwrap().unwrap();
    store.release(&closing).unwrap();
    assert_eq!(loads(&store, &["10.0.0.1", "10.0.0.2"]), [5, 5]);
    let later = Grant { gateway: "10.0.0.2".into(), ..grant(3, 50000, &["c0"]) };
    assert!(!store.claim(&later).unwrap());
    store.release(&old).unwrap();
    assert!(store.claim(&later).unwrap());
    assert_eq!(loads(&store, &["10.0.0.1", "10.0.0.2"]), [0, 10]);
}

#[test]
fn a_key_gives_the_same_job_and_another_only_in_place_of_one_that_was_rejected() {
    let (_folder, store) = store();
    assert_eq!([store.new_id().unwrap(), store.new_id().unwrap()], [1, 2]);
    let create = |id, body, instead_of| {
        let repeat = RepeatKey { key: "k", body, instead_of };
        store.create_job(&owned(id, "alice"), Some(repeat), usize::MAX).unwrap()
    };
    assert_eq!(create(1, "b", None), Created::New);
    for body in ["b", "c"] {
        let Created::Before(before) = create(2, body, None) else { panic!("a second job") };
        assert_eq!((before.job, before.body.as_str()), (1, "b"));
    }
    assert!(matches!(create(2, "b", Some(7)), Created::Before(_)), "that is not what was made");
    assert_eq!(create(2, "b", Some(1)), Created::New);
    assert_eq!(store.repeatable("default", "k").unwrap().unwrap().job, 2);
    let mut progress = Progress::default();
    store.remove_keys("default", Timestamp::MAX, &mut progress, Instant::now()).unwrap();
    assert_eq!(progress.removed(), 1);
    assert_eq!(store.repeatable("default", "k").unwrap(), None);
}

#[test]
fn the_same_key_at_the_same_time_makes_one_job() {
    let (_folder, store) = store();
    let create = || {
        let repeat = RepeatKey { key: "k", body: "b", instead_of: None };
        let job = owned(store.new_id().unwrap(), "alice");
        matches!(store.create_job(&job, Some(repeat), usize::MAX), Ok(Created::New))
    };
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|made| *made).count()
    });
    assert_eq!((made, store.active_jobs("default").unwrap().len()), (1, 1));
}

#[test]
fn a_user_has_no_more_jobs_than_the_limit_until_one_has_finished() {
    let (_folder, store) = store();
    let create = |user: &'static str| {
        let id = store.new_id().unwrap();
        store.create_job(&owned(id, user), None, 2).map(|_| id)
    };
    let first = create("alice").unwrap();
    create("alice").unwrap();
    let refused = create("alice").unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Busy);
    assert!(refused.message.contains("user alice has 2 jobs"), "{refused}");
    assert!(create("bob").is_ok());
    let end = |job: &mut Job| job.finish(Outcome::Completed, None, "", Timestamp::UNIX_EPOCH);
    store.update_job("default", first, "test", end).unwrap();
    assert!(create("alice").is_ok());
    assert_eq!(store.owners("default").unwrap().iter().map(|owner| owner.jobs.len()).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn a_silence_keeps_its_first_time_and_a_drain_stays_until_it_is_lifted() {
    let (_folder, store) = store();
    let condition = || store.conditions("default", &["10.0.0.1"]).unwrap().remove(0);
    store.set_silence("default", "10.0.0.1", Some("no answer")).unwrap();
    let first = condition().silence.unwrap();
    store.set_silence("default", "10.0.0.1", Some("still none")).unwrap();
    assert_eq!(condition().silence.unwrap(), first);
    store.set_drain("default", "10.0.0.1", true).unwrap();
    store.set_silence("default", "10.0.0.1", None).unwrap();
    assert!(condition().silence.is_none() && condition().drained.is_some());
    store.set_drain("default", "10.0.0.1", false).unwrap();
    assert_eq!(condition(), Condition::default());
}

#[test]
fn a_submission_that_is_given_up_is_remembered_until_it_is_forgotten() {
    let (_folder, store) = store();
    let (id, other) = (create(&store), create(&store));
    let end = |given_up| {
        move |job: &mut Job| {
            job.given_up = given_up;
            job.finish(Outcome::Failed, None, "", Timestamp::UNIX_EPOCH);
        }
    };
    store.update_job("default", id, "test", end(true)).unwrap();
    store.update_job("default", other, "test", end(false)).unwrap();
    let late = store.given_up("default").unwrap();
    assert_eq!(late.iter().map(|late| late.job).collect::<Vec<_>>(), [id]);
    store.forget_given_up(&late[0]).unwrap();
    assert_eq!(store.given_up("default").unwrap(), []);
}

#[test]
fn an_installation_is_numbered_once() {
    let (_folder, store) = store();
    assert_eq!(store.installation(|| Ok(0xab)).unwrap(), "00ab");
    assert_eq!(store.installation(|| Ok(0xcd)).unwrap(), "00ab");
}

#[test]
fn many_claims_at_once_never_share_a_port() {
    let (_folder, store) = store();
    let given = std::thread::scope(|scope| {
        let claim = |job: u64| store.claim(&grant(job, 50000 + u16::try_from(job % 4).unwrap() * 5, &["c0"])).unwrap();
        let threads: Vec<_> = (1..=16).map(|job| scope.spawn(move || claim(job))).collect();
        threads.into_iter().filter(|_| true).map(|thread| thread.join().unwrap()).filter(|&won| won).count()
    });
    assert_eq!(given, 4);
}

#[test]
fn a_record_of_a_newer_program_is_left_alone() {
    let (_folder, store) = store();
    let newer = Job { version: RECORD_VERSION + 1, ..owned(store.new_id().unwrap(), "alice") };
    store.create_job(&newer, None, usize::MAX).unwrap();
    let error = store.update_job("default", 1, "test", |job| job.message.clear()).unwrap_err();
    assert!(error.message.contains("upgrade"), "{error}");
}

/// Counts the changes that came too late.
struct Counted {
    database: Embedded,
    late: Arc<AtomicUsize>,
}

impl Backend for Counted {
    fn get(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>> {
        self.database.get(keys)
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>> {
        self.database.scan(prefix)
    }

    fn commit(&self, change: &Change) -> Result<bool> {
        let done = self.database.commit(change)?;
        self.late.fetch_add((!done).into(), Ordering::Relaxed);
        Ok(done)
    }

    fn lead(&self, role: &str) -> Result<bool> {
        self.database.lead(role)
    }

    fn resign(&self) {}
}

#[test]
fn claims_and_releases_on_many_gateways_do_not_defeat_each_other_although_the_nodes_are_the_same() {
    const GATEWAYS: u16 = 8;
    const JOBS: u16 = 12;
    let (folder, late) = (tempfile::tempdir().unwrap(), Arc::new(AtomicUsize::new(0)));
    let database = Embedded::open(&folder.path().join("store.redb")).unwrap();
    let store = Store::new(Box::new(Counted { database, late: Arc::clone(&late) }));
    let nodes: Vec<String> = (0..40).map(|number| format!("c{number}")).collect();
    std::thread::scope(|scope| {
        for gateway in 0..GATEWAYS {
            let (store, nodes) = (&store, &nodes);
            scope.spawn(move || {
                let on_gateway = |number: u16| {
                    let (job, external) = (u64::from(gateway * JOBS + number + 1), 50_000 + 500 * gateway + 5 * number);
                    let node = nodes[usize::from(gateway + 5 * number) % nodes.len()].as_str();
                    Grant { gateway: format!("10.0.0.{gateway}"), ..grant(job, external, &[node]) }
                };
                let grants: Vec<Grant> = (0..JOBS).map(on_gateway).collect();
                assert!(store.claim_all(&grants).unwrap().into_iter().all(|claimed| claimed));
                let closings: Vec<_> = grants.iter().map(|grant| store.close_grant(grant).unwrap().unwrap()).collect();
                store.release_all(&closings).unwrap();
            });
        }
    });
    assert_eq!(late.load(Ordering::Relaxed), 0);
    assert!(store.node_buckets("default").unwrap().is_empty(), "all ports are free again");
}
