//! The rules that everything must keep, each as a function from a snapshot to what breaks it.

use super::{Disagreement, GatewaySnapshot, Snapshot};
use crate::domain::grant::{Forwarding, GrantState};
use crate::domain::job::{Job, Phase, Seen, State};
use crate::domain::ports::{PortRange, Span};
use crate::domain::summary::Summary;
use crate::gateway::{Installed, Rule};
use crate::keyhole::{keeps_ports, rules};
use jiff::SignedDuration;
use std::collections::{BTreeMap, BTreeSet};

/// So long a submission may be under way.
const SUBMISSION_LIMIT: SignedDuration = SignedDuration::from_secs(180);

/// All that breaks a rule.
pub fn compare(snapshot: &Snapshot) -> Vec<Disagreement> {
    let mut found = Vec::new();
    let mut add = |kind, what| found.push(Disagreement { kind, what });
    submissions(snapshot, &mut add);
    scheduler(snapshot, &mut add);
    grants(snapshot, &mut add);
    owners(snapshot, &mut add);
    nodes(snapshot, &mut add);
    traces(snapshot, &mut add);
    for (address, gateway) in &snapshot.gateways {
        ledger(snapshot, address, gateway, &mut add);
        installed(snapshot, address, gateway, &mut add);
    }
    found.sort();
    found.dedup();
    found
}

/// A job without the scheduler's id is being submitted, and that ends.
fn submissions(snapshot: &Snapshot, add: &mut impl FnMut(&'static str, String)) {
    for job in snapshot.jobs.iter().filter(|job| job.scheduler_job_id.is_none() && !job.cancel_requested) {
        if job.submitted_at.is_none_or(|at| snapshot.now.duration_since(at) > SUBMISSION_LIMIT) {
            add("submission-open", format!("job {}: it is not known whether the scheduler has it", job.id));
        }
    }
}

/// What the scheduler has and what the records say.
fn scheduler(snapshot: &Snapshot, add: &mut impl FnMut(&'static str, String)) {
    let Some(seen) = &snapshot.seen else { return };
    let seen = ByName::new(seen);
    for job in snapshot.jobs.iter().filter(|job| job.scheduler_job_id.is_some()) {
        if !seen.named(&job.name).any(|seen| job.is(seen)) {
            add("job-without-scheduler-job", format!("job {}: the scheduler does not show {}", job.id, job.name));
        }
    }
    let known: BTreeSet<&String> = snapshot.jobs.iter().chain(&snapshot.finished).map(|job| &job.name).collect();
    // The scheduler may show the end of a job for longer than we keep its record.
    let ended = |name: &String| {
        let mut of_name = seen.named(name).peekable();
        of_name.peek().is_some() && of_name.all(|seen| matches!(seen.phase, Phase::Completing | Phase::Ended(_)))
    };
    for name in snapshot.names.iter().filter(|name| !known.contains(name) && !ended(name)) {
        add("unknown-scheduler-job", format!("the scheduler has {name}, which the store does not know"));
    }
    let alive = |seen: &&Seen| matches!(seen.phase, Phase::Waiting | Phase::Running);
    for job in &snapshot.finished {
        for seen in seen.of(job).filter(alive) {
            add(
                "finished-but-alive",
                format!("job {} is finished, and the scheduler's {} is not", job.id, seen.scheduler_job_id),
            );
        }
    }
    twice(snapshot, &seen, add);
}

/// What the scheduler shows, to be found by name.
struct ByName<'a>(BTreeMap<&'a str, Vec<&'a Seen>>);

impl<'a> ByName<'a> {
    fn new(seen: &'a [Seen]) -> Self {
        let mut by_name = BTreeMap::<_, Vec<_>>::new();
        seen.iter().for_each(|seen| by_name.entry(seen.name.as_str()).or_default().push(seen));
        Self(by_name)
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &'a Seen> {
        self.0.get(name).into_iter().flatten().copied()
    }

    /// Those with the name and the owner of this job.
    fn of(&self, job: &Job) -> impl Iterator<Item = &'a Seen> {
        self.named(&job.name).filter(|seen| seen.user == job.user)
    }
}

/// One name, one job.
fn twice(snapshot: &Snapshot, seen: &ByName, add: &mut impl FnMut(&'static str, String)) {
    for job in snapshot.jobs.iter().chain(&snapshot.finished) {
        let ids: BTreeSet<&str> = seen.of(job).map(|seen| seen.scheduler_job_id.as_str()).collect();
        if ids.len() > 1 {
            add("submitted-twice", format!("job {}: the scheduler has it as {ids:?}", job.id));
        }
    }
}

/// Who has ports, and who says so.
fn grants(snapshot: &Snapshot, add: &mut impl FnMut(&'static str, String)) {
    let jobs: BTreeMap<u64, &Job> = snapshot.jobs.iter().map(|job| (job.id, job)).collect();
    for grant in &snapshot.grants {
        if !keeps_ports(grant, jobs.get(&grant.job).map(|job| Summary::from(*job)).as_ref()) {
            add("grant-without-job", format!("job {} does not run, and has ports on {}", grant.job, grant.gateway));
        }
        if grant.state == GrantState::Moving {
            add("move-open", format!("job {}: its forwardings are on their way to {}", grant.job, grant.gateway));
        }
    }
    let active = snapshot.grants.iter().filter(|grant| grant.state == GrantState::Active);
    let active: BTreeSet<u64> = active.map(|grant| grant.job).collect();
    for job in snapshot.jobs.iter().filter(|job| job.state == State::Available) {
        if !active.contains(&job.id) {
            add("available-without-grant", format!("job {} is available, and has no ports", job.id));
        }
    }
}

/// The lists that jobs per user are counted by. Jobs of version 1 are in none.
fn owners(snapshot: &Snapshot, add: &mut impl FnMut(&'static str, String)) {
    let unfinished: BTreeSet<u64> = snapshot.jobs.iter().map(|job| job.id).collect();
    for owner in &snapshot.owners {
        for id in owner.jobs.difference(&unfinished) {
            add("owner-of-no-job", format!("user {} is counted as the owner of job {id}, which is not unfinished", owner.user));
        }
    }
    let counted = snapshot.owners.iter().flat_map(|owner| owner.jobs.iter().map(|id| (owner.user.as_str(), *id)));
    let counted: BTreeSet<(&str, u64)> = counted.collect();
    for job in snapshot.jobs.iter().filter(|job| job.version > 1 && !counted.contains(&(job.user.as_str(), job.id))) {
        add("job-without-owner", format!("job {} is not counted among the jobs of user {}", job.id, job.user));
    }
}

/// The ledger of internal ports: each is taken by one job, and every taken one has a reason.
fn nodes(snapshot: &Snapshot, add: &mut impl FnMut(&'static str, String)) {
    let mut reasons: BTreeMap<(&str, u64), Vec<PortRange>> = BTreeMap::new();
    let granted = snapshot.grants.iter().map(|grant| (grant.job, &grant.nodes, &grant.spans));
    let closing = snapshot.gateways.values().flat_map(|gateway| &gateway.closings);
    let closing = closing.map(|closing| (closing.job, &closing.nodes, &closing.spans));
    for (job, nodes, spans) in granted.chain(closing) {
        for node in nodes {
            reasons.entry((node, job)).or_default().extend(spans.iter().map(|span| span.internal_range()));
        }
    }
    let mut missing: BTreeSet<(&str, u64)> = reasons.keys().copied().collect();
    for (node, taken) in snapshot.buckets.iter().flat_map(|bucket| &bucket.nodes) {
        overlaps(taken.iter().map(|entry| (entry.job, entry.ports)), &mut |what| {
            add("node-port-twice", format!("node {node}: {what}"));
        });
        for entry in taken {
            let reason = reasons.get(&(node.as_str(), entry.job));
            missing.remove(&(node.as_str(), entry.job));
            if !reason.is_some_and(|ranges| ranges.iter().any(|range| range.contains(entry.ports.lo))) {
                add(
                    "node-port-without-grant",
                    format!("node {node}: {} is taken for job {}, which has it not", entry.ports, entry.job),
                );
            }
        }
    }
    for (node, job) in missing {
        add("grant-without-node-port", format!("job {job}: its ports are not taken on node {node}"));
    }
}

/// Nothing leads anywhere that the trail does not know of, as far as it was granted by a program that keeps one; and it does not go on where the ports are free.
fn traces(snapshot: &Snapshot, add: &mut impl FnMut(&'static str, String)) {
    let taken = snapshot.gateways.iter().flat_map(|(address, gateway)| {
        let forwardings = gateway.blocks.values().flat_map(|block| &block.forwardings);
        forwardings.map(|forwarding| (address.as_str(), forwarding.job, forwarding.span))
    });
    let taken: BTreeSet<(&str, u64, Span)> = taken.collect();
    for trace in &snapshot.traces {
        if !trace.spans.iter().any(|span| taken.contains(&(trace.gateway.as_str(), trace.job, *span))) {
            add(
                "trace-without-forwarding",
                format!("gateway {}: the trail of job {} goes on, and its ports are free", trace.gateway, trace.job),
            );
        }
    }
    let traced = snapshot.traces.iter().flat_map(|trace| {
        let gateway = trace.gateway.as_str();
        trace.spans.iter().map(move |span| (gateway, trace.job, *span))
    });
    let traced: BTreeSet<(&str, u64, Span)> = traced.collect();
    for (address, gateway) in &snapshot.gateways {
        let closing = gateway.closings.iter().filter(|closing| snapshot.trail_since.is_some_and(|since| closing.since > since));
        let closing = closing.map(|closing| (closing.job, &closing.spans));
        let granted = snapshot.grants.iter().filter(|grant| grant.gateway == *address);
        let granted = granted.filter(|grant| snapshot.trail_since.is_some_and(|since| grant.granted_at > since));
        let granted = granted.map(|grant| (grant.job, &grant.spans));
        for (job, spans) in granted.chain(closing) {
            if spans.first().is_some_and(|span| !traced.contains(&(address.as_str(), job, *span))) {
                add("forwarding-without-trace", format!("gateway {address}: the trail does not know of the ports of job {job}"));
            }
        }
    }
}

fn overlaps(ranges: impl Iterator<Item = (u64, PortRange)>, found: &mut impl FnMut(String)) {
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_by_key(|(_, range)| *range);
    for (at, (one, first)) in ranges.iter().enumerate() {
        let reached = ranges[at + 1..].iter().take_while(|(_, second)| second.lo <= first.hi);
        // A job that was moved holds its ports inside for each gateway that leads to them.
        for (other, second) in reached.filter(|(other, _)| other != one) {
            found(format!("{first} of job {one} and {second} of job {other} overlap"));
        }
    }
}

/// The ledger of a gateway's external ports: each is taken once, for a grant or until its rule is gone, and all are counted.
fn ledger(snapshot: &Snapshot, address: &str, gateway: &GatewaySnapshot, add: &mut impl FnMut(&'static str, String)) {
    let forwardings: Vec<&Forwarding> = gateway.blocks.values().flat_map(|block| &block.forwardings).collect();
    overlaps(forwardings.iter().map(|f| (f.job, f.span.external_range())), &mut |what| {
        add("port-twice", format!("gateway {address}: {what}"));
    });
    let granted = snapshot.grants.iter().filter(|grant| grant.gateway == address && grant.state != GrantState::Closing);
    let granted: BTreeSet<(u64, Span)> = granted.flat_map(|grant| grant.spans.iter().map(|span| (grant.job, *span))).collect();
    let closing: BTreeSet<(u64, Span)> =
        gateway.closings.iter().flat_map(|closing| closing.spans.iter().map(|span| (closing.job, *span))).collect();
    for forwarding in &forwardings {
        let reasons = if forwarding.closing { &closing } else { &granted };
        if !reasons.contains(&(forwarding.job, forwarding.span)) {
            add("forwarding-without-grant", format!("gateway {address}: {} for job {}", range(forwarding.span), forwarding.job));
        }
    }
    let there: BTreeSet<(u64, Span)> = forwardings.iter().map(|f| (f.job, f.span)).collect();
    for (job, span) in granted.union(&closing).filter(|wanted| !there.contains(wanted)) {
        add("grant-without-forwarding", format!("gateway {address}: job {job} should have {}", range(*span)));
    }
    let taken: u32 = forwardings.iter().map(|f| u32::from(f.span.count)).sum();
    if taken != gateway.condition.ports {
        add("load-wrong", format!("gateway {address}: {taken} ports are taken, and {} counted", gateway.condition.ports));
    }
}

fn range(span: Span) -> PortRange {
    span.external_range()
}

/// The rules themselves. What is silent or not configured says nothing.
fn installed(snapshot: &Snapshot, address: &str, gateway: &GatewaySnapshot, add: &mut impl FnMut(&'static str, String)) {
    let (Some(before), Some(after)) = (&gateway.before, &gateway.after) else { return };
    // A gateway that has never had anything to forward may wait for the watcher.
    if !after.ready && !gateway.blocks.is_empty() {
        add("gateway-not-set-up", format!("gateway {address}: the chains around our rules are not there, or not complete"));
    }
    let Some(cluster) = snapshot.grants.first().map(|grant| grant.cluster.clone()).or_else(|| any_cluster(gateway)) else {
        return strays(address, &BTreeSet::new(), before, add);
    };
    let in_ledger: BTreeSet<Rule> = gateway.blocks.values().flat_map(|block| rules(&cluster, &block.forwardings)).collect();
    let known = gateway.blocks.values().flat_map(|block| &block.forwardings);
    let known: BTreeSet<(u64, Span)> = known.map(|f| (f.job, f.span)).collect();
    strays(address, &known, before, add);
    let active: BTreeSet<u64> =
        snapshot.grants.iter().filter(|g| g.state == GrantState::Active && g.gateway == address).map(|g| g.job).collect();
    let there: BTreeSet<&Rule> = after.blocks.values().flatten().collect();
    for rule in in_ledger.iter().filter(|rule| active.contains(&rule.job) && !there.contains(rule)) {
        add(
            "rule-missing",
            format!("gateway {address}: {} of job {} is not forwarded to {}", range(rule.span), rule.job, rule.target),
        );
    }
    for closing in &gateway.closings {
        add("rule-to-remove", format!("gateway {address}: the ports of job {} are still to be taken back", closing.job));
    }
}

fn any_cluster(gateway: &GatewaySnapshot) -> Option<String> {
    gateway.blocks.values().next().map(|block| block.cluster.clone())
}

fn strays(address: &str, known: &BTreeSet<(u64, Span)>, before: &Installed, add: &mut impl FnMut(&'static str, String)) {
    for rule in before.blocks.values().flatten().filter(|rule| !known.contains(&(rule.job, rule.span))) {
        add("rule-without-job", format!("gateway {address}: {} of job {} to {}", range(rule.span), rule.job, rule.target));
    }
}
