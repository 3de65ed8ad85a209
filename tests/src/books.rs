//! The books and the world, compared without the runner: what the store says, what Slurm has, what the gateways hold.

use crate::bed::Bed;
use crate::gateway::{GATEWAYS, forwardings};
use crate::slurm::{Entry, Queue};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// All records of the cluster, by their keys behind the cluster's prefix.
pub struct Books(BTreeMap<String, Value>);

/// One forwarded port: gateway (its inside address), external port, internal port, job.
type Forward = (String, u64, u64, u64);

/// One port of a node: node, internal port, job.
type Inside = (String, u64, u64);

impl Books {
    /// What the store says now.
    pub fn read(bed: &Bed) -> Self {
        let prefix = "/bwvisu-runner/clusters/default/";
        let text = bed.sh("runner", &format!("ETCDCTL_API=3 etcdctl get --prefix {prefix}"));
        let lines: Vec<&str> = text.lines().collect();
        let record = |pair: &[&str]| (pair[0].trim_start_matches(prefix).to_owned(), serde_json::from_str(pair[1]).unwrap());
        Self(lines.chunks(2).map(record).collect())
    }

    /// The records whose keys begin so.
    pub fn under<'b>(&'b self, prefix: &'b str) -> impl Iterator<Item = (&'b str, &'b Value)> {
        self.0.iter().filter(move |(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.as_str(), value))
    }

    /// The ids below such a prefix: unfinished jobs below `jobs/`.
    fn ids(&self, prefix: &str) -> BTreeSet<u64> {
        self.under(prefix).map(|(key, _)| key[prefix.len()..].parse().unwrap()).collect()
    }

    /// What lies under this prefix on the gateways: `blocks`, `closing`, `load`, `silent`, `drain`.
    fn of_gateways<'b>(&'b self, kind: &'b str) -> impl Iterator<Item = (&'b str, &'b Value)> {
        let split = |key: &'b str| key.strip_prefix("gateways/").and_then(|rest| rest.split_once('/'));
        let found = self.0.iter().filter_map(move |(key, value)| split(key).map(|(gateway, rest)| (gateway, rest, value)));
        found.filter(move |(_, rest, _)| rest.split('/').next() == Some(kind)).map(|(gateway, _, value)| (gateway, value))
    }

    /// The forwardings that the ledgers of external ports list, with whether they are closing.
    fn listed(&self) -> Vec<(Forward, bool)> {
        let of_block = |(gateway, block): (&str, &Value)| {
            let of_one = |forwarding: &Value| {
                let (job, closing) = (number(&forwarding["job"]), forwarding["closing"] == true);
                ports(gateway, job, &forwarding["span"]).into_iter().map(move |port| (port, closing)).collect::<Vec<_>>()
            };
            list(&block["forwardings"]).iter().flat_map(of_one).collect::<Vec<_>>()
        };
        self.of_gateways("blocks").flat_map(of_block).collect()
    }

    /// The forwardings that the grants speak of.
    fn granted(&self) -> BTreeSet<Forward> {
        let of_grant = |(_, grant): (&str, &Value)| {
            let (gateway, job) = (grant["gateway"].as_str().unwrap().to_owned(), number(&grant["job"]));
            list(&grant["spans"]).iter().flat_map(|span| ports(&gateway, job, span)).collect::<Vec<_>>()
        };
        self.under("grants/").flat_map(of_grant).collect()
    }

    /// Node, internal port and job: by the grants and what is closing, or by the ledger of internal ports.
    fn on_nodes(&self) -> [BTreeSet<Inside>; 2] {
        let holders =
            self.under("grants/").map(|(_, grant)| grant).chain(self.of_gateways("closing").map(|(_, closing)| closing));
        let of_holder = |holder: &Value| {
            let inside =
                list(&holder["spans"]).iter().flat_map(|span| ports("", number(&holder["job"]), span)).collect::<Vec<_>>();
            let on = |node: &Value| inside.iter().map(|port| (text(node), port.2, port.3)).collect::<Vec<_>>();
            list(&holder["nodes"]).iter().flat_map(on).collect::<Vec<_>>()
        };
        let taken = |(node, entries): (&String, &Value)| {
            let range = |entry: &Value| {
                let (lo, hi, job) = (number(&entry[1][0]), number(&entry[1][1]), number(&entry[0]));
                (lo..=hi).map(|port| (node.clone(), port, job)).collect::<Vec<_>>()
            };
            list(entries).iter().flat_map(range).collect::<Vec<_>>()
        };
        let buckets = self.under("nodes/").map(|(_, bucket)| bucket["nodes"].as_object().unwrap());
        [holders.flat_map(of_holder).collect(), buckets.flat_map(|nodes| nodes.iter().flat_map(taken)).collect()]
    }

    /// What the records say that contradicts itself.
    fn contradictions(&self, found: &mut Vec<String>) {
        let (jobs, listed, granted) = (self.ids("jobs/"), self.listed(), self.granted());
        let mut outside = BTreeSet::new();
        for ((gateway, external, ..), _) in &listed {
            if !outside.insert((gateway, external)) {
                found.push(format!("port {external} of {gateway} is given twice"));
            }
        }
        let open: BTreeSet<Forward> = listed.iter().filter(|(_, closing)| !closing).map(|(forward, _)| forward.clone()).collect();
        differ(found, "granted, but not in the ledger", "in the ledger, but not granted", &granted, &open);
        let of_trace = |(_, trace): (&str, &Value)| {
            let (gateway, job) = (text(&trace["gateway"]), number(&trace["job"]));
            list(&trace["spans"]).iter().flat_map(|span| ports(&gateway, job, span)).collect::<Vec<_>>()
        };
        let traced: BTreeSet<Forward> = self.under("trail/open/").flat_map(of_trace).collect();
        let all = listed.iter().map(|(forward, _)| forward.clone()).collect();
        differ(found, "in the ledger, but not in the trail", "in the trail, but not in the ledger", &all, &traced);
        let [held, taken] = self.on_nodes();
        differ(found, "granted, but not in the nodes' ledger", "in the nodes' ledger, but not granted", &held, &taken);
        found.extend(self.ids("grants/").difference(&jobs).map(|job| format!("a grant of job {job}, which has ended")));
        for (gateway, load) in self.of_gateways("load") {
            let count = listed.iter().filter(|(forward, _)| forward.0 == gateway).count();
            if load["ports"] != count {
                found.push(format!("{gateway} has {count} ports, and its load says {}", load["ports"]));
            }
        }
        let owned = self.under("owners/").flat_map(|(_, owner)| list(&owner["jobs"]).iter().map(number)).collect();
        differ(found, "a job that nobody owns", "owned, but not there", &jobs, &owned);
    }

    /// Slurm's jobs against the records.
    fn against_slurm(&self, slurm: &BTreeMap<String, Entry>, found: &mut Vec<String>) {
        let known: BTreeMap<String, u64> = self.under("jobs/").map(|(_, job)| (text(&job["name"]), number(&job["id"]))).collect();
        let lives = |entry: &Entry| ["PENDING", "RUNNING", "CONFIGURING", "SUSPENDED"].contains(&entry.state.as_str());
        let strays = slurm.iter().filter(|(name, entry)| lives(entry) && !known.contains_key(*name));
        found.extend(strays.map(|(name, entry)| format!("Slurm has {name} ({entry:?}), which is finished or unknown here")));
        let missing = known.iter().filter(|(name, _)| !slurm.contains_key(*name));
        found.extend(missing.map(|(name, id)| format!("job {id}: Slurm has no {name}")));
    }

    /// The gateways' rules against the records.
    fn against_gateways(&self, bed: &Bed, found: &mut Vec<String>) {
        let wanted = self.listed().into_iter().filter(|(_, closing)| !closing).map(|(forward, _)| forward).collect();
        let installed = GATEWAYS.iter().flat_map(|host| installed(bed, host)).collect();
        differ(found, "no rule", "a rule without a record", &wanted, &installed);
    }
}

/// All that does not agree now. Things that are under way look like faults, so ask again before you believe it.
pub fn disagreements(bed: &Bed, queue: &Queue) -> Vec<String> {
    let mut found = Vec::new();
    let books = Books::read(bed);
    books.contradictions(&mut found);
    books.against_slurm(&queue.jobs(), &mut found);
    books.against_gateways(bed, &mut found);
    found
}

/// The same, and all that is left although every job has finished.
pub fn leftovers(bed: &Bed, queue: &Queue) -> Vec<String> {
    let mut found = disagreements(bed, queue);
    let may_stay = |key: &str| {
        ["finished/", "keys/", "heard", "given-up/", "trail/past/", "trail/since"].iter().any(|prefix| key.starts_with(prefix))
    };
    found.extend(Books::read(bed).0.into_keys().filter(|key| !may_stay(key)).map(|key| format!("the record {key} is left")));
    found
}

/// The rules of a gateway, port by port.
fn installed(bed: &Bed, host: &str) -> Vec<Forward> {
    let address = bed.ip(host).to_string();
    let one = |rule: &String| {
        let words: Vec<&str> = rule.split(' ').collect();
        let after = |option: &str| words[words.iter().position(|word| *word == option).unwrap() + 1];
        let (lo, hi) = after("--dport").split_once(':').unwrap_or((after("--dport"), after("--dport")));
        let internal = after("--to-destination").split_once(':').map_or(lo, |(_, port)| port);
        let job = after("--comment").trim_matches('"').split(':').nth(2).unwrap();
        let [lo, hi, internal, job] = [lo, hi, internal, job].map(|word| word.parse::<u64>().unwrap());
        (lo..=hi).map(|port| (address.clone(), port, internal + (port - lo), job)).collect::<Vec<_>>()
    };
    forwardings(bed, host).iter().flat_map(one).collect()
}

fn ports(gateway: &str, job: u64, span: &Value) -> Vec<Forward> {
    let (external, internal) = (number(&span["external"]), number(&span["internal"]));
    (0..number(&span["count"])).map(|i| (gateway.to_owned(), external + i, internal + i, job)).collect()
}

fn differ<T: Ord + std::fmt::Debug>(
    found: &mut Vec<String>,
    lacks: &str,
    extra: &str,
    wanted: &BTreeSet<T>,
    there: &BTreeSet<T>,
) {
    found.extend(wanted.difference(there).map(|one| format!("{lacks}: {one:?}")));
    found.extend(there.difference(wanted).map(|one| format!("{extra}: {one:?}")));
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
