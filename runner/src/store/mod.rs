//! The store: what must survive. The verbs of [`Store`] speak of jobs and grants; underneath lies one narrow door,
//! [`Backend`], with etcd ([`etcd`]) and a file on this machine ([`embedded`]) behind it.
//!
//! Every write is one atomic [`Change`], which names the versions that it was made from: what somebody else changed meanwhile
//! is never overwritten, and a change may be repeated.

pub mod backup;
mod claims;
pub mod embedded;
pub mod etcd;
mod gateways;
mod jobs;
mod keys;
mod limits;
mod measured;
mod memo;
mod sweeps;
mod trail;
pub(crate) mod turns;

pub use claims::{Ledger, Taken};
pub use gateways::Condition;
pub use jobs::{Created, GivenUp, Owner, RepeatKey, Repeatable};
pub use sweeps::Progress;
pub use trail::Answer as TrailAnswer;

use crate::domain::grant::Grant;
use crate::domain::summary::Summary;
use crate::effect;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use turns::{Turn, Turns};

/// A value, and the number of the change that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value: JSON with a version field.
    pub value: Arc<[u8]>,
    /// Grows with every change of the key; an absent key has version 0.
    pub version: u64,
}

/// One atomic change: if every key in `expect` still has the version given there (0: absent), all of it happens, else nothing.
/// At most 120 keys in each of the three lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Keys and the versions that they must have.
    pub expect: Vec<(String, u64)>,
    /// Keys to write.
    pub put: Vec<(String, Vec<u8>)>,
    /// Keys to delete (fine if they are absent). Disjoint from `put`.
    pub delete: Vec<String>,
}

/// The door to a database: a few verbs and a lease. What `commit` answered with `true` survives `kill -9` and power loss.
pub trait Backend: Send + Sync {
    /// The values of these keys (at most 120) at one moment, in the same order.
    fn get(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>>;

    /// All keys that begin with `prefix`, in order, at one moment.
    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>>;

    /// The first keys that begin with `prefix` and come after `after`, in order: at most so many, and one at least if there is any. For whoever goes through very many
    /// of them; each page is of a moment of its own.
    fn page(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<(String, Versioned)>> {
        let found = self.scan(prefix)?.into_iter();
        Ok(found.filter(|(key, _)| key.as_str() > after).take(most).collect())
    }

    /// As [`get`](Self::get), from memory, where what is there can be told: all of one moment, which lies a moment ago at most and not before
    /// the last change that this value committed, or could not commit.
    fn recent(&self, _keys: &[String]) -> Option<Vec<Option<Versioned>>> {
        None
    }

    /// Does `change`, or nothing: `false` when an expectation did not hold. After an error of kind `Unknown` it may have happened.
    fn commit(&self, change: &Change) -> Result<bool>;

    /// Takes or keeps the lead of `role` among all programs on this database: `true` while this program leads. To be called again well
    /// within [`LEASE_SECONDS`]; who stops calling loses the lead after that time.
    fn lead(&self, role: &str) -> Result<bool>;

    /// Gives up all leads at once, at the end of the program.
    fn resign(&self);

    /// The file on this machine that holds everything, where there is one.
    fn file(&self) -> Option<&std::path::Path> {
        None
    }
}

/// How long a lead lasts without being kept, in seconds: a crashed leader is replaced within this time and a cycle.
pub const LEASE_SECONDS: u64 = 6;

/// The newest form of records that this program knows. A newer program's records are left alone.
const RECORD_VERSION: u32 = 2;

/// How often a change is made again after somebody else was faster. Each time somebody got on, so this is hardly ever reached.
const ATTEMPTS: usize = 200;

/// So many different records may be changed at the same time, where changes take turns.
const TURNS: usize = 1024;

/// How long a verb waits for its turn, and for how long it begins another attempt: with one attempt's own calls on top, no verb
/// takes longer than a request may, however slow the database is.
const PATIENCE: Duration = Duration::from_secs(10);

/// The verbs that the rest of the program uses.
pub struct Store {
    backend: Box<dyn Backend>,
    /// Taken where threads of one program would only defeat each other's changes.
    turns: [Turns; TURNS],
    /// Ids for the next jobs, which nobody else gives away.
    ids: Mutex<Range<u64>>,
    summaries: memo::Memo<Summary>,
    grants: memo::Memo<Grant>,
}

/// Where those who change records called `what` take turns.
fn place(what: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish() as usize % TURNS
}

impl Store {
    /// The verbs on `backend`.
    pub fn new(backend: Box<dyn Backend>) -> Self {
        Self {
            backend: Box::new(measured::Measured(backend)),
            turns: std::array::from_fn(|_| Turns::default()),
            ids: Mutex::default(),
            summaries: memo::Memo::default(),
            grants: memo::Memo::default(),
        }
    }

    /// Takes or keeps the lead of `role`; see [`Backend::lead`].
    pub fn lead(&self, role: &str) -> Result<bool> {
        self.backend.lead(role)
    }

    /// Gives up all leads.
    pub fn resign(&self) {
        self.backend.resign();
    }

    /// Whether the database answers.
    pub fn check(&self) -> Result<()> {
        self.backend.get(&[keys::COUNTER.to_owned()]).map(drop)
    }

    /// Writes a copy of everything into the folder of backups beside the store's file; see [`backup::make`].
    pub fn back_up(&self, now: jiff::Timestamp) -> Result<backup::Made> {
        backup::make(self.backend.as_ref(), now)
    }

    /// Every change goes through here. `effect` says what it does, so that tests can end the program before and after it.
    fn commit(&self, effect: &'static str, change: &Change) -> Result<bool> {
        effect::around(effect, || self.backend.commit(change))
    }

    /// A turn at records that are called `what`. Whoever changes others does not wait for it, apart from a few that share a turn by chance.
    fn turn(&self, what: &str) -> Result<Turn<'_>> {
        self.turns[place(what)].take(PATIENCE)
    }

    /// The same at several, which nobody takes who has a turn already: all are taken in the same order, so that nobody waits for each other.
    fn turns(&self, what: impl IntoIterator<Item = String>) -> Result<Vec<Turn<'_>>> {
        let deadline = Instant::now() + PATIENCE;
        let places: BTreeSet<usize> = what.into_iter().map(|what| place(&what)).collect();
        places.into_iter().map(|at| self.turns[at].take(deadline.saturating_duration_since(Instant::now()))).collect()
    }

    /// Calls `attempt` until it has got its change in.
    fn repeat<T>(&self, attempt: impl Fn() -> Result<Option<T>>) -> Result<T> {
        let begin = Instant::now();
        for _ in 0..ATTEMPTS {
            if let Some(done) = attempt()? {
                return Ok(done);
            }
            if begin.elapsed() > PATIENCE {
                break;
            }
        }
        Err(Error::unavailable("the database is too busy: others changed the same record again and again"))
    }

    /// For display, and for changes that name the versions that they were made from: a change that was made from an old one does not hold, and
    /// the next attempt sees the new one.
    fn recent(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>> {
        match self.backend.recent(keys) {
            Some(found) => Ok(found),
            None => self.backend.get(keys),
        }
    }

    /// See [`recent`](Self::recent).
    fn read<T: DeserializeOwned>(&self, key: &str) -> Result<(Option<T>, u64)> {
        decoded(key, self.recent(&[key.to_owned()])?.pop().flatten())
    }

    /// The same; what seems not to be there may have been written elsewhere a moment ago.
    fn read_now<T: DeserializeOwned>(&self, key: &str) -> Result<(Option<T>, u64)> {
        match self.read(key)? {
            (None, _) => decoded(key, self.backend.get(&[key.to_owned()])?.pop().flatten()),
            found => Ok(found),
        }
    }

    fn scan<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>> {
        self.backend.scan(prefix)?.iter().map(|(key, found)| decode(key, &found.value)).collect()
    }
}

fn decoded<T: DeserializeOwned>(key: &str, found: Option<Versioned>) -> Result<(Option<T>, u64)> {
    match found {
        Some(found) => Ok((Some(decode(key, &found.value)?), found.version)),
        None => Ok((None, 0)),
    }
}

fn put<T: Serialize>(change: &mut Change, key: &str, value: &T) -> Result<()> {
    let value = serde_json::to_vec(value).map_err(|e| Error::internal(format!("record {key} cannot be written: {e}")))?;
    change.put.push((key.to_owned(), value));
    Ok(())
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    // Not the value itself: it may hold a token.
    let unreadable = |e: serde_json::Error| Error::internal(format!("record {key} cannot be read: {e}"));
    let Head { version } = serde_json::from_slice(value).map_err(unreadable)?;
    if version > RECORD_VERSION {
        let words =
            format!("record {key} has the form {version}, and this program knows forms up to {RECORD_VERSION}: upgrade it");
        return Err(Error::internal(words));
    }
    serde_json::from_slice(value).map_err(unreadable)
}

#[cfg(test)]
#[path = "trail_tests.rs"]
mod trail_tests;

#[cfg(test)]
#[path = "verbs_tests.rs"]
mod tests;
