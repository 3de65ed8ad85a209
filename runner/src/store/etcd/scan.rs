//! Reading many keys: in pages, all of one revision.

use etcd_client::{Client, GetOptions, GetResponse};
use tokio::time::Instant;

use super::faults::{self, Fault};
use super::members::{self, Members, Repeat};
use super::{ROOT, end_of, key_of, utf8, versioned};
use crate::error::Result;
use crate::store::Versioned;
use std::time::Duration;

/// How many keys a page of a scan holds, unless they are large.
const PAGE: i64 = 512;
/// How many calls' time a scan has in all, however many pages it takes.
const TIMEOUTS: u32 = 3;

/// What lies below a prefix, and the revision at which it was so.
pub(super) struct Scanned {
    pub(super) entries: Vec<(String, Versioned)>,
    pub(super) revision: i64,
}

/// All keys that begin with `prefix`, in order, at one moment. Behind a key for which `skip` names a prefix, all that begins with that
/// one is left out.
pub(super) async fn scan(
    members: &Members,
    prefix: &str,
    timeout: Duration,
    skip: impl Fn(&str) -> Option<String>,
) -> Result<Scanned> {
    // A compaction may overtake the pages; from the beginning then, twice at most.
    let deadline = Instant::now() + timeout * TIMEOUTS;
    for _ in 0..2 {
        match pages(members, prefix, timeout, deadline, &skip).await {
            Err(error) if faults::is_compacted(&error) => {}
            outcome => return outcome,
        }
    }
    pages(members, prefix, timeout, deadline, &skip).await
}

async fn pages(
    members: &Members,
    prefix: &str,
    timeout: Duration,
    deadline: Instant,
    skip: &impl Fn(&str) -> Option<String>,
) -> Result<Scanned> {
    let (mut from, end) = (format!("{ROOT}{prefix}").into_bytes(), end_of(prefix));
    let mut scanned = Scanned { entries: Vec::new(), revision: 0 };
    let mut count = PAGE;
    loop {
        let until = deadline.min(Instant::now() + timeout);
        let page = match page(members, &from, &end, scanned.revision, count, until).await {
            // Large values: less of them at once.
            Err(error) if faults::is_too_large(&error) && count > 1 => {
                count /= 2;
                continue;
            }
            page => page?,
        };
        if scanned.revision == 0 {
            scanned.revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
        }
        let mut skipped = None;
        for entry in page.kvs() {
            let key = key_of(entry)?;
            match skip(&key) {
                None => scanned.entries.push((key, versioned(entry))),
                prefix => skipped = prefix.map(|prefix| (key, prefix)),
            }
        }
        let Some(last) = page.kvs().last().filter(|_| page.more()) else { return Ok(scanned) };
        let last = utf8(last.key())?;
        from = match skipped {
            Some((key, prefix)) if last.strip_prefix(ROOT) == Some(&key) => end_of(&prefix),
            // The smallest key after the last one.
            _ => format!("{last}\0").into_bytes(),
        };
    }
}

/// The first keys that begin with `prefix` and come after `after`, as they are now: at most so many, fewer where they are large.
pub(super) async fn some(
    members: &Members,
    prefix: &str,
    after: &str,
    most: usize,
    deadline: Instant,
) -> Result<Vec<(String, Versioned)>> {
    // The smallest key after that one.
    let from = if after < prefix { format!("{ROOT}{prefix}") } else { format!("{ROOT}{after}\0") };
    let mut count = i64::try_from(most).unwrap_or(i64::MAX);
    loop {
        match page(members, from.as_bytes(), &end_of(prefix), 0, count, deadline).await {
            Err(error) if faults::is_too_large(&error) && count > 1 => count /= 2,
            page => return page?.kvs().iter().map(|entry| Ok((key_of(entry)?, versioned(entry)))).collect(),
        }
    }
}

/// One page, of the database as it was at `revision` (0: as it is).
async fn page(members: &Members, from: &[u8], end: &[u8], revision: i64, count: i64, deadline: Instant) -> Result<GetResponse> {
    let options = GetOptions::new().with_range(end).with_limit(count).with_revision(revision);
    let read = |client: Client| {
        let options = options.clone();
        async move { members::kv(&client).get(from, Some(options)).await }
    };
    members.call(deadline, Repeat::Always, read).await.map(|page| page.value).map_err(Fault::of_read)
}
