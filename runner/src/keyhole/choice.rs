//! Which gateway a job's ports go to.

use super::Keyhole;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::gateway::Gateway;
use crate::store::Condition;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// A gateway that failed is chosen last for this long.
const REST: Duration = Duration::from_secs(30);

impl Keyhole {
    /// The gateways that may get something new, in the order to try them: those that are silent, or failed a short while ago, come last;
    /// then the one called `first` comes first, then the least loaded. Drained ones are left out.
    pub(super) fn choice<'a>(&self, cluster: &'a Cluster, first: Option<&str>) -> Result<Vec<&'a dyn Gateway>> {
        let addresses: Vec<&str> = cluster.gateways.iter().map(|gateway| gateway.address()).collect();
        let conditions = self.store.conditions(&cluster.name, &addresses)?;
        let drained =
            |address: &str, condition: &Condition| condition.drained.is_some() || cluster.drained_by_config.contains(address);
        let mut open: Vec<_> = cluster
            .gateways
            .iter()
            .map(AsRef::as_ref)
            .zip(conditions)
            .filter(|(gateway, condition)| !drained(gateway.address(), condition))
            .collect();
        open.sort_by_key(|(gateway, condition)| {
            let address = gateway.address();
            (condition.silence.is_some() || self.rests(address), Some(address) != first, condition.ports)
        });
        if open.is_empty() {
            return Err(Error::unavailable("all gateways are drained; nothing new may be forwarded for now"));
        }
        Ok(open.into_iter().map(|(gateway, _)| gateway).collect())
    }

    /// Whether a gateway failed a short while ago.
    pub fn rests(&self, gateway: &str) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.get(gateway).is_some_and(|until| *until > Instant::now())
    }

    /// A gateway has failed.
    pub(super) fn rest(&self, gateway: &str) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.insert(gateway.to_owned(), Instant::now() + REST);
    }
}
