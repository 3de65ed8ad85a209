//! What several programs do at the same moment, one step between two steps of the other: each on the verbs themselves, with gateways and a
//! scheduler that wait where the test wants it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

use bwvisu_runner::cluster::Cluster;
use bwvisu_runner::config;
use bwvisu_runner::domain::grant::GrantState;
use bwvisu_runner::domain::job::{Job, Outcome, Phase, Seen, State};
use bwvisu_runner::domain::ports::Numbering;
use bwvisu_runner::domain::user::User;
use bwvisu_runner::error::{Error, Result};
use bwvisu_runner::gateway::{Gateway, Installed, Probe, Rule, Target};
use bwvisu_runner::keyhole::Keyhole;
use bwvisu_runner::scheduler::{Before, Scheduler, Submission, Wanted};
use bwvisu_runner::store::embedded::Embedded;
use bwvisu_runner::store::{Backend, Change, Created, Store, Versioned};
use bwvisu_runner::watch::{jobs::JobsWatch, keyhole::KeyholeWatch};
use jiff::Timestamp;
use keyhole_protocol::{Confirm, Nonce, Purpose, Request, Token, sign};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

type Step = Box<dyn FnOnce() + Send>;

/// One database that several programs use; before the next scan that ends with a word, something happens.
#[derive(Clone)]
struct Shared {
    database: Arc<Embedded>,
    before_scan: Arc<Mutex<Option<(&'static str, Step)>>>,
}

impl Backend for Shared {
    fn get(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>> {
        self.database.get(keys)
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>> {
        let step = self.before_scan.lock().unwrap().take_if(|(word, _)| prefix.ends_with(*word));
        if let Some((_, step)) = step {
            step();
        }
        self.database.scan(prefix)
    }

    fn commit(&self, change: &Change) -> Result<bool> {
        self.database.commit(change)
    }

    fn lead(&self, _role: &str) -> Result<bool> {
        Ok(true)
    }

    fn resign(&self) {}
}

/// A scheduler with one job, which a look shows as it is; after the look something may happen.
#[derive(Clone)]
struct OneJob {
    shows: Arc<Mutex<(Phase, u32)>>,
    after_look: Arc<Mutex<Option<Step>>>,
    cancelled: Arc<Mutex<Vec<(String, String)>>>,
}

impl Scheduler for OneJob {
    fn submit(&self, _submission: &Submission, _before: &Before) -> Result<String> {
        Err(Error::internal("nothing is submitted here"))
    }

    fn cancel(&self, user: &str, scheduler_job_id: &str) -> Result<()> {
        self.cancelled.lock().unwrap().push((user.to_owned(), scheduler_job_id.to_owned()));
        Ok(())
    }

    fn look(&self, wanted: &[Wanted]) -> Result<Vec<Seen>> {
        let (phase, run) = self.shows.lock().unwrap().clone();
        let seen = |wanted: &Wanted| Seen {
            scheduler_job_id: "41".into(),
            name: wanted.name.clone(),
            user: "alice".into(),
            phase: phase.clone(),
            run,
            nodes: vec!["c0".into()],
            exit_code: None,
            reason: None,
            details: serde_json::Map::new(),
        };
        let seen = wanted.iter().map(seen).collect();
        let step = self.after_look.lock().unwrap().take();
        if let Some(step) = step {
            step();
        }
        Ok(seen)
    }

    fn overview(&self) -> Result<HashMap<String, String>> {
        let (phase, run) = self.shows.lock().unwrap().clone();
        Ok(HashMap::from([("41".to_owned(), format!("{phase:?} {run}"))]))
    }

    fn names(&self, _prefix: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn user(&self, _name: &str) -> Result<Option<User>> {
        Ok(None)
    }
}

type Act = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// A gateway that keeps its rules in memory, and fails or waits where it is told to.
#[derive(Clone)]
struct Played {
    address: &'static str,
    rules: Arc<Mutex<BTreeMap<u16, BTreeSet<Rule>>>>,
    on_apply: Act,
    on_probe: Act,
    on_list: Act,
}

impl Played {
    fn new(address: &'static str) -> Self {
        let fine: Act = Arc::new(|| Ok(()));
        Self { address, rules: Arc::default(), on_apply: fine.clone(), on_probe: fine.clone(), on_list: fine }
    }

    fn count(&self) -> usize {
        self.rules.lock().unwrap().values().map(BTreeSet::len).sum()
    }
}

impl Gateway for Played {
    fn address(&self) -> &str {
        self.address
    }

    fn external_ip(&self) -> &str {
        self.address
    }

    fn numbering(&self) -> Numbering {
        Numbering::Same
    }

    fn probe(&self, _targets: &[Target]) -> Result<Probe> {
        (self.on_probe)().map(|()| Probe::default())
    }

    fn apply(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>> {
        (self.on_apply)()?;
        self.rules.lock().unwrap().extend(blocks.clone());
        Ok(BTreeSet::new())
    }

    fn set_up(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>> {
        self.apply(blocks)
    }

    fn installed(&self) -> Result<Installed> {
        (self.on_list)()?;
        Ok(Installed { blocks: self.rules.lock().unwrap().clone(), ready: true })
    }
}

/// A database, a scheduler, and a folder for what must be somewhere.
struct World {
    folder: tempfile::TempDir,
    shared: Shared,
    scheduler: OneJob,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let scheduler =
            OneJob { shows: Arc::new(Mutex::new((Phase::Running, 0))), after_look: Arc::default(), cancelled: Arc::default() };
        Self { folder, shared: Shared { database, before_scan: Arc::default() }, scheduler }
    }

    /// Another program's view of the same database.
    fn store(&self) -> Arc<Store> {
        Arc::new(Store::new(Box::new(self.shared.clone())))
    }

    fn cluster(&self, gateways: &[&Played]) -> Arc<Cluster> {
        let path = self.folder.path().join("config.json");
        let text = serde_json::json!({
            "bwvisu-home-prefix": "/home",
            "state-dir": self.folder.path(),
            "gateway-nodes": [{"internal-ip": "10.9.0.1", "external-ip": "10.9.0.1", "user": "u"}],
            "command-nodes": [{"ip": "10.9.0.9", "user": "u"}],
            "keyholed-servers": [{"ip": "127.0.0.1", "port": 80}],
        });
        std::fs::write(&path, text.to_string()).unwrap();
        let config = config::load(Some(&path)).unwrap();
        let mut cluster = Cluster::new(&config.clusters[0], &config).unwrap();
        cluster.scheduler = Arc::new(self.scheduler.clone());
        cluster.gateways = gateways.iter().map(|&gateway| Arc::new(gateway.clone()) as Arc<dyn Gateway>).collect();
        cluster.gateway_down = Duration::ZERO;
        Arc::new(cluster)
    }

    fn keyhole(&self, gateways: &[&Played]) -> Arc<Keyhole> {
        Arc::new(Keyhole::new(self.store(), vec![self.cluster(gateways)], 10, false))
    }

    fn keyhole_watch(&self, gateways: &[&Played]) -> KeyholeWatch {
        KeyholeWatch::new(self.store(), self.cluster(gateways), self.keyhole(gateways))
    }

    fn job(&self) -> u64 {
        let id = self.store().new_id().unwrap();
        let job = Job {
            cluster: "default".into(),
            id,
            user: "alice".into(),
            name: format!("bwvisu-{id}-x"),
            token: Some(token().to_hex()),
            scheduler_job_id: Some("41".into()),
            ..Job::default()
        };
        assert_eq!(self.store().create_job(&job, None, 99).unwrap(), Created::New);
        id
    }

    fn state(&self, job: u64) -> State {
        self.store().job(&["default"], job).unwrap().unwrap().state
    }
}

fn token() -> Token {
    Token::from_bytes([7; 32])
}

fn ask(keyhole: &Keyhole, job: u64, run: u32) -> Result<()> {
    let body = Request { job, run, nonce: nonce(run), ports: 1, nodes: vec!["c0".into()] }.to_body();
    keyhole.grant(body.as_bytes(), &sign(&token(), Purpose::Request, body.as_bytes()), [127, 0, 0, 1].into()).map(drop)
}

fn confirm(keyhole: &Keyhole, job: u64, run: u32) {
    let body = Confirm { job, run, nonce: nonce(run) }.to_body();
    keyhole.confirm(body.as_bytes(), &sign(&token(), Purpose::Confirm, body.as_bytes()), [127, 0, 0, 1].into()).unwrap();
}

fn nonce(run: u32) -> Nonce {
    Nonce([u8::try_from(run).unwrap() + 1; 16])
}

#[test]
fn a_try_that_fails_late_leaves_alone_what_another_server_has_answered_meanwhile() {
    let world = World::new();
    let gateway = Played::new("10.9.0.1");
    let (go_on, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let slow: Act = Arc::new(move || {
        wait.lock().unwrap().recv().unwrap();
        Err(Error::unavailable("busy with the ports of other jobs"))
    });
    let first = world.keyhole(&[&Played { on_apply: slow, ..gateway.clone() }]);
    let second = world.keyhole(&[&gateway]);
    let id = world.job();
    thread::scope(|scope| {
        let late = scope.spawn(|| ask(&first, id, 0));
        while world.store().grant("default", id).unwrap().is_none() {
            thread::sleep(Duration::from_millis(10));
        }
        // The client has given the first server up and asks the second.
        ask(&second, id, 0).unwrap();
        confirm(&second, id, 0);
        go_on.send(()).unwrap();
        late.join().unwrap().unwrap_err();
    });
    let grant = world.store().grant("default", id).unwrap().expect("the job keeps what it was told");
    assert!(grant.state == GrantState::Active && grant.confirmed);
    assert_eq!((gateway.count(), world.store().closings("default", "10.9.0.1").unwrap().len()), (1, 0));
}

#[test]
fn a_job_that_asks_between_two_reads_of_the_watcher_keeps_its_ports() {
    for word in ["grants/", "jobs/"] {
        let world = World::new();
        let gateway = Played::new("10.9.0.1");
        let (keyhole, id) = (world.keyhole(&[&gateway]), world.job());
        let step: Step = Box::new(move || {
            ask(&keyhole, id, 0).unwrap();
            confirm(&keyhole, id, 0);
        });
        *world.shared.before_scan.lock().unwrap() = Some((word, step));
        world.keyhole_watch(&[&gateway]).cycle().unwrap();
        assert!(world.store().grant("default", id).unwrap().is_some(), "asked before the scan of {word}");
        assert_eq!(world.state(id), State::Running);
    }
}

#[test]
fn a_look_from_before_a_new_run_takes_nothing_from_it() {
    let world = World::new();
    let gateway = Played::new("10.9.0.1");
    let (keyhole, id) = (world.keyhole(&[&gateway]), world.job());
    ask(&keyhole, id, 0).unwrap();
    confirm(&keyhole, id, 0);
    // The look shows the job waiting for its second run, which then begins, asks and is answered before the watcher writes.
    *world.scheduler.shows.lock().unwrap() = (Phase::Waiting, 1);
    let (shows, asking) = (Arc::clone(&world.scheduler.shows), Arc::clone(&keyhole));
    let step: Step = Box::new(move || {
        *shows.lock().unwrap() = (Phase::Running, 1);
        ask(&asking, id, 1).unwrap();
        confirm(&asking, id, 1);
    });
    *world.scheduler.after_look.lock().unwrap() = Some(step);
    JobsWatch::new(world.store(), world.cluster(&[&gateway]), Duration::MAX).cycle().unwrap();
    world.keyhole_watch(&[&gateway]).cycle().unwrap();
    assert_eq!((world.state(id), world.store().grant("default", id).unwrap().map(|grant| grant.run)), (State::Running, Some(1)));
    assert_eq!(gateway.count(), 1, "and the rules of the first run are gone");
}

#[test]
fn the_rules_of_a_run_that_ended_between_two_looks_go_though_the_next_run_never_asks() {
    let world = World::new();
    let gateway = Played::new("10.9.0.1");
    let (keyhole, id) = (world.keyhole(&[&gateway]), world.job());
    ask(&keyhole, id, 0).unwrap();
    confirm(&keyhole, id, 0);
    *world.scheduler.shows.lock().unwrap() = (Phase::Running, 1);
    JobsWatch::new(world.store(), world.cluster(&[&gateway]), Duration::MAX).cycle().unwrap();
    world.keyhole_watch(&[&gateway]).cycle().unwrap();
    assert_eq!((world.store().grant("default", id).unwrap(), gateway.count()), (None, 0));
    assert_eq!(world.state(id), State::Running);
}

#[test]
fn a_run_that_asks_while_the_watcher_takes_back_the_run_before_is_found_at_the_same_port() {
    let world = World::new();
    let gateway = Played::new("10.9.0.1");
    let (keyhole, id) = (world.keyhole(&[&gateway]), world.job());
    ask(&keyhole, id, 0).unwrap();
    confirm(&keyhole, id, 0);
    let ports = || world.store().grant("default", id).unwrap().map(|grant| grant.spans);
    let before = ports();
    *world.scheduler.shows.lock().unwrap() = (Phase::Running, 1);
    JobsWatch::new(world.store(), world.cluster(&[&gateway]), Duration::MAX).cycle().unwrap();
    // The watcher gets no further than to write down that the rules are to go.
    let cut_off: Act = Arc::new(|| Err(Error::unavailable("busy")));
    let _ = world.keyhole_watch(&[&Played { on_apply: cut_off, ..gateway.clone() }]).cycle();
    assert_eq!((ports(), world.store().closings("default", "10.9.0.1").unwrap().len()), (None, 1));
    ask(&keyhole, id, 1).unwrap();
    assert_eq!((ports(), gateway.count()), (before, 1));
}

#[test]
fn a_gateway_that_cannot_look_or_install_keeps_no_job_from_being_moved_to_a_third() {
    let broken: Act = Arc::new(|| Err(Error::unavailable("nc is not installed")));
    let sick = Played::new("10.9.0.2");
    for sick in [Played { on_probe: broken.clone(), ..sick.clone() }, Played { on_apply: broken.clone(), ..sick }] {
        let world = World::new();
        let (good, third) = (Played::new("10.9.0.1"), Played::new("10.9.0.3"));
        let (keyhole, id) = (world.keyhole(&[&good]), world.job());
        ask(&keyhole, id, 0).unwrap();
        confirm(&keyhole, id, 0);
        let dead = Played { on_list: broken.clone(), ..good };
        let mut watch = world.keyhole_watch(&[&dead, &sick, &third]);
        for _ in 0..4 {
            // The dead one's silence is what the cycle complains about.
            let _ = watch.cycle();
        }
        let grant = world.store().grant("default", id).unwrap().unwrap();
        assert_eq!((grant.gateway.as_str(), grant.state, third.count()), ("10.9.0.3", GrantState::Active, 1));
    }
}

#[test]
fn a_submission_that_turns_up_after_it_was_given_up_is_cancelled() {
    let world = World::new();
    let gateway = Played::new("10.9.0.1");
    let id = world.job();
    let give_up = |job: &mut Job| {
        (job.scheduler_job_id, job.given_up) = (None, true);
        job.finish(Outcome::Failed, None, "cut off", Timestamp::now());
    };
    world.store().update_job("default", id, "test", give_up).unwrap();
    let mut watch = JobsWatch::new(world.store(), world.cluster(&[&gateway]), Duration::MAX);
    for (phase, cancelled) in [(Phase::Waiting, 1), (Phase::Running, 2), (Phase::Ended(Outcome::Cancelled), 2)] {
        *world.scheduler.shows.lock().unwrap() = (phase, 0);
        watch.cycle().unwrap();
        let told = world.scheduler.cancelled.lock().unwrap().clone();
        assert_eq!(told, vec![("alice".to_owned(), "41".to_owned()); cancelled]);
    }
    assert_eq!(world.state(id), State::Finished);
}
