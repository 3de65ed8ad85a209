//! Who leads: a key for each role, on a lease for each role. The lease lives only as long as the role's watcher asks for it, so
//! a watcher that hangs loses its role, and the other roles of the program do not.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::time::{Instant, timeout_at};

use super::faults::Fault;
use super::members::{Members, Repeat};
use crate::error::{Error, Result};
use crate::store::LEASE_SECONDS;

/// The lease of a role, while this program leads it. Whoever asks for the role has it locked meanwhile.
type Held = Arc<tokio::sync::Mutex<Option<i64>>>;

/// The leads of this program, and its name for people who look at the keys.
pub(super) struct Leads {
    name: String,
    roles: Mutex<HashMap<String, Held>>,
    resigned: AtomicBool,
}

/// Who leads a role.
enum Leader {
    Nobody,
    We,
    Another,
}

impl Leads {
    pub(super) fn new() -> Result<Self> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|error| Error::unavailable(format!("no randomness: {error}")))?;
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = format!("{}:{} {:016x}", host.trim(), std::process::id(), u64::from_be_bytes(id));
        Ok(Self { name, roles: Mutex::default(), resigned: AtomicBool::new(false) })
    }

    /// Keeps the lead of the role with this key, or takes it if nobody has it. There is no keep-alive behind the caller's back: who
    /// hangs must lose the lead. What is `true` stays so for half of the lease at least, as no call lasts longer.
    pub(super) async fn lead(&self, members: &Members, key: &str, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + within(timeout);
        let held = self.held(key);
        let mut held = timeout_at(deadline, held.lock()).await.map_err(|_| Fault::timeout(true).of_read())?;
        // Once more for a lease that ended while it was looked at.
        for _ in 0..2 {
            if self.resigned.load(Ordering::SeqCst) {
                return Ok(false);
            }
            match leader(members, key, *held, deadline).await? {
                Leader::Another => {
                    *held = None;
                    return Ok(false);
                }
                Leader::We => match *held {
                    Some(lease) if keep(members, lease, deadline).await? => return Ok(true),
                    _ => *held = None,
                },
                Leader::Nobody => {
                    let lease = grant(members, deadline).await?;
                    // Before the key is taken: should the answer be lost, `resign` knows of it nevertheless.
                    *held = Some(lease);
                    match take(members, key, lease, &self.name, deadline).await? {
                        Some(true) => return Ok(true),
                        _ => *held = None,
                    }
                }
            }
        }
        Ok(false)
    }

    /// Gives up all roles at once, and for good: a watcher that asks once more on its way out must not take a role with it. What fails
    /// here, the leases' end does.
    pub(super) async fn resign(&self, members: &Members, timeout: Duration) {
        let deadline = Instant::now() + within(timeout);
        self.resigned.store(true, Ordering::SeqCst);
        let roles: Vec<Held> = self.lock().values().cloned().collect();
        for held in roles {
            let Ok(mut held) = timeout_at(deadline, held.lock()).await else { continue };
            let Some(lease) = held.take() else { continue };
            let revoke = |client: Client| async move { client.lease_client().revoke(lease).await };
            if let Err(fault) = members.call(deadline, Repeat::Always, revoke).await {
                log::info!("a lead was not given up, it ends within {LEASE_SECONDS} seconds: {}", fault.error);
            }
        }
    }

    fn held(&self, key: &str) -> Held {
        Arc::clone(self.lock().entry(key.to_owned()).or_default())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Held>> {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a call about a lead may take: less than the lead lasts.
fn within(timeout: Duration) -> Duration {
    timeout.min(Duration::from_secs(LEASE_SECONDS) / 2)
}

/// Looks without writing: those who follow ask often.
async fn leader(members: &Members, key: &str, held: Option<i64>, deadline: Instant) -> Result<Leader> {
    let get = |client: Client| async move { client.kv_client().get(key, None).await };
    let found = members.call(deadline, Repeat::Always, get).await.map_err(Fault::of_read)?.value;
    Ok(match found.kvs().first() {
        None => Leader::Nobody,
        Some(entry) if Some(entry.lease()) == held => Leader::We,
        Some(_) => Leader::Another,
    })
}

async fn grant(members: &Members, deadline: Instant) -> Result<i64> {
    let seconds = i64::try_from(LEASE_SECONDS).unwrap_or(i64::MAX);
    let grant = |client: Client| async move { client.lease_client().grant(seconds, None).await };
    // One that was granted without our knowing ends by itself.
    members.call(deadline, Repeat::Always, grant).await.map(|granted| granted.value.id()).map_err(Fault::of_read)
}

/// Whether the lease is alive, now for its full time again.
async fn keep(members: &Members, lease: i64, deadline: Instant) -> Result<bool> {
    let keep = |client: Client| async move {
        match client.lease_client().keep_alive(lease).await {
            Ok(_) => Ok(true),
            Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
            Err(error) => Err(error),
        }
    };
    members.call(deadline, Repeat::Always, keep).await.map(|kept| kept.value).map_err(Fault::of_read)
}

/// Takes `key` if it is free: whether it is ours now; `None` when the lease has ended meanwhile.
async fn take(members: &Members, key: &str, lease: i64, name: &str, deadline: Instant) -> Result<Option<bool>> {
    let options = PutOptions::new().with_lease(lease);
    let txn = Txn::new()
        .when([Compare::mod_revision(key, CompareOp::Equal, 0)])
        .and_then([TxnOp::put(key, name, Some(options))])
        .or_else([TxnOp::get(key, None)]);
    let take = |client: Client| {
        let txn = txn.clone();
        async move {
            match client.kv_client().txn(txn).await {
                Ok(response) => Ok(Some(response)),
                Err(etcd_client::Error::GRpcStatus(status)) if status.message().contains("lease not found") => Ok(None),
                Err(error) => Err(error),
            }
        }
    };
    let response = members.call(deadline, Repeat::Always, take).await.map_err(Fault::of_read)?.value;
    Ok(response.map(|response| response.succeeded() || response.op_responses().iter().any(|found| hangs_on(found, lease))))
}

fn hangs_on(found: &TxnOpResponse, lease: i64) -> bool {
    matches!(found, TxnOpResponse::Get(found) if found.kvs().iter().any(|entry| entry.lease() == lease))
}
