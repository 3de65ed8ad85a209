//! The limit of open files. The usual soft limit (1024) is for the sake of old programs that use `select`, and any process may raise it as
//! far as the hard one; this program does so at its start, and gives those that it starts for users the old one back.

use crate::config::Config;
use crate::config::file::{GatewayKind, SchedulerKind};
use crate::error::{Error, Result};
use crate::gateway::relay::RelayLimits;
use crate::http::guard::Limits;
use crate::http::vitals::limits as metrics_limits;
use crate::ssh::SESSIONS;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::OnceLock;

/// Of one program that is being started: three pipes, and one by which it tells that it could not be.
const PER_PROGRAM: u64 = 8;
/// Standard streams, the listeners, the store, epoll, folders and files that are just being read.
const OTHERS: u64 = 128;

/// The soft limit that this process was started with; `None` for none.
static GIVEN: OnceLock<Option<u64>> = OnceLock::new();

/// How many descriptors a program with this configuration has at most, all parts at their limits.
pub fn needed(config: &Config) -> u64 {
    let Limits { connections, workers, .. } = Limits::default();
    let listeners = 2 * connections as u64;
    let clusters: u64 = config
        .clusters
        .iter()
        .map(|cluster| {
            let commands = match cluster.scheduler {
                SchedulerKind::Slurm => cluster.command_nodes.len() as u64 * per_node(),
                SchedulerKind::Local => workers as u64 * PER_PROGRAM,
            };
            commands
                + match cluster.gateway {
                    GatewayKind::Iptables => cluster.gateways.len() as u64 * per_node(),
                    GatewayKind::Relay => relay(cluster.ports.len() as u64 / 2),
                }
        })
        .sum();
    let metrics = config.metrics.listen.map_or(0, |_| metrics_limits().connections as u64);
    listeners + metrics + clusters + OTHERS
}

/// One connection; on it as many commands as it carries, and one more that asks whether it lives.
fn per_node() -> u64 {
    (SESSIONS as u64 + 2) * PER_PROGRAM
}

/// Two ends for each session and a listener for each port; and the relay leaves half of all descriptors to others.
fn relay(ports: u64) -> u64 {
    let sessions = RelayLimits::default().sessions as u64;
    (2 * sessions + ports).max(4 * sessions)
}

/// Raises the soft limit to what the configuration needs.
pub fn provide(config: &Config) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    GIVEN.get_or_init(|| current);
    let Some(wanted) = raised(needed(config), current, maximum)? else { return Ok(()) };
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
        .map_err(|error| Error::internal(format!("the limit of open files cannot be raised to {wanted}: {error}")))?;
    log::info!("open files: the limit is raised from {} to {wanted}", current.unwrap_or_default());
    Ok(())
}

/// Whether the limits allow what the configuration needs; changes nothing.
pub fn check(config: &Config) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    raised(needed(config), current, maximum).map(drop)
}

/// The new soft limit, if another one is needed.
fn raised(needed: u64, current: Option<u64>, maximum: Option<u64>) -> Result<Option<u64>> {
    match (current, maximum) {
        (None, _) => Ok(None),
        (Some(current), _) if current >= needed => Ok(None),
        (_, Some(maximum)) if maximum < needed => Err(Error::unavailable(format!(
            "this configuration may need {needed} open files, and {maximum} are allowed; raise the hard limit to at least {needed} \
             (LimitNOFILE= in the systemd unit, `ulimit -Hn` or /etc/security/limits.conf elsewhere)"
        ))),
        _ => Ok(Some(needed)),
    }
}

/// The soft limit that this process was started with, if there was one: what programs get that are not ours.
pub fn given() -> Option<u64> {
    *GIVEN.get_or_init(|| getrlimit(Resource::Nofile).current)
}

/// Sets this process's own soft limit, for what it is about to start.
pub fn restore(soft: u64) -> std::io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(maximum.map_or(soft, |maximum| soft.min(maximum)));
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_as_far_as_needed_and_a_low_hard_limit_is_named() {
        let k = |thousands: u64| Some(thousands * 1000);
        for (current, maximum, expected) in [(k(1), k(9), k(5)), (k(5), k(5), None), (None, None, None), (k(1), None, k(5))] {
            assert_eq!(raised(5000, current, maximum).unwrap(), expected, "{current:?} {maximum:?}");
        }
        let words = raised(5000, k(1), k(4)).unwrap_err().message;
        for part in ["5000", "4000", "LimitNOFILE=", "ulimit -Hn"] {
            assert!(words.contains(part), "{words}");
        }
    }
}
