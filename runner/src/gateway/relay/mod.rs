//! A gateway in user space on this machine: TCP relays inside the runner. For workstations and for people who write front ends; nothing
//! needs to be installed and no rights are needed.
//!
//! Unlike rules in a kernel, relays end with the runner; the watcher installs them again when it starts. Like rules in a kernel, a relay
//! that is removed takes no new sessions and leaves the open ones alone. The gateway listens on the machine that the applications
//! listen on, hence external and internal ports are different halves of the range ([`Numbering::Halves`]).

mod listen;
mod probe;
mod session;

use super::{Gateway, Installed, Probe, Rule, Target};
use crate::domain::ports::Numbering;
use crate::error::{Error, Result};
use listen::{Acceptor, Destination, Listener};
use rustix::process::{Resource, getrlimit};
use session::Sessions;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a relay spends at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// How many sessions are open at once; each has two threads and two descriptors. Further clients are turned away.
    pub sessions: usize,
    /// How many of them one external port may have, so that the clients of one job do not take the places of all others.
    pub sessions_per_port: usize,
    /// How long the application may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long each connection of a probe may take.
    pub probe_timeout: Duration,
    /// How long a session of which one direction has ended may be silent in the other.
    pub half_closed_timeout: Duration,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            sessions: 1024,
            sessions_per_port: 64,
            connect_timeout: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(1),
            half_closed_timeout: Duration::from_secs(60),
        }
    }
}

/// The gateway of this machine. Dropping it closes all its ports and sessions.
#[derive(Debug)]
pub struct Relay {
    internal_address: String,
    external_ip: String,
    bind: IpAddr,
    limits: RelayLimits,
    /// What was applied. Held while something is applied, so that no two changes mix.
    blocks: Mutex<BTreeMap<u16, BTreeSet<Rule>>>,
    acceptor: Acceptor,
    sessions: Arc<Sessions>,
    /// Whether it was set up since the program began: before that, everything that should be here is missing.
    begun: AtomicBool,
}

/// External ports and where they lead.
type Table = BTreeMap<u16, Destination>;

impl Relay {
    /// A relay that listens on the address `bind`, and tells users to connect to `external_ip`. Nothing happens before something is
    /// applied.
    pub fn new(internal_address: String, external_ip: String, bind: IpAddr, limits: RelayLimits) -> Self {
        let limits = RelayLimits { sessions: affordable(limits.sessions), ..limits };
        let sessions = Arc::new(Sessions::new(limits));
        let acceptor = Acceptor::new(Arc::clone(&sessions));
        Self {
            internal_address,
            external_ip,
            bind,
            limits,
            blocks: Mutex::default(),
            acceptor,
            sessions,
            begun: AtomicBool::new(false),
        }
    }

    /// The listeners for `table`: those that are there already, and new ones.
    fn listeners(&self, table: &Table) -> Result<BTreeMap<u16, Arc<Listener>>> {
        let present = self.acceptor.listeners();
        let listener = |(&port, destination): (&u16, &Destination)| {
            let listener = match present.get(&port) {
                Some(present) => present.leading_to(destination.clone()),
                None => self.bind(port, destination)?,
            };
            Ok((port, Arc::new(listener)))
        };
        table.iter().map(listener).collect()
    }

    fn bind(&self, port: u16, destination: &Destination) -> Result<Listener> {
        let bound = TcpListener::bind((self.bind, port)).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        bound.map(|socket| Listener::new(socket, port, destination.clone())).map_err(|error| {
            let place = format!("port {port} of {}", self.bind);
            match error.kind() {
                ErrorKind::AddrInUse => Error::conflict(format!("{place} is in use by another program")),
                _ => Error::unavailable(format!("{place} cannot be listened on: {error}")),
            }
        })
    }
}

impl Gateway for Relay {
    fn address(&self) -> &str {
        &self.internal_address
    }

    fn external_ip(&self) -> &str {
        &self.external_ip
    }

    fn numbering(&self) -> Numbering {
        Numbering::Halves
    }

    fn probe(&self, targets: &[Target]) -> Result<Probe> {
        Ok(probe::probe(targets, self.limits.probe_timeout))
    }

    fn apply(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>> {
        let mut installed = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = installed.clone();
        wanted.extend(blocks.iter().map(|(&block, rules)| (block, rules.clone())));
        wanted.retain(|_, rules| !rules.is_empty());
        let table = table(&wanted)?;
        // Whatever can fail comes before this line's end; listeners that were made in vain are closed with the error.
        let listeners = self.listeners(&table)?;
        self.acceptor.serve(listeners)?;
        *installed = wanted;
        // Names are resolved for each connection.
        Ok(BTreeSet::new())
    }

    /// Block by block: a port that another program has taken meanwhile stands in the way of its own block alone.
    fn set_up(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>> {
        self.begun.store(true, Ordering::Relaxed);
        let one_by_one = blocks.iter().map(|(&block, rules)| self.apply(&BTreeMap::from([(block, rules.clone())])).map(drop));
        one_by_one.fold(Ok(()), Result::and).map(|()| BTreeSet::new())
    }

    fn installed(&self) -> Result<Installed> {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Installed { blocks, ready: self.begun.load(Ordering::Relaxed) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.acceptor.stop();
        self.sessions.end();
    }
}

/// How many sessions there may be when half of the descriptors are left for everything else that this process does.
fn affordable(sessions: usize) -> usize {
    let wanted = 4 * sessions as u64;
    let granted = getrlimit(Resource::Nofile).current.unwrap_or(wanted);
    if granted < wanted {
        log::warn!(
            "the relay has room for {} sessions only; {wanted} descriptors (ulimit -n) would be enough for all",
            granted / 4
        );
    }
    sessions.min(usize::try_from(granted / 4).unwrap_or(sessions)).max(1)
}

/// Where each external port leads.
fn table(blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<Table> {
    let mut table = Table::new();
    for (&block, rule) in blocks.iter().flat_map(|(block, rules)| rules.iter().map(move |rule| (block, rule))) {
        let range = rule.span.external_range();
        if rule.span.count == 0 || rule.span.block() != block || range.hi / crate::domain::ports::BLOCK != block {
            return Err(Error::internal(format!("the rule for ports {range} of job {} is not in block {block}", rule.job)));
        }
        for (internal, external) in rule.span.pairs() {
            let destination = Destination { host: rule.target.clone(), port: internal };
            if table.insert(external, destination).is_some() {
                return Err(Error::conflict(format!("port {external} is asked for twice")));
            }
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ports::Span;

    fn rule(job: u64, external: u16, internal: u16, count: u16) -> Rule {
        Rule { cluster: "default".into(), job, span: Span { external, internal, count }, target: "localhost".into() }
    }

    #[test]
    fn a_span_becomes_as_many_ports() {
        let table = table(&BTreeMap::from([(550, BTreeSet::from([rule(1, 55000, 50000, 2)]))])).unwrap();
        let ports: Vec<_> = table.into_iter().map(|(external, to)| (external, to.host, to.port)).collect();
        assert_eq!(ports, [(55000, "localhost".into(), 50000), (55001, "localhost".into(), 50001)]);
    }

    #[test]
    fn rules_that_contradict_themselves_are_refused_before_anything_happens() {
        let cases = [
            (550, vec![rule(1, 55000, 50000, 2), rule(2, 55001, 50001, 1)], "twice"),
            (551, vec![rule(1, 55000, 50000, 1)], "not in block"),
            (550, vec![rule(1, 55099, 50099, 2)], "not in block"),
            (550, vec![rule(1, 55000, 50000, 0)], "not in block"),
        ];
        for (block, rules, message) in cases {
            let error = table(&BTreeMap::from([(block, rules.into_iter().collect())])).unwrap_err();
            assert!(error.message.contains(message), "{error}");
        }
    }
}
