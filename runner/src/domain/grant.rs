//! Grants: which ports a job was given, and the two ledgers that keep a port from being given twice.
//!
//! A *gateway block* lists the forwardings in one block of a gateway's external ports: it is at once the ledger of those ports
//! and the list of rules that should be installed. A *node bucket* lists the internal ports that are taken on some of the
//! compute nodes; all nodes of a cluster share [`BUCKETS`] of them, because one transaction of etcd holds 128
//! operations and a job may have thousands of nodes.

use super::job::Service;
use super::ports::{BLOCK, PortRange, PortSet, Span};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};

/// The version of the records in this module that this program writes.
pub const GRANT_VERSION: u32 = 2;

/// How many buckets the nodes of a cluster share.
pub const BUCKETS: u16 = 48;

/// How far a grant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantState {
    /// The ports are taken; the rules may not be there yet.
    Claimed,
    /// The rules were installed and the answer may have been given.
    Active,
    /// The job has its answer, and its forwardings move to another gateway, whose rules may not be there yet.
    Moving,
    /// As version 1 wrote it: the rules are being removed. Today a [`Closing`] of its own says so.
    Closing,
}

/// What one run of a job was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Grant {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The job.
    pub job: u64,
    /// The run of the job that asked (0 is the first).
    pub run: u32,
    /// The number that the request carried: the same request gets the same answer.
    pub nonce: String,
    /// How far it is.
    pub state: GrantState,
    /// The job said that it has its answer: the request is used up.
    pub confirmed: bool,
    /// How many tries have gone on with this claim after the first one.
    #[serde(default)]
    pub attempt: u32,
    /// The gateway's internal address, its key everywhere.
    pub gateway: String,
    /// The gateway's public address.
    pub external_ip: String,
    /// The nodes of the job.
    pub nodes: Vec<String>,
    /// The host that the rules forward to.
    pub target: String,
    /// The ports.
    pub spans: Vec<Span>,
    /// When the ports were taken.
    pub granted_at: Timestamp,
}

impl Grant {
    /// The forwardings for front ends, in the order of the job's variables.
    pub fn services(&self) -> Vec<Service> {
        let service =
            |(internal_port, external_port)| Service { internal_port, external_port, external_ip: self.external_ip.clone() };
        self.spans.iter().flat_map(|span| span.pairs()).map(service).collect()
    }

    /// How many ports it holds.
    pub fn ports(&self) -> u32 {
        count(&self.spans)
    }

    /// The blocks of the gateway that hold its ports.
    pub fn blocks(&self) -> BTreeSet<u16> {
        blocks(&self.spans)
    }

    /// Where its users find it, for the job's next run.
    pub fn former(&self) -> Former {
        let external = self.spans.iter().flat_map(|span| span.external_range().ports()).collect();
        Former { gateway: self.gateway.clone(), external }
    }

    /// What is left to be done on its gateway when it ends there.
    pub fn closing(&self, now: Timestamp) -> Closing {
        Closing {
            version: GRANT_VERSION,
            cluster: self.cluster.clone(),
            gateway: self.gateway.clone(),
            job: self.job,
            nodes: self.nodes.clone(),
            spans: self.spans.clone(),
            since: now,
        }
    }
}

/// Forwardings that have to be removed from a gateway. Their ports stay taken until that is done for certain, however long the gateway
/// does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Closing {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The gateway's internal address.
    pub gateway: String,
    /// The job that had them.
    pub job: u64,
    /// The nodes on which the internal ports stay taken as well: as long as the rules are there, they lead to whoever listens there.
    pub nodes: Vec<String>,
    /// The ports.
    pub spans: Vec<Span>,
    /// When they were given up.
    pub since: Timestamp,
}

impl Closing {
    /// How many external ports it holds.
    pub fn ports(&self) -> u32 {
        count(&self.spans)
    }

    /// The blocks of the gateway that hold its ports.
    pub fn blocks(&self) -> BTreeSet<u16> {
        blocks(&self.spans)
    }

    /// The first external port, which names it.
    pub fn first_port(&self) -> u16 {
        self.spans.first().map_or(0, |span| span.external)
    }
}

/// Where the users of a job's earlier run found it: the next run is to be found there too, if that is possible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// The gateway's internal address.
    pub gateway: String,
    /// Its external ports, in the order of the job's variables.
    pub external: Vec<u16>,
}

fn count(spans: &[Span]) -> u32 {
    spans.iter().map(|span| u32::from(span.count)).sum()
}

fn blocks(spans: &[Span]) -> BTreeSet<u16> {
    spans.iter().map(|span| span.block()).collect()
}

/// One forwarding of a gateway block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forwarding {
    /// The job.
    pub job: u64,
    /// The ports.
    pub span: Span,
    /// The host that it forwards to.
    pub target: String,
    /// Its rule is to be removed; the ports are still taken.
    #[serde(default)]
    pub closing: bool,
}

/// The forwardings in ports `block * 100 ..= block * 100 + 99` of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GatewayBlock {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The gateway's internal address.
    pub gateway: String,
    /// Which block.
    pub block: u16,
    /// What is in it.
    pub forwardings: Vec<Forwarding>,
}

impl GatewayBlock {
    /// An empty block.
    pub fn new(cluster: &str, gateway: &str, block: u16) -> Self {
        Self { version: GRANT_VERSION, cluster: cluster.into(), gateway: gateway.into(), block, forwardings: Vec::new() }
    }

    /// The external ports that a block covers.
    pub fn range(block: u16) -> PortRange {
        PortRange { lo: block * BLOCK, hi: (block * BLOCK).saturating_add(BLOCK - 1) }
    }

    /// Adds a grant's forwardings that lie in this block.
    pub fn add(&mut self, grant: &Grant) {
        let ours = grant.spans.iter().filter(|span| span.block() == self.block);
        self.forwardings.extend(ours.map(|&span| Forwarding {
            job: grant.job,
            span,
            target: grant.target.clone(),
            closing: false,
        }));
    }

    /// Marks these forwardings of a job as to be removed.
    pub fn close(&mut self, job: u64, spans: &[Span]) {
        self.forwardings.iter_mut().filter(|f| f.job == job && spans.contains(&f.span)).for_each(|f| f.closing = true);
    }

    /// Forgets these forwardings of a job: their ports are free.
    pub fn remove(&mut self, job: u64, spans: &[Span]) {
        self.forwardings.retain(|f| !(f.job == job && f.closing && spans.contains(&f.span)));
    }

    /// The external ports that are taken.
    pub fn taken(&self) -> impl Iterator<Item = u16> + '_ {
        self.forwardings.iter().flat_map(|f| f.span.external_range().ports())
    }
}

/// The internal ports that jobs have on some nodes: for each node, ranges with their jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeBucket {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// Which bucket.
    pub bucket: u16,
    /// Node → what is taken there.
    pub nodes: BTreeMap<String, Vec<NodePorts>>,
}

/// Ports that one job has on one node. It is written as a list without names, `[job,[lo,hi]]`: each claim and each release writes a whole bucket, which made
/// up most of what went to the database. What was written with names is read as well.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodePorts {
    /// The job.
    pub job: u64,
    /// The ports.
    pub ports: PortRange,
}

impl Serialize for NodePorts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.job, (self.ports.lo, self.ports.hi)).serialize(serializer)
    }
}

impl NodeBucket {
    /// An empty bucket.
    pub fn new(cluster: &str, bucket: u16) -> Self {
        Self { version: GRANT_VERSION, cluster: cluster.into(), bucket, nodes: BTreeMap::new() }
    }

    /// Adds a grant's ports on those of its nodes that belong to this bucket.
    pub fn add(&mut self, grant: &Grant) {
        for node in grant.nodes.iter().filter(|node| bucket(node) == self.bucket) {
            let ports = grant.spans.iter().map(|span| NodePorts { job: grant.job, ports: span.internal_range() });
            self.nodes.entry(node.clone()).or_default().extend(ports);
        }
    }

    /// Forgets these ports of a job on some nodes. A job that was moved has the same ports for each gateway that leads to them, so each
    /// range goes once.
    pub fn remove(&mut self, job: u64, nodes: &[String], spans: &[Span]) {
        for (node, span) in nodes.iter().flat_map(|node| spans.iter().map(move |span| (node, span))) {
            let taken = self.nodes.get_mut(node);
            let here = |entry: &NodePorts| entry.job == job && entry.ports == span.internal_range();
            if let Some(taken) = taken
                && let Some(at) = taken.iter().position(here)
            {
                taken.remove(at);
            }
        }
        self.nodes.retain(|_, taken| !taken.is_empty());
    }

    /// Adds to `set` the ports that are taken on any of `nodes`.
    pub fn taken(&self, nodes: &[String], set: &mut PortSet) {
        for taken in nodes.iter().filter_map(|node| self.nodes.get(node)).flatten() {
            set.insert_range(taken.ports);
        }
    }
}

/// Written while a gateway does not answer the watcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Silence {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The gateway's internal address.
    pub gateway: String,
    /// When it first did not answer.
    pub since: Timestamp,
    /// What the watcher was told instead.
    pub reason: String,
}

/// Written while an admin has drained a gateway: nothing new goes there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Drain {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The gateway's internal address.
    pub gateway: String,
    /// Since when.
    pub since: Timestamp,
}

/// How many ports a gateway forwards, for the choice of the least loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GatewayLoad {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The gateway's internal address.
    pub gateway: String,
    /// Ports that are taken on it.
    pub ports: u32,
}

/// The bucket of a node: any fixed function will do (this is FNV-1a), as long as all versions agree.
pub fn bucket(node: &str) -> u16 {
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    u16::try_from(hash % u64::from(BUCKETS)).unwrap_or(0)
}

/// The buckets of several nodes.
pub fn buckets(nodes: &[String]) -> BTreeSet<u16> {
    nodes.iter().map(|node| bucket(node)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            version: GRANT_VERSION,
            cluster: "default".into(),
            job: 17,
            run: 0,
            nonce: "00".into(),
            state: GrantState::Claimed,
            confirmed: false,
            attempt: 0,
            gateway: "10.0.0.1".into(),
            external_ip: "203.0.113.1".into(),
            nodes: vec!["c0".into(), "c1".into()],
            target: "c0-ib0".into(),
            spans: vec![Span { external: 50099, internal: 50099, count: 1 }, Span { external: 50100, internal: 50100, count: 2 }],
            granted_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_block_takes_its_own_spans_and_frees_them_when_the_job_is_removed() {
        let mut block = GatewayBlock::new("default", "10.0.0.1", 501);
        block.add(&grant());
        assert_eq!(block.taken().collect::<Vec<_>>(), [50100, 50101]);
        block.remove(17, &grant().spans);
        assert_eq!(block.taken().count(), 2, "only what was closed is removed");
        block.close(17, &grant().spans);
        assert_eq!(block.taken().count(), 2, "a closing forwarding still takes its ports");
        block.remove(17, &grant().spans[..1]);
        assert_eq!(block.taken().count(), 2, "another span of the job");
        block.remove(17, &grant().spans);
        assert_eq!(block.taken().count(), 0);
    }

    #[test]
    fn a_bucket_knows_what_is_taken_on_which_node() {
        let mut ports = NodeBucket::new("default", bucket("c0"));
        ports.add(&grant());
        let taken = |node: &str, ports: &NodeBucket| {
            let mut set = PortSet::default();
            ports.taken(&[node.to_owned()], &mut set);
            set.contains(50099) && set.contains(50101)
        };
        assert!(taken("c0", &ports));
        assert!(!taken("c9", &ports));
        ports.remove(17, &["c0".into()], &[Span { external: 1, internal: 51000, count: 9 }]);
        assert!(taken("c0", &ports), "other ports of the job");
        // As while two gateways lead to the same ports.
        ports.add(&grant());
        ports.remove(17, &grant().nodes, &grant().spans);
        assert!(taken("c0", &ports), "for the other gateway");
        ports.remove(17, &grant().nodes, &grant().spans);
        assert!(!taken("c0", &ports) && ports.nodes.is_empty());
    }

    #[test]
    fn services_are_in_the_order_of_the_ports() {
        assert_eq!(grant().services().iter().map(|s| s.external_port).collect::<Vec<_>>(), [50099, 50100, 50101]);
    }

    #[test]
    fn the_bucket_of_a_node_never_changes() {
        assert_eq!((bucket("c0"), bucket("c1"), bucket("node001")), (22, 41, 12), "stored ledgers depend on it");
        assert!((0..10_000).map(|i| bucket(&format!("n{i}"))).all(|b| b < BUCKETS));
    }
}
