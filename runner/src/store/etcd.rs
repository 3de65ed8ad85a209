//! The store in etcd, for several runners on one database.
//!
//! etcd-client is asynchronous: one background thread drives its runtime, and callers block on their own threads.

mod config;
mod faults;
mod lead;
mod members;
mod mirror;
mod scan;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use self::config::{EtcdConfig, EtcdTls};
use self::faults::Fault;
use self::lead::Leads;
use self::members::{Members, Repeat};
use self::mirror::Mirror;
use super::limits::{MAX_KEYS, check_change, check_read};
use super::{Backend, Change, Versioned};
use crate::error::{Error, Result};

/// All keys of ours begin so; other programs may use the same etcd.
const ROOT: &str = "/bwvisu-runner/";
/// How many operations a nested transaction holds. etcd's default limit of 128 counts the longest list on each level, and its
/// own levels below: 120 + 8.
const NEST: usize = 8;
/// How long it may take at least to find out whether a change of doubtful fate happened.
const CLEAR_UP: Duration = Duration::from_secs(1);
/// A key that is written to see how far the copy has come, where other programs' changes hide that.
const PULSE: &str = "pulse";

/// The store in etcd. Several values in one process are independent programs.
pub struct Etcd {
    runtime: Handle,
    members: Arc<Members>,
    mirror: Option<Arc<Mirror>>,
    leads: Leads,
    timeout: Duration,
    // Dropping the sender ends the thread.
    stop: Option<oneshot::Sender<()>>,
    driver: Option<JoinHandle<()>>,
}

impl Etcd {
    /// Checks `config` and begins. No server is asked yet: the runner starts while etcd is down, and finds it when it is back.
    pub fn connect(config: EtcdConfig) -> Result<Etcd> {
        let timeout = config.timeout;
        let leads = Leads::new()?;
        let (runtime, stop, driver) = start_driver()?;
        // From here on the value's Drop ends the thread.
        let members = Arc::new(Members::none());
        let mut etcd = Etcd { runtime, members, mirror: None, leads, timeout, stop: Some(stop), driver: Some(driver) };
        etcd.members = Arc::new(etcd.runtime.block_on(Members::new(&config))?);
        Ok(etcd)
    }

    /// Keeps a copy of what is unfinished from now on, for a program that reads again and again.
    #[must_use]
    pub fn mirrored(mut self) -> Self {
        let mirror = Arc::<Mirror>::default();
        self.runtime.spawn(mirror::keep(Arc::clone(&mirror), Arc::clone(&self.members), self.timeout));
        self.mirror = Some(mirror);
        self
    }

    /// The version of a member that answers, and lets us read.
    pub fn version(&self) -> Result<String> {
        self.get(&["installation".to_owned()])?;
        let ask = |client: etcd_client::Client| async move { client.maintenance_client().status().await };
        let call = self.members.call(self.deadline(), Repeat::Always, ask);
        let status = self.runtime.block_on(call).map_err(Fault::of_read)?.value;
        Ok(status.version().to_owned())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// What the copy holds below `prefix` when it has come as far as etcd is now.
    fn scan_copy(&self, prefix: &str) -> Option<Vec<(String, Versioned)>> {
        let mirror = self.mirror.as_ref().filter(|mirror| mirror::covers(prefix) && mirror.is_fresh())?;
        let deadline = self.deadline();
        let read = |client: etcd_client::Client| async move {
            let options = GetOptions::new().with_count_only();
            members::kv(&client).get(full(PULSE), Some(options)).await
        };
        let now = self.runtime.block_on(self.members.call(deadline, Repeat::Always, read)).ok()?.value;
        if let Some(found) = mirror.scan(prefix, now.header()?.revision()) {
            return Some(found);
        }
        // The revision may be another program's, which the watch does not show.
        let write = |client: etcd_client::Client| async move { members::kv(&client).put(full(PULSE), "", None).await };
        let now = self.runtime.block_on(self.members.call(deadline, Repeat::Always, write)).ok()?.value;
        mirror.scan(prefix, now.header()?.revision())
    }

    /// Who reads the copy must see what was written, or what stood in the way of it.
    fn note(&self, header: Option<&etcd_client::ResponseHeader>) {
        if let (Some(mirror), Some(header)) = (&self.mirror, header) {
            mirror.need(header.revision());
        }
    }

    fn get_before(&self, keys: &[String], deadline: Instant) -> Result<Vec<Option<Versioned>>> {
        let gets: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(full(key), None)).collect();
        let txn = Txn::new().and_then(gets);
        let read = |client: etcd_client::Client| {
            let txn = txn.clone();
            async move { members::kv(&client).txn(txn).await }
        };
        let call = self.members.call(deadline, Repeat::Always, read);
        let response = self.runtime.block_on(call).map_err(Fault::of_read)?.value;
        let found: Vec<_> = response.op_responses().iter().map(first_of).collect();
        if found.len() == keys.len() { Ok(found) } else { Err(Error::internal("etcd answered to other keys than were asked")) }
    }

    /// A change whose answer was lost was tried again and did not hold: because the first attempt had happened, or because somebody
    /// else was faster?
    fn clear_up(&self, change: &Change, deadline: Instant) -> Result<bool> {
        // The repetition may have come back when the time was nearly over.
        let deadline = deadline.max(Instant::now() + CLEAR_UP);
        let keys: Vec<String> = change.put.iter().map(|(key, _)| key.clone()).collect();
        let found = self.get_before(&keys, deadline).map_err(|error| Fault::lost(false, error).of_write())?;
        happened(change, &found).ok_or_else(|| {
            let error = Error::unavailable("etcd's answer was lost, and others have changed the same records since");
            Fault::lost(false, error).of_write()
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(driver) = self.driver.take() {
            let _ = driver.join();
        }
    }
}

impl Backend for Etcd {
    fn get(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>> {
        check_read(keys.len())?;
        self.get_before(keys, self.deadline())
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>> {
        if let Some(found) = self.scan_copy(prefix) {
            return Ok(found);
        }
        self.runtime.block_on(scan::scan(&self.members, prefix, self.timeout, |_| None)).map(|scanned| scanned.entries)
    }

    fn page(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<(String, Versioned)>> {
        self.runtime.block_on(scan::some(&self.members, prefix, after, most, self.deadline()))
    }

    fn recent(&self, keys: &[String]) -> Option<Vec<Option<Versioned>>> {
        self.mirror.as_ref()?.get(keys)
    }

    fn commit(&self, change: &Change) -> Result<bool> {
        check_change(change)?;
        let (txn, deadline) = (transaction(change), self.deadline());
        let write = |client: etcd_client::Client| {
            let txn = txn.clone();
            async move { members::kv(&client).txn(txn).await }
        };
        let repeat = if happens_once(change) { Repeat::Always } else { Repeat::IfNotDone };
        let answer = self.runtime.block_on(self.members.call(deadline, repeat, write)).map_err(Fault::of_write)?;
        self.note(answer.value.header());
        match answer.value.succeeded() {
            false if answer.doubtful => self.clear_up(change, deadline),
            succeeded => Ok(succeeded),
        }
    }

    fn lead(&self, role: &str) -> Result<bool> {
        self.runtime.block_on(self.leads.lead(&self.members, &full(&format!("leaders/{role}")), self.timeout))
    }

    fn resign(&self) {
        self.runtime.block_on(self.leads.resign(&self.members, self.timeout));
    }
}

type Driver = (Handle, oneshot::Sender<()>, JoinHandle<()>);

/// The thread that moves bytes and watches clocks for all callers, until the sender is dropped.
fn start_driver() -> Result<Driver> {
    let fault = |error: std::io::Error| Error::unavailable(format!("no thread for etcd: {error}"));
    let runtime = Builder::new_current_thread().enable_all().build().map_err(fault)?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let drive = move || {
        // An error is the sender's end, which is what we wait for.
        let _ = runtime.block_on(stopped);
    };
    let driver = thread::Builder::new().name("etcd".to_owned()).spawn(drive).map_err(fault)?;
    Ok((handle, stop, driver))
}

fn full(key: &str) -> String {
    format!("{ROOT}{key}")
}

/// The first key after all that begin with `prefix`: the last byte of UTF-8 is never the highest, so one more is enough.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = full(prefix).into_bytes();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn utf8(key: &[u8]) -> Result<&str> {
    std::str::from_utf8(key)
        .map_err(|_| Error::internal(format!("a key below {ROOT} in etcd is not UTF-8; it is not the runner's")))
}

fn key_of(entry: &etcd_client::KeyValue) -> Result<String> {
    let key = utf8(entry.key())?;
    Ok(key.strip_prefix(ROOT).unwrap_or(key).to_owned())
}

fn versioned(entry: &etcd_client::KeyValue) -> Versioned {
    Versioned { value: entry.value().into(), version: u64::try_from(entry.mod_revision()).unwrap_or(0) }
}

fn first_of(response: &TxnOpResponse) -> Option<Versioned> {
    match response {
        TxnOpResponse::Get(found) => found.kvs().first().map(versioned),
        _ => None,
    }
}

/// `change` as one transaction. Many writes are put into nested ones, which etcd does in the same step.
fn transaction(change: &Change) -> Txn {
    let compares: Vec<Compare> = change.expect.iter().map(|(key, version)| unchanged(key, *version)).collect();
    let puts = change.put.iter().map(|(key, value)| TxnOp::put(full(key), value.as_slice(), None));
    let deletes = change.delete.iter().map(|key| TxnOp::delete(full(key), None));
    let mut writes: Vec<TxnOp> = puts.chain(deletes).collect();
    if writes.len() > MAX_KEYS {
        writes = writes.chunks(NEST).map(|some| TxnOp::txn(Txn::new().and_then(some))).collect();
    }
    Txn::new().when(compares).and_then(writes)
}

/// Whether `change` cannot happen twice: it writes something that it expects to be as it was, so that a repetition does not hold.
fn happens_once(change: &Change) -> bool {
    change.expect.iter().any(|(expected, version)| {
        change.put.iter().any(|(key, _)| key == expected) || *version > 0 && change.delete.contains(expected)
    })
}

/// Whether a change of doubtful fate happened, judged by what the keys that it puts hold now; none if that cannot be told.
fn happened(change: &Change, found: &[Option<Versioned>]) -> Option<bool> {
    let versions: Vec<u64> = found.iter().map(|found| found.as_ref().map_or(0, |found| found.version)).collect();
    let before = change.expect.iter().map(|(_, version)| *version).max().unwrap_or(0);
    let holds =
        |((_, value), found): (&(String, Vec<u8>), &Option<Versioned>)| found.as_ref().is_some_and(|now| *now.value == **value);
    // All keys that one change puts get the same version.
    if change.put.iter().zip(found).all(holds) && versions.iter().all(|&version| version == versions[0] && version > before) {
        return Some(true);
    }
    // It would have moved each of them on.
    let still = |((key, _), version): (&(String, Vec<u8>), &u64)| change.expect.iter().any(|(k, v)| (k, v) == (key, version));
    change.put.iter().zip(&versions).any(still).then_some(false)
}

fn unchanged(key: &str, version: u64) -> Compare {
    // An absent key compares as 0; a version that etcd cannot have is never met.
    Compare::mod_revision(full(key), CompareOp::Equal, i64::try_from(version).unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(expect: &[(&str, u64)], put: &[&str], delete: &[&str]) -> Change {
        Change {
            expect: expect.iter().map(|&(key, version)| (key.to_owned(), version)).collect(),
            put: put.iter().map(|&key| (key.to_owned(), b"ours".to_vec())).collect(),
            delete: delete.iter().map(|&key| key.to_owned()).collect(),
        }
    }

    #[test]
    fn only_a_change_that_cannot_happen_twice_is_repeated() {
        for (change, once) in [
            (change(&[("a", 0)], &["a"], &[]), true),
            (change(&[("a", 7)], &["a", "b"], &[]), true),
            (change(&[("a", 7)], &["b"], &["a"]), true),
            (change(&[("a", 0)], &["b"], &["a"]), false),
            (change(&[("a", 7)], &["b"], &[]), false),
            (change(&[], &["b"], &["a"]), false),
        ] {
            assert_eq!(happens_once(&change), once, "{change:?}");
        }
    }

    #[test]
    fn a_doubtful_change_is_judged_by_what_its_keys_hold() {
        let change = change(&[("a", 7), ("b", 0)], &["a", "b"], &[]);
        let holds = |value: &str, version| Some(Versioned { value: value.as_bytes().into(), version });
        for (a, b, judgement) in [
            (holds("ours", 9), holds("ours", 9), Some(true)),
            (holds("ours", 8), holds("ours", 9), None),
            (holds("ours", 7), holds("ours", 7), Some(false)),
            (holds("old", 7), None, Some(false)),
            (holds("theirs", 8), None, Some(false)),
            (holds("theirs", 9), holds("ours", 8), None),
            (holds("theirs", 9), holds("theirs", 9), None),
        ] {
            assert_eq!(happened(&change, &[a.clone(), b.clone()]), judgement, "{a:?} {b:?}");
        }
    }

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_behind_it() {
        for (prefix, inside, behind) in [("a/", "a/\u{10ffff}", "a0"), ("", "z", "0"), ("ü", "ü/1", "ý")] {
            let end = end_of(prefix);
            assert!(full(inside).into_bytes() < end, "{prefix}: {inside} is inside");
            if !prefix.is_empty() {
                assert!(full(behind).into_bytes() >= end, "{prefix}: {behind} is behind");
            }
        }
    }
}
