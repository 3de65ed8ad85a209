//! What front ends ask for: submit, describe, list, cancel.
//!
//! A submission is written down before the scheduler is asked, and again when it has answered. Whatever ends this program in between,
//! the job's name in the scheduler leads back to the record; the watcher (`watch::jobs`) finishes what was cut off.

use crate::cluster::Cluster;
use crate::config::Limits;
use crate::domain::batch_script::{Clients, KeyholeSetup, batch_script};
use crate::domain::job::{Job, Outcome, Seen, State};
use crate::domain::template::{BuiltIns, Template};
use crate::domain::user::User;
use crate::error::{Error, ErrorKind, Result};
use crate::scheduler::Submission;
use crate::store::Store;
use crate::templates::TemplateFolder;
use jiff::Timestamp;
use keyhole_protocol::Token;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long the keyhole-client tries to get its ports.
const GIVE_UP_AFTER_SECONDS: u64 = 180;
/// When to look for a job whose submission was cut off: a busy scheduler may show it a little later.
const LOOKS: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(2), Duration::from_secs(5)];

/// How long a store that does not answer is waited for when the scheduler has taken a job.
const STORE_PAUSES: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3)];

/// What a front end sends to have a job.
#[derive(Debug, Clone, Deserialize)]
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
        Self { store, clusters, templates, clients, keyhole_servers, max_ports, limits }
    }

    /// What may be asked of us at once.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Submits a job; returns it once the scheduler has accepted it.
    pub fn submit(&self, new: NewJob) -> Result<Job> {
        let cluster = self.cluster()?;
        let template = self.templates.load(&new.template_name)?;
        // All that can be wrong with the input shows now, before anything is written or asked of other machines.
        self.render(&template, &new.variables, 0, "user", "/home/user", "log")?;
        let user = cluster.user(&new.uid)?;
        let token = Token::from_bytes(random()?);
        let suffix = u32::from_be_bytes(random()?);
        let job = self.store.create_job(|id| new_job(cluster, id, &new, &user, &token, suffix))?;
        log::info!("job {}: {} for {} as {}", job.id, job.template_name, job.user, job.name);
        let submitted = match self.script(&job, &template, cluster, &user, &token) {
            Ok(script) => self.place(cluster, &job, &user, &script),
            Err(error) => self.rejected(&job, error),
        };
        submitted.inspect_err(|error| log::warn!("job {}: {error}", job.id))
    }

    /// A job, finished or not.
    pub fn describe(&self, id: u64) -> Result<Job> {
        self.store.job(&self.cluster_names(), id)?.ok_or_else(|| Error::not_found("no such job"))
    }

    /// The ids of all jobs that are not finished.
    pub fn list(&self) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        for cluster in &self.clusters {
            ids.extend(self.store.active_jobs(&cluster.name)?.iter().map(|job| job.id));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Cancels an unfinished job. The wish is written down first: what cannot be done now, the watcher does.
    pub fn cancel(&self, id: u64) -> Result<()> {
        let missing = || Error::not_found("no such running job");
        let job = self.store.job(&self.cluster_names(), id)?.filter(|job| job.state != State::Finished).ok_or_else(missing)?;
        let cluster = self.clusters.iter().find(|cluster| cluster.name == job.cluster).ok_or_else(missing)?;
        let job = self.store.update_job(&job.cluster, id, request_cancel)?.ok_or_else(missing)?;
        log::info!("job {id}: to be cancelled");
        let Some(scheduler_job_id) = &job.scheduler_job_id else { return Ok(()) };
        cluster.scheduler.cancel(&job.user, scheduler_job_id).map_err(|error| {
            log::warn!("job {id}: {error}");
            Error { message: format!("the cancellation is noted and will be repeated: {}", error.message), ..error }
        })
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

    /// Hands the script to the scheduler and writes down what came of it.
    fn place(&self, cluster: &Cluster, job: &Job, user: &User, script: &str) -> Result<Job> {
        let folder = cluster.home(user);
        let submission = Submission { name: &job.name, user, folder: &folder, log: &log_name(job.id), script };
        match cluster.scheduler.submit(&submission) {
            Ok(scheduler_job_id) => self.accepted(cluster, job, &scheduler_job_id),
            Err(error) if error.kind == ErrorKind::Unknown => self.find(cluster, job, &error),
            Err(error) => self.rejected(job, error),
        }
    }

    fn accepted(&self, cluster: &Cluster, job: &Job, scheduler_job_id: &str) -> Result<Job> {
        log::info!("job {}: accepted by the scheduler as {scheduler_job_id}", job.id);
        match self.remember(job, scheduler_job_id) {
            Ok(now) if now.as_ref().is_some_and(|now| now.scheduler_job_id.as_deref() == Some(scheduler_job_id)) => {
                Ok(now.unwrap_or_else(|| job.clone()))
            }
            Ok(_) => {
                // It was given up meanwhile, so nobody would ever look after this one.
                cluster.scheduler.cancel(&job.user, scheduler_job_id)?;
                Err(Error::unavailable(
                    "the scheduler took the job so late that it had been given up; it is cancelled; try again",
                ))
            }
            Err(error) => {
                // The caller is told that it failed and will try again: two jobs would be one too many.
                log::warn!("job {}: {error}; it is cancelled, since it cannot be written down", job.id);
                cluster.scheduler.cancel(&job.user, scheduler_job_id)?;
                Err(error)
            }
        }
    }

    /// Writes the scheduler's id down, and returns the job as it is then, finished or not. A store that is away for a moment is waited for.
    fn remember(&self, job: &Job, scheduler_job_id: &str) -> Result<Option<Job>> {
        let accept = |job: &mut Job| job.scheduler_job_id = Some(scheduler_job_id.to_owned());
        let once = || match self.store.update_job(&job.cluster, job.id, accept)? {
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
        self.store.update_job(&job.cluster, job.id, |job| job.finish(Outcome::Failed, None, &message, Timestamp::now()))?;
        Err(error)
    }

    /// The answer was lost: the job may be there. It is never submitted again, but looked for.
    fn find(&self, cluster: &Cluster, job: &Job, error: &Error) -> Result<Job> {
        log::warn!("job {}: {error}; looking for it by its name", job.id);
        for pause in LOOKS {
            thread::sleep(pause);
            match cluster.scheduler.list(std::slice::from_ref(&job.name)) {
                Ok(seen) => {
                    if let Some(seen) = seen.iter().find(|seen| job.is(seen)) {
                        return self.accepted(cluster, job, &seen.scheduler_job_id);
                    }
                }
                Err(error) => log::warn!("job {}: {error}", job.id),
            }
        }
        // It may still turn up. Nobody will wait for it then, since we say now that it failed.
        self.store.update_job(&job.cluster, job.id, request_cancel)?;
        Err(Error::unavailable(format!(
            "{}; the scheduler does not show the job (if it turns up later, it will be cancelled); try again",
            error.message
        )))
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

fn new_job(cluster: &Cluster, id: u64, new: &NewJob, user: &User, token: &Token, suffix: u32) -> Job {
    Job {
        cluster: cluster.name.clone(),
        id,
        uid: new.uid.clone(),
        user: user.name.clone(),
        template_name: new.template_name.clone(),
        variables: new.variables.clone(),
        // The random part keeps apart the jobs of several installations, and of one whose store began anew.
        name: format!("bwvisu-{id}-{suffix:08x}"),
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
