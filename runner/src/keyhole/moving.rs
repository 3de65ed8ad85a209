//! Moving forwardings away from a gateway that is down.
//!
//! 1. *move*: in one transaction the grant gets ports on another gateway, and what it had is closing;
//! 2. *install*: the rules there are made to be what the ledger says;
//! 3. *activate*: the grant is marked; from the next look on the job's services name the new address.
//!
//! Whatever is cut off, `watch::keyhole` goes on with: a grant that is `moving` lacks steps 2 and 3, and what is closing goes when the old
//! gateway answers again.

use super::Keyhole;
use crate::cluster::Cluster;
use crate::domain::grant::{Grant, GrantState};
use crate::domain::ports::{BLOCK, PortSet, candidates, choose, spans_of, windows};
use crate::error::{Error, Result};
use crate::gateway::{Gateway, Probe, Target};
use std::collections::BTreeSet;

/// Blocks that one look at the ledger covers when a job's own ports are taken on the new gateway.
const WINDOW_BLOCKS: u16 = 32;

impl Keyhole {
    /// Moves these grants, which are on gateways that are down, to others. Those that find no place stay as they are.
    pub fn move_away(&self, cluster: &Cluster, grants: &[&Grant]) -> Result<()> {
        let mut left: Vec<&Grant> = grants.to_vec();
        for gateway in self.choice(cluster, None)? {
            left.retain(|grant| grant.gateway != gateway.address());
            if left.is_empty() || self.rests(gateway.address()) {
                continue;
            }
            let moved = match self.claim_there(cluster, gateway, &left) {
                Ok(moved) => moved,
                Err(error) => {
                    // Another one may do better.
                    log::warn!("keyhole: nothing can be moved to gateway {}: {error}", gateway.address());
                    self.rest(gateway.address());
                    continue;
                }
            };
            left.retain(|grant| moved.iter().all(|moved| moved.job != grant.job));
            if let Err(error) = self.finish_moves(cluster, gateway, &moved) {
                log::warn!("keyhole: gateway {}: the forwardings moved there cannot be installed: {error}", gateway.address());
            }
        }
        Ok(())
    }

    /// Moves to `gateway` what finds a place there. One probe says what is free of all that the grants have now.
    fn claim_there(&self, cluster: &Cluster, gateway: &dyn Gateway, grants: &[&Grant]) -> Result<Vec<Grant>> {
        let same = |grant: &&Grant| grant.spans.iter().map(|span| span.external_range()).collect::<Vec<_>>();
        let outside = grants.iter().flat_map(same).map(|ports| Target { host: gateway.address().into(), ports });
        let inside = grants
            .iter()
            .flat_map(|grant| grant.spans.iter().map(|span| Target { host: grant.target.clone(), ports: span.internal_range() }));
        let probe = gateway.probe(&outside.chain(inside).collect::<Vec<_>>())?;
        let mut moved = Vec::new();
        for grant in grants {
            match self.claim_one(cluster, gateway, grant, &probe) {
                Ok(Some(grant)) => moved.push(grant),
                Ok(None) => {}
                Err(error) => log::warn!("keyhole: job {}: cannot be moved to {}: {error}", grant.job, gateway.address()),
            }
        }
        Ok(moved)
    }

    fn claim_one(&self, cluster: &Cluster, gateway: &dyn Gateway, grant: &Grant, probe: &Probe) -> Result<Option<Grant>> {
        if probe.unreachable.contains(&grant.target) {
            return Err(Error::bad_gateway(format!("it cannot reach {}", grant.target)));
        }
        let same: Vec<u16> = grant.spans.iter().flat_map(|span| span.external_range().ports()).collect();
        let in_use = |port: &u16| probe.open.contains(&(gateway.address().to_owned(), *port));
        if !same.iter().any(in_use)
            && let Some(moved) = self.claim_ports(grant, gateway, &same)?
        {
            return Ok(Some(moved));
        }
        let Some(others) = self.free_ports(cluster, gateway, same.len())? else {
            return Err(Error::busy("no ports are free there"));
        };
        self.claim_ports(grant, gateway, &others)
    }

    /// The move itself, if these ports are free there and the grant is still as it was.
    fn claim_ports(&self, grant: &Grant, gateway: &dyn Gateway, external: &[u16]) -> Result<Option<Grant>> {
        let internal = grant.spans.iter().flat_map(|span| span.internal_range().ports());
        let moved = Grant {
            state: GrantState::Moving,
            gateway: gateway.address().into(),
            external_ip: gateway.external_ip().into(),
            spans: spans_of(internal.zip(external.iter().copied())),
            ..grant.clone()
        };
        Ok(self.store.move_grant(grant, &moved)?.then_some(moved))
    }

    /// So many external ports of `gateway` that nobody has and that nothing listens on there.
    fn free_ports(&self, cluster: &Cluster, gateway: &dyn Gateway, wanted: usize) -> Result<Option<Vec<u16>>> {
        for window in windows(cluster.ports, WINDOW_BLOCKS * BLOCK, cluster.ports.lo, 0) {
            let blocks: BTreeSet<u16> = (window.lo / BLOCK..=window.hi / BLOCK).collect();
            let taken = self.store.ledger(&cluster.name, gateway.address(), &blocks, &[])?.taken(&[]);
            let free = candidates(window, wanted + wanted / 4 + 4, |port| taken.external.contains(port));
            let targets: Vec<Target> = spans_of(free.iter().map(|&port| (port, port)))
                .iter()
                .map(|span| Target { host: gateway.address().into(), ports: span.external_range() })
                .collect();
            let mut busy = PortSet::default();
            busy.extend(gateway.probe(&targets)?.open.into_iter().map(|(_, port)| port));
            let free: Vec<u16> = free.into_iter().filter(|&port| !busy.contains(port)).collect();
            if let Some(chosen) = choose(&free, wanted) {
                return Ok(Some(chosen));
            }
        }
        Ok(None)
    }

    /// Installs what was moved to `gateway`, all in one step, and marks it as done. May be repeated. A gateway that fails rests, and may lose
    /// what is on its way there to a third one.
    pub fn finish_moves(&self, cluster: &Cluster, gateway: &dyn Gateway, moved: &[Grant]) -> Result<()> {
        if moved.is_empty() {
            return Ok(());
        }
        let blocks = moved.iter().flat_map(Grant::blocks).collect();
        let unresolved =
            self.install(cluster, gateway, &blocks, "install-moved").inspect_err(|_| self.rest(gateway.address()))?;
        for grant in moved.iter().filter(|grant| !unresolved.contains(&grant.target)) {
            self.store.update_job(&grant.cluster, grant.job, "announce-move", |job| job.moves())?;
            self.store.update_grant(&grant.cluster, grant.job, "activate-moved", |current| {
                if current.state == GrantState::Moving && current.gateway == grant.gateway {
                    current.state = GrantState::Active;
                }
            })?;
            log::info!("keyhole: job {}: its forwardings are now on {} ({})", grant.job, grant.gateway, grant.external_ip);
        }
        Ok(())
    }
}
