//! The play: front ends that submit at a given rate, jobs that ask for a port and listen a moment later, and watchers behind.

use crate::Centre;
use crate::etcd::Server;
use crate::gateway::{Listeners, Played};
use crate::report::{Stage, Times};
use crate::scheduler::{Batch, Slurm};
use bwvisu_runner::cluster::Cluster;
use bwvisu_runner::config::Config;
use bwvisu_runner::domain::batch_script::Clients;
use bwvisu_runner::domain::job::State;
use bwvisu_runner::gateway::Gateway;
use bwvisu_runner::jobs::{Jobs, NewJob};
use bwvisu_runner::keyhole::Keyhole;
use bwvisu_runner::store::{Store, etcd::Etcd};
use bwvisu_runner::templates::TemplateFolder;
use bwvisu_runner::watch::{jobs::JobsWatch, keyhole::KeyholeWatch};
use keyhole_protocol::{Confirm, Grant, Nonce, Purpose, Request, Token, sign};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const USERS: u64 = 1000;
/// Front ends' requests at once, and jobs that ask for ports at once: as many as the limits of a runner let in.
const AT_ONCE: usize = 64;
/// From the answer of keyhole to the application's listen().
const LISTENS_AFTER: Duration = Duration::from_secs(2);
/// The keyhole watcher's intervals, as by default.
const KEYHOLE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Every so many jobs, somebody waits for `available` and tells how long it took.
const SAMPLE: u64 = 20;

pub struct Play<'a> {
    world: Arc<World>,
    etcd: &'a Server,
    /// Removed when the play is over.
    _folder: tempfile::TempDir,
}

struct World {
    slurm: Arc<Slurm>,
    listeners: Listeners,
    runners: Vec<Runner>,
    /// Jobs that run, the oldest first, with what they listen on.
    running: Mutex<VecDeque<(u64, String, u16)>>,
    submitted: AtomicU64,
    started: AtomicU64,
    failures: AtomicU64,
    times: Mutex<Times>,
}

/// What answers front ends and jobs.
struct Runner {
    store: Arc<Store>,
    cluster: Arc<Cluster>,
    jobs: Jobs,
    keyhole: Arc<Keyhole>,
}

impl<'a> Play<'a> {
    pub fn new(etcd: &'a Server, centre: &Centre) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("play.txt"), "#!/bin/bash\n#SBATCH --time=10\n#KEYHOLE-REQUEST-PORTS 1\nsleep 1\n")
            .unwrap();
        let (slurm, listeners) = (Arc::<Slurm>::default(), Listeners::default());
        let config = config(folder.path(), centre.gateways);
        let gateways: Vec<_> = (0..centre.gateways).map(|number| Arc::new(Played::new(number, &listeners))).collect();
        let runner = |_| Runner::new(etcd, &config, folder.path(), &slurm, &gateways);
        let runners: Vec<_> = (0..centre.runners).map(runner).collect();
        let Runner { store, cluster, keyhole, .. } = &runners[0];
        let mut jobs_watch = JobsWatch::new(Arc::clone(store), Arc::clone(cluster), Duration::from_secs(60));
        let mut keyhole_watch = KeyholeWatch::new(Arc::clone(store), Arc::clone(cluster), Arc::clone(keyhole));
        let world = Arc::new(World {
            slurm,
            listeners,
            runners,
            running: Mutex::default(),
            submitted: AtomicU64::new(0),
            started: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            times: Mutex::default(),
        });
        watcher(
            &world,
            centre.jobs_interval,
            |times| &mut times.jobs_watch,
            move || jobs_watch.cycle().map_err(|e| e.to_string()),
        );
        watcher(
            &world,
            PROBE_INTERVAL,
            |times| &mut times.keyhole_watch,
            move || keyhole_watch.step(KEYHOLE_INTERVAL).map_err(|e| e.to_string()),
        );
        for _ in 0..AT_ONCE {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                loop {
                    if let Some(batch) = world.slurm.next_start() {
                        world.run(&batch);
                    }
                }
            });
        }
        Self { world, etcd, _folder: folder }
    }

    /// Starts so many jobs as fast as it goes, and waits until they run.
    pub fn populate(&self, count: usize) {
        let (begun, next) = (Instant::now(), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while next.fetch_add(1, Ordering::Relaxed) < count {
                        self.world.submit();
                    }
                });
            }
        });
        while self.world.running.lock().unwrap().len() < count {
            assert!(begun.elapsed() < Duration::from_secs(600), "{} failures", self.world.failures.load(Ordering::Relaxed));
            sleep(Duration::from_millis(100));
        }
        println!("that took {:.0} s", begun.elapsed().as_secs_f64());
    }

    /// One stage: `rate` starts and ends per second for so long.
    pub fn stage(&self, rate: u32, lasts: Duration, jobs: usize) -> Stage {
        let world = &self.world;
        *world.times.lock().unwrap() = Times::default();
        let before = (world.started.load(Ordering::Relaxed), world.failures.load(Ordering::Relaxed));
        let usage = [usage(std::process::id()), usage(self.etcd.pid())];
        let (begun, next) = (Instant::now(), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let due = Duration::from_secs_f64(next.fetch_add(1, Ordering::Relaxed) as f64 / f64::from(rate));
                        if due >= lasts || begun.elapsed() >= lasts {
                            return;
                        }
                        sleep(due.saturating_sub(begun.elapsed()));
                        world.submit();
                        world.end_oldest(jobs);
                    }
                });
            }
        });
        let seconds = begun.elapsed().as_secs_f64();
        let started = world.started.load(Ordering::Relaxed) - before.0;
        // What was submitted last is still on its way; the next stage is to begin without it.
        sleep(Duration::from_secs(5));
        let cpu =
            [(0, std::process::id()), (1, self.etcd.pid())].map(|(at, pid)| (self::usage(pid) - usage[at]) / (seconds + 5.0));
        Stage {
            rate,
            seconds,
            started,
            failed: world.failures.load(Ordering::Relaxed) - before.1,
            times: std::mem::take(&mut world.times.lock().unwrap()),
            cpu,
            memory_mib: resident(std::process::id()),
            database_mib: self.etcd.database_mib(),
        }
    }

    /// Waits until all that was submitted runs.
    pub fn settle(&self) {
        let world = &self.world;
        let begun = Instant::now();
        let waiting = || world.submitted.load(Ordering::Relaxed) - world.started.load(Ordering::Relaxed);
        while waiting() > world.failures.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(120) {
            sleep(Duration::from_millis(100));
        }
    }
}

impl Runner {
    fn new(etcd: &Server, config: &Config, folder: &Path, slurm: &Arc<Slurm>, gateways: &[Arc<Played>]) -> Self {
        let mut cluster = Cluster::new(&config.clusters[0], config).unwrap();
        cluster.scheduler = Arc::<Slurm>::clone(slurm);
        cluster.gateways = gateways.iter().map(|gateway| Arc::<Played>::clone(gateway) as Arc<dyn Gateway>).collect();
        let cluster = Arc::new(cluster);
        let clusters = || vec![Arc::clone(&cluster)];
        let store = Arc::new(Store::new(Box::new(Etcd::connect(etcd.config()).unwrap().mirrored())));
        let keyhole = Arc::new(Keyhole::new(Arc::clone(&store), clusters(), 100, false));
        let templates = TemplateFolder::new(folder.to_owned(), 100);
        let clients = Clients::new(vec![("x86_64".into(), vec![7; 40_000])]).unwrap();
        let servers = vec!["10.9.0.1:80".parse().unwrap()];
        let jobs = Jobs::new(Arc::clone(&store), clusters(), templates, clients, servers, 100, config.limits);
        Self { store, cluster, jobs, keyhole }
    }
}

impl World {
    /// In turns: one of those that answer.
    fn runner(&self, number: u64) -> &Runner {
        let others = &self.runners[1..];
        let answering = if others.is_empty() { &self.runners } else { others };
        // Not by the number itself: every twentieth is the one that is measured.
        &answering[(number / SAMPLE + number % SAMPLE) as usize % answering.len()]
    }

    /// What a front end does.
    fn submit(&self) {
        // Ten jobs each, with as many running as there are by default.
        let number = self.submitted.fetch_add(1, Ordering::Relaxed);
        let user = format!("user{:04}", number % USERS);
        let new = NewJob { uid: user, template_name: "play.txt".into(), variables: BTreeMap::new() };
        let begun = Instant::now();
        match self.runner(number).jobs.submit(&new, None) {
            Ok(_) => self.times.lock().unwrap().submit.push(begun.elapsed()),
            Err(error) => self.failed("submit", &error.to_string()),
        }
    }

    /// What a job does when it starts: asks until it has a port, and listens.
    fn run(self: &Arc<Self>, batch: &Batch) {
        let id: u64 = batch.name.split('-').nth(1).and_then(|id| id.parse().ok()).unwrap();
        let (begun, token) = (Instant::now(), Token::from_hex(&batch.token).unwrap());
        let nonce = Nonce([u8::try_from(id % 251).unwrap(); 16]);
        let body = Request { job: id, run: 0, nonce, ports: 1, nodes: vec![batch.node.clone()] }.to_body();
        let signature = sign(&token, Purpose::Request, body.as_bytes());
        let (keyhole, peer) = (&self.runner(id).keyhole, [10, 9, 9, 9].into());
        let answer = loop {
            match keyhole.grant(body.as_bytes(), &signature, peer) {
                Ok(answer) => break answer,
                Err(error) if begun.elapsed() > Duration::from_secs(60) => return self.failed("grant", &error.to_string()),
                Err(_) => sleep(Duration::from_millis(200)),
            }
        };
        self.times.lock().unwrap().grant.push(begun.elapsed());
        let confirm = Confirm { job: id, run: 0, nonce }.to_body();
        if let Err(error) = keyhole.confirm(confirm.as_bytes(), &sign(&token, Purpose::Confirm, confirm.as_bytes()), peer) {
            self.failed("confirm", &error.to_string());
        }
        let port = Grant::parse(&answer.body).unwrap().ports[0].internal;
        let listens = Instant::now() + LISTENS_AFTER;
        self.listeners.lock().unwrap().insert((batch.node.clone(), port), listens);
        self.running.lock().unwrap().push_back((batch.id, batch.node.clone(), port));
        self.started.fetch_add(1, Ordering::Relaxed);
        if id.is_multiple_of(SAMPLE) {
            let world = Arc::clone(self);
            thread::spawn(move || world.wait_for_available(id, listens));
        }
    }

    fn wait_for_available(&self, id: u64, listens: Instant) {
        sleep(listens.saturating_duration_since(Instant::now()));
        while listens.elapsed() < Duration::from_secs(60) {
            match self.runner(id).jobs.describe(id) {
                Ok(view) if view.job.state == State::Available => {
                    return self.times.lock().unwrap().available.push(listens.elapsed());
                }
                Ok(view) if view.job.state == State::Finished => return,
                // Less and less often, as users' front ends do: else many that wait are a load of their own.
                _ => sleep((listens.elapsed() / 10).clamp(Duration::from_millis(10), Duration::from_secs(1))),
            }
        }
        self.failed("available", "not within a minute");
    }

    /// As one starts, one ends.
    fn end_oldest(&self, most: usize) {
        let oldest = {
            let mut running = self.running.lock().unwrap();
            (running.len() >= most).then(|| running.pop_front()).flatten()
        };
        if let Some((id, node, port)) = oldest {
            self.listeners.lock().unwrap().remove(&(node, port));
            self.slurm.end(id);
        }
    }

    fn failed(&self, what: &str, why: &str) {
        if self.failures.fetch_add(1, Ordering::Relaxed) < 5 {
            println!("{what}: {why}");
        }
    }
}

fn watcher(
    world: &Arc<World>,
    interval: Duration,
    times: fn(&mut Times) -> &mut Vec<Duration>,
    mut cycle: impl FnMut() -> Result<(), String> + Send + 'static,
) {
    let world = Arc::clone(world);
    thread::spawn(move || {
        loop {
            let begun = Instant::now();
            match cycle() {
                Ok(()) => times(&mut world.times.lock().unwrap()).push(begun.elapsed()),
                Err(error) => world.failed("a cycle", &error),
            }
            sleep(interval.saturating_sub(begun.elapsed()));
        }
    });
}

fn config(folder: &Path, gateways: usize) -> Config {
    let path = folder.join("config.json");
    let gateways: Vec<_> = (1..=gateways)
        .map(|n| serde_json::json!({"internal-ip": format!("10.9.0.{n}"), "external-ip": format!("10.9.0.{n}"), "user": "u"}))
        .collect();
    let text = serde_json::json!({
        "bwvisu-home-prefix": "/home",
        "state-dir": folder,
        "gateway-nodes": gateways,
        "command-nodes": [{"ip": "10.9.1.1", "user": "u"}],
        "keyholed-servers": [{"ip": "127.0.0.1", "port": 80}],
        "keyholed-port-range": {"min": 20000, "max": 30000},
        "limits": {"jobs-per-user": 0},
    });
    std::fs::write(&path, text.to_string()).unwrap();
    bwvisu_runner::config::load(Some(&path)).unwrap()
}

/// Seconds of CPU that a process has used.
fn usage(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

fn resident(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
