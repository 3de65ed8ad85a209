//! What front ends ask for: submit, describe, list, cancel.
//!
//! A submission is written down before the scheduler gets anything of its script, and again when it has answered. Whatever ends this program in
//! between, the job's name in the scheduler leads back to the record; the watcher (`watch::jobs`) finishes what was cut off.
//!
//! A front end that names its request (`Idempotency-Key`) may repeat it until it has an answer: all that it ever gets is one job.

use crate::admin::Admin;
use crate::cluster::Cluster;
use crate::config::Limits;
use crate::domain::batch_script::{Clients, KeyholeSetup, batch_script};
use crate::domain::job::{Job, Outcome, Seen, State};
use crate::domain::template::{BuiltIns, Template};
use crate::domain::user::User;
use crate::effect;
use crate::error::{Error, ErrorKind, Result};
use crate::scheduler::{Before, Submission, Wanted};
use crate::store::{Created, RepeatKey, Repeatable, Store, backup::Made};
use crate::templates::TemplateFolder;
use jiff::{SignedDuration, Timestamp};
use keyhole_protocol::Token;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

/// How long the keyhole-client tries to get its ports.
const GIVE_UP_AFTER_SECONDS: u64 = 180;
/// When to look for a job whose submission was cut off: a busy scheduler may show it a little later.
const LOOKS: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(2), Duration::from_secs(5)];

/// How long a store that does not answer is waited for when the scheduler has taken a job.
const STORE_PAUSES: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3)];

/// What a front end sends to have a job.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NewJob {
    /// The owner's name or number.
    pub uid: String,
    /// The template's file name.
    pub template_name: String,
    /// The template's variables.
    #[serde(default, deserialize_with = "unique")]
    pub variables: BTreeMap<String, String>,
}

/// A map that names nothing twice: of two values, the one that was looked at and the one that is used could differ.
fn unique<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Unique;

    impl<'de> Visitor<'de> for Unique {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((name, value)) = members.next_entry::<String, String>()? {
                if map.contains_key(&name) {
                    return Err(A::Error::custom(format_args!("the variable {name:?} is there twice")));
                }
                map.insert(name, value);
            }
            Ok(map)
        }
    }

    deserializer.deserialize_map(Unique)
}

/// The verbs.
pub struct Jobs {
    store: Arc<Store>,
    clusters: Vec<Arc<Cluster>>,
    templates: TemplateFolder,
    clients: Clients,
    keyhole_servers: Vec<SocketAddr>,
    max_ports: u32,
    limits: Limits,
    stale_after: Duration,
    installation: OnceLock<String>,
}

/// A request that has a name: the digests of its key and of what it asks for.
struct Named {
    key: String,
    body: String,
}

/// A job, and how fresh what is known of it is.
#[derive(Debug)]
pub struct JobView {
    /// The job as it was last seen.
    pub job: Job,
    /// When that was; for a finished job, when its end was seen. Nothing before the first look.
    pub observed_at: Option<Timestamp>,
    /// Why it may be otherwise by now.
    pub stale: Option<String>,
}

impl JobView {
    /// A job whose scheduler last answered at `heard`, and is called unheard after `stale_after`.
    fn new(job: Job, heard: Option<Timestamp>, stale_after: Duration, now: Timestamp) -> Self {
        let submitted = job.submitted_at.unwrap_or(Timestamp::MIN);
        let observed_at = job.finished_at.or(heard.filter(|heard| *heard >= submitted));
        let last_word = heard.map_or(submitted, |heard| heard.max(submitted));
        let unheard = job.state != State::Finished && now.duration_since(last_word) > stale_duration(stale_after);
        let of_scheduler = || format!("the scheduler has not been heard since {}", last_word.strftime("%Y-%m-%dT%H:%M:%SZ"));
        let stale = unheard.then(of_scheduler).or_else(|| job.gateway_trouble.clone());
        Self { job, observed_at, stale }
    }
}

/// After so long without an answer of the scheduler's, what is known of jobs is called stale, if the watcher looks every `interval`: three
/// looks, and as long as one of them may take.
fn stale_after(interval: Duration) -> Duration {
    interval * 3 + Duration::from_secs(5)
}

fn stale_duration(stale_after: Duration) -> SignedDuration {
    SignedDuration::try_from(stale_after).unwrap_or(SignedDuration::MAX)
}

/// What a request that was made before means for the same request now.
enum Repeated {
    /// There is this job.
    Job(u64),
    /// There certainly is none.
    Nothing,
}

/// What is known of a submission.
enum Standing {
    Accepted,
    Rejected,
    Open,
}

impl Jobs {
    /// The verbs on these parts. Jobs find keyhole at `keyhole_servers` and may have `max_ports` ports. All that
    /// must outlive a change of the configuration is in the store, so a new value takes the place of an old one at any time.
    pub fn new(
        store: Arc<Store>,
        clusters: Vec<Arc<Cluster>>,
        templates: TemplateFolder,
        clients: Clients,
        keyhole_servers: Vec<SocketAddr>,
        max_ports: u32,
        limits: Limits,
    ) -> Self {
        let stale_after = stale_after(Duration::from_secs(5));
        Self {
            store,
            clusters,
            templates,
            clients,
            keyhole_servers,
            max_ports,
            limits,
            stale_after,
            installation: OnceLock::new(),
        }
    }

    /// The same, for a watcher that looks at the scheduler every `interval`: what is older than that takes three times is called stale.
    #[must_use]
    pub fn watched_every(self, interval: Duration) -> Self {
        Self { stale_after: stale_after(interval), ..self }
    }

    fn jobs_per_user(&self) -> usize {
        self.limits.jobs_per_user.map_or(usize::MAX, |most| most as usize)
    }

    /// What may be asked of us at once.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Submits a job; returns its id once the scheduler has accepted it. A request with a `key` may be repeated: it gets the id of the job
    /// that was accepted for it, and another job only if there certainly is none.
    pub fn submit(&self, new: &NewJob, key: Option<&str>) -> Result<u64> {
        let cluster = self.cluster()?;
        let named = key.map(|key| named(key, new)).transpose()?;
        let instead_of = match &named {
            Some(named) => match self.store.repeatable(&cluster.name, &named.key)? {
                Some(before) => match self.repeated(cluster, &before, named)? {
                    Repeated::Job(id) => return Ok(id),
                    Repeated::Nothing => Some(before.job),
                },
                None => None,
            },
            None => None,
        };
        self.submit_new(cluster, new, named.as_ref(), instead_of)
    }

    fn submit_new(&self, cluster: &Cluster, new: &NewJob, named: Option<&Named>, instead_of: Option<u64>) -> Result<u64> {
        let template = self.templates.load(&new.template_name)?;
        // All that can be wrong with the input shows now, before anything is written or asked of other machines.
        self.render(&template, &new.variables, 0, "user", "/home/user", "log")?;
        let user = cluster.user(&new.uid)?;
        let limit = self.store.check_limit(&cluster.name, &user.name, self.jobs_per_user());
        if let (Err(busy), Some(named)) = (&limit, named)
            && busy.kind == ErrorKind::Busy
            && self.store.repeatable(&cluster.name, &named.key)?.map(|now| now.job) != instead_of
        {
            // The same request made at the same time: the job that is too many is its own.
            return Err(under_way());
        }
        limit?;
        let token = Token::from_bytes(random()?);
        let suffix = format!("{}{:08x}", self.installation()?, u32::from_be_bytes(random()?));
        let job = new_job(cluster, self.store.new_id()?, new, &user, &token, &suffix);
        let job = Job { repeatable: named.is_some(), ..job };
        let script = self.script(&job, &template, cluster, &user, &token)?;
        let repeat = named.map(|named| RepeatKey { key: &named.key, body: &named.body, instead_of });
        let create = || self.create(&job, repeat);
        let submitted = self.place(cluster, &job, &user, &script, &Before::new(&create));
        submitted.inspect_err(|error| log::warn!("job {}: {error}", job.id)).map(|job| job.id)
    }

    fn create(&self, job: &Job, repeat: Option<RepeatKey>) -> Result<()> {
        match self.store.create_job(job, repeat, self.jobs_per_user())? {
            Created::New => log::info!("job {}: {} for {} as {}", job.id, job.template_name, job.user, job.name),
            Created::Before(_) => return Err(under_way()),
        }
        Ok(())
    }

    /// What became of an earlier request with the same key.
    fn repeated(&self, cluster: &Cluster, before: &Repeatable, now: &Named) -> Result<Repeated> {
        if before.body != now.body {
            return Err(Error::conflict("this Idempotency-Key was used for another request; take a new one for each job"));
        }
        let Some(job) = self.store.job(&[cluster.name.as_str()], before.job)? else { return Ok(Repeated::Job(before.job)) };
        match standing(&job) {
            Standing::Accepted => Ok(Repeated::Job(job.id)),
            Standing::Rejected => Ok(Repeated::Nothing),
            Standing::Open => self.look_again(cluster, &job).map(Repeated::Job),
        }
    }

    /// Nobody knows yet whether the scheduler has the job: it is adopted if it is there.
    fn look_again(&self, cluster: &Cluster, job: &Job) -> Result<u64> {
        let seen = cluster.scheduler.look(&[Wanted::from(job)])?;
        let open =
            || Error::unavailable("the job is being submitted, or it is not known yet what came of it; repeat the request");
        let seen = seen.iter().find(|seen| job.is(seen)).ok_or_else(open)?;
        self.accepted(cluster, job, &seen.scheduler_job_id).map(|job| job.id)
    }

    /// What tells our jobs from those of other installations.
    fn installation(&self) -> Result<&str> {
        if let Some(known) = self.installation.get() {
            return Ok(known);
        }
        let id = self.store.installation(|| random().map(u16::from_be_bytes))?;
        Ok(self.installation.get_or_init(|| id))
    }

    /// A job, finished or not, and how fresh what is known of it is.
    pub fn describe(&self, id: u64) -> Result<JobView> {
        let found = self.store.job_and_heard(&self.cluster_names(), id)?;
        let (job, heard) = found.ok_or_else(|| Error::not_found("no such job"))?;
        Ok(JobView::new(job, heard, self.stale_after, Timestamp::now()))
    }

    /// The ids of all jobs that are not finished.
    pub fn list(&self) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        for cluster in &self.clusters {
            ids.extend(self.store.active_ids(&cluster.name)?);
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Makes a backup of the store, on this machine.
    pub fn back_up(&self) -> Result<Made> {
        self.store.back_up(Timestamp::now())
    }

    /// Cancels an unfinished job. The wish is written down first: what cannot be done now, the watcher does.
    pub fn cancel(&self, id: u64) -> Result<()> {
        let missing = || Error::not_found("no such running job");
        let job = self.store.job(&self.cluster_names(), id)?.filter(|job| job.state != State::Finished).ok_or_else(missing)?;
        let cluster = self.clusters.iter().find(|cluster| cluster.name == job.cluster).ok_or_else(missing)?;
        let job = self.store.update_job(&job.cluster, id, "cancel", request_cancel)?.ok_or_else(missing)?;
        log::info!("job {id}: to be cancelled");
        let Some(scheduler_job_id) = &job.scheduler_job_id else { return Ok(()) };
        cluster.cancel(&job.user, scheduler_job_id).map_err(|error| {
            log::warn!("job {id}: {error}");
            Error { message: format!("the cancellation is noted and will be repeated: {}", error.message), ..error }
        })
    }

    /// What admins ask for, on the same parts.
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.store), self.clusters.clone())
    }

    /// Whether this user exists and may use the service.
    pub fn check_user(&self, name: &str) -> Result<User> {
        self.cluster()?.user(name)
    }

    fn cluster(&self) -> Result<&Arc<Cluster>> {
        self.clusters.first().ok_or_else(|| Error::internal("no cluster is configured"))
    }

    fn cluster_names(&self) -> Vec<&str> {
        self.clusters.iter().map(|cluster| cluster.name.as_str()).collect()
    }

    fn render(
        &self,
        template: &Template,
        variables: &BTreeMap<String, String>,
        job_id: u64,
        user: &str,
        home: &str,
        log: &str,
    ) -> Result<String> {
        template.render(variables, &BuiltIns { job_id, user, home, log }).map(|rendered| rendered.script)
    }

    fn script(&self, job: &Job, template: &Template, cluster: &Cluster, user: &User, token: &Token) -> Result<String> {
        let text = self.render(template, &job.variables, job.id, &user.name, &cluster.home(user), &job.log)?;
        let setup = KeyholeSetup {
            job_id: job.id,
            token_hex: &token.to_hex(),
            servers: &self.keyhole_servers,
            give_up_after_seconds: GIVE_UP_AFTER_SECONDS,
            clients: &self.clients,
        };
        batch_script(&text, &setup, self.max_ports)
    }

    /// Hands the script to the scheduler, writes the job down `before`, and what came of it.
    fn place(&self, cluster: &Cluster, job: &Job, user: &User, script: &str, before: &Before) -> Result<Job> {
        let folder = cluster.home(user);
        let submission = Submission { name: &job.name, user, folder: &folder, log: &log_name(job.id), script };
        match effect::around("submit", || cluster.scheduler.submit(&submission, before)) {
            Ok(scheduler_job_id) => self.accepted(cluster, job, &scheduler_job_id),
            // The scheduler got nothing of it, and nobody will ask for it.
            Err(error) if !before.is_done() => Err(error),
            Err(error) if error.kind == ErrorKind::Unknown => self.find(cluster, job, &error),
            Err(error) => self.rejected(job, error),
        }
    }

    fn accepted(&self, cluster: &Cluster, job: &Job, scheduler_job_id: &str) -> Result<Job> {
        log::info!("job {}: accepted by the scheduler as {scheduler_job_id}", job.id);
        match self.remember(job, scheduler_job_id) {
            Ok(Some(now)) if now.scheduler_job_id.as_deref() == Some(scheduler_job_id) => Ok(now),
            Ok(_) => {
                // It was given up meanwhile, so nobody would ever look after this one.
                cluster.cancel(&job.user, scheduler_job_id)?;
                Err(Error::unavailable(
                    "the scheduler took the job so late that it had been given up; it is cancelled; try again",
                ))
            }
            // Who repeats the request will find it by its name.
            Err(error) if job.repeatable => Err(error),
            Err(error) => {
                // The caller is told that it failed and will try again: two jobs would be one too many.
                log::warn!("job {}: {error}; it is cancelled, since it cannot be written down", job.id);
                cluster.cancel(&job.user, scheduler_job_id)?;
                Err(error)
            }
        }
    }

    /// Writes the scheduler's id down, and returns the job as it is then, finished or not. A store that is away for a moment is waited for.
    fn remember(&self, job: &Job, scheduler_job_id: &str) -> Result<Option<Job>> {
        let accept = |job: &mut Job| job.scheduler_job_id = Some(scheduler_job_id.to_owned());
        let once = || match self.store.update_job(&job.cluster, job.id, "accept", accept)? {
            Some(now) => Ok(Some(now)),
            // Finished already: the watcher was faster.
            None => self.store.job(&[job.cluster.as_str()], job.id),
        };
        for pause in STORE_PAUSES {
            match once() {
                Err(error) => log::warn!("job {}: {error}; once more", job.id),
                done => return done,
            }
            thread::sleep(pause);
        }
        once()
    }

    fn rejected(&self, job: &Job, error: Error) -> Result<Job> {
        let message = format!("not accepted: {}", error.message);
        let fail = |job: &mut Job| job.finish(Outcome::Failed, None, &message, Timestamp::now());
        self.store.update_job(&job.cluster, job.id, "reject", fail)?;
        Err(error)
    }

    /// The answer was lost: the job may be there. It is never submitted again, but looked for.
    fn find(&self, cluster: &Cluster, job: &Job, error: &Error) -> Result<Job> {
        log::warn!("job {}: {error}; looking for it by its name", job.id);
        for pause in LOOKS {
            thread::sleep(pause);
            match cluster.scheduler.look(&[Wanted::from(job)]) {
                Ok(seen) => {
                    if let Some(seen) = seen.iter().find(|seen| job.is(seen)) {
                        return self.accepted(cluster, job, &seen.scheduler_job_id);
                    }
                }
                Err(error) => log::warn!("job {}: {error}", job.id),
            }
        }
        if job.repeatable {
            let words =
                format!("{}; the scheduler does not show the job (yet); repeat the request with the same key", error.message);
            return Err(Error::unavailable(words));
        }
        // It may still turn up. Nobody will wait for it then, since we say now that it failed.
        self.store.update_job(&job.cluster, job.id, "give-up", request_cancel)?;
        Err(Error::unavailable(format!(
            "{}; the scheduler does not show the job (if it turns up later, it will be cancelled); try again",
            error.message
        )))
    }
}

fn under_way() -> Error {
    Error::unavailable("a request with this Idempotency-Key is under way; repeat it")
}

fn named(key: &str, new: &NewJob) -> Result<Named> {
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let body = serde_json::to_vec(new).map_err(|e| Error::internal(format!("the request cannot be written: {e}")))?;
    Ok(Named { key: hex(key.as_bytes()), body: hex(&body) })
}

fn standing(job: &Job) -> Standing {
    match (&job.scheduler_job_id, job.outcome, job.cancel_requested) {
        (Some(_), ..) => Standing::Accepted,
        // Somebody cancelled it before the scheduler had it: that was the wish.
        (None, Some(Outcome::Cancelled), _) | (None, None, true) => Standing::Accepted,
        (None, Some(_), _) => Standing::Rejected,
        (None, None, false) => Standing::Open,
    }
}

fn request_cancel(job: &mut Job) {
    job.cancel_requested = true;
    job.message = "being cancelled".into();
    if job.scheduler_job_id.is_some() {
        job.state = State::Completing;
    }
}

/// Whether a look shows something that a cancelled job must not do any more.
pub(crate) fn lingers(job: &Job, seen: &Seen) -> bool {
    use crate::domain::job::Phase;
    job.cancel_requested && matches!(seen.phase, Phase::Waiting | Phase::Running)
}

fn new_job(cluster: &Cluster, id: u64, new: &NewJob, user: &User, token: &Token, suffix: &str) -> Job {
    Job {
        cluster: cluster.name.clone(),
        id,
        uid: new.uid.clone(),
        user: user.name.clone(),
        template_name: new.template_name.clone(),
        variables: new.variables.clone(),
        // The random part keeps apart the jobs of an installation whose store began anew.
        name: format!("bwvisu-{id}-{suffix}"),
        log: format!("{}/{}", cluster.home(user), log_name(id)),
        token: Some(token.to_hex()),
        message: "being submitted".into(),
        submitted_at: Some(Timestamp::now()),
        ..Job::default()
    }
}

fn log_name(id: u64) -> String {
    format!("bwvisu-job-{id}.out")
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal(format!("the system gives no random numbers: {e}")))?;
    Ok(bytes)
}
