//! Records of every version: what earlier programs wrote is read and worked on, what later ones wrote is left alone, and nobody changes a
//! form without noticing. The records lie in `records/v1`, `records/v2` …, each in a file with its key for a path.
//!
//! `records/v1` was written by the program before closing records, idempotency keys and counted owners. A form that was released never changes:
//! a new one gets a higher version in `domain` and `store`, and a folder of its own, which `RENEW_RECORDS=1 cargo test --test records` writes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

use bwvisu_runner::domain::grant::{GRANT_VERSION, Grant, GrantState};
use bwvisu_runner::domain::job::{JOB_VERSION, Job, Outcome, Phase, Seen, State};
use bwvisu_runner::domain::ports::Span;
use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::store::embedded::Embedded;
use bwvisu_runner::store::{Backend, Change, Created, Progress, RepeatKey, Store};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

const CLUSTER: &str = "default";
const GATEWAY: &str = "10.0.0.1";
const OTHER_GATEWAY: &str = "10.0.0.2";

/// Key → record.
type Records = BTreeMap<String, Value>;

fn folder(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/records/v{version}"))
}

fn fixtures(version: u32) -> Records {
    let (root, mut records) = (folder(version), Records::new());
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let key = path.strip_prefix(&root).unwrap().to_str().unwrap().strip_suffix(".json").unwrap().to_owned();
            records.insert(key, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap());
        }
    }
    records
}

/// A store of these records, and a second look at its file once the verbs are done.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(records: &Records) -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        let put = records.iter().map(|(key, value)| (key.clone(), value.to_string().into_bytes())).collect();
        assert!(bench.backend().commit(&Change { put, ..Change::default() }).unwrap());
        bench
    }

    fn backend(&self) -> Embedded {
        Embedded::open(&self.folder.path().join("store.redb")).unwrap()
    }

    fn store(&self) -> Store {
        Store::new(Box::new(self.backend()))
    }

    fn records(&self) -> Records {
        let found = self.backend().scan("").unwrap().into_iter();
        found.map(|(key, found)| (key, serde_json::from_slice(&found.value).unwrap())).collect()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

fn seen(job: &Job, phase: Phase, exit_code: Option<i32>) -> Seen {
    let details = json!({"State": "X", "NodeList": "c[0-1]", "TimeLimit": "1:00:00"});
    Seen {
        scheduler_job_id: (4700 + job.id).to_string(),
        name: job.name.clone(),
        user: job.user.clone(),
        phase,
        run: 0,
        nodes: vec!["c0".into()],
        exit_code,
        reason: Some("Priority".into()),
        details: details.as_object().unwrap().clone(),
    }
}

fn new_job(id: u64) -> Job {
    Job {
        cluster: CLUSTER.into(),
        id,
        uid: "2001".into(),
        user: "alice".into(),
        template_name: "template_demo.txt".into(),
        variables: [("number_of_nodes".to_owned(), "1".to_owned())].into(),
        name: format!("bwvisu-{id}-0a1b0a1b2c{id:02x}"),
        log: format!("/home/alice/bwvisu-job-{id}.out"),
        token: Some(format!("{id:064x}")),
        message: "on its way to the scheduler".into(),
        submitted_at: Some(at(id as i64)),
        ..Job::default()
    }
}

fn create(store: &Store, key: Option<&str>) -> u64 {
    let repeat = key.map(|key| RepeatKey { key, body: "b0d1", instead_of: None });
    let job = new_job(store.new_id().unwrap());
    assert_eq!(store.create_job(&job, repeat, 100).unwrap(), Created::New);
    job.id
}

fn observe(store: &Store, id: u64, phase: &Phase, exit_code: Option<i32>) {
    let look = |job: &mut Job| job.observe(&seen(job, phase.clone(), exit_code), at(100));
    store.update_job(CLUSTER, id, "test", look).unwrap().expect("it is there");
}

fn grant(job: u64, gateway: &str, external: u16, count: u16) -> Grant {
    Grant {
        version: GRANT_VERSION,
        cluster: CLUSTER.into(),
        job,
        run: 0,
        nonce: format!("{job:032x}"),
        state: GrantState::Claimed,
        confirmed: false,
        attempt: 0,
        gateway: gateway.into(),
        external_ip: "203.0.113.1".into(),
        nodes: vec!["c0".into(), "c1".into()],
        target: "c0-ib0".into(),
        spans: vec![Span { external, internal: external, count }],
        granted_at: at(200),
    }
}

fn activate(store: &Store, job: u64) -> Grant {
    let change = |grant: &mut Grant| (grant.state, grant.confirmed) = (GrantState::Active, true);
    store.update_grant(CLUSTER, job, "test", change).unwrap().expect("it is there")
}

/// Brings about a record of every kind, in every state.
fn everything(store: &Store) {
    store.installation(|| Ok(0x0a1b)).unwrap();
    (1..=10).for_each(|id| assert_eq!(create(store, (id == 1).then_some("c0ffee")), id));
    store.set_heard(CLUSTER, at(90)).unwrap();
    observe(store, 2, &Phase::Waiting, None);
    [3, 4, 5, 6, 7, 8, 9].into_iter().for_each(|id| observe(store, id, &Phase::Running, None));
    store.update_job(CLUSTER, 5, "test", |job| job.cancel_requested = true).unwrap();
    observe(store, 5, &Phase::Completing, None);
    observe(store, 6, &Phase::Ended(Outcome::Failed), Some(3));
    for (job, external, count) in [(4, 50098, 2), (7, 50100, 1), (8, 50110, 3), (9, 50120, 1)] {
        assert!(store.claim(&grant(job, GATEWAY, external, count)).unwrap());
    }
    let services = activate(store, 4).services();
    store.update_job(CLUSTER, 4, "test", |job| job.listens(Some(services.clone()), at(300))).unwrap();
    let active = activate(store, 8);
    store.update_job(CLUSTER, 8, "test", |job| job.former = Some(active.former())).unwrap();
    assert!(store.close_grant(&active).unwrap().is_some());
    let moving = Grant { state: GrantState::Moving, gateway: OTHER_GATEWAY.into(), ..activate(store, 9) };
    assert!(store.move_grant(&activate(store, 9), &moving).unwrap());
    store.update_job(CLUSTER, 9, "test", |job| job.gateway_trouble = Some("no answer".into())).unwrap();
    let give_up = |job: &mut Job| {
        job.given_up = true;
        job.finish(Outcome::Failed, None, "cut off", at(400));
    };
    store.update_job(CLUSTER, 10, "test", give_up).unwrap();
    // One that came and went: of it there is a trace of the past.
    let gone = Grant { run: 1, ..grant(3, OTHER_GATEWAY, 50200, 1) };
    assert!(store.claim(&gone).unwrap());
    store.release(&store.close_grant(&gone).unwrap().unwrap()).unwrap();
    store.trim_trail(CLUSTER, at(0), &mut Progress::default(), Instant::now()).unwrap();
    store.set_silence(CLUSTER, GATEWAY, Some("no answer")).unwrap();
    store.set_drain(CLUSTER, GATEWAY, true).unwrap();
}

/// Times that no test can set.
fn without_the_clock(mut records: Records) -> Records {
    // The end of a trace is in its key.
    let past = |key: &String| key.contains("/trail/past/");
    if let Some(key) = records.keys().find(|key| past(key)).cloned() {
        let (_, gateway) = key.split_once("/past/").unwrap();
        let gateway = gateway.split('/').nth(1).unwrap();
        let set = format!("clusters/{CLUSTER}/trail/past/2026-11-22/{gateway}/1795305600000000-50200");
        let record = records.remove(&key).unwrap();
        records.insert(set, record);
    }
    for record in records.values_mut() {
        for name in ["since", "at", "from", "until", "given-up"] {
            if record[name].is_string() {
                record[name] = json!("2026-11-22T00:00:00Z");
            }
        }
    }
    records
}

#[test]
fn todays_records_have_the_form_of_the_newest_fixtures() {
    let bench = Bench::new(&Records::new());
    everything(&bench.store());
    let today = without_the_clock(bench.records());
    if std::env::var("RENEW_RECORDS").as_deref() == Ok("1") {
        for (key, record) in &today {
            let file = folder(JOB_VERSION).join(format!("{key}.json"));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{record}\n")).unwrap();
        }
    }
    let newest = fixtures(JOB_VERSION);
    assert_eq!(today.keys().collect::<Vec<_>>(), newest.keys().collect::<Vec<_>>(), "other keys than in the newest fixtures");
    for (key, record) in &today {
        assert_eq!(record, &newest[key], "{key} has a new form: see the head of this file");
    }
}

/// The forms of keys as `store/keys.rs` writes them; what ends with `/` is a prefix.
fn kinds() -> Vec<Vec<String>> {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/keys.rs")).unwrap();
    let quoted = source.split('"').skip(1).step_by(2).filter(|text| !text.ends_with('/'));
    let parts = |text: &str| text.split('/').map(str::to_owned).collect();
    quoted.map(parts).collect()
}

fn is_of(kind: &[String], key: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    kind.len() == parts.len() && kind.iter().zip(parts).all(|(kind, part)| kind.starts_with('{') || kind == part)
}

#[test]
fn every_kind_of_key_and_every_state_has_a_fixture() {
    let newest = fixtures(JOB_VERSION);
    let kinds = kinds();
    assert!(kinds.len() > 10, "{kinds:?}");
    for kind in &kinds {
        assert!(newest.keys().any(|key| is_of(kind, key)), "{} has no fixture in {:?}", kind.join("/"), folder(JOB_VERSION));
    }
    for (version, states) in [(1, ["claimed", "active", "closing"]), (2, ["claimed", "active", "moving"])] {
        let of = |kind: &str| -> BTreeSet<String> {
            let found = fixtures(version).into_iter().filter(|(key, _)| key.contains(kind));
            found.map(|(_, record)| record["state"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(of("/grants/"), states.map(str::to_owned).into(), "v{version}");
        assert_eq!(of("/jobs/"), ["submitted", "running", "available", "completing"].map(str::to_owned).into(), "v{version}");
        assert_eq!(of("/finished/"), ["finished".to_owned()].into(), "v{version}");
    }
}

#[test]
fn a_store_of_every_version_is_read() {
    for (version, active) in [(1, vec![1, 2, 3, 4, 5, 7, 8]), (2, vec![1, 2, 3, 4, 5, 7, 8, 9])] {
        let bench = Bench::new(&fixtures(version));
        let store = bench.store();
        let jobs = store.active_jobs(CLUSTER).unwrap();
        assert_eq!(jobs.iter().map(|job| job.id).collect::<Vec<_>>(), active, "v{version}");
        assert_eq!(store.finished_jobs(CLUSTER, |_| false).unwrap().0, version as usize);
        let job = |id| store.job(&[CLUSTER], id).unwrap().expect("it is there");
        let states = [1, 2, 3, 4, 5, 6].map(|id| job(id).state);
        let expected = [State::Submitted, State::Submitted, State::Running, State::Available, State::Completing, State::Finished];
        assert_eq!(states, expected, "v{version}");
        assert_eq!((job(6).outcome, job(6).exit_code, job(6).token), (Some(Outcome::Failed), Some(3), None));
        assert_eq!((job(4).services.len(), job(4).token.map(|token| token.len())), (2, Some(64)));
        assert!(job(5).cancel_requested && job(1).scheduler_job_id.is_none());
        assert_eq!(store.grant(CLUSTER, 4).unwrap().unwrap().services(), job(4).services);
        assert_eq!(store.grants(CLUSTER).unwrap().len(), 3);
        assert_eq!(store.gateway_blocks(CLUSTER, GATEWAY).unwrap().len(), 2);
        assert_eq!(store.given_up(CLUSTER).unwrap().len(), version as usize - 1);
        assert_eq!(create(&store, None), if version == 1 { 9 } else { 11 });
    }
}

#[test]
fn jobs_of_version_1_go_on_and_end() {
    let bench = Bench::new(&fixtures(1));
    let store = bench.store();
    observe(&store, 1, &Phase::Waiting, None);
    observe(&store, 2, &Phase::Running, None);
    observe(&store, 3, &Phase::Ended(Outcome::Completed), Some(0));
    store.update_job(CLUSTER, 4, "test", |job| job.listens(None, at(400))).unwrap();
    assert_eq!(store.job(&[CLUSTER], 1).unwrap().unwrap().scheduler_job_id.as_deref(), Some("4701"));
    assert_eq!(store.job(&[CLUSTER], 3).unwrap().unwrap().outcome, Some(Outcome::Completed));
    assert_eq!(store.active_jobs(CLUSTER).unwrap().len(), 6);
    let mut progress = Progress::default();
    store.remove_finished(CLUSTER, (at(1000), at(1000)), &mut progress, Instant::now()).unwrap();
    assert_eq!(progress.removed(), 2);
    // Whose jobs were never counted may have new ones, and these are.
    let new = create(&store, Some("c0ffee"));
    assert_eq!(store.owners(CLUSTER).unwrap()[0].jobs, [new].into());
    drop(store);
    let records = bench.records();
    for id in [1, 2, 4] {
        assert_eq!(
            records[&format!("clusters/default/jobs/{id}")]["version"],
            JOB_VERSION,
            "job {id} was written by this program"
        );
    }
    assert_eq!(records["clusters/default/jobs/5"], fixtures(1)["clusters/default/jobs/5"], "it was not");
}

#[test]
fn grants_of_version_1_go_on_are_withdrawn_and_free_their_ports() {
    let bench = Bench::new(&fixtures(1));
    let store = bench.store();
    assert_eq!(activate(&store, 7).version, GRANT_VERSION, "it is written by this program now");
    let closing = store.grant(CLUSTER, 8).unwrap().unwrap();
    assert_eq!(closing.state, GrantState::Closing);
    let taken = |external, count| !store.claim(&grant(9, GATEWAY, external, count)).unwrap();
    assert!(taken(50110, 3) && taken(50112, 1), "its ports are taken until its rules are gone");
    // As the watcher does with it.
    let left = store.close_grant(&closing).unwrap().expect("something is left to be done");
    assert!(taken(50110, 3));
    assert_eq!(store.closings(CLUSTER, GATEWAY).unwrap().as_slice(), std::slice::from_ref(&left));
    store.release(&left).unwrap();
    assert!(!taken(50110, 3), "now they are given again");
    for job in [4, 7, 9] {
        let left = store.close_grant(&store.grant(CLUSTER, job).unwrap().unwrap()).unwrap().expect("something is left");
        store.release(&left).unwrap();
    }
    assert_eq!(store.conditions(CLUSTER, &[GATEWAY]).unwrap()[0].ports, 0);
    assert!(store.gateway_blocks(CLUSTER, GATEWAY).unwrap().is_empty() && store.node_buckets(CLUSTER).unwrap().is_empty());
}

#[test]
fn a_grant_of_version_1_moves() {
    let bench = Bench::new(&fixtures(1));
    let store = bench.store();
    let from = store.grant(CLUSTER, 4).unwrap().unwrap();
    let to = Grant { gateway: OTHER_GATEWAY.into(), state: GrantState::Moving, ..from.clone() };
    assert!(store.move_grant(&from, &to).unwrap());
    assert_eq!(store.closings(CLUSTER, GATEWAY).unwrap()[0].spans, from.spans);
    drop(store);
    let record = &bench.records()["clusters/default/grants/4"];
    assert_eq!(
        (&record["version"], &record["state"]),
        (&json!(GRANT_VERSION), &json!("moving")),
        "version 1 knows no such state"
    );
}

/// A verb that reads the record, whichever it is.
fn read(store: &Store, key: &str) -> Result<(), bwvisu_runner::error::Error> {
    let parts: Vec<&str> = key.split('/').collect();
    match &parts[..] {
        ["next-job-id"] => store.new_id().map(drop),
        ["installation"] => store.installation_known().map(drop),
        [_, _, "jobs", id] | [_, _, "finished", id] => store.job(&[CLUSTER], id.parse().unwrap()).map(drop),
        [_, _, "grants", id] => store.grant(CLUSTER, id.parse().unwrap()).map(drop),
        [_, _, "gateways", gateway, "blocks", _] => store.gateway_blocks(CLUSTER, gateway).map(drop),
        [_, _, "gateways", gateway, "closing", _] => store.closings(CLUSTER, gateway).map(drop),
        [_, _, "gateways", gateway, "load" | "silent" | "drain"] => store.conditions(CLUSTER, &[gateway]).map(drop),
        [_, _, "nodes", _] => store.node_buckets(CLUSTER).map(drop),
        [_, _, "owners", _] => store.owners(CLUSTER).map(drop),
        [_, _, "keys", digest] => store.repeatable(CLUSTER, digest).map(drop),
        [_, _, "given-up", _] => store.given_up(CLUSTER).map(drop),
        [_, _, "trail", "open", _, _] => store.open_traces(CLUSTER).map(drop),
        [_, _, "trail", "past", ..] => {
            store.who(CLUSTER, OTHER_GATEWAY, 50200, "2026-11-22T00:00:00Z".parse().unwrap()).map(drop)
        }
        [_, _, "trail", "since"] => store.who(CLUSTER, OTHER_GATEWAY, 50200, "2026-11-22T00:00:00Z".parse().unwrap()).map(drop),
        [_, _, "heard"] => store.job_and_heard(&[CLUSTER], 1).map(drop),
        other => panic!("no verb reads {other:?}"),
    }
}

#[test]
fn a_record_of_a_newer_program_is_refused_by_name_and_left_alone() {
    let newest = fixtures(JOB_VERSION);
    for key in newest.keys() {
        let mut records = newest.clone();
        records.get_mut(key).unwrap()["version"] = json!(JOB_VERSION + 1);
        let bench = Bench::new(&records);
        let error = read(&bench.store(), key).expect_err(key);
        assert_eq!(error.kind, ErrorKind::Internal, "{key}: {error}");
        for words in [format!("record {key} has the form 3"), "knows forms up to 2: upgrade it".to_owned()] {
            assert!(error.message.contains(&words), "{words}: {error}");
        }
        assert_eq!(bench.records(), records, "{key}: nothing is changed");
    }
}
