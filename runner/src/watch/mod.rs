//! Watchers: repeat, lead, survive. What one cycle does is in [`jobs`] and [`keyhole`]; both begin with looks, make a pure plan of them, and
//! carry it out in steps that may be repeated.

pub mod jobs;
pub mod keyhole;

use crate::error::Result;
use crate::store::{LEASE_SECONDS, Store};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A sign to all threads that the program ends.
#[derive(Clone, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Gives the sign.
    pub fn stop(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Sleeps for `time` or until the sign; whether the sign was given.
    pub fn wait(&self, time: Duration) -> bool {
        let stopped = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Starts a thread that calls `cycle` every `interval` (which may change meanwhile), while this program leads `role` among all on the same store. A failed
/// cycle is logged, and the next one comes all the same.
pub fn repeat(
    role: String,
    interval: impl Fn() -> Duration + Send + 'static,
    store: Arc<Store>,
    stop: Stop,
    mut cycle: impl FnMut() -> Result<()> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let work = move || {
        let mut state = Led { role, leading: false, complaint: None };
        let mut next = Instant::now();
        loop {
            let leading = state.lead(&store);
            if leading && Instant::now() >= next {
                next = Instant::now() + interval();
                state.report(catch_unwind(AssertUnwindSafe(&mut cycle)));
            }
            // The lead wants to be kept more often than a slow watcher looks.
            let nap = if leading { next.saturating_duration_since(Instant::now()) } else { interval() };
            if stop.wait(nap.min(Duration::from_secs(LEASE_SECONDS / 3))) {
                return;
            }
        }
    };
    thread::Builder::new().name("watch".into()).spawn(work)
}

/// What is worth a line in the log: changes only.
struct Led {
    role: String,
    leading: bool,
    complaint: Option<String>,
}

impl Led {
    fn lead(&mut self, store: &Store) -> bool {
        let leading = store.lead(&self.role).unwrap_or_else(|error| {
            self.complain(error.to_string());
            false
        });
        if leading != self.leading {
            let what = if leading { "leads" } else { "does not lead (any more)" };
            log::info!("watch {}: this program {what}", self.role);
            self.leading = leading;
        }
        leading
    }

    fn report(&mut self, result: thread::Result<Result<()>>) {
        match result {
            Ok(Ok(())) => {
                if self.complaint.take().is_some() {
                    log::info!("watch {}: works again", self.role);
                }
            }
            Ok(Err(error)) => self.complain(error.to_string()),
            Err(_) => self.complain("the cycle panicked; this is a fault of the program".into()),
        }
    }

    fn complain(&mut self, words: String) {
        if self.complaint.as_ref() != Some(&words) {
            log::warn!("watch {}: {words}", self.role);
            self.complaint = Some(words);
        }
    }
}
