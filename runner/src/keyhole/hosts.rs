//! Whether the hosts of a request are the job's own, which only the scheduler knows; and what can be done while it is asked.

use super::search::{Found, Search};
use super::{Keyhole, Refusal};
use crate::cluster::Cluster;
use crate::domain::job::{Job, Phase, Seen};
use crate::error::{Error, Result};
use crate::gateway::Gateway;
use crate::logging::id;
use crate::scheduler::Wanted;
use crate::together::Together;
use jiff::Timestamp;
use keyhole_protocol::Request;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Looks at one scheduler, as [`Keyhole`] shares them.
pub(super) type Lookout = Together<Wanted, Arc<Vec<Seen>>>;

/// How many jobs are asked for in one look at the scheduler, how many looks are under way where one takes so long, and how long a request
/// waits for one.
const MOST: usize = 64;
const LOOKS: usize = 2;
const SLOW: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(45);
/// Nodes of which we remember that the scheduler has named them.
const KNOWN_NODES: usize = 50_000;

/// What was found while the scheduler was asked: ports on the first of these gateways.
pub(super) struct Ahead<'a> {
    pub(super) gateways: Vec<&'a dyn Gateway>,
    pub(super) found: Found,
}

enum Verdict {
    Fine,
    Early,
    Wrong(&'static str),
}

fn judge(seen: &Seen, request: &Request) -> Verdict {
    let own: BTreeSet<&String> = seen.nodes.iter().collect();
    match seen.phase {
        Phase::Waiting | Phase::Unclear(_) => Verdict::Early,
        Phase::Running if seen.run != request.run => Verdict::Wrong("not the job's present run"),
        Phase::Running if !request.nodes.iter().all(|node| own.contains(node)) => Verdict::Wrong("hosts that are not the job's"),
        Phase::Running => Verdict::Fine,
        _ => Verdict::Wrong("the job has ended"),
    }
}

impl Keyhole {
    /// The hosts must be the job's own, and the run the present one, as the scheduler says now.
    pub(super) fn check_hosts(&self, cluster: &Cluster, job: &Job, request: &Request, peer: IpAddr) -> Result<()> {
        // Who can make the look fail must not make it fail again and again for those who are asked for with them.
        let all = self.look_together(cluster, job).inspect_err(|_| self.patience.asked_early(job.id))?;
        let Some(seen) = all.iter().find(|seen| job.is(seen)) else {
            self.patience.asked_early(job.id);
            return Err(Error::unavailable("the scheduler does not show the job yet; try again"));
        };
        match judge(seen, request) {
            Verdict::Fine => {}
            Verdict::Early => {
                self.patience.asked_early(job.id);
                return Err(Error::unavailable("the scheduler does not show the job as running yet; try again"));
            }
            Verdict::Wrong(reason) => {
                self.patience.lose(job.id);
                return Err(self.refuse(Refusal(reason), job.id, peer));
            }
        }
        self.remember_nodes(cluster, &seen.nodes);
        self.store.update_job(&job.cluster, job.id, "observe", |job| job.observe(seen, Timestamp::now()))?;
        Ok(())
    }

    /// What the scheduler shows of a job, and of others that are asked for at the same time.
    fn look_together(&self, cluster: &Cluster, job: &Job) -> Result<Arc<Vec<Seen>>> {
        let lookout = {
            let mut lookouts = self.lookouts.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Together::of_at_most(MOST).past_slow_ones(LOOKS, SLOW));
            Arc::clone(lookouts.entry(cluster.name.clone()).or_insert_with(new))
        };
        lookout.call(Wanted::from(job), Instant::now() + PATIENCE, |wanted| {
            let seen = Arc::new(cluster.scheduler.look(wanted)?);
            Ok(vec![seen; wanted.len()])
        })
    }

    /// The same, and meanwhile a look for ports: the answers of scheduler and gateway take about as long. Only at nodes that the scheduler has
    /// named before, so that nobody has a gateway look at a host of their choice.
    pub(super) fn check_and_look<'a>(
        &'a self,
        cluster: &'a Cluster,
        job: &Job,
        request: &Request,
        peer: IpAddr,
    ) -> Result<Option<Ahead<'a>>> {
        if request.run > 0 || self.static_forwarding || !self.knows_nodes(cluster, &request.nodes) {
            return self.check_hosts(cluster, job, request, peer).map(|()| None);
        }
        let work = id::work();
        thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let _work = id::inherited(work);
                self.look_ahead(cluster, job, request)
            });
            let checked = self.check_hosts(cluster, job, request, peer);
            // What went wrong with the look shows again when it is repeated.
            let found = looking.join().ok().and_then(Result::ok).flatten();
            checked.map(|()| found)
        })
    }

    fn look_ahead<'a>(&'a self, cluster: &'a Cluster, job: &Job, request: &Request) -> Result<Option<Ahead<'a>>> {
        let gateways = self.choice(cluster, None)?;
        let Some(&gateway) = gateways.first() else { return Ok(None) };
        let crowd = self.crowd(cluster, gateway);
        let search = Search { store: &self.store, crowd: &crowd, cluster, gateway, job, request, former: None };
        Ok(search.look_ahead()?.map(|found| Ahead { gateways, found }))
    }

    fn knows_nodes(&self, cluster: &Cluster, nodes: &[String]) -> bool {
        let known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().all(|node| known.contains(&format!("{}/{node}", cluster.name)))
    }

    fn remember_nodes(&self, cluster: &Cluster, nodes: &[String]) {
        let mut known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > KNOWN_NODES {
            known.clear();
        }
        known.extend(nodes.iter().map(|node| format!("{}/{node}", cluster.name)));
    }
}
