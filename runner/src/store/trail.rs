//! The trail of who had which external ports. Open traces are changed by the transactions that take and free ports; those of the past lie by
//! the day that they ended on, so that old ones can be found and removed without reading the others.

use super::claims::read_one;
use super::{Change, Progress, Store, Versioned, keys, put};
use crate::domain::grant::{Closing, Grant};
use crate::domain::job::Job;
use crate::domain::trail::{TRAIL_VERSION, Trace, TrailBegin};
use crate::error::Result;
use jiff::tz::TimeZone;
use jiff::{Timestamp, civil::Date};
use std::time::Instant;

/// Who had a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Those who had it at that time: one, as long as clocks went right.
    pub traces: Vec<Trace>,
    /// Since when the trail is complete; nothing before it has begun.
    pub known_since: Option<Timestamp>,
}

impl Store {
    /// Adds to `change` that these ports lead to their job from now on.
    pub(super) fn begin_trace_of(&self, grant: &Grant, change: &mut Change) -> Result<()> {
        let before = self.recent_all(&[open_key(grant)])?.pop().flatten();
        begin_trace(grant, self.owner_of(grant)?, before, change)
    }

    /// Adds to `change`, which gives the ports of a grant up, a trace for it if it was granted before there was a trail.
    pub(super) fn adopt_trace(&self, grant: &Grant, change: &mut Change) -> Result<()> {
        let key = open_key(grant);
        let (before, version) = self.read::<Trace>(&key)?;
        if before.is_some_and(|trace| trace.job == grant.job) {
            return Ok(());
        }
        change.expect.push((key.clone(), version));
        put(change, &key, &Trace::begin(grant, self.owner_of(grant)?, grant.granted_at))
    }

    /// Adds to `change`, which frees these ports, that they led to their job until now.
    pub(super) fn end_trace(&self, closing: &Closing, change: &mut Change) -> Result<()> {
        let key = keys::open_trace(&closing.cluster, &closing.gateway, closing.first_port());
        let (open, version) = self.read::<Trace>(&key)?;
        let open = open.filter(|trace| trace.job == closing.job).unwrap_or_else(|| Trace::without_beginning(closing));
        change.expect.push((key.clone(), version));
        change.delete.push(key);
        put_past(&open.end(Some(closing.since), Timestamp::now()), change)
    }

    fn owner_of(&self, grant: &Grant) -> Result<Option<String>> {
        let found = self.recent_all(&owner_keys(&grant.cluster, grant.job))?.try_into();
        found.map_or(Ok(None), |found| owner(&grant.cluster, grant.job, found))
    }

    /// All traces that have not ended.
    pub fn open_traces(&self, cluster: &str) -> Result<Vec<Trace>> {
        self.scan(&keys::open_traces(cluster))
    }

    /// Who had this port of this gateway (by its internal or its external address) at this time.
    pub fn who(&self, cluster: &str, gateway: &str, port: u16, at: Timestamp) -> Result<Answer> {
        let of_then = |trace: &Trace| trace.led_to(gateway, port, at).is_some();
        // What is open before what has ended: a trace that ends meanwhile is found at least once.
        let mut traces: Vec<Trace> = self.open_traces(cluster)?.into_iter().filter(of_then).collect();
        let known_since = self.trail_since(cluster)?;
        // The clocks of those who write may be a little ahead, and a trail that has hardly begun has no beginning yet.
        let today = day(Timestamp::now());
        let first = known_since.map_or(today, day).yesterday().unwrap_or(Date::MIN);
        for day in days(day(at).max(first), today.tomorrow().unwrap_or(Date::MAX)) {
            let ended = self.scan::<Trace>(&keys::past_traces_of(cluster, &day.to_string()))?.into_iter().filter(of_then);
            for trace in ended {
                traces.retain(|open| (open.job, open.from) != (trace.job, trace.from));
                traces.push(trace);
            }
        }
        Ok(Answer { traces, known_since })
    }

    /// Since when the trail is complete.
    pub fn trail_since(&self, cluster: &str) -> Result<Option<Timestamp>> {
        Ok(self.read::<TrailBegin>(&keys::trail_begin(cluster))?.0.map(|begin| begin.since))
    }

    /// Removes traces that ended before the day of `before`: goes on from `progress` until `until`, for a page at least. The first call begins the
    /// trail.
    pub fn trim_trail(&self, cluster: &str, before: Timestamp, progress: &mut Progress, until: Instant) -> Result<()> {
        let key = keys::trail_begin(cluster);
        let (begin, version) = self.read::<TrailBegin>(&key)?;
        let Some(begin) = begin else {
            progress.end();
            return self.set_trail_begin(cluster, version, Timestamp::now());
        };
        let (first, last) = (day(begin.since), day(before).yesterday().unwrap_or(Date::MIN));
        let (mut since, mut in_time) = (None, true);
        for day in days(first, last) {
            let prefix = keys::past_traces_of(cluster, &day.to_string());
            while in_time && self.remove_page(&prefix, |_, _| Ok(true), progress)? {
                in_time = Instant::now() < until;
            }
            if !in_time {
                break;
            }
            since = day.tomorrow().ok().and_then(|next| next.to_zoned(TimeZone::UTC).ok()).map(|next| next.timestamp());
            in_time = Instant::now() < until;
        }
        if in_time {
            progress.end();
        }
        since.map_or(Ok(()), |since| self.set_trail_begin(cluster, version, since))
    }

    pub(super) fn set_trail_begin(&self, cluster: &str, version: u64, since: Timestamp) -> Result<()> {
        let key = keys::trail_begin(cluster);
        let mut change = Change { expect: vec![(key.clone(), version)], ..Change::default() };
        put(&mut change, &key, &TrailBegin { version: TRAIL_VERSION, cluster: cluster.into(), since })?;
        // Who was faster has written the same, or goes on with it.
        self.commit("trail-since", &change).map(drop)
    }
}

/// Adds to `change` that these ports lead to their job from now on. What an older program has left open there, `before`, ends.
pub(super) fn begin_trace(grant: &Grant, owner: Option<String>, before: Option<Versioned>, change: &mut Change) -> Result<()> {
    let (now, key) = (Timestamp::now(), open_key(grant));
    let (before, version) = read_one::<Trace>(&key, before.as_ref())?;
    if let Some(left) = before {
        put_past(&left.end(None, now), change)?;
    }
    change.expect.push((key.clone(), version));
    put(change, &key, &Trace::begin(grant, owner, now))
}

/// Where the job of a grant is, which knows its owner.
pub(super) fn owner_keys(cluster: &str, job: u64) -> [String; 2] {
    [keys::job(cluster, job), keys::finished(cluster, job)]
}

/// The owner, by what was found there.
pub(super) fn owner(cluster: &str, job: u64, found: [Option<Versioned>; 2]) -> Result<Option<String>> {
    let [running, finished] = owner_keys(cluster, job);
    let at = |key: &str, found: &Option<Versioned>| Ok::<_, crate::error::Error>(read_one::<Job>(key, found.as_ref())?.0);
    let job = at(&running, &found[0])?.or(at(&finished, &found[1])?);
    Ok(job.map(|job| job.user))
}

pub(super) fn open_key(grant: &Grant) -> String {
    let first = grant.spans.first().map_or(0, |span| span.external);
    keys::open_trace(&grant.cluster, &grant.gateway, first)
}

pub(super) fn put_past(trace: &Trace, change: &mut Change) -> Result<()> {
    let until = trace.until.unwrap_or_default();
    let name = format!("{}-{}", until.as_microsecond(), trace.first_port());
    put(change, &keys::past_trace(&trace.cluster, &day(until).to_string(), &trace.gateway, &name), trace)
}

/// Days are those of UTC.
fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// All days from the first to the last.
fn days(first: Date, last: Date) -> impl Iterator<Item = Date> {
    std::iter::successors((first <= last).then_some(first), move |day| day.tomorrow().ok().filter(|next| *next <= last))
}
