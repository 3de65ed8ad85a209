//! Watchers: repeat, lead, survive. What one cycle does is in [`jobs`] and [`keyhole`]; both begin with looks, make a pure plan of them, and
//! carry it out in steps that may be repeated.

pub mod jobs;
pub mod keyhole;
mod lead;
mod looks;

use crate::error::Result;
use crate::logging::id;
use crate::metrics::metrics;
use crate::store::Store;
use lead::Lead;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A watcher at work.
pub struct Watcher {
    thread: JoinHandle<()>,
    lead: Arc<Lead>,
}

impl Watcher {
    /// Waits for its end.
    pub fn join(self) -> thread::Result<()> {
        self.thread.join()
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// What it does, and of which cluster.
    pub fn role(&self) -> &str {
        &self.lead.role
    }

    /// How many cycles in a row have failed here, while this program leads.
    pub fn fails_for(&self) -> u32 {
        self.lead.fails_for()
    }

    /// What is wrong if it stands still: it has ended, or a cycle was taken for hung long ago. (Until then it may still come back, and a
    /// restart of the program would cost all connections.)
    pub fn ailing(&self) -> Option<String> {
        if self.is_finished() {
            return Some(format!("watch {}: has ended", self.lead.role));
        }
        let silent = self.lead.silent_for();
        (silent > 3 * self.lead.patience)
            .then(|| format!("watch {}: a cycle takes {} s already", self.lead.role, silent.as_secs()))
    }
}

/// A sign to all threads that the program ends.
#[derive(Clone, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Gives the sign.
    pub fn stop(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Whether the sign was given.
    pub fn is_given(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps for `time` or until the sign; whether the sign was given.
    pub fn wait(&self, time: Duration) -> bool {
        let stopped = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A cycle that takes longer is taken for hung, and its lead is let go.
pub const HUNG_AFTER: Duration = Duration::from_secs(60);

/// How long a watcher rests at most before it gives a sign of life.
const REST: Duration = Duration::from_secs(1);
/// How long it waits for the lead before it looks whether the program ends.
const LOOK: Duration = Duration::from_millis(50);

/// Starts a thread that calls `cycle` every `interval` (which may change meanwhile), while this program leads `role` among all on the same store. A failed
/// cycle is logged, and the next one comes all the same.
pub fn repeat(
    role: String,
    interval: impl Fn() -> Duration + Send + 'static,
    store: Arc<Store>,
    stop: Stop,
    cycle: impl FnMut() -> Result<()> + Send + 'static,
) -> std::io::Result<Watcher> {
    repeat_within(HUNG_AFTER, role, interval, store, stop, cycle)
}

/// The same, where a cycle is taken for hung after `patience`.
pub fn repeat_within(
    patience: Duration,
    role: String,
    interval: impl Fn() -> Duration + Send + 'static,
    store: Arc<Store>,
    stop: Stop,
    mut cycle: impl FnMut() -> Result<()> + Send + 'static,
) -> std::io::Result<Watcher> {
    let (lead, keeper) = Lead::keep(&role, store, stop.clone(), patience)?;
    let shown = Arc::clone(&lead);
    let work = move || {
        let mut log = Log { role, complaint: None };
        let mut next = Instant::now();
        let mut cycles = 0_u64;
        loop {
            let rest = next.saturating_duration_since(Instant::now()).min(REST);
            if stop.wait(rest) {
                // Whoever waits for the watcher waits for all that uses the store.
                let _ = keeper.join();
                return;
            }
            if lead.is_ours(LOOK) && Instant::now() >= next {
                next = Instant::now() + interval();
                cycles += 1;
                let _id = id::within_cycle(format!("{}-{cycles}", log.role).into());
                let begun = Instant::now();
                let result = catch_unwind(AssertUnwindSafe(&mut cycle));
                let good = matches!(result, Ok(Ok(())));
                metrics().cycle(&log.role, begun.elapsed(), good);
                lead.note(good);
                log.report(result);
            }
        }
    };
    let thread = thread::Builder::new().name("watch".into()).spawn(work)?;
    Ok(Watcher { thread, lead: shown })
}

/// What is worth a line in the log: changes only.
struct Log {
    role: String,
    complaint: Option<String>,
}

impl Log {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;
    use std::sync::mpsc::channel;

    fn until(look: impl Fn() -> bool) {
        let begin = Instant::now();
        while !look() {
            assert!(begin.elapsed() < Duration::from_secs(20), "not in time");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_watcher_ails_while_a_cycle_hangs_and_when_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::new(Box::new(Embedded::open(&folder.path().join("store")).unwrap())));
        let (stop, (begun, begins), (release, gate)) = (Stop::default(), channel(), channel::<()>());
        let cycle = move || {
            let _ = begun.send(());
            let _ = gate.recv();
            Ok(())
        };
        let patience = Duration::from_secs(1);
        let watcher = repeat_within(patience, "watch".into(), || Duration::from_secs(60), store, stop.clone(), cycle).unwrap();
        begins.recv().unwrap();
        assert_eq!(watcher.ailing(), None, "it has just begun");
        until(|| watcher.ailing().is_some_and(|words| words.contains("watch: a cycle takes ")));
        release.send(()).unwrap();
        until(|| watcher.ailing().is_none());
        stop.stop();
        until(|| watcher.ailing().is_some_and(|words| words.contains("has ended")));
    }
}
