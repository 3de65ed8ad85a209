//! Who leads: the keys of all roles of a program hang on one lease, which lives only as long as the program asks for it.

use std::fs;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::faults::Fault;
use super::members::{Members, Repeat};
use crate::error::{Error, Result};
use crate::store::LEASE_SECONDS;

/// The lease of this program, and its name for people who look at the keys.
pub(super) struct Lease {
    name: String,
    held: Mutex<Option<i64>>,
}

impl Lease {
    pub(super) fn new() -> Result<Self> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|error| Error::unavailable(format!("no randomness: {error}")))?;
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = format!("{}:{} {:016x}", host.trim(), std::process::id(), u64::from_be_bytes(id));
        Ok(Self { name, held: Mutex::new(None) })
    }

    /// Keeps the lease alive, or gets a new one, and takes `key` if nobody has it. There is no keep-alive behind the caller's
    /// back: who hangs must lose the lead. What is `true` stays so for half of the lease at least, as no call lasts longer.
    pub(super) async fn lead(&self, members: &Members, key: &str, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout.min(Duration::from_secs(LEASE_SECONDS) / 2);
        let mut held = timeout_at(deadline, self.held.lock()).await.map_err(|_| Fault::timeout(true).of_read())?;
        for _ in 0..2 {
            let lease = match *held {
                Some(lease) if keep(members, lease, deadline).await? => lease,
                _ => {
                    *held = None;
                    *held.insert(grant(members, deadline).await?)
                }
            };
            match take(members, key, lease, &self.name, deadline).await? {
                Some(leads) => return Ok(leads),
                None => *held = None,
            }
        }
        Err(Error::unavailable("etcd forgets our lease as soon as it is made"))
    }

    /// Revokes the lease: all its keys are gone at once. What fails here, the lease's end does.
    pub(super) async fn resign(&self, members: &Members, deadline: Instant) {
        let Ok(mut held) = timeout_at(deadline, self.held.lock()).await else { return };
        let Some(lease) = held.take() else { return };
        let revoke = |client: Client| async move { client.lease_client().revoke(lease).await };
        if let Err(fault) = members.call(deadline, Repeat::Always, revoke).await {
            log::info!("the lead was not given up, it ends within {LEASE_SECONDS} seconds: {}", fault.error);
        }
    }
}

async fn grant(members: &Members, deadline: Instant) -> Result<i64> {
    let seconds = i64::try_from(LEASE_SECONDS).unwrap_or(i64::MAX);
    let grant = |client: Client| async move { client.lease_client().grant(seconds, None).await };
    // One that was granted without our knowing ends by itself.
    members.call(deadline, Repeat::Always, grant).await.map(|granted| granted.id()).map_err(Fault::of_read)
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
    members.call(deadline, Repeat::Always, keep).await.map_err(Fault::of_read)
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
    let response = members.call(deadline, Repeat::Always, take).await.map_err(Fault::of_read)?;
    Ok(response.map(|response| response.succeeded() || response.op_responses().iter().any(|found| hangs_on(found, lease))))
}

fn hangs_on(found: &TxnOpResponse, lease: i64) -> bool {
    matches!(found, TxnOpResponse::Get(found) if found.kvs().iter().any(|entry| entry.lease() == lease))
}
