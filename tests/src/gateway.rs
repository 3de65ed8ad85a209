//! What is installed on a gateway, and what the records say of it.

use crate::bed::Bed;
use crate::broken::Broken;
use serde_json::Value;

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

/// The gateway at whose outside address a job's first service is.
pub fn host_of(bed: &Bed, job: &Value) -> &'static str {
    let address = job["services"][0]["external-ip"].as_str().unwrap_or_else(|| panic!("no service: {job:#}"));
    GATEWAYS.into_iter().find(|gateway| bed.external(gateway).to_string() == address).expect("a gateway of the bed")
}

/// The one that is not this one.
pub fn other(gateway: &str) -> &'static str {
    GATEWAYS.into_iter().find(|other| *other != gateway).expect("there are two")
}

/// A gateway whose sshd refuses everybody, and has dropped those that it had.
pub fn without_ssh<'b>(bed: &'b Bed, gateway: &str) -> Broken<'b> {
    let rule = "INPUT -p tcp --dport 22 -j REJECT --reject-with tcp-reset";
    Broken::by(bed, gateway, &format!("iptables -I {rule}"), &format!("iptables -D {rule}"))
}

/// A gateway that forgot our rules, and kept the others, as after a reboot or a flush.
pub fn forget_rules(bed: &Bed, gateway: &str) {
    let site = bed.sh(gateway, "iptables-save | grep -v BWVISU");
    bed.sh(gateway, &format!("iptables-restore <<'END'\n{site}END"));
}
