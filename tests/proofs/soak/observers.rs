//! Those who look at everything all the time, without the runners: at Slurm, at the gateways, and at services as their users do.

use super::load::Front;
use super::tally::{Entry, Tally, lock};
use bwvisu_tests::Bed;
use bwvisu_tests::gateway::GATEWAYS;
use bwvisu_tests::slurm::Queue;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(700);

/// A job in Slurm as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InSlurm {
    /// Slurm's id.
    pub id: String,
    /// Slurm's word for its state.
    pub state: String,
}

impl InSlurm {
    /// Whether it waits or runs.
    pub fn alive(&self) -> bool {
        ["PENDING", "RUNNING", "CONFIGURING", "SUSPENDED", "REQUEUED"].contains(&self.state.as_str())
    }
}

/// All that was ever seen in Slurm, by our job id, and what is there now.
pub struct Slurm<'b> {
    bed: &'b Bed,
    tally: &'b Tally,
    first: u64,
    ever: Mutex<BTreeMap<u64, InSlurm>>,
}

impl<'b> Slurm<'b> {
    /// Nothing was seen yet.
    pub fn new(bed: &'b Bed, tally: &'b Tally) -> Self {
        Self { bed, tally, first: Queue::from_now(bed).first(), ever: Mutex::default() }
    }

    /// Looks until `done`.
    pub fn watch(&self, done: impl Fn() -> bool) {
        while !done() {
            let finished = self.finished();
            if let Some(now) = self.look() {
                self.tally.count("looks at Slurm");
                self.compare(&finished, &now);
            }
            thread::sleep(PAUSE);
        }
    }

    fn finished(&self) -> BTreeSet<u64> {
        self.tally.jobs().iter().filter(|(_, job)| job.finished()).map(|(id, _)| *id).collect()
    }

    /// What Slurm has now; nothing if it does not answer.
    pub fn look(&self) -> Option<BTreeMap<u64, InSlurm>> {
        let output = self.bed.exec("ctl", &["squeue", "--noheader", "--states=all", "--format=%A|%T|%j"]);
        let text = output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())?;
        let mut now = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.trim().split('|').collect();
            if words[0].parse().is_ok_and(|id: u64| id < self.first) {
                continue;
            }
            let ours = words.get(2).and_then(|name| name.strip_prefix("bwvisu-"));
            let Some(id) = ours.and_then(|rest| rest.split('-').next()).and_then(|id| id.parse::<u64>().ok()) else { continue };
            self.note(id, InSlurm { id: words[0].to_owned(), state: words[1].to_owned() }, &mut now);
        }
        Some(now)
    }

    /// A name holds our id, so one id is one name.
    fn note(&self, id: u64, seen: InSlurm, now: &mut BTreeMap<u64, InSlurm>) {
        let before = lock(&self.ever).insert(id, seen.clone());
        if let Some(before) = before.filter(|before| before.id != seen.id) {
            self.tally.wrong(format!("two jobs in Slurm for job {id}: {before:?} and {seen:?}"));
        }
        now.insert(id, seen);
    }

    fn compare(&self, finished: &BTreeSet<u64>, now: &BTreeMap<u64, InSlurm>) {
        for id in finished {
            if let Some(seen) = now.get(id).filter(|seen| seen.alive()) {
                self.tally.wrong(format!("job {id} is called finished, and in Slurm it is {seen:?}"));
            }
        }
    }

    /// All that was ever seen.
    pub fn ever(&self) -> BTreeMap<u64, InSlurm> {
        lock(&self.ever).clone()
    }
}

/// One forwarding of a gateway: external port, job, target.
pub type Forwarding = (u16, u64, String);

/// The forwardings of a gateway, as its tables have them.
pub fn forwardings(bed: &Bed, gateway: &str) -> Option<Vec<Forwarding>> {
    let output = bed.exec(gateway, &["iptables-save", "-t", "nat"]);
    let text = output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())?;
    Some(text.lines().filter(|line| line.contains("BWVISU-") && line.contains("-j DNAT")).flat_map(parse).collect())
}

fn parse(rule: &str) -> Vec<Forwarding> {
    let words: Vec<&str> = rule.split(' ').collect();
    let after = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)).copied();
    let mark = words.iter().find_map(|word| word.trim_matches('"').strip_prefix("bwvisu:"));
    let job = mark.and_then(|mark| mark.split(':').nth(1)).and_then(|id| id.parse().ok());
    let (Some(ports), Some(job), Some(target)) = (after("--dport"), job, after("--to-destination")) else {
        panic!("a rule that this test cannot read: {rule}");
    };
    let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
    (first..=last).map(|port| (port, job, target.to_owned())).collect()
}

/// Looks at the tables of both gateways until `done`: no port is ever forwarded for two jobs.
pub fn watch_gateways(bed: &Bed, tally: &Tally, done: impl Fn() -> bool) {
    let mut suspects = BTreeSet::new();
    while !done() {
        let seen: Vec<_> = GATEWAYS.iter().filter_map(|gateway| Some((*gateway, forwardings(bed, gateway)?))).collect();
        tally.count("looks at gateways");
        for (gateway, rules) in &seen {
            let outside = rules.iter().map(|(port, job, _)| (format!("port {port} of {gateway}"), *job));
            for (what, jobs) in shared(outside) {
                tally.wrong(format!("{what} is forwarded for the jobs {jobs:?}"));
            }
        }
        // A gateway that is silent may keep a rule for a job that has moved and ended. But not for long for two that users are shown.
        let inside =
            seen.iter().flat_map(|(_, rules)| rules).map(|(port, job, target)| (format!("port {port} of {target}"), *job));
        let shown = |job: &u64| tally.jobs().get(job).is_some_and(|job| job.state == "available");
        let found: BTreeSet<_> =
            shared(inside).into_iter().filter(|(_, jobs)| jobs.iter().filter(|job| shown(job)).count() > 1).collect();
        for (what, jobs) in found.intersection(&suspects) {
            tally.wrong(format!("{what} is that of the jobs {jobs:?}"));
        }
        suspects = found;
        thread::sleep(PAUSE * 2);
    }
}

/// What more than one job has.
fn shared(owned: impl Iterator<Item = (String, u64)>) -> BTreeMap<String, BTreeSet<u64>> {
    let mut owners: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (what, job) in owned {
        owners.entry(what).or_default().insert(job);
    }
    owners.retain(|_, jobs| jobs.len() > 1);
    owners
}

/// A user outside who looks at the jobs whose ids leave `rest` when divided by `all`, and connects to what is shown as available.
pub struct User<'b> {
    /// The bed.
    pub bed: &'b Bed,
    /// What is known of jobs.
    pub tally: &'b Tally,
    /// The runners.
    pub front: Front<'b>,
    /// Which jobs are this user's.
    pub share: (u64, u64),
}

impl User<'_> {
    /// Looks until `done`.
    pub fn watch(&self, done: impl Fn() -> bool) {
        let mut round = 0;
        while !done() {
            round += 1;
            // Finished jobs now and then: they must stay what they are.
            let due = |id: u64, job: &Entry| id % self.share.1 == self.share.0 && (!job.finished() || id % 10 == round % 10);
            let ids: Vec<u64> = self.tally.jobs().iter().filter(|(id, job)| due(**id, job)).map(|(id, _)| *id).collect();
            for id in ids {
                if done() {
                    return;
                }
                self.look(id);
            }
            thread::sleep(PAUSE);
        }
    }

    /// One look at a job and its services; the job, if somebody answered.
    pub fn look(&self, id: u64) -> Option<Value> {
        let asked = Instant::now();
        let job = self.get(id)?;
        self.note(id, asked, &job);
        if job["state"] == "available" {
            for service in job["services"].as_array().into_iter().flatten() {
                self.connect(id, service);
            }
        }
        Some(job)
    }

    fn get(&self, id: u64) -> Option<Value> {
        match self.front.ask("GET", &format!("/jobs/{id}"), None, "") {
            Ok(reply) if reply.status == 200 => Some(reply.body),
            Ok(reply) if reply.status == 404 => {
                self.tally.wrong(format!("job {id} was accepted, and is now unknown: {reply:?}"));
                None
            }
            Ok(_) | Err(_) => {
                self.tally.count("looks at jobs without an answer");
                None
            }
        }
    }

    /// Others look, too: only who asked after the last answer was noted may not see what was before that.
    fn note(&self, id: u64, asked: Instant, seen: &Value) {
        self.tally.count("looks at jobs");
        let mut jobs = self.tally.jobs();
        let Some(job) = jobs.get_mut(&id) else { return };
        if asked < job.noted {
            return;
        }
        job.noted = Instant::now();
        let state = seen["state"].as_str().unwrap_or_default();
        if job.finished() && state != "finished" {
            return self.tally.wrong(format!("job {id} was finished, and is now {state}"));
        }
        if job.state != state {
            job.state = state.to_owned();
            job.since = Instant::now();
        }
        let text = |name: &str| seen[name].as_str().map(str::to_owned);
        if job.slurm.is_some() && text("scheduler-job-id") != job.slurm {
            self.tally.wrong(format!("job {id} was {:?} in Slurm, and is now {}", job.slurm, seen["scheduler-job-id"]));
        }
        job.slurm = text("scheduler-job-id");
        job.outcome = text("outcome");
    }

    /// Whoever answers must be that job.
    fn connect(&self, id: u64, service: &Value) {
        let Some(said) = self.answer(service) else { return self.tally.count("services that did not answer") };
        self.tally.count("services that answered");
        if said == format!("job {id}") {
            return;
        }
        // The job may have ended since it was looked at, and its ports may be another's by right.
        let still = self.get(id).is_some_and(|job| {
            job["state"] == "available" && job["services"].as_array().is_some_and(|all| all.contains(service))
        });
        if still {
            self.tally.wrong(format!("the service {service} of job {id} says {said:?}"));
        }
        self.tally.count("services that were another job's by the time of the connection");
    }

    fn answer(&self, service: &Value) -> Option<String> {
        let address: SocketAddr = format!("{}:{}", service["external-ip"].as_str()?, service["external-port"]).parse().ok()?;
        self.bed.at("outside", || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        })
    }
}
