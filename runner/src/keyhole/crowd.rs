//! What requests for ports of one gateway do together, so that a crowd of jobs that begin at once costs a few calls: looks at ports, claims,
//! rules. And where each of them looks for its ports, so that they do not meet.

use super::Keyhole;
use super::places::Places;
use crate::cluster::Cluster;
use crate::domain::grant::{Forwarding, GatewayBlock, Grant};
use crate::error::{ErrorKind, Result};
use crate::gateway::{Gateway, Probe, Target};
use crate::store::Store;
use crate::together::Together;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many requests at most are dealt with in one call.
const MOST: usize = 64;
/// Looks that are under way at once, where one takes so long: a silent host must not hold up all others.
const LOOKS: usize = 3;
const SLOW: Duration = Duration::from_millis(400);
/// How long a request waits for what is done together, before and while it is done. What does it knows shorter limits.
const PATIENCE: Duration = Duration::from_secs(60);

/// The requests for ports of one gateway.
pub(super) struct Crowd {
    looks: Together<Vec<Target>, Arc<Probe>>,
    claims: Together<Grant, bool>,
    installs: Together<BTreeSet<u16>, Result<BTreeSet<String>>>,
    /// Jobs whose claims were made here, and when, until their rules are installed.
    claimed: Mutex<HashMap<u64, Instant>>,
    pub(super) places: Places,
}

impl Default for Crowd {
    fn default() -> Self {
        Self {
            looks: Together::of_at_most(MOST).past_slow_ones(LOOKS, SLOW),
            claims: Together::of_at_most(MOST),
            installs: Together::of_at_most(MOST),
            claimed: Mutex::default(),
            places: Places::default(),
        }
    }
}

impl Crowd {
    /// Which of the targets accept a connection; what others asked about may be among the answers.
    pub(super) fn probe(&self, gateway: &dyn Gateway, targets: Vec<Target>) -> Result<Arc<Probe>> {
        let hosts: BTreeSet<String> = targets.iter().map(|target| target.host.clone()).collect();
        let look = |all: &[Vec<Target>]| {
            let probe = Arc::new(gateway.probe(&all.concat())?);
            Ok(vec![probe; all.len()])
        };
        let mine = targets.clone();
        let probe = self.looks.call(targets, Instant::now() + PATIENCE, look)?;
        // Perhaps because of what somebody else asked about.
        if probe.unreachable.is_disjoint(&hosts) { Ok(probe) } else { gateway.probe(&mine).map(Arc::new) }
    }

    /// Takes all ports of `grant` or none.
    pub(super) fn claim(&self, store: &Store, grant: &Grant) -> Result<bool> {
        // Before anybody can see the claim.
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.retain(|_, at| at.elapsed() < REMEMBERED);
        claimed.insert(grant.job, Instant::now());
        drop(claimed);
        let result = self.claims.call(grant.clone(), Instant::now() + PATIENCE, |grants| store.claim_all(grants));
        // Of a claim that may have been made, another runner may have made a grant.
        if !matches!(result, Ok(true)) {
            self.forget(grant);
        }
        result
    }

    fn forget(&self, grant: &Grant) {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&grant.job);
    }
}

/// So long we know which claims were made here, if their rules are never installed.
const REMEMBERED: Duration = Duration::from_secs(120);

impl Crowd {
    /// Whether a block is as it was, but for jobs that were added here. Those who added them write it again, and cannot have done so while we
    /// did: there is one writer. Whoever added others may have written between our reading and our writing.
    pub(super) fn is_as_before(&self, before: &GatewayBlock, after: &GatewayBlock) -> bool {
        let claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |forwarding: &&Forwarding| before.forwardings.contains(forwarding);
        let harmless = |forwarding: &Forwarding| !forwarding.closing && claimed.contains_key(&forwarding.job);
        before.forwardings.iter().all(|forwarding| after.forwardings.contains(forwarding))
            && after.forwardings.iter().filter(|forwarding| !known(forwarding)).all(harmless)
    }
}

impl Keyhole {
    /// Installs the rules of a grant, with those of others. Returns the targets that the gateway could not resolve, theirs among them.
    pub(super) fn install_together(&self, cluster: &Cluster, gateway: &dyn Gateway, grant: &Grant) -> Result<BTreeSet<String>> {
        let install = |all: &[BTreeSet<u16>]| {
            let blocks = all.iter().flatten().copied().collect();
            match self.install(cluster, gateway, &blocks, "install") {
                // Somebody holds a port of one of them, which is none of the others' business.
                Err(error) if error.kind == ErrorKind::Conflict && all.len() > 1 => {
                    Ok(all.iter().map(|blocks| self.install(cluster, gateway, blocks, "install")).collect())
                }
                result => Ok(vec![result; all.len()]),
            }
        };
        let crowd = self.crowd(cluster, gateway);
        let installed = crowd.installs.call(grant.blocks(), Instant::now() + PATIENCE, install);
        crowd.forget(grant);
        installed?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ports::Span;

    fn block(forwardings: &[(u64, bool)]) -> GatewayBlock {
        let one = |&(job, closing): &(u64, bool)| Forwarding {
            job,
            span: Span { external: 50000, internal: 50000, count: 1 },
            target: "c0".into(),
            closing,
        };
        GatewayBlock { forwardings: forwardings.iter().map(one).collect(), ..GatewayBlock::new("default", "gw", 500) }
    }

    #[test]
    fn only_what_was_claimed_here_and_is_still_to_be_installed_may_be_added_while_we_write() {
        let crowd = Crowd::default();
        crowd.claimed.lock().unwrap().insert(2, Instant::now());
        let same = |after: &[(u64, bool)]| crowd.is_as_before(&block(&[(1, false)]), &block(after));
        assert!(same(&[(1, false)]) && same(&[(1, false), (2, false)]));
        for after in [&[(1, true)][..], &[], &[(1, false), (3, false)], &[(2, false)], &[(1, false), (2, true)]] {
            assert!(!same(after), "{after:?}");
        }
    }
}
