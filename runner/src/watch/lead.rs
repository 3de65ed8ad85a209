//! The lead of one role. It is kept by a thread of its own, so that a cycle may wait long for silent machines; but only while the
//! watcher gives signs of life, so that one that hangs is replaced by another program's.

use super::Stop;
use crate::metrics::metrics;
use crate::store::{LEASE_SECONDS, Store};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the leader keeps its lead.
const KEEP: Duration = Duration::from_secs(LEASE_SECONDS / 3);
/// How often the others look whether the lead is free. A look writes nothing.
const LOOK: Duration = Duration::from_millis(500);

pub(super) struct Lead {
    pub(super) role: String,
    store: Arc<Store>,
    stop: Stop,
    /// A watcher without a sign of life for so long is taken for hung.
    pub(super) patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The watcher's last sign of life.
    alive: Instant,
    /// Until when this program leads for certain, whatever happens to it.
    until: Option<Instant>,
    /// How many cycles in a row have failed.
    failed: u32,
    /// The last thing that went wrong, for the log.
    complaint: Option<String>,
}

impl Lead {
    /// Starts the thread that takes and keeps the lead.
    pub(super) fn keep(
        role: &str,
        store: Arc<Store>,
        stop: Stop,
        patience: Duration,
    ) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let state = Mutex::new(State { alive: Instant::now(), until: None, failed: 0, complaint: None });
        let lead = Arc::new(Self { role: role.to_owned(), store, stop, patience, state, changed: Condvar::new() });
        let keeper = Arc::clone(&lead);
        let thread = thread::Builder::new().name("watch-lead".into()).spawn(move || keeper.run())?;
        Ok((lead, thread))
    }

    /// A sign of life; whether this program leads. Waits for the lead, but not longer than `time`.
    pub(super) fn is_ours(&self, time: Duration) -> bool {
        let mut state = self.lock();
        state.alive = Instant::now();
        let waited = self.changed.wait_timeout_while(state, time, |state| !leads(state));
        leads(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// How long ago the watcher gave its last sign of life.
    pub(super) fn silent_for(&self) -> Duration {
        self.lock().alive.elapsed()
    }

    /// A cycle has ended.
    pub(super) fn note(&self, good: bool) {
        let mut state = self.lock();
        state.failed = if good { 0 } else { state.failed.saturating_add(1) };
    }

    /// How many cycles in a row have failed; none where another program leads.
    pub(super) fn fails_for(&self) -> u32 {
        let state = self.lock();
        if leads(&state) { state.failed } else { 0 }
    }

    fn run(&self) {
        let mut leading = false;
        metrics().leads(&self.role, false);
        loop {
            let begin = Instant::now();
            let ours = self.ask();
            if ours != leading {
                let what = if ours { "leads" } else { "does not lead (any more)" };
                log::info!("watch {}: this program {what}", self.role);
                leading = ours;
                metrics().leads(&self.role, ours);
                self.lock().failed = 0;
            }
            // The lease began after the question was asked.
            self.lock().until = ours.then(|| begin + Duration::from_secs(LEASE_SECONDS));
            self.changed.notify_all();
            if self.stop.wait(if ours { KEEP } else { LOOK }) {
                return;
            }
        }
    }

    fn ask(&self) -> bool {
        if self.lock().alive.elapsed() > self.patience {
            self.complain(format!("a cycle takes longer than {} seconds; its lead is let go", self.patience.as_secs()));
            return false;
        }
        match self.store.lead(&self.role) {
            Ok(ours) => {
                self.lock().complaint = None;
                ours
            }
            Err(error) => {
                self.complain(error.to_string());
                false
            }
        }
    }

    fn complain(&self, words: String) {
        let mut state = self.lock();
        if state.complaint.as_ref() != Some(&words) {
            log::warn!("watch {}: {words}", self.role);
            state.complaint = Some(words);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn leads(state: &State) -> bool {
    state.until.is_some_and(|until| Instant::now() < until)
}
