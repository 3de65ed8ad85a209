//! What is installed on a gateway, and what the records say of it.

use crate::bed::Bed;

/// The hosts that are gateways.
pub const GATEWAYS: [&str; 2] = ["gw0", "gw1"];

/// Everything in the tables, counters aside.
pub fn saved(bed: &Bed, gateway: &str) -> String {
    let text = bed.sh(gateway, "iptables-save -t nat && iptables-save -t filter");
    text.lines().filter(|line| !line.starts_with('#')).map(|line| without_counters(line) + "\n").collect()
}

fn without_counters(line: &str) -> String {
    match line.split_once(" [") {
        Some((chain, _)) if line.starts_with(':') => chain.to_owned(),
        _ => line.to_owned(),
    }
}

/// The lines that are none of ours: neither our chains nor the hooks into them.
pub fn foreign(bed: &Bed, gateway: &str) -> String {
    saved(bed, gateway).lines().filter(|line| !line.contains("BWVISU")).map(|line| format!("{line}\n")).collect()
}

/// Our forwardings: `-A BWVISU-500 … -j DNAT --to-destination …`.
pub fn forwardings(bed: &Bed, gateway: &str) -> Vec<String> {
    saved(bed, gateway).lines().filter(|line| line.contains("BWVISU-") && line.contains("-j DNAT")).map(str::to_owned).collect()
}

/// The forwardings of both gateways that carry a job's id.
pub fn forwardings_of(bed: &Bed, job: &str) -> Vec<String> {
    let mark = format!("bwvisu:default:{job}:");
    GATEWAYS.iter().flat_map(|gateway| forwardings(bed, gateway)).filter(|rule| rule.contains(&mark)).collect()
}

/// All forwardings of both gateways.
pub fn all_forwardings(bed: &Bed) -> Vec<String> {
    GATEWAYS.iter().flat_map(|gateway| forwardings(bed, gateway)).collect()
}

/// The records in the store whose keys begin so (after the clusters' prefix): key and value lines.
pub fn records(bed: &Bed, prefix: &str) -> String {
    bed.sh("runner", &format!("ETCDCTL_API=3 etcdctl get --prefix /bwvisu-runner/clusters/default/{prefix}"))
}
