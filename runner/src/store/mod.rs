//! The store: what must survive. The verbs of [`Store`] speak of jobs and grants; underneath lies one narrow door,
//! [`Backend`], with etcd ([`etcd`]) and a file on this machine ([`embedded`]) behind it.
//!
//! Every write is one atomic [`Change`], which names the versions that it was made from: what somebody else changed meanwhile
//! is never overwritten, and a change may be repeated.

pub mod embedded;
pub mod etcd;

use crate::error::Result;

/// A value, and the number of the change that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value: JSON with a version field.
    pub value: Vec<u8>,
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

/// The door to a database: three verbs and a lease. What `commit` answered with `true` survives `kill -9` and power loss.
pub trait Backend: Send + Sync {
    /// The values of these keys (at most 120) at one moment, in the same order.
    fn get(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>>;

    /// All keys that begin with `prefix`, in order, at one moment.
    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>>;

    /// Does `change`, or nothing: `false` when an expectation did not hold. After an error of kind `Unknown` it may have happened.
    fn commit(&self, change: &Change) -> Result<bool>;

    /// Takes or keeps the lead of `role` among all programs on this database: `true` while this program leads. To be called again well
    /// within [`LEASE_SECONDS`]; who stops calling loses the lead after that time.
    fn lead(&self, role: &str) -> Result<bool>;

    /// Gives up all leads at once, at the end of the program.
    fn resign(&self);
}

/// How long a lead lasts without being kept, in seconds: a crashed leader is replaced within this time and a cycle.
pub const LEASE_SECONDS: u64 = 6;
