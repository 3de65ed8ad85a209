//! Which ports of other hosts accept a connection, seen from a gateway: `probe.sh` looks with whatever is installed there, this reads
//! what it reports.

use super::END;
use crate::domain::ports::PortRange;
use crate::domain::shell;
use crate::gateway::{Probe, Target};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The functions of the remote script: `flavour` prints which `nc` is there, `choose` says who looks, `probe NUMBER HOST PORTS…` looks.
pub(crate) const FUNCTIONS: &str = include_str!("probe.sh");
/// Hosts that are looked at side by side.
const AT_ONCE: usize = 200;
/// The shell that reads the script. All of it may take eight seconds; who has said something by then is heard.
pub(super) const SHELL: &str = "exec timeout -k 3 8 sh";

/// Who looks on a gateway, as its script found out: asking costs a process.
const LOOKS: &str = "looks ";
/// The flavours that can.
const FLAVOURS: [&str; 3] = ["openbsd", "traditional", "bash"];

/// What one process looks at: ports of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) host: String,
    pub(crate) ports: Vec<PortRange>,
}

impl Look {
    fn asked_for(&self, port: u16) -> bool {
        self.ports.iter().any(|range| range.contains(port))
    }
}

/// One look for each host.
pub(crate) fn by_host(targets: &[Target]) -> Vec<Look> {
    let mut ports: BTreeMap<&str, Vec<PortRange>> = BTreeMap::new();
    for target in targets {
        ports.entry(&target.host).or_default().push(target.ports);
    }
    ports.into_iter().map(|(host, ports)| Look { host: host.to_owned(), ports: joined(ports) }).collect()
}

/// One look for each target.
pub(super) fn apart(targets: &[Target]) -> Vec<Look> {
    targets.iter().map(|target| Look { host: target.host.clone(), ports: vec![target.ports] }).collect()
}

/// The same ports in as few ranges as possible.
fn joined(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    let mut joined: Vec<PortRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.lo <= last.hi.saturating_add(1) => last.hi = last.hi.max(range.hi),
            _ => joined.push(range),
        }
    }
    joined
}

/// All looks, side by side. What `own` listens on is not connected to but read, since the script runs there. Who looks is found out
/// unless it is known.
pub(crate) fn script(looks: &[Look], own: &str, known: Option<&str>) -> String {
    let mut script = FUNCTIONS.to_owned();
    match known {
        Some(flavour) => script += &format!("look={flavour}\n"),
        None => script += &format!("choose\necho \"{LOOKS}$look\"\n"),
    }
    let hosts = shell::join(looks.iter().map(|look| look.host.as_str()));
    let _ = writeln!(script, "resolve {hosts} || count=0");
    for (number, look) in looks.iter().enumerate() {
        let host = shell::quote(&look.host);
        let ports: Vec<String> = look.ports.iter().map(PortRange::to_string).collect();
        let _ = match look.host == own {
            true => writeln!(script, "listening {number} &"),
            false => writeln!(script, "probe {number} {host} {} &", ports.join(" ")),
        };
        if (number + 1) % AT_ONCE == 0 {
            script.push_str(WAIT);
        }
    }
    script + WAIT + "echo " + END + "\n"
}

/// The sign that the time is over interrupts a wait.
const WAIT: &str = "until wait; do :; done\n";

/// Who looks, if the report says so.
pub(super) fn flavour(report: &str) -> Option<&'static str> {
    let said = report.lines().find_map(|line| line.strip_prefix(LOOKS))?;
    FLAVOURS.into_iter().find(|flavour| *flavour == said)
}

/// What the script reported, look by look.
pub(crate) fn read_each(looks: &[Look], report: &str) -> Vec<Probe> {
    let mut probes = vec![Probe::default(); looks.len()];
    let mut ended = vec![false; looks.len()];
    for line in report.lines() {
        let Some((number, words)) = line.split_once(' ').and_then(|(number, words)| Some((number.parse::<usize>().ok()?, words)))
        else {
            continue;
        };
        let (Some(look), Some(probe), Some(ended)) = (looks.get(number), probes.get_mut(number), ended.get_mut(number)) else {
            continue;
        };
        *ended |= words.starts_with("exit ");
        match (open_port(words), words) {
            (Some(port), _) if look.asked_for(port) => drop(probe.open.insert((look.host.clone(), port))),
            // Nobody asked for that one.
            (Some(_), _) => {}
            // nc ends with 1 when a port is closed; its words, or their absence, say the rest.
            (None, "exit 0" | "exit 1") => {}
            // An unknown host, no route, silence, or the time was over.
            (None, _) => drop(probe.unreachable.insert(look.host.clone())),
        }
    }
    // Who did not come to an end was cut off.
    for ((look, probe), _) in looks.iter().zip(&mut probes).zip(ended).filter(|(_, ended)| !ended) {
        probe.unreachable.insert(look.host.clone());
    }
    probes
}

/// The same as one.
pub(crate) fn read(looks: &[Look], report: &str) -> Probe {
    read_each(looks, report).into_iter().collect()
}

/// The port that somebody's words call open.
fn open_port(words: &str) -> Option<u16> {
    if let Some(digits) = words.strip_prefix("listens ") {
        return u16::from_str_radix(digits, 16).ok();
    }
    by_openbsd(words).or_else(|| by_traditional(words)).or_else(|| by_bash(words))?.parse().ok()
}

/// `Connection to c0 (10.0.0.10) 50000 port [tcp/*] succeeded!`
fn by_openbsd(words: &str) -> Option<&str> {
    words.strip_suffix("succeeded!")?.split_once(" port [")?.0.rsplit(' ').next()
}

/// `(UNKNOWN) [10.0.0.10] 50000 (?) open`
fn by_traditional(words: &str) -> Option<&str> {
    words.strip_suffix(") open")?.split_once("] ")?.1.split(' ').next()
}

/// `port 50000 open`, which is our own way of saying it.
fn by_bash(words: &str) -> Option<&str> {
    words.strip_prefix("port ")?.strip_suffix(" open")
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
