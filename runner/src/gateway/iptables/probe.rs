//! Which ports of other hosts accept a connection, seen from a gateway: `probe.sh` looks with whatever is installed there, this reads
//! what it reports.

use super::END;
use crate::domain::shell;
use crate::gateway::{Probe, Target};
use std::fmt::Write;

/// The functions of the remote script: `flavour` prints which `nc` is there, `probe NUMBER HOST PORTS` looks.
pub(crate) const FUNCTIONS: &str = include_str!("probe.sh");
/// Hosts that are looked at side by side.
const AT_ONCE: usize = 200;

/// One probe per target, side by side.
pub(crate) fn script(targets: &[Target]) -> String {
    let mut script = FUNCTIONS.to_owned();
    for (number, target) in targets.iter().enumerate() {
        let _ = writeln!(script, "probe {number} {} {} &", shell::quote(&target.host), target.ports);
        if (number + 1) % AT_ONCE == 0 {
            script.push_str("wait\n");
        }
    }
    script + "wait\necho " + END + "\n"
}

/// What the script reported.
pub(crate) fn read(targets: &[Target], report: &str) -> Probe {
    let mut probe = Probe::default();
    for line in report.lines() {
        let Some((target, words)) =
            line.split_once(' ').and_then(|(n, words)| Some((targets.get(n.parse::<usize>().ok()?)?, words)))
        else {
            continue;
        };
        match (open_port(words), words) {
            (Some(port), _) if target.ports.contains(port) => drop(probe.open.insert((target.host.clone(), port))),
            // Nobody asked for that one.
            (Some(_), _) => {}
            // nc ends with 1 when a port is closed; its words, or their absence, say the rest.
            (None, "exit 0" | "exit 1") => {}
            // An unknown host, no route, silence, or `timeout` ended it.
            (None, _) => drop(probe.unreachable.insert(target.host.clone())),
        }
    }
    probe
}

/// The port that somebody's words call open.
fn open_port(words: &str) -> Option<u16> {
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
