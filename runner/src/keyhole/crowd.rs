//! What requests for ports of one gateway do together, so that a crowd of jobs that begin at once costs a few calls: looks at ports, claims,
//! rules. And where each of them looks for its ports, so that they do not meet.

use super::Keyhole;
use super::places::Places;
use crate::cluster::Cluster;
use crate::domain::grant::Grant;
use crate::error::{ErrorKind, Result};
use crate::gateway::{Gateway, Probe, Target};
use crate::store::Store;
use crate::together::Together;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many requests at most are dealt with in one call.
const MOST: usize = 64;
/// Looks that are under way at once: one that waits for a silent host must not hold up all others.
const LOOKS: usize = 3;
/// How long a request waits for what is done together, before and while it is done. What does it knows shorter limits.
const PATIENCE: Duration = Duration::from_secs(60);

/// The requests for ports of one gateway.
pub(super) struct Crowd {
    looks: Together<Vec<Target>, Arc<Probe>>,
    claims: Together<Grant, bool>,
    installs: Together<BTreeSet<u16>, Result<BTreeSet<String>>>,
    pub(super) places: Places,
}

impl Default for Crowd {
    fn default() -> Self {
        Self {
            looks: Together::of_at_most(MOST).batches_at_once(LOOKS),
            claims: Together::of_at_most(MOST),
            installs: Together::of_at_most(MOST),
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
        self.claims.call(grant.clone(), Instant::now() + PATIENCE, |grants| store.claim_all(grants))
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
        self.crowd(cluster, gateway).installs.call(grant.blocks(), Instant::now() + PATIENCE, install)?
    }
}
