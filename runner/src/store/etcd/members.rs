//! The members of the etcd cluster. One of them is asked until it fails, then the next: in the same call where that is safe.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Client, KvClient};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use super::config::{EtcdConfig, options};
use super::faults::{Fault, judge};
use crate::error::{Error, Result};

/// An answer above this is refused; the largest that we ask for, 120 keys, are far smaller.
pub(super) const ANSWER_BYTES: usize = 64 << 20;

/// A cluster without a leader elects one in one or two seconds with etcd's defaults, and in as long again when votes are split. One that
/// gave no answer for so long is down.
const ELECTION: Duration = Duration::from_secs(4);
/// Between two questions to members that cannot answer just now.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether an attempt that may have happened may be repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Always,
    IfNotDone,
}

pub(super) struct Members {
    members: Vec<Member>,
    config: EtcdConfig,
    /// Counts failures, so that members can tell whose is the older.
    failures: AtomicU64,
    down: AtomicBool,
}

struct Member {
    endpoint: String,
    /// Made when first needed, dropped when it failed.
    client: Mutex<Option<Client>>,
    /// The number of its last failure; 0 for none.
    failed: AtomicU64,
}

/// What a call came to.
pub(super) struct Answer<T> {
    pub(super) value: T,
    /// An earlier attempt of the same call may have happened as well.
    pub(super) doubtful: bool,
}

/// The client for keys and values.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(ANSWER_BYTES)
}

impl Members {
    pub(super) fn none() -> Self {
        let config = EtcdConfig { endpoints: Vec::new(), user: None, tls: None, timeout: Duration::ZERO };
        Self { members: Vec::new(), config, failures: AtomicU64::new(0), down: AtomicBool::new(false) }
    }

    pub(super) async fn new(config: &EtcdConfig) -> Result<Self> {
        // Without a user this asks nobody, and finds what is wrong in the certificates.
        Client::connect(&config.endpoints, Some(options(config)?)).await.map_err(|error| unusable(error, config))?;
        let member =
            |endpoint: &String| Member { endpoint: endpoint.clone(), client: Mutex::new(None), failed: AtomicU64::new(0) };
        let members = config.endpoints.iter().map(member).collect();
        Ok(Self { members, config: config.clone(), ..Self::none() })
    }

    /// Makes a call, at several members if need be, before `deadline`.
    pub(super) async fn call<T, C, F>(&self, deadline: Instant, repeat: Repeat, call: C) -> Result<Answer<T>, Fault>
    where
        C: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let (begun, patient_until) = (Instant::now(), self.patient_until(deadline));
        let (mut left, mut doubtful, mut passing) = (self.members.len(), false, false);
        loop {
            let member = self.member().ok_or_else(|| Fault::timeout(true))?;
            let fault = match self.attempt(member, share(deadline, left + 1), &call).await {
                Ok(value) => {
                    self.note_up(member);
                    return Ok(Answer { value, doubtful });
                }
                Err(fault) => fault,
            };
            doubtful |= !fault.not_done;
            let fault = Fault { not_done: !doubtful, ..fault };
            if !fault.elsewhere {
                return Err(fault);
            }
            member.failed.store(self.failures.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            passing |= fault.passing || fault.silent;
            let (now, may_repeat) = (Instant::now(), fault.not_done || repeat == Repeat::Always);
            // Those that are dead refuse at once, again and again, while the others elect: this must not use up the attempts. Silence must,
            // or what is left of the time would be cut into pieces that are too short for an etcd that is slow.
            if passing && !fault.silent && may_repeat && now + PAUSE < patient_until {
                sleep(PAUSE).await;
                continue;
            }
            // One attempt more than there are members: a connection that broke while it was idle is noticed by its next user.
            if !may_repeat || left == 0 || now >= deadline {
                // Of a call that had little time, or may not be repeated, nothing follows for others.
                if may_repeat && (!passing || begun.elapsed() >= ELECTION.min(self.config.timeout * 4 / 5)) {
                    self.note_down(&fault);
                }
                // Where one address stands for several members, a fresh connection may lead to another one.
                forget(member);
                return Err(fault);
            }
            left -= 1;
        }
    }

    /// How long members that cannot answer just now are asked again: when the last call found none that answers, that would only pile up
    /// callers.
    fn patient_until(&self, deadline: Instant) -> Instant {
        if self.down.load(Ordering::Relaxed) { Instant::now() } else { deadline }
    }

    /// The one to be asked: the same until it fails, then the one that has not failed for the longest time.
    fn member(&self) -> Option<&Member> {
        self.members.iter().min_by_key(|member| member.failed.load(Ordering::Relaxed))
    }

    async fn attempt<T, C, F>(&self, member: &Member, until: Instant, call: &C) -> Result<T, Fault>
    where
        C: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let client = match timeout_at(until, self.client(member)).await {
            Ok(client) => client.map_err(|fault| self.locate(fault, member))?,
            Err(_) => return Err(self.locate(Fault::timeout(true), member)),
        };
        let outcome = match timeout_at(until, call(client)).await {
            Ok(outcome) => outcome.map_err(judge),
            Err(_) => Err(Fault::timeout(false)),
        };
        if outcome.as_ref().is_err_and(|fault| fault.elsewhere && !fault.passing) {
            forget(member);
        }
        outcome.map_err(|fault| self.locate(fault, member))
    }

    fn locate(&self, fault: Fault, member: &Member) -> Fault {
        fault.at(&member.endpoint, &self.config)
    }

    /// The member's client; its login, where there is a user, is made by one caller for all. The certificates are read anew, since
    /// they are renewed while we run.
    async fn client(&self, member: &Member) -> Result<Client, Fault> {
        let mut slot = member.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let mut options = options(&self.config).map_err(Fault::refused)?;
        if let Some((user, password)) = &self.config.user {
            options = options.with_user(user, password);
        }
        let connected = Client::connect([&member.endpoint], Some(options)).await;
        let client = connected.map_err(|error| match judge(error) {
            fault if fault.elsewhere => Fault { not_done: true, ..fault },
            fault => Fault::refused(fault.error),
        })?;
        *slot = Some(client.clone());
        Ok(client)
    }

    fn note_down(&self, fault: &Fault) {
        if !self.down.swap(true, Ordering::Relaxed) {
            log::warn!("no etcd server answers; the last one tried: {}", fault.error);
        }
    }

    fn note_up(&self, member: &Member) {
        if self.down.load(Ordering::Relaxed) && self.down.swap(false, Ordering::Relaxed) {
            log::info!("etcd answers again: {}", member.endpoint);
        }
    }
}

/// The next one begins with a fresh connection and a fresh login. If it is locked, somebody makes one already.
fn forget(member: &Member) {
    if let Ok(mut slot) = member.client.try_lock() {
        *slot = None;
    }
}

fn unusable(error: etcd_client::Error, config: &EtcdConfig) -> Error {
    let Error { kind, message, detail } = judge(error).error;
    let message = config.own_certificate().map_or(message.clone(), |files| format!("{message}; {files}"));
    Error { kind, message, detail }
}

/// The end of the next attempt, of so many that are to have as much time each.
fn share(deadline: Instant, parts: usize) -> Instant {
    let now = Instant::now();
    let parts = u32::try_from(parts).unwrap_or(u32::MAX);
    now + deadline.saturating_duration_since(now) / parts
}
