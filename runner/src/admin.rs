//! What admins ask for: the gateways' condition, drains, audits.

use crate::audit::{self, Report};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::store::{Store, TrailAnswer};
use jiff::Timestamp;
use serde::Serialize;
use std::sync::{Arc, Mutex, TryLockError};

/// One audit at a time: each asks all machines and reads all records.
static AUDITING: Mutex<()> = Mutex::new(());

/// The verbs.
pub struct Admin {
    store: Arc<Store>,
    clusters: Vec<Arc<Cluster>>,
}

/// A gateway as admins see it.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GatewayState {
    /// The cluster that it belongs to.
    pub cluster: String,
    /// Its internal address.
    pub address: String,
    /// The address that users connect to; nothing for a gateway that is no longer configured.
    pub external_ip: Option<String>,
    /// How many external ports are taken on it, those that are still to be taken back among them.
    pub ports: u32,
    /// Why nothing new goes there; nothing when it is open.
    pub drained: Option<&'static str>,
    /// Since when the watcher has no answer from it.
    pub silent_since: Option<Timestamp>,
    /// What the watcher was told instead.
    pub reason: Option<String>,
    /// How many jobs' rules are still to be removed from it.
    pub closing: usize,
}

impl Admin {
    /// The verbs on these parts.
    pub fn new(store: Arc<Store>, clusters: Vec<Arc<Cluster>>) -> Self {
        Self { store, clusters }
    }

    /// All gateways: the configured ones, and those that records still speak of.
    pub fn gateways(&self) -> Result<Vec<GatewayState>> {
        let mut all = Vec::new();
        for cluster in &self.clusters {
            let mut addresses: Vec<String> = cluster.gateways.iter().map(|gateway| gateway.address().to_owned()).collect();
            let known = self.store.known_gateways(&cluster.name)?;
            addresses.extend(known.into_iter().filter(|known| cluster.gateway(known).is_none()));
            for address in addresses {
                all.push(self.gateway(cluster, &address)?);
            }
        }
        Ok(all)
    }

    fn gateway(&self, cluster: &Cluster, address: &str) -> Result<GatewayState> {
        let condition = self.store.conditions(&cluster.name, &[address])?.pop().unwrap_or_default();
        let drained = match (cluster.drained_by_config.contains(address), condition.drained) {
            (true, _) => Some("by the configuration"),
            (false, Some(_)) => Some("by an admin"),
            (false, None) => None,
        };
        Ok(GatewayState {
            cluster: cluster.name.clone(),
            address: address.to_owned(),
            external_ip: cluster.gateway(address).map(|gateway| gateway.external_ip().to_owned()),
            ports: condition.ports,
            drained,
            silent_since: condition.silence.as_ref().map(|silence| silence.since),
            reason: condition.silence.map(|silence| silence.reason),
            closing: self.store.closings(&cluster.name, address)?.len(),
        })
    }

    /// Keeps a gateway free of new forwardings (those that are there stay until their jobs end), or opens it again.
    pub fn drain(&self, address: &str, drained: bool) -> Result<GatewayState> {
        let found = self.clusters.iter().find(|cluster| cluster.gateway(address).is_some());
        let cluster = found.ok_or_else(|| Error::not_found(format!("no gateway {address} is configured")))?;
        if !drained && cluster.drained_by_config.contains(address) {
            let words = format!("gateway {address} is drained by the configuration; change it there, and reload");
            return Err(Error::conflict(words));
        }
        self.store.set_drain(&cluster.name, address, drained)?;
        log::info!("gateway {address}: {}", if drained { "drained: nothing new goes there" } else { "open again" });
        self.gateway(cluster, address)
    }

    /// Forgets a gateway that is no longer configured: what was still to be removed there is taken for removed. Returns for how many jobs.
    pub fn forget(&self, address: &str) -> Result<usize> {
        if self.clusters.iter().any(|cluster| cluster.gateway(address).is_some()) {
            return Err(Error::conflict(format!("gateway {address} is configured; only one that is not can be forgotten")));
        }
        let mut closings = Vec::new();
        for cluster in &self.clusters {
            closings.extend(self.store.closings(&cluster.name, address)?);
        }
        closings.iter().try_for_each(|closing| self.store.release(closing))?;
        log::info!("gateway {address}: forgotten; {} forwardings are taken for removed", closings.len());
        Ok(closings.len())
    }

    /// Who had this external port of a gateway (by either of its addresses) at this time.
    pub fn who(&self, gateway: &str, port: u16, at: Timestamp) -> Result<TrailAnswer> {
        let mut all = TrailAnswer { traces: Vec::new(), known_since: None };
        for cluster in &self.clusters {
            let answer = self.store.who(&cluster.name, gateway, port, at)?;
            all.traces.extend(answer.traces);
            all.known_since = all.known_since.max(answer.known_since);
        }
        Ok(all)
    }

    /// Compares store, scheduler and gateways; with `mend` it first does what the watchers would.
    pub fn audit(&self, mend: bool) -> Result<Report> {
        let _turn = match AUDITING.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Error::busy("another audit is under way; try again")),
        };
        audit::audit(&self.store, &self.clusters, mend)
    }
}
