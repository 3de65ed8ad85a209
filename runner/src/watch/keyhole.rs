//! The watcher of forwarded services: what listens, what should be installed, what must go.
//!
//! What is installed is listed *before* the store is read: so a rule that a neighbour has just installed is in the store by
//! then, and is never taken for a stray.

use super::looks::{Schedule, Seen, Watched, seen_apart};
use crate::cluster::Cluster;
use crate::domain::grant::{Closing, Grant, GrantState};
use crate::domain::job::Job;
use crate::domain::ports::Plan;
use crate::domain::summary::Summary;
use crate::error::{Error, Result};
use crate::gateway::{Gateway, Installed, Rule, Target};
use crate::keyhole::{Keyhole, keeps_ports, rules};
use crate::logging::id;
use crate::metrics::metrics;
use crate::side_by_side;
use crate::store::{Condition, Store};
use jiff::Timestamp;
use prometheus::IntGaugeVec;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The watcher of one cluster.
pub struct KeyholeWatch {
    store: Arc<Store>,
    cluster: Arc<Cluster>,
    keyhole: Arc<Keyhole>,
    /// Blocks that differed from the ledger in the last cycle, by gateway.
    suspects: HashMap<String, Differences>,
    /// How often in a row a gateway did not answer.
    silences: HashMap<String, u32>,
    /// How often in a row a gateway could not say who listens.
    blind: HashMap<String, u32>,
    /// When this watcher first saw it so. Clocks on the wall jump, and other programs' may be wrong: nothing is moved for that.
    silent_since: HashMap<String, Instant>,
    /// The gateways that metrics show.
    shown: BTreeSet<String>,
    schedule: Schedule,
    /// How often a cycle comes, and when the last one began.
    every: Duration,
    begun: Option<Instant>,
}

/// After so many cycles in which a gateway did not answer, what is known of its jobs is called stale.
const SILENCES: u32 = 3;
/// How often a cycle comes if nobody says.
const EVERY: Duration = Duration::from_secs(2);
/// A step that comes so much too early is taken for the one that was meant.
const SLACK: Duration = Duration::from_millis(20);

impl KeyholeWatch {
    /// The watcher of `cluster`.
    pub fn new(store: Arc<Store>, cluster: Arc<Cluster>, keyhole: Arc<Keyhole>) -> Self {
        Self {
            store,
            cluster,
            keyhole,
            suspects: HashMap::new(),
            silences: HashMap::new(),
            silent_since: HashMap::new(),
            blind: HashMap::new(),
            shown: BTreeSet::new(),
            schedule: Schedule::default(),
            every: EVERY,
            begun: None,
        }
    }

    /// To be called as often as starting applications are to be looked at: a cycle, if `every` has passed since the last one, or else a look at
    /// what is due.
    pub fn step(&mut self, every: Duration) -> Result<()> {
        self.every = every;
        let due = self.begun.is_none_or(|begun| begun.elapsed() + SLACK >= every);
        if due { self.cycle() } else { self.glance() }
    }

    /// Looks at the applications that may have begun or ceased to listen since, behind gateways that answered in the last cycle.
    fn glance(&mut self) -> Result<()> {
        let fresh = self.keyhole.take_fresh(&self.cluster.name);
        self.schedule.add(fresh, Instant::now());
        let silent = self.silences.iter().filter(|(_, count)| **count > 0).map(|(address, _)| address.clone()).collect();
        self.look(false, &silent, false)
    }

    /// From the next cycle on, the configuration is this one.
    pub fn follow(&mut self, cluster: &Arc<Cluster>, keyhole: &Arc<Keyhole>) {
        self.cluster = Arc::clone(cluster);
        self.keyhole = Arc::clone(keyhole);
        // A gateway that is gone from the configuration is not one that answers.
        self.silences.retain(|address, _| cluster.gateway(address).is_some());
        self.suspects.retain(|address, _| cluster.gateway(address).is_some());
        self.shown.retain(|address| {
            let there = cluster.gateway(address).is_some();
            if !there {
                metrics().forget_gateway(&cluster.name, address);
            }
            there
        });
    }

    /// One look at every gateway, and what follows from it. A gateway that does not answer changes nothing; the others wait for it as
    /// long as a connection or a listing may take.
    pub fn cycle(&mut self) -> Result<()> {
        self.begun = Some(Instant::now());
        // What becomes active from now on is in the store, or comes with the next look.
        let fresh = self.keyhole.take_fresh(&self.cluster.name);
        let before = active(&self.store.kept_grants(&self.cluster.name).unwrap_or_default());
        let installed: Vec<Result<Installed>> = self.on_all_gateways(|gateway| gateway.installed());
        let cluster = Arc::clone(&self.cluster);
        let silent: BTreeSet<&str> =
            cluster.gateways.iter().zip(&installed).filter(|(_, i)| i.is_err()).map(|(g, _)| g.address()).collect();
        let silences = self.note_silences(&installed)?;
        // Before the jobs: a job that has just been seen running is not taken for the one that waited when it asked.
        let grants = self.store.kept_grants(&cluster.name)?;
        let jobs: HashMap<u64, Arc<Summary>> =
            self.store.summaries(&cluster.name)?.into_iter().map(|job| (job.id, job)).collect();
        let keep = self.end_grants(grants, &jobs);
        self.finish_closings(&silent)?;
        // Active before the look and after it: what it does not show of these is missing.
        let sure: BTreeSet<u64> = keep
            .iter()
            .filter(|grant| before.get(&grant.job).is_some_and(|before| is_same(before, grant)))
            .map(|grant| grant.job)
            .collect();
        let mut failure = Ok(());
        for (gateway, installed) in cluster.gateways.iter().zip(installed) {
            let mended = installed.and_then(|installed| self.mend(gateway.as_ref(), &installed, &sure));
            failure = failure.and(mended);
        }
        self.tell_of_silence(&keep);
        failure = failure.and(self.move_grants(&keep, &silences, &silent));
        self.schedule.follow(&keep, &jobs, Instant::now());
        let kept: HashSet<u64> = keep.iter().map(|grant| grant.job).collect();
        self.schedule.add(fresh.into_iter().filter(|grant| !kept.contains(&grant.job)), Instant::now());
        let silent = silent.into_iter().map(str::to_owned).collect();
        let looked = self.look(false, &silent, true).and(self.look(true, &silent, true));
        failure.and(looked)
    }

    /// Writes down which gateways do not answer; returns for how long.
    fn note_silences(&mut self, installed: &[Result<Installed>]) -> Result<HashMap<String, Duration>> {
        let cluster = Arc::clone(&self.cluster);
        let addresses: Vec<&str> = cluster.gateways.iter().map(|gateway| gateway.address()).collect();
        let conditions = self.store.conditions(&self.cluster.name, &addresses)?;
        let mut silences = HashMap::new();
        for ((address, installed), condition) in addresses.into_iter().zip(installed).zip(conditions) {
            self.show(address, installed.as_ref().ok(), &condition);
            let reason = installed.as_ref().err().map(|error| error.message.clone());
            if reason.is_some() != condition.silence.is_some() {
                self.store.set_silence(&self.cluster.name, address, reason.as_deref())?;
                log::warn!("gateway {address}: {}", reason.as_deref().unwrap_or("answers again"));
            }
            let count = self.silences.entry(address.to_owned()).or_default();
            *count = if reason.is_some() { count.saturating_add(1) } else { 0 };
            // Somebody heard it meanwhile, who led before us.
            if reason.is_none() || condition.silence.is_none() {
                self.silent_since.remove(address);
            }
            if reason.is_some() {
                let since = self.silent_since.entry(address.to_owned()).or_insert_with(Instant::now);
                silences.insert(address.to_owned(), since.elapsed());
            }
        }
        Ok(silences)
    }

    /// What metrics show of a gateway.
    fn show(&mut self, address: &str, installed: Option<&Installed>, condition: &Condition) {
        // An audit does what a watcher does, and leads nothing.
        if id::in_request() {
            return;
        }
        let labels = [self.cluster.name.as_str(), address];
        let set = |family: &IntGaugeVec, value: usize| family.with_label_values(&labels).set(value as i64);
        let shown = metrics();
        let used = condition.ports as usize;
        set(&shown.ports_used, used);
        if let Some(gateway) = self.cluster.gateway(address) {
            let plan = Plan { range: self.cluster.ports, numbering: gateway.numbering() };
            set(&shown.ports_free, plan.internal().len().saturating_sub(used));
        }
        let drained = condition.drained.is_some() || self.cluster.drained_by_config.contains(address);
        set(&shown.gateway_drained, drained.into());
        set(&shown.gateway_silent, installed.is_none().into());
        // Of a silent gateway the last number stays.
        if let Some(installed) = installed {
            set(&shown.gateway_rules, installed.blocks.values().map(BTreeSet::len).sum());
        }
        self.shown.insert(address.to_owned());
    }

    /// Gives up the forwardings of jobs that have ended or wait again; returns the grants that stay.
    fn end_grants(&self, grants: Vec<Arc<Grant>>, jobs: &HashMap<u64, Arc<Summary>>) -> Vec<Arc<Grant>> {
        let job = |grant: &Grant| jobs.get(&grant.job).map(AsRef::as_ref);
        let stays = |grant: &Arc<Grant>| grant.state != GrantState::Closing && keeps_ports(grant, job(grant));
        let (keep, end): (Vec<_>, Vec<_>) = grants.into_iter().partition(stays);
        // Those of one gateway change the same records.
        let mut by_gateway: BTreeMap<String, Vec<Arc<Grant>>> = BTreeMap::new();
        for grant in end {
            by_gateway.entry(grant.gateway.clone()).or_default().push(grant);
        }
        side_by_side::for_each(by_gateway.into_values().collect(), |grants: Vec<Arc<Grant>>| {
            grants.iter().for_each(|grant| log_failure(grant.job, self.end_grant(grant, jobs.contains_key(&grant.job))));
        });
        keep
    }

    fn end_grant(&self, grant: &Grant, runs_again: bool) -> Result<()> {
        if runs_again {
            let remember = |job: &mut Job| job.former = Some(grant.former());
            self.store.update_job(&grant.cluster, grant.job, "remember-ports", remember)?;
        }
        self.store.close_grant(grant).map(drop)
    }

    /// Removes what has to go from the gateways that answer, one step for each.
    fn finish_closings(&self, silent: &BTreeSet<&str>) -> Result<()> {
        let mut waiting = Vec::new();
        for gateway in self.cluster.gateways.iter().map(|gateway| gateway.address()).filter(|gateway| !silent.contains(gateway)) {
            let closings = self.store.closings(&self.cluster.name, gateway)?;
            if !id::in_request() {
                let ports: u32 = closings.iter().map(Closing::ports).sum();
                metrics().gateway_closing.with_label_values(&[self.cluster.name.as_str(), gateway]).set(ports.into());
            }
            if !closings.is_empty() {
                waiting.push((gateway, closings));
            }
        }
        side_by_side::for_each(waiting, |(gateway, closings)| {
            if let Err(error) = self.keyhole.finish(&self.cluster, gateway, &closings) {
                log::warn!("gateway {gateway}: {} forwardings cannot be removed: {error}", closings.len());
            }
        });
        Ok(())
    }

    /// Moves forwardings away from gateways that are down or not configured any more, and ends the moves that were cut off.
    fn move_grants(&self, keep: &[Arc<Grant>], silences: &HashMap<String, Duration>, silent: &BTreeSet<&str>) -> Result<()> {
        let down_for = |gateway: &str| match self.cluster.gateway(gateway) {
            Some(_) => silences.get(gateway).copied(),
            None => Some(Duration::MAX),
        };
        let failed = |grant: &Grant| grant.state == GrantState::Moving && self.keyhole.rests(&grant.gateway);
        let down =
            |grant: &Grant| failed(grant) || down_for(&grant.gateway).is_some_and(|time| time >= self.cluster.gateway_down);
        let stranded = keep
            .iter()
            .map(AsRef::as_ref)
            .filter(|grant: &&Grant| grant.state != GrantState::Claimed && down(grant))
            .collect::<Vec<_>>();
        let mut failure = Ok(());
        if !stranded.is_empty() && self.cluster.gateways.iter().any(|gateway| !silent.contains(gateway.address())) {
            failure = self.keyhole.move_away(&self.cluster, &stranded);
        }
        for gateway in self.cluster.gateways.iter().filter(|gateway| !silent.contains(gateway.address())) {
            let here = |grant: &&Arc<Grant>| grant.state == GrantState::Moving && grant.gateway == gateway.address();
            let cut_off: Vec<Grant> = keep.iter().filter(here).map(|grant| Grant::clone(grant)).collect();
            failure = failure.and(self.keyhole.finish_moves(&self.cluster, gateway.as_ref(), &cut_off));
        }
        failure
    }

    /// What is known of jobs behind a gateway that has been silent for a while is no longer fresh.
    fn tell_of_silence(&self, grants: &[Arc<Grant>]) {
        let mut silent = Vec::new();
        for grant in grants {
            let blind = self.blind.get(&grant.gateway).is_some_and(|count| *count >= SILENCES);
            let reason = match self.silences.get(&grant.gateway) {
                Some(0..SILENCES) if blind => format!("the gateway {} cannot say who listens", grant.external_ip),
                Some(0..SILENCES) => continue,
                Some(_) => format!("the gateway {} does not answer", grant.external_ip),
                None => format!("the gateway {} is no longer in service", grant.external_ip),
            };
            silent.push((grant, reason));
        }
        side_by_side::for_each(silent, |(grant, reason)| {
            let tell = |job: &mut Job| job.gateway_is_silent(&reason);
            let told = self.store.update_job(&grant.cluster, grant.job, "tell-silence", tell);
            log_failure(grant.job, told.map(drop));
        });
    }

    /// Makes what is installed be what the ledger says, where it differs.
    fn mend(&mut self, gateway: &dyn Gateway, installed: &Installed, sure: &BTreeSet<u64>) -> Result<()> {
        let wanted = self.wanted(gateway)?;
        let mut wrong = differing(&wanted, &installed.blocks);
        if !installed.ready {
            log::info!("gateway {}: not (or no longer) set up for our rules; doing so", gateway.address());
            return self.keyhole.set_up(&self.cluster, gateway, &wrong.into_keys().collect()).map(drop);
        }
        // A grant or a withdrawal that was under way during the look looks like a fault, but the same rule not twice. What was installed for
        // certain, and users rely on, is missing at once.
        let suspects = self.suspects.insert(gateway.address().to_owned(), wrong.clone()).unwrap_or_default();
        let lost = lost(&wanted, installed, sure);
        wrong.retain(|block, rules| lost.contains(block) || suspects.get(block).is_some_and(|known| !known.is_disjoint(rules)));
        if wrong.is_empty() {
            return Ok(());
        }
        let wrong: BTreeSet<u16> = wrong.into_keys().collect();
        log::warn!("gateway {}: rules differ from the records in blocks {wrong:?}; mending", gateway.address());
        // One by one: what stands in the way of one block is none of the others' business.
        let mend = |block| self.keyhole.install(&self.cluster, gateway, &BTreeSet::from([block]), "mend-rules").map(drop);
        wrong.into_iter().map(mend).fold(Ok(()), Result::and)
    }

    /// The rules of a gateway by the ledger.
    fn wanted(&self, gateway: &dyn Gateway) -> Result<BTreeMap<u16, BTreeSet<Rule>>> {
        let ledger = self.store.gateway_blocks(&self.cluster.name, gateway.address())?;
        Ok(ledger.into_iter().map(|(number, block)| (number, rules(&self.cluster.name, &block.forwardings))).collect())
    }

    /// Asks which of the forwarded ports that are due accept connections, one batch per gateway; of those that were silent the last time, or
    /// of all others. A gateway that was silent a moment ago is not waited for again; how often one cannot say who listens is counted in
    /// cycles.
    fn look(&mut self, doubtful: bool, silent: &BTreeSet<String>, in_cycle: bool) -> Result<()> {
        let now = Instant::now();
        let schedule = &self.schedule;
        let look = |gateway: &dyn Gateway| {
            let due = schedule.due(gateway.address(), doubtful, now);
            if silent.contains(gateway.address()) || due.is_empty() {
                return Ok(None);
            }
            ask(gateway, doubtful, &due).map(Some)
        };
        let looks = self.on_all_gateways(look);
        let (mut all, mut failure) = (Vec::new(), Ok(()));
        let cluster = Arc::clone(&self.cluster);
        for (gateway, seen) in cluster.gateways.iter().zip(looks) {
            let blind = self.blind.entry(gateway.address().to_owned()).or_default();
            match seen {
                Ok(None) => {}
                Ok(Some(seen)) => {
                    *blind = 0;
                    all.extend(seen);
                }
                Err(error) => {
                    *blind = blind.saturating_add(in_cycle.into());
                    failure = failure.and(Err(error));
                }
            }
        }
        self.tell_all(&all);
        failure
    }

    fn tell_all(&mut self, seen: &[(u64, Seen)]) {
        let news = self.schedule.note(seen, self.every, Instant::now());
        for (job, told) in side_by_side::for_each(news, |(grant, seen)| (grant.job, self.tell(&grant, seen))) {
            if told.is_err() {
                self.schedule.forget(job);
            }
            log_failure(job, told);
        }
    }

    fn tell(&self, grant: &Grant, seen: Seen) -> Result<()> {
        let services = (seen == Seen::Listens).then(|| grant.services());
        let before = std::cell::Cell::new(None);
        let after = self.store.update_job(&grant.cluster, grant.job, "tell-listening", |job| {
            before.set(Some(job.state));
            match seen {
                // What was seen was an earlier run's.
                _ if job.run != grant.run => {}
                // It keeps the last state.
                Seen::Silent => job.gateway_is_silent(&format!("{} does not answer the gateway", grant.target)),
                Seen::Listens | Seen::Closed => job.listens(services.clone(), Timestamp::now()),
            }
        })?;
        if let Some(job) = after.filter(|job| Some(job.state) != before.get()) {
            log::info!("job {}: {:?}: {}", job.id, job.state, job.message);
        }
        Ok(())
    }

    /// All gateways side by side: a slow one costs its own time once.
    fn on_all_gateways<T: Send>(&self, ask: impl Fn(&dyn Gateway) -> Result<T> + Sync) -> Vec<Result<T>> {
        let work = id::work();
        let ask = |gateway: &dyn Gateway| {
            let _work = id::inherited(work.clone());
            ask(gateway)
        };
        let ask = &ask;
        thread::scope(|scope| {
            let asked: Vec<_> = self.cluster.gateways.iter().map(|gateway| scope.spawn(move || ask(gateway.as_ref()))).collect();
            let panicked = |_| Err(Error::internal("a look at a gateway panicked"));
            asked.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
        })
    }
}

fn log_failure(job: u64, result: Result<()>) {
    if let Err(error) = result {
        log::warn!("job {job}: {error}");
    }
}

/// The grants whose rules are there, by their jobs.
fn active(grants: &[Arc<Grant>]) -> HashMap<u64, Arc<Grant>> {
    let active = grants.iter().filter(|grant| grant.state == GrantState::Active);
    active.map(|grant| (grant.job, Arc::clone(grant))).collect()
}

/// Whether the same rules belong to both.
fn is_same(one: &Grant, other: &Grant) -> bool {
    let rules = |grant: &Grant| (grant.state, grant.run, grant.attempt);
    rules(one) == rules(other) && one.gateway == other.gateway && one.spans == other.spans && one.target == other.target
}

/// The blocks in which a rule is missing that was installed for certain.
fn lost(wanted: &BTreeMap<u16, BTreeSet<Rule>>, installed: &Installed, sure: &BTreeSet<u64>) -> BTreeSet<u16> {
    let missing = |block: &u16, rule: &Rule| installed.blocks.get(block).is_none_or(|there| !there.contains(rule));
    let in_block = |(block, rules): (&u16, &BTreeSet<Rule>)| {
        rules.iter().any(|rule| sure.contains(&rule.job) && missing(block, rule)).then_some(*block)
    };
    wanted.iter().filter_map(in_block).collect()
}

/// Blocks with the rules that are missing or too many.
type Differences = BTreeMap<u16, BTreeSet<Rule>>;

/// The blocks whose rules are not as they should be.
fn differing(wanted: &BTreeMap<u16, BTreeSet<Rule>>, installed: &BTreeMap<u16, BTreeSet<Rule>>) -> Differences {
    let none = BTreeSet::new();
    let all: BTreeSet<u16> = wanted.keys().chain(installed.keys()).copied().collect();
    let rules = |block: u16| {
        let (wanted, installed) = (wanted.get(&block).unwrap_or(&none), installed.get(&block).unwrap_or(&none));
        (block, wanted.symmetric_difference(installed).cloned().collect::<BTreeSet<Rule>>())
    };
    all.into_iter().map(rules).filter(|(_, rules)| !rules.is_empty()).collect()
}

/// What is seen of these jobs of a gateway.
fn ask(gateway: &dyn Gateway, apart: bool, due: &[&Watched]) -> Result<Vec<(u64, Seen)>> {
    let begun = Instant::now();
    let targets: Vec<Target> = due.iter().flat_map(|watched| watched.targets()).collect();
    let seen = match apart {
        true => seen_apart(due, &gateway.probe_apart(&targets)?),
        false => {
            let probe = gateway.probe(&targets)?;
            due.iter().map(|watched| (watched.grant.job, watched.seen(&probe))).collect()
        }
    };
    let (jobs, ms) = (due.len(), begun.elapsed().as_millis());
    log::debug!("gateway {}: looked at the ports of {jobs} jobs in {ms} ms", gateway.address());
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ports::Span;

    fn rule(job: u64) -> Rule {
        Rule { cluster: "default".into(), job, span: Span { external: 50000, internal: 50000, count: 1 }, target: "c0".into() }
    }

    #[test]
    fn missing_stray_and_changed_rules_are_found_and_empty_chains_are_fine() {
        let with = |jobs: &[u64]| jobs.iter().map(|&job| rule(job)).collect::<BTreeSet<_>>();
        let wanted = BTreeMap::from([(500, with(&[1])), (501, with(&[2])), (502, with(&[3]))]);
        let installed = BTreeMap::from([(500, with(&[1])), (501, with(&[9])), (503, with(&[4])), (504, with(&[]))]);
        let expected = BTreeMap::from([(501, with(&[2, 9])), (502, with(&[3])), (503, with(&[4]))]);
        assert_eq!(differing(&wanted, &installed), expected);
    }
}
