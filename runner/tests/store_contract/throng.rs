//! Several keyhole servers, a thousand jobs, and a database that loses a member meanwhile: no port is given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::domain::grant::{GRANT_VERSION, Grant, GrantState};
use bwvisu_runner::domain::ports::Span;
use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::store::Store;

use crate::server::{EtcdCluster, etcd_is_there};
use crate::tries::{REST, SetAtEnd};

const THREADS: usize = 32;
const GATEWAYS: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
const NODES: u64 = 24;
/// How many spans of ports there are: so few that many jobs ask for the same.
const SLOTS: u64 = 1200;
const PORTS: u16 = 3;

/// A grant of a few ports from `external` on.
pub fn grant(job: u64, gateway: &str, external: u16, nodes: &[&str], nonce: &str) -> Grant {
    Grant {
        version: GRANT_VERSION,
        cluster: "default".into(),
        job,
        run: 0,
        nonce: nonce.into(),
        state: GrantState::Claimed,
        confirmed: false,
        attempt: 0,
        gateway: gateway.into(),
        external_ip: "203.0.113.1".into(),
        nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        target: nodes[0].into(),
        spans: vec![Span { external, internal: external, count: PORTS }],
        granted_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// How many ports a gateway forwards.
pub fn ports(store: &Store, gateway: &str) -> u32 {
    store.conditions("default", &[gateway]).unwrap()[0].ports
}

/// What a job asks for at its `attempt`: now and then the same as another job's.
fn wanted(job: u64, attempt: u64) -> Grant {
    let slot = ((job / 2) * 7 + attempt * 131) % SLOTS;
    let external = 50_000 + u16::try_from(slot).unwrap() * PORTS;
    let gateway = GATEWAYS[((job / 3 + attempt) % 2) as usize];
    let nodes = [format!("c{}", job % NODES), format!("c{}", (job * 5 + 1) % NODES)];
    grant(job, gateway, external, &[&nodes[0], &nodes[1]], &format!("nonce of {job}"))
}

#[derive(Default)]
struct Figures {
    granted: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    longest: Mutex<Duration>,
}

impl Figures {
    fn granted(&self) -> u64 {
        self.granted.load(Ordering::SeqCst)
    }
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(120), "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A job's way to its ports, as a client goes it: again after an error, other ports after a refusal; every third job gives them back.
fn journey(store: &Store, job: u64, figures: &Figures) {
    for attempt in 0..100 {
        let (wanted, begin) = (wanted(job, attempt), Instant::now());
        let outcome = store.claim(&wanted);
        let mut longest = figures.longest.lock().unwrap();
        *longest = longest.max(begin.elapsed());
        drop(longest);
        let done = match outcome {
            Ok(true) => true,
            Ok(false) => {
                figures.refused.fetch_add(1, Ordering::Relaxed);
                // Perhaps an earlier attempt had happened, whose answer was lost.
                again(|| store.grant("default", job)).is_some()
            }
            Err(error) => {
                assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Unknown), "{error}");
                figures.failed.fetch_add(1, Ordering::Relaxed);
                again(|| store.grant("default", job)).is_some()
            }
        };
        if done {
            figures.granted.fetch_add(1, Ordering::Relaxed);
            if job.is_multiple_of(3) {
                let grant = again(|| store.grant("default", job)).expect("it was granted");
                // None where an earlier attempt had closed it and its answer was lost.
                let closings = again(|| store.close_grant(&grant))
                    .map_or_else(|| again(|| store.closings("default", &grant.gateway)), |closing| vec![closing]);
                let closing = closings.iter().find(|closing| closing.job == job).expect("what is closed has to be removed");
                again(|| store.release(closing));
            }
            return;
        }
    }
}

/// Until the database answers.
fn again<T>(call: impl Fn() -> bwvisu_runner::error::Result<T>) -> T {
    let begin = Instant::now();
    loop {
        match call() {
            Ok(done) => return done,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(60), "{error}"),
        }
        thread::sleep(REST);
    }
}

/// Every grant's ports are its own, on its gateway and on its nodes, and the ledgers say the same.
fn check(store: &Store) -> usize {
    let grants = store.grants("default").unwrap();
    let (mut external, mut internal) = (BTreeSet::new(), BTreeSet::new());
    let mut loads: BTreeMap<&str, u32> = BTreeMap::new();
    for grant in &grants {
        *loads.entry(&grant.gateway).or_default() += grant.ports();
        for (inside, outside) in grant.spans.iter().flat_map(|span| span.pairs()) {
            assert!(external.insert((&grant.gateway, outside)), "port {outside} of {} twice", grant.gateway);
            for node in &grant.nodes {
                assert!(internal.insert((node, inside)), "port {inside} of {node} twice");
            }
        }
    }
    for gateway in &GATEWAYS {
        assert_eq!(loads.get(gateway).copied().unwrap_or(0), ports(store, gateway), "{gateway}");
        assert_eq!(store.closings("default", gateway).unwrap(), [], "{gateway}");
        let blocks = store.gateway_blocks("default", gateway).unwrap();
        let listed: BTreeSet<u64> = blocks.values().flat_map(|block| &block.forwardings).map(|f| f.job).collect();
        let granted: BTreeSet<u64> = grants.iter().filter(|g| g.gateway == *gateway).map(|g| g.job).collect();
        assert_eq!(listed, granted, "{gateway}: the ledger names just the jobs that have a grant");
    }
    grants.len()
}

fn throng(servers: usize, jobs: u64) {
    if !etcd_is_there() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    let stores: Vec<Store> = (0..servers).map(|_| Store::new(Box::new(cluster.client()))).collect();
    let (next, figures) = (AtomicU64::new(0), Figures::default());
    let (dead, back) = (AtomicBool::new(false), AtomicBool::new(false));
    let leader = cluster.leader();
    let begin = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS * servers)
            .map(|thread| {
                let (store, next, figures) = (&stores[thread % servers], &next, &figures);
                let (dead, back) = (&dead, &back);
                scope.spawn(move || {
                    loop {
                        match next.fetch_add(1, Ordering::SeqCst) + 1 {
                            job if job <= jobs => {
                                // Half of them when the member is dead, and the last quarter when it is back.
                                let waits = |from, flag: &AtomicBool| job > from && !flag.load(Ordering::SeqCst);
                                while waits(jobs / 4, dead) || waits(jobs * 3 / 4, back) {
                                    thread::sleep(Duration::from_millis(20));
                                }
                                journey(store, job, figures);
                            }
                            _ => return,
                        }
                    }
                })
            })
            .collect();
        let member = &mut cluster.members[leader];
        let (figures, dead, back) = (&figures, &dead, &back);
        let workers_at_work = (THREADS * servers) as u64;
        scope.spawn(move || {
            let _ends = [dead, back].map(SetAtEnd);
            wait("the first jobs", || figures.granted() >= jobs / 8);
            member.kill();
            let before = figures.granted();
            dead.store(true, Ordering::SeqCst);
            // More than were under way: some of them began while it was dead.
            wait("work without the leader", || figures.granted() > before + workers_at_work);
            assert!(member.start_again());
        });
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    let time = begin.elapsed();
    let left = check(&stores[0]);
    let [granted, refused, failed] = [&figures.granted, &figures.refused, &figures.failed].map(|n| n.load(Ordering::SeqCst));
    let longest = *figures.longest.lock().unwrap();
    let rate = (granted + refused) as f64 / time.as_secs_f64();
    println!(
        "{servers} servers: {granted} jobs granted, {left} still hold, {refused} claims refused, {failed} failed, longest {longest:?}, \
         {rate:.0} claims/s over {time:?}"
    );
    // Every third gives its ports back.
    assert_eq!((granted, left as u64), (jobs, jobs - jobs / 3));
    assert!(refused > 0, "nobody ever asked for what another had");
}

#[test]
fn two_keyhole_servers_and_a_thousand_jobs_share_no_port_while_etcds_leader_dies() {
    throng(2, 1000);
}

#[test]
fn three_keyhole_servers_and_hundreds_of_jobs_share_no_port_while_etcds_leader_dies() {
    throng(3, 400);
}
