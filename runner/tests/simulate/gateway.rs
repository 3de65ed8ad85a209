//! Gateways that are played: rules and listeners in memory, with the delays of iptables and nc behind a kept shell.

use bwvisu_runner::domain::ports::Numbering;
use bwvisu_runner::error::Result;
use bwvisu_runner::gateway::{Gateway, Installed, Probe, Rule, Target};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// One `iptables-restore` of a few blocks, behind sudo; others wait for it, as for the kernel's lock.
const APPLY: Duration = Duration::from_millis(20);
/// A listing, and each rule in it.
const LIST: Duration = Duration::from_millis(20);
const LIST_PER_RULE: Duration = Duration::from_micros(10);
/// A batch of probes, each host in it (a process), and each port.
const PROBE: Duration = Duration::from_millis(5);
const PROBE_PER_HOST: Duration = Duration::from_millis(2);
const PROBE_PER_PORT: Duration = Duration::from_micros(30);

/// Who listens on which host and port, and since when.
pub type Listeners = Arc<Mutex<HashMap<(String, u16), Instant>>>;

pub struct Played {
    address: String,
    listeners: Listeners,
    rules: Mutex<BTreeMap<u16, BTreeSet<Rule>>>,
}

impl Played {
    pub fn new(number: usize, listeners: &Listeners) -> Self {
        Self { address: format!("10.9.0.{}", number + 1), listeners: Arc::clone(listeners), rules: Mutex::default() }
    }
}

impl Gateway for Played {
    fn address(&self) -> &str {
        &self.address
    }

    fn external_ip(&self) -> &str {
        &self.address
    }

    fn numbering(&self) -> Numbering {
        Numbering::Same
    }

    fn probe(&self, targets: &[Target]) -> Result<Probe> {
        if targets.is_empty() {
            return Ok(Probe::default());
        }
        let hosts: BTreeSet<&str> = targets.iter().map(|target| target.host.as_str()).collect();
        let ports: usize = targets.iter().map(|target| target.ports.len()).sum();
        sleep(PROBE + PROBE_PER_HOST * hosts.len() as u32 + PROBE_PER_PORT * ports as u32);
        let (listeners, now) = (self.listeners.lock().unwrap(), Instant::now());
        let each = targets.iter().flat_map(|target| target.ports.ports().map(|port| (target.host.clone(), port)));
        let open = each.filter(|place| listeners.get(place).is_some_and(|since| *since <= now)).collect();
        Ok(Probe { open, ..Probe::default() })
    }

    fn apply(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>> {
        let mut rules = self.rules.lock().unwrap();
        sleep(APPLY);
        rules.extend(blocks.clone());
        Ok(BTreeSet::new())
    }

    fn set_up(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>> {
        self.apply(blocks)
    }

    fn installed(&self) -> Result<Installed> {
        let blocks = self.rules.lock().unwrap().clone();
        sleep(LIST + LIST_PER_RULE * blocks.values().map(BTreeSet::len).sum::<usize>() as u32);
        Ok(Installed { blocks, ready: true })
    }
}
