//! Making gateways hold what the ledger says, and taking forwardings back.

use super::Keyhole;
use crate::cluster::Cluster;
use crate::domain::grant::{Closing, Forwarding};
use crate::effect;
use crate::error::{Error, ErrorKind, Result};
use crate::gateway::{Gateway, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How often others may change the ledger while we write to a gateway.
const CROSSINGS: u32 = 20;
/// How long to wait for the others that write to the same gateway. One that hangs must not take all who answer jobs, one after the other.
const TURN: Duration = Duration::from_secs(20);

impl Keyhole {
    /// Removes what has to go from a gateway, all in one step, and frees its ports. May be repeated. A gateway that is no longer configured
    /// may still forward, to ports that would be somebody else's then: they stay taken until it is configured again, or forgotten.
    pub fn finish(&self, cluster: &Cluster, gateway: &str, closings: &[Closing]) -> Result<()> {
        let Some(at) = cluster.gateway(gateway) else {
            log::warn!("keyhole: gateway {gateway} is no longer configured; the rules of {} jobs stay there", closings.len());
            return Ok(());
        };
        let blocks = closings.iter().flat_map(Closing::blocks).collect();
        match self.install(cluster, at, &blocks, "remove-rules") {
            // Somebody else holds a port of another job's in one of the blocks, which is none of the others' business.
            Err(error) if error.kind == ErrorKind::Conflict && closings.len() > 1 => {
                let one_by_one = closings.iter().map(|one| self.finish(cluster, gateway, std::slice::from_ref(one)));
                one_by_one.fold(Ok(()), Result::and)
            }
            Err(error) => Err(error),
            // Unresolved names are other jobs' trouble.
            Ok(_) => self.release_all(closings),
        }
    }

    fn release_all(&self, closings: &[Closing]) -> Result<()> {
        self.store.release_all(closings)?;
        for closing in closings {
            log::info!("keyhole: job {}: forwardings removed from {}", closing.job, closing.gateway);
        }
        Ok(())
    }

    /// Makes some blocks of a gateway hold what the ledger says; `effect` names the purpose. Returns the targets that the gateway could not
    /// resolve.
    pub fn install(
        &self,
        cluster: &Cluster,
        gateway: &dyn Gateway,
        blocks: &BTreeSet<u16>,
        effect: &'static str,
    ) -> Result<BTreeSet<String>> {
        self.write(cluster, gateway, blocks, |rules| effect::around(effect, || gateway.apply(rules)))
    }

    /// The same, and everything around the blocks.
    pub fn set_up(&self, cluster: &Cluster, gateway: &dyn Gateway, blocks: &BTreeSet<u16>) -> Result<BTreeSet<String>> {
        self.write(cluster, gateway, blocks, |rules| effect::around("set-up-gateway", || gateway.set_up(rules)))
    }

    /// If somebody else changed the ledger while we wrote, their writing and ours may have crossed, so it is done again.
    fn write(
        &self,
        cluster: &Cluster,
        gateway: &dyn Gateway,
        blocks: &BTreeSet<u16>,
        write: impl Fn(&BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>>,
    ) -> Result<BTreeSet<String>> {
        let writer = Arc::clone(
            self.writers.lock().unwrap_or_else(PoisonError::into_inner).entry(gateway.address().to_owned()).or_default(),
        );
        let busy = |_| Error::unavailable(format!("gateway {} is busy with the ports of other jobs", gateway.address()));
        let _turn = writer.take(TURN).map_err(busy)?;
        let crowd = self.crowd(cluster, gateway);
        let read = || self.store.blocks(&cluster.name, gateway.address(), blocks);
        let mut before = read()?;
        for round in 0..CROSSINGS {
            // From the second time on something is installed already.
            let uncertain = |error: Error| if round > 0 { Error { kind: ErrorKind::Unknown, ..error } } else { error };
            let rules = before.iter().map(|(block, _)| (block.block, rules(&cluster.name, &block.forwardings))).collect();
            let unresolved = write(&rules).map_err(uncertain)?;
            let after = read().map_err(|error| Error { kind: ErrorKind::Unknown, ..error })?;
            if after.iter().zip(&before).all(|(after, before)| after.1 == before.1 || crowd.is_as_before(&before.0, &after.0)) {
                return Ok(unresolved);
            }
            before = after;
        }
        Err(Error::unknown(format!("gateway {}: others change the same ports again and again", gateway.address())))
    }
}

/// The rules that a block's forwardings ask for.
pub fn rules(cluster: &str, forwardings: &[Forwarding]) -> BTreeSet<Rule> {
    let wanted = forwardings.iter().filter(|forwarding| !forwarding.closing);
    wanted.map(|f| Rule { cluster: cluster.into(), job: f.job, span: f.span, target: f.target.clone() }).collect()
}
