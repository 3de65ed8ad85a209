//! The search for ports: free in the ledger, and closed on every node of the job as seen from a gateway.
//!
//! The range is looked through in windows of some blocks, from the place of the job's node on (`places`): one read of the ledger and one
//! round trip to the gateway per window, and usually the first one does.

use super::crowd::Crowd;
use super::places::Reservation;
use crate::cluster::Cluster;
use crate::domain::grant::{Former, GRANT_VERSION, Grant, GrantState};
use crate::domain::job::Job;
use crate::domain::ports::{BLOCK, Plan, PortRange, PortSet, Span, candidates, choose, spans, spans_of, windows};
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
/// Blocks of a window. A claim touches at most these and all buckets of nodes; moving it touches as many blocks again, and a transaction
/// has room for that.
const WINDOW_BLOCKS: u16 = 8;
const MAX_WINDOW_BLOCKS: u16 = 32;

/// One search.
pub(super) struct Search<'a> {
    pub store: &'a Store,
    pub crowd: &'a Crowd,
    pub cluster: &'a Cluster,
    pub gateway: &'a dyn Gateway,
    pub job: &'a Job,
    pub request: &'a Request,
    /// Where users found an earlier run.
    pub former: Option<&'a Former>,
}

/// Ports that are free, and not claimed yet.
pub(super) struct Found {
    grant: Grant,
    reservation: Reservation,
}

/// How the external ports follow from the internal ones.
#[derive(Clone, Copy)]
enum Outside<'a> {
    /// By the gateway's plan.
    Planned,
    /// They are given; the internal ones may be any.
    Kept(&'a [u16]),
}

impl Search<'_> {
    /// Finds ports and claims them: the external ones of the job's earlier run, where they are free. What was found before is tried first.
    pub fn run(&self, found: Option<Found>) -> Result<Grant> {
        if let Some(found) = found
            && let Some(grant) = self.claim(found)?
        {
            return Ok(grant);
        }
        if let Some(kept) = self.kept()?
            && let Some(grant) = self.search(Outside::Kept(&kept))?
        {
            return Ok(grant);
        }
        let nothing =
            || Error::busy(format!("no {} free ports on gateway {} and the job's nodes", self.wanted(), self.gateway.address()));
        self.search(Outside::Planned)?.ok_or_else(nothing)
    }

    /// Finds ports where the search would begin, and claims nothing.
    pub fn look_ahead(&self) -> Result<Option<Found>> {
        let mut busy = PortSet::default();
        match self.windows(Outside::Planned)?.first() {
            Some(&window) => self.find(window, Outside::Planned, 0, &mut busy).map(|(found, _)| found),
            None => Ok(None),
        }
    }

    fn claim(&self, found: Found) -> Result<Option<Grant>> {
        let Found { grant, reservation } = found;
        if self.crowd.claim(self.store, &grant)? {
            reservation.claimed();
            return Ok(Some(grant));
        }
        drop(reservation);
        self.give_way().map(|()| None)
    }

    fn wanted(&self) -> usize {
        self.request.ports as usize
    }

    fn search(&self, outside: Outside) -> Result<Option<Grant>> {
        let mut busy = PortSet::default();
        let mut rounds = 0;
        for window in self.windows(outside)? {
            while rounds < ROUNDS {
                let (found, looked) = self.find(window, outside, rounds, &mut busy)?;
                if !looked {
                    break;
                }
                rounds += 1;
                if let Some(found) = found
                    && let Some(grant) = self.claim(found)?
                {
                    return Ok(Some(grant));
                }
            }
        }
        Ok(None)
    }

    /// One look at a window: free ports, if it shows enough of them; and whether there were any worth looking at.
    fn find(&self, window: PortRange, outside: Outside, round: usize, busy: &mut PortSet) -> Result<(Option<Found>, bool)> {
        let (candidates, reservation) = self.candidates(window, outside, round, busy)?;
        if candidates.len() < self.wanted() {
            return Ok((None, false));
        }
        self.probe(&candidates, outside, busy)?;
        let free: Vec<u16> = candidates.into_iter().filter(|&port| !busy.contains(port)).collect();
        let found = |chosen: Vec<u16>| Found { grant: self.grant(&chosen, outside), reservation };
        Ok((choose(&free, self.wanted()).map(found), true))
    }

    /// The external ports of the job's earlier run, if it had as many and they are free.
    fn kept(&self) -> Result<Option<Vec<u16>>> {
        let Some(former) = self.former.filter(|former| former.external.len() == self.wanted()) else { return Ok(None) };
        let mut kept = former.external.clone();
        kept.sort_unstable();
        let blocks: BTreeSet<u16> = kept.iter().map(|port| port / BLOCK).collect();
        if blocks.len() > usize::from(MAX_WINDOW_BLOCKS) || !kept.iter().all(|&port| self.cluster.ports.contains(port)) {
            return Ok(None);
        }
        let taken = self.store.ledger(&self.cluster.name, self.gateway.address(), &blocks, &[])?.taken(&[]);
        if kept.iter().any(|&port| taken.external.contains(port)) {
            return Ok(None);
        }
        let here = |span: &Span| Target { host: self.gateway.address().to_owned(), ports: span.external_range() };
        let targets: Vec<Target> = spans_of(kept.iter().map(|&port| (port, port))).iter().map(here).collect();
        let in_use = !self.gateway.probe(&targets)?.open.is_empty();
        Ok((!in_use).then_some(kept))
    }

    /// Debugging aid: always the first ports of the range, whatever listens there.
    pub fn fixed(&self) -> Result<Grant> {
        let first = self.plan().internal().lo;
        let last = first.saturating_add(u16::try_from(self.request.ports).unwrap_or(u16::MAX) - 1);
        let grant = self.grant(&(first..=last).collect::<Vec<_>>(), Outside::Planned);
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

    /// The whole range in windows. The first is the rest of the block in which the job's node has its place, so that a small request lies in
    /// one block.
    ///
    /// For external ports that are given, the internal ones that go with them by plan come first.
    fn windows(&self, outside: Outside) -> Result<Vec<PortRange>> {
        let range = self.plan().internal();
        let ports = u16::try_from(self.request.ports).unwrap_or(u16::MAX);
        let step = (ports / BLOCK * 2 + WINDOW_BLOCKS).min(MAX_WINDOW_BLOCKS) * BLOCK;
        let node = self.request.nodes.first().map_or("", String::as_str);
        let start = self.crowd.places.place(node, range, ports, u64::from_be_bytes(random()?));
        let mut all = windows(range, step, start, ports);
        if ports <= BLOCK {
            let hi = (start / BLOCK * BLOCK).saturating_add(BLOCK - 1).min(range.hi);
            all.insert(0, PortRange { lo: start, hi });
        }
        if let Outside::Kept(kept) = outside
            && let (Some(&first), Some(&last)) = (kept.first(), kept.last())
            && let (Some(lo), Some(hi)) = (self.plan().internal_of(first), self.plan().internal_of(last))
            && hi - lo < MAX_WINDOW_BLOCKS * BLOCK
        {
            all.insert(0, PortRange { lo, hi });
        }
        Ok(all)
    }

    /// As many as needed; later some more, since one of them turned out to be in use.
    fn candidates(&self, window: PortRange, outside: Outside, round: usize, busy: &PortSet) -> Result<(Vec<u16>, Reservation)> {
        let (plan, wanted) = (self.plan(), self.wanted());
        let blocks: BTreeSet<u16> = plan.blocks(window).collect();
        let ledger = self.store.ledger(&self.cluster.name, self.gateway.address(), &blocks, &self.request.nodes)?;
        let taken = ledger.taken(&self.request.nodes);
        let planned = matches!(outside, Outside::Planned);
        let unusable = |port| {
            busy.contains(port) || taken.internal.contains(port) || (planned && taken.external.contains(plan.external(port)))
        };
        let more = if round == 0 { 0 } else { wanted / 4 + 4 };
        // A job that begins anew wants what it has just given back.
        let choose =
            |reserved: &PortSet| candidates(window, wanted + more, |port| unusable(port) || (planned && reserved.contains(port)));
        Ok(self.crowd.places.reserve(choose))
    }

    /// Adds those of `ports` to `busy` that somebody listens on: on any node, by either of its names, or on the gateway itself.
    fn probe(&self, ports: &[u16], outside: Outside, busy: &mut PortSet) -> Result<()> {
        let plan = self.plan();
        let must_answer: BTreeSet<String> = self.request.nodes.iter().map(|node| self.target(node)).collect();
        let nodes = must_answer.iter().chain(&self.request.nodes).cloned().collect::<BTreeSet<_>>();
        let ranges = spans(ports, plan);
        let mut targets: Vec<Target> = Vec::new();
        for span in &ranges {
            targets.extend(nodes.iter().map(|host| Target { host: host.clone(), ports: span.internal_range() }));
            if matches!(outside, Outside::Planned) {
                targets.push(Target { host: self.gateway.address().to_owned(), ports: span.external_range() });
            }
        }
        let probe = self.crowd.probe(self.gateway, targets)?;
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

    fn grant(&self, ports: &[u16], outside: Outside) -> Grant {
        let spans = match outside {
            Outside::Planned => spans(ports, self.plan()),
            Outside::Kept(kept) => spans_of(ports.iter().copied().zip(kept.iter().copied())),
        };
        Grant {
            version: GRANT_VERSION,
            cluster: self.cluster.name.clone(),
            job: self.job.id,
            run: self.request.run,
            nonce: self.request.nonce.to_string(),
            state: GrantState::Claimed,
            confirmed: false,
            attempt: 0,
            gateway: self.gateway.address().to_owned(),
            external_ip: self.gateway.external_ip().to_owned(),
            nodes: self.request.nodes.clone(),
            target: self.request.nodes.first().map(|node| self.target(node)).unwrap_or_default(),
            spans,
            granted_at: Timestamp::now(),
        }
    }
}
