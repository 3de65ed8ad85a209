//! The invariant checker: what store, scheduler and gateways say must fit together.
//!
//! A look takes the listings first and the records after them, or the other way round, so that what is under way is no disagreement: a
//! stranger must be unknown to records that are newer than the listing, a loss must be missing in a listing that is newer than the record.
//! What is left counts only if a second look shows it too.

mod compare;

use crate::cluster::Cluster;
use crate::domain::grant::{Closing, GatewayBlock, Grant, NodeBucket};
use crate::domain::job::{Job, Seen, parse_job_id};
use crate::domain::trail::Trace;
use crate::error::Result;
use crate::gateway::Installed;
use crate::keyhole::Keyhole;
use crate::scheduler::Wanted;
use crate::store::{Condition, Owner, Store};
use crate::watch::{jobs::JobsWatch, keyhole::KeyholeWatch};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Between two looks: longer than a grant, a withdrawal or a cancellation takes.
const SETTLE: Duration = Duration::from_secs(3);
/// What a mending program waits between its two cycles of each watcher: one look may be a moment's gap.
const BETWEEN_CYCLES: Duration = Duration::from_millis(500);

/// Something that does not fit together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Disagreement {
    /// Which kind: a fixed word.
    pub kind: &'static str,
    /// What exactly, in one sentence.
    pub what: String,
}

/// What an audit found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// What does not fit together.
    pub disagreements: Vec<Disagreement>,
    /// What could not be asked, and why: nothing is known about that.
    pub not_looked_at: Vec<String>,
    /// How many jobs, grants, rules were compared. Of the finished jobs all are counted, and those compared that the scheduler still shows.
    pub compared: BTreeMap<&'static str, usize>,
}

/// Everything that one look saw of a cluster.
#[derive(Default)]
pub struct Snapshot {
    jobs: Vec<Job>,
    /// Of the finished jobs those that the scheduler still shows.
    finished: Vec<Job>,
    /// How many finished jobs there are in all.
    finished_count: usize,
    grants: Vec<Grant>,
    owners: Vec<Owner>,
    buckets: Vec<NodeBucket>,
    traces: Vec<Trace>,
    trail_since: Option<Timestamp>,
    gateways: BTreeMap<String, GatewaySnapshot>,
    /// Names of this installation's jobs in the scheduler, listed before the records were read.
    names: Vec<String>,
    /// What the scheduler shows of these, and of all unfinished jobs, asked after the records were read.
    seen: Option<Vec<Seen>>,
    now: Timestamp,
}

/// What one look saw of a gateway.
#[derive(Default)]
struct GatewaySnapshot {
    /// Listed before the records were read. Nothing when it did not answer, or is not configured.
    before: Option<Installed>,
    /// Listed after the records were read.
    after: Option<Installed>,
    blocks: BTreeMap<u16, GatewayBlock>,
    closings: Vec<Closing>,
    condition: Condition,
}

/// Compares everything of these clusters, twice if anything does not fit at once. With `mend` it first does what the watchers would.
pub fn audit(store: &Arc<Store>, clusters: &[Arc<Cluster>], mend: bool) -> Result<Report> {
    let mut all = Report::default();
    for cluster in clusters {
        if mend {
            run_watchers(store, cluster);
        }
        let mut report = look(store, cluster)?;
        if !report.disagreements.is_empty() {
            thread::sleep(SETTLE);
            let first = std::mem::replace(&mut report, look(store, cluster)?);
            report.disagreements.retain(|disagreement| first.disagreements.contains(disagreement));
        }
        all.add(report);
    }
    Ok(all)
}

impl Report {
    fn add(&mut self, other: Self) {
        self.disagreements.extend(other.disagreements);
        self.not_looked_at.extend(other.not_looked_at);
        other.compared.into_iter().for_each(|(what, count)| *self.compared.entry(what).or_default() += count);
    }
}

/// Two cycles of each watcher, as a program would run them that leads. What fails is in the log, and in what the audit finds.
fn run_watchers(store: &Arc<Store>, cluster: &Arc<Cluster>) {
    let keyhole = Arc::new(Keyhole::new(Arc::clone(store), vec![Arc::clone(cluster)], 0, false));
    let mut jobs = JobsWatch::new(Arc::clone(store), Arc::clone(cluster), Duration::MAX);
    let mut services = KeyholeWatch::new(Arc::clone(store), Arc::clone(cluster), keyhole);
    for _ in 0..2 {
        for result in [jobs.cycle(), services.cycle()] {
            if let Err(error) = result {
                log::warn!("audit: {error}");
            }
        }
        thread::sleep(BETWEEN_CYCLES);
    }
}

/// One look at everything.
fn look(store: &Store, cluster: &Cluster) -> Result<Report> {
    let mut not_looked_at = Vec::new();
    let mut snapshot = Snapshot { now: Timestamp::now(), ..Snapshot::default() };
    // Without a number nothing was ever submitted.
    if let Some(installation) = store.installation_known()? {
        match cluster.scheduler.names("bwvisu-") {
            Ok(names) => snapshot.names = names.into_iter().filter(|name| is_ours(name, &installation)).collect(),
            Err(error) => not_looked_at.push(format!("the scheduler's jobs: {error}")),
        }
    }
    let before = listings(cluster, &mut not_looked_at);
    read(store, cluster, &mut snapshot)?;
    let names: BTreeSet<String> =
        snapshot.jobs.iter().map(|job| job.name.clone()).chain(snapshot.names.iter().cloned()).collect();
    let wanted: Vec<Wanted> = names.into_iter().map(|name| Wanted { name, scheduler_job_id: None }).collect();
    match cluster.scheduler.look(&wanted) {
        Ok(seen) => snapshot.seen = Some(seen),
        Err(error) => not_looked_at.push(format!("the state of jobs in the scheduler: {error}")),
    }
    let mut after = listings(cluster, &mut Vec::new());
    for (address, installed) in before {
        let gateway = snapshot.gateways.entry(address.clone()).or_default();
        gateway.before = Some(installed);
        gateway.after = after.remove(&address);
    }
    Ok(Report { disagreements: compare::compare(&snapshot), not_looked_at, compared: snapshot.counts() })
}

fn listings(cluster: &Cluster, not_looked_at: &mut Vec<String>) -> BTreeMap<String, Installed> {
    let mut listings = BTreeMap::new();
    for gateway in &cluster.gateways {
        match gateway.installed() {
            Ok(installed) => drop(listings.insert(gateway.address().to_owned(), installed)),
            Err(error) => not_looked_at.push(format!("the rules of gateway {}: {error}", gateway.address())),
        }
    }
    listings
}

/// All records. Each kind is read at one moment, finished jobs page by page, and not all kinds at the same one: the second look sorts that out.
fn read(store: &Store, cluster: &Cluster, snapshot: &mut Snapshot) -> Result<()> {
    let name = &cluster.name;
    let mut known: BTreeSet<String> = store.known_gateways(name)?.into_iter().collect();
    known.extend(cluster.gateways.iter().map(|gateway| gateway.address().to_owned()));
    let addresses: Vec<&str> = known.iter().map(String::as_str).collect();
    for (address, condition) in addresses.iter().zip(store.conditions(name, &addresses)?) {
        let gateway = snapshot.gateways.entry((*address).to_owned()).or_default();
        gateway.condition = condition;
        gateway.blocks = store.gateway_blocks(name, address)?;
        gateway.closings = store.closings(name, address)?;
    }
    snapshot.traces = store.open_traces(name)?;
    snapshot.trail_since = store.trail_since(name)?;
    snapshot.buckets = store.node_buckets(name)?;
    snapshot.grants = store.grants(name)?;
    snapshot.owners = store.owners(name)?;
    snapshot.jobs = store.active_jobs(name)?;
    let shown: BTreeSet<&String> = snapshot.names.iter().collect();
    (snapshot.finished_count, snapshot.finished) = store.finished_jobs(name, |job| shown.contains(&job.name))?;
    Ok(())
}

/// `bwvisu-ID-IIIIRRRRRRRR`, with this installation's number in it.
fn is_ours(name: &str, installation: &str) -> bool {
    let parts = name.strip_prefix("bwvisu-").and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(id, tail)| {
        let hex = tail.len() == 12 && tail.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex && tail.starts_with(installation) && parse_job_id(id).is_ok()
    })
}

impl Snapshot {
    fn counts(&self) -> BTreeMap<&'static str, usize> {
        let rules = self.gateways.values().filter_map(|gateway| gateway.after.as_ref());
        let closings = self.gateways.values().map(|gateway| gateway.closings.len());
        BTreeMap::from([
            ("jobs", self.jobs.len()),
            ("finished-jobs", self.finished_count),
            ("grants", self.grants.len()),
            ("closings", closings.sum()),
            ("scheduler-jobs", self.seen.as_ref().map_or(0, Vec::len)),
            ("rules", rules.flat_map(|installed| installed.blocks.values()).map(BTreeSet::len).sum()),
        ])
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
