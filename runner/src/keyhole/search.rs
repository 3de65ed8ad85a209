//! The search for ports: free in the ledger, and closed on every node of the job as seen from a gateway.
//!
//! The range is looked through in windows of some blocks, from a random place on: one read of the ledger and one round trip to the
//! gateway per window, and usually the first one does.

use crate::cluster::Cluster;
use crate::domain::grant::{GRANT_VERSION, Grant, GrantState};
use crate::domain::job::Job;
use crate::domain::ports::{BLOCK, Plan, PortRange, PortSet, candidates, choose, spans, windows};
use crate::error::{Error, Result};
use crate::gateway::{Gateway, Target};
use crate::jobs::random;
use crate::store::Store;
use jiff::Timestamp;
use keyhole_protocol::Request;
use std::collections::BTreeSet;

/// Round trips to the gateway at most: each one finds some ports to be open that nobody wrote down, so something is badly wrong after
/// that many.
const ROUNDS: usize = 24;
/// Blocks of a window. A claim touches at most these, and a transaction has room for 64.
const WINDOW_BLOCKS: u16 = 8;
const MAX_WINDOW_BLOCKS: u16 = 60;

/// One search.
pub struct Search<'a> {
    pub store: &'a Store,
    pub cluster: &'a Cluster,
    pub gateway: &'a dyn Gateway,
    pub job: &'a Job,
    pub request: &'a Request,
}

impl Search<'_> {
    /// Finds ports and claims them.
    pub fn run(&self) -> Result<Grant> {
        let wanted = self.request.ports as usize;
        let mut busy = PortSet::default();
        let mut rounds = 0;
        for window in self.windows()? {
            while rounds < ROUNDS {
                let candidates = self.candidates(window, wanted, &busy)?;
                if candidates.len() < wanted {
                    break;
                }
                rounds += 1;
                self.probe(&candidates, &mut busy)?;
                let free: Vec<u16> = candidates.into_iter().filter(|&port| !busy.contains(port)).collect();
                let Some(chosen) = choose(&free, wanted) else { continue };
                let grant = self.grant(&chosen);
                if self.store.claim(&grant)? {
                    return Ok(grant);
                }
                self.give_way()?;
            }
        }
        Err(Error::busy(format!("no {wanted} free ports on gateway {} and the job's nodes", self.gateway.address())))
    }

    /// Debugging aid: always the first ports of the range, whatever listens there.
    pub fn fixed(&self) -> Result<Grant> {
        let first = self.plan().internal().lo;
        let last = first.saturating_add(u16::try_from(self.request.ports).unwrap_or(u16::MAX) - 1);
        let grant = self.grant(&(first..=last).collect::<Vec<_>>());
        if self.store.claim(&grant)? {
            return Ok(grant);
        }
        self.give_way()?;
        Err(Error::busy("static forwarding is on, and another job has the ports"))
    }

    /// Somebody else took a port, which is fine; or another thread answers the same job, which then has its grant: the client's
    /// next try gets that.
    fn give_way(&self) -> Result<()> {
        match self.store.grant(&self.cluster.name, self.job.id)? {
            Some(_) => Err(Error::conflict("the job's ports are being assigned just now; try again")),
            None => Ok(()),
        }
    }

    fn plan(&self) -> Plan {
        Plan { range: self.cluster.ports, numbering: self.gateway.numbering() }
    }

    /// The whole range in windows, beginning anywhere: jobs that start together do not meet, nor do several installations on one
    /// machine. A small request lies within one block.
    fn windows(&self) -> Result<Vec<PortRange>> {
        let range = self.plan().internal();
        let ports = u16::try_from(self.request.ports).unwrap_or(u16::MAX);
        let step = (ports / BLOCK * 2 + WINDOW_BLOCKS).min(MAX_WINDOW_BLOCKS) * BLOCK;
        let random = |below: usize| Ok(u64::from_be_bytes(random()?) % below.max(1) as u64);
        let block = random(range.len() / usize::from(BLOCK))?;
        let within = random(usize::from(BLOCK.saturating_sub(ports)).min(range.len()))?;
        let start = u64::from(range.lo) + block * u64::from(BLOCK) + within;
        let start = u16::try_from(start).unwrap_or(range.hi).min(range.hi);
        Ok(windows(range, step, start, ports))
    }

    /// Some more than needed, since one of them may turn out to be in use.
    fn candidates(&self, window: PortRange, wanted: usize, busy: &PortSet) -> Result<Vec<u16>> {
        let plan = self.plan();
        let blocks: BTreeSet<u16> = plan.blocks(window).collect();
        let ledger = self.store.ledger(&self.cluster.name, self.gateway.address(), &blocks, &self.request.nodes)?;
        let taken = ledger.taken(&self.request.nodes);
        let unusable =
            |port| busy.contains(port) || taken.internal.contains(port) || taken.external.contains(plan.external(port));
        Ok(candidates(window, wanted + wanted / 4 + 4, unusable))
    }

    /// Adds those of `ports` to `busy` that somebody listens on: on any node, by either of its names, or on the gateway itself.
    fn probe(&self, ports: &[u16], busy: &mut PortSet) -> Result<()> {
        let plan = self.plan();
        let must_answer: BTreeSet<String> = self.request.nodes.iter().map(|node| self.target(node)).collect();
        let nodes = must_answer.iter().chain(&self.request.nodes).cloned().collect::<BTreeSet<_>>();
        let ranges = spans(ports, plan);
        let mut targets: Vec<Target> = Vec::new();
        for span in &ranges {
            targets.extend(nodes.iter().map(|host| Target { host: host.clone(), ports: span.internal_range() }));
            targets.push(Target { host: self.gateway.address().to_owned(), ports: span.external_range() });
        }
        let probe = self.gateway.probe(&targets)?;
        if let Some(host) = probe.unreachable.intersection(&must_answer).next() {
            return Err(Error::bad_gateway(format!("gateway {} cannot reach {host}", self.gateway.address())));
        }
        let open_outside = |port: u16| probe.open.contains(&(self.gateway.address().to_owned(), plan.external(port)));
        let open_inside = |port: u16| nodes.iter().any(|host| probe.open.contains(&(host.clone(), port)));
        busy.extend(ports.iter().copied().filter(|&port| open_inside(port) || open_outside(port)));
        Ok(())
    }

    /// The name by which the gateway reaches a node.
    fn target(&self, node: &str) -> String {
        format!("{node}{}", self.cluster.hostname_suffix)
    }

    fn grant(&self, ports: &[u16]) -> Grant {
        Grant {
            version: GRANT_VERSION,
            cluster: self.cluster.name.clone(),
            job: self.job.id,
            run: self.request.run,
            nonce: self.request.nonce.to_string(),
            state: GrantState::Claimed,
            confirmed: false,
            gateway: self.gateway.address().to_owned(),
            external_ip: self.gateway.external_ip().to_owned(),
            nodes: self.request.nodes.clone(),
            target: self.request.nodes.first().map(|node| self.target(node)).unwrap_or_default(),
            spans: spans(ports, self.plan()),
            granted_at: Timestamp::now(),
        }
    }
}
