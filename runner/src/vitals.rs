//! Whether the program lives, and whether it can do what it is there for.

use crate::cluster::Cluster;
use crate::store::Store;
use crate::watch::{Stop, Watcher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Everybody may ask, so the database is asked no more often than this.
const FRESH: Duration = Duration::from_secs(1);
/// So many looks in a row without an answer of the scheduler's.
const UNHEARD: u32 = 3;

/// The clusters of the present configuration.
pub type Clusters = Box<dyn Fn() -> Vec<Arc<Cluster>> + Send + Sync>;

/// What readiness is judged by.
pub struct Vitals {
    store: Arc<Store>,
    clusters: Clusters,
    watchers: Arc<Mutex<Vec<Watcher>>>,
    stop: Stop,
    /// What was found last, and when.
    found: Mutex<Option<(Instant, Vec<&'static str>)>>,
    /// Held by the one that looks.
    looking: Mutex<()>,
}

impl Vitals {
    /// Those of a program with these parts.
    pub fn new(store: Arc<Store>, clusters: Clusters, watchers: Arc<Mutex<Vec<Watcher>>>, stop: Stop) -> Self {
        Self { store, clusters, watchers, stop, found: Mutex::default(), looking: Mutex::default() }
    }

    /// Whether nothing stands still that should not.
    pub fn is_well(&self) -> bool {
        self.stop.is_given() || lock(&self.watchers).iter().all(|watcher| watcher.ailing().is_none())
    }

    /// Why the program is not ready; nothing if it is. A database that does not answer holds up one who asks, and no others.
    pub fn reasons(&self) -> Vec<&'static str> {
        let mut reasons = self.found();
        if self.stop.is_given() {
            reasons.push("the program ends");
        }
        reasons
    }

    fn found(&self) -> Vec<&'static str> {
        let known = lock(&self.found).clone();
        if let Some((_, reasons)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return reasons.clone();
        }
        let Ok(_turn) = self.looking.try_lock() else {
            return known.map_or_else(|| vec!["it is not known yet"], |(_, reasons)| reasons);
        };
        let reasons = self.look();
        *lock(&self.found) = Some((Instant::now(), reasons.clone()));
        reasons
    }

    fn look(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        match self.some_gateway_is_open() {
            Ok(true) => {}
            Ok(false) => reasons.push("no gateway answers and takes new forwardings"),
            Err(_) => reasons.push("the database does not answer"),
        }
        let unheard = |watcher: &Watcher| watcher.role().starts_with("jobs-watch") && watcher.fails_for() >= UNHEARD;
        if lock(&self.watchers).iter().any(unheard) {
            reasons.push("the scheduler was not heard in three looks");
        }
        reasons
    }

    fn some_gateway_is_open(&self) -> crate::error::Result<bool> {
        let mut open = false;
        for cluster in (self.clusters)() {
            let addresses: Vec<&str> = cluster.gateways.iter().map(|gateway| gateway.address()).collect();
            let conditions = self.store.conditions(&cluster.name, &addresses)?;
            let closed = |address: &str| cluster.drained_by_config.contains(address);
            open |= addresses
                .iter()
                .zip(&conditions)
                .any(|(address, condition)| condition.silence.is_none() && condition.drained.is_none() && !closed(address));
        }
        Ok(open)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Result};
    use crate::store::{Backend, Change, Versioned};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};

    /// A database that counts who asks, and says that it is away as soon as it may.
    struct Away(Arc<AtomicUsize>, Mutex<Receiver<()>>);

    impl Backend for Away {
        fn get(&self, _: &[String]) -> Result<Vec<Option<Versioned>>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            lock(&self.1).recv_timeout(Duration::from_secs(60)).expect("everybody else was answered meanwhile");
            Err(Error::unavailable("10.0.0.7 does not answer"))
        }
        fn scan(&self, _: &str) -> Result<Vec<(String, Versioned)>> {
            Err(Error::unavailable("away"))
        }
        fn commit(&self, _: &Change) -> Result<bool> {
            Err(Error::unavailable("away"))
        }
        fn lead(&self, _: &str) -> Result<bool> {
            Err(Error::unavailable("away"))
        }
        fn resign(&self) {}
    }

    #[test]
    fn a_crowd_that_asks_costs_one_call_of_a_database_that_is_away_and_nobody_else_waits() {
        let (calls, stop) = (Arc::new(AtomicUsize::new(0)), Stop::default());
        let (answer, may_answer) = channel();
        let store = Arc::new(Store::new(Box::new(Away(Arc::clone(&calls), Mutex::new(may_answer)))));
        let text = r#"{"bwvisu-home-prefix": "/h", "keyholed-servers": [{"ip": "127.0.0.1", "port": 80}], "scheduler": "slurm",
            "command-nodes": [{"ip": "cmd0", "user": "r"}], "gateway-nodes": [{"internal-ip": "10.0.0.1", "external-ip": "192.0.2.1", "user": "r"}]}"#;
        let path = std::path::Path::new("/nowhere/config.json");
        let file = crate::config::file::parse(text, path).unwrap();
        let config = crate::config::check(file, Default::default(), path).unwrap();
        let cluster = Arc::new(Cluster::new(&config.clusters[0], &config).unwrap());
        let vitals = Vitals::new(store, Box::new(move || vec![Arc::clone(&cluster)]), Arc::default(), stop.clone());
        std::thread::scope(|scope| {
            let (tell, told) = channel();
            for _ in 0..20 {
                let (tell, vitals) = (tell.clone(), &vitals);
                scope.spawn(move || tell.send(vitals.reasons()));
            }
            let next = || told.recv_timeout(Duration::from_secs(60)).unwrap();
            (0..19).for_each(|_| assert_eq!(next(), ["it is not known yet"]));
            answer.send(()).unwrap();
            assert_eq!(next(), ["the database does not answer"]);
        });
        assert_eq!(vitals.reasons(), ["the database does not answer"]);
        assert_eq!(calls.load(Ordering::SeqCst), 1, "what is fresh is not asked for again");
        stop.stop();
        assert_eq!(vitals.reasons(), ["the database does not answer", "the program ends"]);
        assert!(vitals.is_well());
    }
}
