//! The members of the etcd cluster. One of them is asked until it fails, then the next: in the same call where that is safe.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use etcd_client::{Client, ConnectOptions, KvClient};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::config::{EtcdConfig, options};
use super::faults::{Fault, judge};
use crate::error::Result;

/// An answer above this is refused; the largest that we ask for, 120 keys, are far smaller.
const ANSWER_BYTES: usize = 64 << 20;

/// Whether an attempt that may have happened may be repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Always,
    IfNotDone,
}

pub(super) struct Members {
    members: Vec<Member>,
    user: Option<(String, String)>,
    options: ConnectOptions,
    /// Counts up; the member asked at present is the rest of its division.
    current: AtomicUsize,
    down: AtomicBool,
}

struct Member {
    endpoint: String,
    /// Made when first needed, dropped when it failed.
    client: Mutex<Option<Client>>,
}

/// The client for keys and values.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(ANSWER_BYTES)
}

impl Members {
    pub(super) fn none() -> Self {
        Self {
            members: Vec::new(),
            user: None,
            options: ConnectOptions::new(),
            current: AtomicUsize::new(0),
            down: AtomicBool::new(false),
        }
    }

    pub(super) async fn new(config: &EtcdConfig) -> Result<Self> {
        let options = options(config)?;
        // Without a user this asks nobody, and finds what is wrong in the certificates.
        Client::connect(&config.endpoints, Some(options.clone())).await.map_err(|error| judge(error).error)?;
        let member = |endpoint: &String| Member { endpoint: endpoint.clone(), client: Mutex::new(None) };
        let members = config.endpoints.iter().map(member).collect();
        Ok(Self { members, user: config.user.clone(), options, ..Self::none() })
    }

    /// Makes a call, at several members if need be, before `deadline`.
    pub(super) async fn call<T, C, F>(&self, deadline: Instant, repeat: Repeat, call: C) -> Result<T, Fault>
    where
        C: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut left = self.members.len();
        loop {
            let turn = self.current.load(Ordering::Relaxed);
            let until = share(deadline, left);
            let fault = match self.attempt(turn, until, &call).await {
                Ok(answer) => {
                    self.note_up(turn);
                    return Ok(answer);
                }
                Err(fault) => fault,
            };
            if !fault.elsewhere {
                return Err(fault);
            }
            let _ = self.current.compare_exchange(turn, turn.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
            // One attempt more than there are members: a connection that broke while it was idle is noticed by its next user.
            let may_repeat = fault.not_done || repeat == Repeat::Always;
            if !may_repeat || left == 0 || Instant::now() >= deadline {
                self.note_down(turn, &fault);
                return Err(fault);
            }
            left -= 1;
        }
    }

    fn member(&self, turn: usize) -> Option<&Member> {
        self.members.get(turn.checked_rem(self.members.len())?)
    }

    async fn attempt<T, C, F>(&self, turn: usize, until: Instant, call: &C) -> Result<T, Fault>
    where
        C: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let member = self.member(turn).ok_or_else(|| Fault::timeout(true))?;
        let connected = timeout_at(until, self.client(member)).await;
        let client = connected.map_err(|_| Fault::timeout(true))?.map_err(|error| Fault { not_done: true, ..judge(error) })?;
        let outcome = match timeout_at(until, call(client)).await {
            Ok(outcome) => outcome.map_err(judge),
            Err(_) => Err(Fault::timeout(false)),
        };
        if outcome.as_ref().is_err_and(|fault| fault.elsewhere) {
            // The next one begins with a fresh connection and a fresh login. If it is locked, somebody makes one already.
            if let Ok(mut slot) = member.client.try_lock() {
                *slot = None;
            }
        }
        outcome
    }

    /// The member's client; its login, where there is a user, is made by one caller for all.
    async fn client(&self, member: &Member) -> Result<Client, etcd_client::Error> {
        let mut slot = member.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let options = match &self.user {
            Some((user, password)) => self.options.clone().with_user(user, password),
            None => self.options.clone(),
        };
        let client = Client::connect([&member.endpoint], Some(options)).await?;
        *slot = Some(client.clone());
        Ok(client)
    }

    fn endpoint(&self, turn: usize) -> &str {
        self.member(turn).map_or("", |member| &member.endpoint)
    }

    fn note_down(&self, turn: usize, fault: &Fault) {
        if !self.down.swap(true, Ordering::Relaxed) {
            log::warn!("no etcd server answers, the last one tried was {}: {}", self.endpoint(turn), fault.error);
        }
    }

    fn note_up(&self, turn: usize) {
        if self.down.load(Ordering::Relaxed) && self.down.swap(false, Ordering::Relaxed) {
            log::info!("etcd answers again: {}", self.endpoint(turn));
        }
    }
}

/// The end of the next attempt, so that as much is left for each of the others.
fn share(deadline: Instant, left: usize) -> Instant {
    let now = Instant::now();
    let parts = u32::try_from(left.max(1)).unwrap_or(u32::MAX);
    now + deadline.saturating_duration_since(now) / parts
}
