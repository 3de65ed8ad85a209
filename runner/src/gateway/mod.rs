//! The door to a gateway: `iptables` and `nc` over ssh ([`iptables`]), or a relay in user space on this machine ([`relay`]).

pub mod iptables;
pub mod relay;

use crate::domain::ports::{Numbering, PortRange, Span};
use crate::error::Result;
use std::collections::{BTreeMap, BTreeSet};

/// One forwarding as it is installed on a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The cluster of the job it belongs to.
    pub cluster: String,
    /// The job it belongs to.
    pub job: u64,
    /// External and internal ports.
    pub span: Span,
    /// The host that it forwards to, as a name or an address.
    pub target: String,
}

/// Ports of one host to look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// A host name or address, to be resolved on the gateway.
    pub host: String,
    /// Its ports.
    pub ports: PortRange,
}

/// What a probe saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// Host and port of everything that accepted a connection, or, on the gateway itself, that is listened on.
    pub open: BTreeSet<(String, u16)>,
    /// Hosts that could not be asked to the end (unknown name, no route, no answer in time): nothing is known about those
    /// of their ports that are not in `open`.
    pub unreachable: BTreeSet<String>,
}

impl FromIterator<Probe> for Probe {
    fn from_iter<T: IntoIterator<Item = Self>>(probes: T) -> Self {
        let mut all = Self::default();
        for probe in probes {
            all.open.extend(probe.open);
            all.unreachable.extend(probe.unreachable);
        }
        all
    }
}

/// What is installed on a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// Our rules by block, exactly as a rule that should be there would be listed. A block that has a place on the gateway but no
    /// rules is listed as empty.
    pub blocks: BTreeMap<u16, BTreeSet<Rule>>,
    /// Whether everything that the rules need around them is there (chains, jumps, masquerading).
    pub ready: bool,
}

/// What the verbs ask of a gateway. Everything may be repeated.
pub trait Gateway: Send + Sync {
    /// The gateway's internal address: its key in the store.
    fn address(&self) -> &str;

    /// The address that users connect to.
    fn external_ip(&self) -> &str;

    /// How external ports follow from internal ones here.
    fn numbering(&self) -> Numbering;

    /// Which of the targets accept a connection, seen from the gateway: one round trip, however many they are.
    fn probe(&self, targets: &[Target]) -> Result<Probe>;

    /// What a probe of each target by itself sees, still in one round trip: one that is silent holds up no other. Costs more.
    fn probe_apart(&self, targets: &[Target]) -> Result<Vec<Probe>> {
        Ok(vec![self.probe(targets)?; targets.len()])
    }

    /// Makes each of these blocks hold exactly these rules, all at once; other blocks, and whatever is not ours, stay as they are.
    /// Returns the targets whose names the gateway could not resolve: their rules alone are as they were before, or missing.
    ///
    /// After any error but `Unknown` nothing of it is installed. `Conflict` when somebody else holds one of the ports.
    fn apply(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>>;

    /// The same, and everything around the blocks is made anew: for a gateway that [`Installed::ready`] says is not ready.
    fn set_up(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>>;

    /// What is installed now.
    fn installed(&self) -> Result<Installed>;
}
