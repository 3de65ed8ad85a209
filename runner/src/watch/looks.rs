//! When to look whether a job's application accepts connections: often while it starts, seldom when it has done so for long.
//!
//! A look costs a gateway about as much as connecting to each port; all that are due are looked at in one batch for each gateway.

use crate::domain::grant::{Grant, GrantState};
use crate::domain::job::State;
use crate::domain::summary::Summary;
use crate::gateway::{Probe, Target};
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An application that has not begun to listen by then is looked at once in a cycle, as it may never do so.
const STARTING: Duration = Duration::from_secs(600);
/// Between two looks at an application that listens lie so many cycles, at first and at last.
const SELDOM: (f64, f64) = (2.5, 15.0);
/// It listens since N seconds: the next look is N / 24 seconds later.
const SHARE: f64 = 24.0;

/// What is looked at.
#[derive(Default)]
pub(super) struct Schedule {
    watched: HashMap<u64, Watched>,
}

/// A job with forwarded ports.
pub(super) struct Watched {
    pub(super) grant: Grant,
    /// What the store says about it, as far as we know.
    available: bool,
    troubled: bool,
    /// Whether that has been compared with what we saw.
    told: bool,
    /// Since when it is available, or is not.
    since: Instant,
    next: Instant,
    /// The last look was not answered: it is looked at apart, so that others need not wait.
    doubtful: bool,
}

/// What a look says about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Listens,
    Closed,
    /// Silence is no refusal.
    Silent,
}

impl Schedule {
    /// From now on these are looked at, and no others.
    pub(super) fn follow(&mut self, grants: &[Arc<Grant>], jobs: &HashMap<u64, Arc<Summary>>, now: Instant) {
        let mut before = std::mem::take(&mut self.watched);
        for grant in grants.iter().filter(|grant| grant.state == GrantState::Active) {
            let Some(job) = jobs.get(&grant.job) else { continue };
            let available = match job.state {
                State::Running => false,
                State::Available => true,
                _ => continue,
            };
            let mut watched = match before.remove(&grant.job).filter(|watched| same_ports(&watched.grant, grant)) {
                Some(known) => known,
                None => Watched { since: begin(job, available, now), ..Watched::new(Grant::clone(grant), available, now) },
            };
            if watched.available != available {
                (watched.available, watched.since, watched.next) = (available, now, now);
            }
            watched.troubled = job.gateway_trouble.is_some();
            self.watched.insert(grant.job, watched);
        }
    }

    /// These are looked at, too: they are newer than the last call of [`follow`](Self::follow).
    pub(super) fn add(&mut self, grants: impl IntoIterator<Item = Grant>, now: Instant) {
        for grant in grants {
            self.watched.entry(grant.job).or_insert_with(|| Watched::new(grant, false, now));
        }
    }

    /// What is due on a gateway; those that did not answer the last time, or all others.
    pub(super) fn due(&self, gateway: &str, doubtful: bool, now: Instant) -> Vec<&Watched> {
        let due = |watched: &&Watched| watched.doubtful == doubtful && watched.next <= now && watched.grant.gateway == gateway;
        self.watched.values().filter(due).collect()
    }

    /// Notes what was seen of these jobs of a gateway; returns those of which the store is to be told.
    pub(super) fn note(&mut self, seen: &[(u64, Seen)], cycle: Duration, now: Instant) -> Vec<(Grant, Seen)> {
        let mut news = Vec::new();
        for &(job, seen) in seen {
            let Some(watched) = self.watched.get_mut(&job) else { continue };
            if watched.note(seen, cycle, now) {
                news.push((watched.grant.clone(), seen));
            }
        }
        news
    }

    /// The store could not be told.
    pub(super) fn forget(&mut self, job: u64) {
        if let Some(watched) = self.watched.get_mut(&job) {
            watched.told = false;
        }
    }
}

impl Watched {
    fn new(grant: Grant, available: bool, now: Instant) -> Self {
        Self { grant, available, troubled: false, told: false, since: now, next: now, doubtful: false }
    }

    /// Whether the store has something else.
    fn note(&mut self, seen: Seen, cycle: Duration, now: Instant) -> bool {
        let silent = seen == Seen::Silent;
        // Silence leaves the state as it was.
        let available = if silent { self.available } else { seen == Seen::Listens };
        let news = !self.told || self.available != available || self.troubled != silent;
        if self.available != available {
            self.since = now;
        }
        (self.available, self.troubled, self.told, self.doubtful) = (available, silent, true, silent);
        let age = now.saturating_duration_since(self.since);
        self.next = now + pause(available, age, cycle);
        news
    }

    /// What its ports are.
    pub(super) fn targets(&self) -> impl Iterator<Item = Target> + '_ {
        self.grant.spans.iter().map(|span| Target { host: self.grant.target.clone(), ports: span.internal_range() })
    }

    /// What a look at its ports has shown.
    pub(super) fn seen(&self, probe: &Probe) -> Seen {
        let mut ports = self.grant.spans.iter().flat_map(|span| span.internal_range().ports());
        let unclear = || probe.unreachable.contains(&self.grant.target);
        match ports.any(|port| probe.open.contains(&(self.grant.target.clone(), port))) {
            true => Seen::Listens,
            false if unclear() => Seen::Silent,
            false => Seen::Closed,
        }
    }
}

/// How long not to look.
fn pause(available: bool, age: Duration, cycle: Duration) -> Duration {
    match available {
        true => age.div_f64(SHARE).clamp(cycle.mul_f64(SELDOM.0), cycle.mul_f64(SELDOM.1)),
        false if age < STARTING => Duration::ZERO,
        // A cycle is not exactly as long as it should be.
        false => cycle.mul_f64(0.9),
    }
}

/// Since when an available job is that, if we have not seen it.
fn begin(job: &Summary, available: bool, now: Instant) -> Instant {
    let at = if available { job.available_at } else { job.started_at };
    let age = at.and_then(|at| Duration::try_from(Timestamp::now().duration_since(at)).ok()).unwrap_or_default();
    now.checked_sub(age).unwrap_or(now)
}

fn same_ports(one: &Grant, other: &Grant) -> bool {
    (one.run, &one.nonce, &one.gateway, &one.spans) == (other.run, &other.nonce, &other.gateway, &other.spans)
}

/// What was seen of those that were looked at apart, each with a probe for each of its targets.
pub(super) fn seen_apart(watched: &[&Watched], probes: &[Probe]) -> Vec<(u64, Seen)> {
    let mut probes = probes.iter();
    let mut one = |watched: &&Watched| {
        let own: Probe = probes.by_ref().take(watched.grant.spans.len()).cloned().collect();
        (watched.grant.job, watched.seen(&own))
    };
    watched.iter().map(&mut one).collect()
}

#[cfg(test)]
#[path = "looks_tests.rs"]
mod tests;
