//! A copy of what is in etcd, kept up to date by a watch, so that what is read again and again costs no call.
//!
//! The copy is etcd as it was at some revision, a moment ago, never a mixture of two. Who reads it waits until it holds all that this
//! program has written, and goes to etcd itself when that takes long, or when the watch has been silent. What only grows (finished
//! jobs, keys of requests, the past of ports) is not copied; of the finished jobs the latest are.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Client, Event, EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{sleep, timeout};

use super::faults::{Fault, judge};
use super::members::{ANSWER_BYTES, Members, Repeat};
use super::{ROOT, end_of, key_of, scan, versioned};
use crate::error::{Error, Result};
use crate::store::Versioned;

/// How often etcd is asked for a sign of life on the watch.
const PULSE: Duration = Duration::from_millis(500);
/// After such a silence the copy may be old.
const FRESH: Duration = Duration::from_secs(2);
/// After such a silence the watch is begun anew.
const DEAD: Duration = Duration::from_secs(5);
/// Between two attempts to begin.
const REST: Duration = Duration::from_secs(1);
/// How long a reader waits for what it must see: a multiple of what a change takes from etcd to here.
const PATIENCE: Duration = Duration::from_millis(25);
/// So many finished jobs are kept: front ends look at a job once more after its end, seldom later.
const FINISHED: usize = 2000;

/// The copy.
#[derive(Default)]
pub(super) struct Mirror {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Versioned>,
    /// The finished jobs among them, the latest at the end.
    finished: VecDeque<String>,
    /// All changes up to this one are in.
    revision: i64,
    /// How far an earlier copy had come.
    before: i64,
    /// Without the changes up to this one it is of no use.
    needed: i64,
    /// When the watch last said something; nothing while there is none.
    heard: Option<Instant>,
}

/// How a key is kept.
#[derive(PartialEq, Eq)]
enum Kept {
    Always,
    /// A finished job: for a while.
    Latest,
    Never,
}

fn kept(key: &str) -> Kept {
    match key.strip_prefix("clusters/").and_then(|rest| rest.split_once('/')) {
        Some((_, rest)) if rest.starts_with("finished/") => Kept::Latest,
        Some((_, rest)) if rest.starts_with("keys/") || rest.starts_with("trail/past/") => Kept::Never,
        _ => Kept::Always,
    }
}

/// The prefix of all that is left out of the first copy together with this key.
fn left_out(key: &str) -> Option<String> {
    let folders = if key.contains("/trail/past/") { 4 } else { 3 };
    (kept(key) != Kept::Always).then(|| key.split_inclusive('/').take(folders).collect())
}

impl Mirror {
    /// The program has written, or has met with, this revision: who reads must see it.
    pub(super) fn need(&self, revision: i64) {
        let mut state = self.lock();
        state.needed = state.needed.max(revision);
    }

    /// The values of these keys, if the copy can tell: it is fresh, and holds what these keys hold.
    pub(super) fn get(&self, keys: &[String]) -> Option<Vec<Option<Versioned>>> {
        let state = self.ready(0)?;
        let value = |key: &String| match (state.entries.get(key), kept(key)) {
            (Some(found), _) => Some(Some(found.clone())),
            (None, Kept::Always) => Some(None),
            (None, _) => None,
        };
        keys.iter().map(value).collect()
    }

    /// All keys that begin with `prefix`, if the copy can tell, and holds all changes up to `revision`.
    pub(super) fn scan(&self, prefix: &str, revision: i64) -> Option<Vec<(String, Versioned)>> {
        if !covers(prefix) {
            return None;
        }
        let state = self.ready(revision)?;
        let below = state.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Some(below.map(|(key, found)| (key.clone(), found.clone())).collect())
    }

    /// Whether the watch said something a moment ago.
    pub(super) fn is_fresh(&self) -> bool {
        self.lock().is_fresh()
    }

    /// The copy, as soon as it is good enough; nothing when that takes long.
    fn ready(&self, revision: i64) -> Option<MutexGuard<'_, State>> {
        let state = self.lock();
        if !state.is_fresh() {
            return None;
        }
        // What others write from now on need not be waited for.
        let target = state.needed.max(revision);
        let behind = |state: &mut State| state.revision < target;
        let (mut state, _) = self.moved.wait_timeout_while(state, PATIENCE, behind).unwrap_or_else(PoisonError::into_inner);
        (!behind(&mut state) && state.is_fresh()).then_some(state)
    }

    fn begin(&self, scanned: scan::Scanned) {
        let mut state = self.lock();
        state.entries = scanned.entries.into_iter().collect();
        state.finished.clear();
        state.revision = scanned.revision;
        // Of a database that was put back to an earlier time, nothing later is to be seen.
        if scanned.revision < state.before {
            state.needed = 0;
        }
        self.moved.notify_all();
    }

    /// What the watch said. An error when it is not of the database that was copied.
    fn follow(&self, response: &WatchResponse) -> Result<()> {
        if response.canceled() {
            return Err(Error::unavailable(format!("etcd ended the watch: {}", response.cancel_reason())));
        }
        let mut state = self.lock();
        if response.header().is_some_and(|header| header.revision() < state.revision) {
            return Err(Error::unavailable("etcd was put back to an earlier time"));
        }
        for event in response.events() {
            state.apply(event)?;
        }
        state.heard = Some(Instant::now());
        self.moved.notify_all();
        Ok(())
    }

    fn lose(&self) {
        let mut state = self.lock();
        *state = State { needed: state.needed, before: state.before.max(state.revision), ..State::default() };
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_fresh(&self) -> bool {
        self.heard.is_some_and(|at| at.elapsed() < FRESH)
    }

    fn apply(&mut self, event: &Event) -> Result<()> {
        let Some(entry) = event.kv() else { return Ok(()) };
        // The header's revision may be ahead of the events.
        self.revision = self.revision.max(entry.mod_revision());
        let key = key_of(entry)?;
        let kept = kept(&key);
        if event.event_type() == EventType::Delete {
            self.entries.remove(&key);
        } else if kept != Kept::Never {
            if kept == Kept::Latest && !self.entries.contains_key(&key) {
                self.make_room();
                self.finished.push_back(key.clone());
            }
            self.entries.insert(key, versioned(entry));
        }
        Ok(())
    }

    fn make_room(&mut self) {
        if self.finished.len() >= FINISHED
            && let Some(oldest) = self.finished.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }
}

/// Whether all that begins with `prefix` is kept always.
pub(super) fn covers(prefix: &str) -> bool {
    let mut parts = prefix.splitn(3, '/');
    let below_cluster = parts.next() == Some("clusters") && parts.next().is_some_and(|name| !name.is_empty());
    let rest = parts.next().unwrap_or_default();
    below_cluster && rest.contains('/') && !rest.starts_with("trail/") && kept(prefix) == Kept::Always
}

/// Keeps the copy up to date for as long as the program runs.
pub(super) async fn keep(mirror: Arc<Mirror>, members: Arc<Members>, limit: Duration) {
    loop {
        if let Err(error) = watch(&mirror, &members, limit).await {
            log::debug!("etcd is not watched: {error}; from the beginning");
        }
        mirror.lose();
        sleep(REST).await;
    }
}

/// Copies, and follows until that ends.
async fn watch(mirror: &Mirror, members: &Members, limit: Duration) -> Result<()> {
    let scanned = scan::scan(members, "", limit, left_out).await?;
    let mut stream = open(members, scanned.revision + 1, limit).await?;
    mirror.begin(scanned);
    let mut silent = Duration::ZERO;
    loop {
        match timeout(PULSE, stream.message()).await {
            Ok(Ok(Some(response))) => {
                mirror.follow(&response)?;
                silent = Duration::ZERO;
            }
            Ok(Ok(None)) => return Err(Error::unavailable("etcd ended the watch")),
            Ok(Err(error)) => return Err(judge(error).error),
            Err(_) if silent >= DEAD => return Err(Error::unavailable("etcd is silent")),
            Err(_) => {
                silent += PULSE;
                stream.request_progress().await.map_err(|error| judge(error).error)?;
            }
        }
    }
}

async fn open(members: &Members, from: i64, limit: Duration) -> Result<WatchStream> {
    let options = WatchOptions::new().with_range(end_of("")).with_start_revision(from);
    let open = |client: Client| {
        let options = options.clone();
        async move { client.watch_client().max_decoding_message_size(ANSWER_BYTES).watch(ROOT, Some(options)).await }
    };
    let deadline = tokio::time::Instant::now() + limit;
    members.call(deadline, Repeat::Always, open).await.map(|opened| opened.value).map_err(Fault::of_read)
}
