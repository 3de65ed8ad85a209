//! How much of other machines' time one job may cost: each request asks the scheduler, and a job's owner knows how to sign.

use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many refused requests may cost a look at the scheduler.
const TRIES: u32 = 5;
/// After that, so long none does.
const PAUSE: Duration = Duration::from_secs(60);
/// So long a job that asked before it ran is not looked for again. A job that has just been started asks once more after a second or so.
const EARLY_PAUSE: Duration = Duration::from_millis(900);
/// How long the same request gets the same answer, if the job does not confirm before. Longer than the client tries.
const RETRY_WINDOW: Duration = Duration::from_secs(300);
/// So long we remember when we met a request that nobody confirmed here.
const MEMORY: Duration = Duration::from_secs(24 * 3600);
/// Below so many, what is forgotten by time may stay.
const FEW: usize = 1000;

/// Who is being answered, and who has lost our patience.
#[derive(Default)]
pub struct Patience {
    answering: Mutex<HashSet<u64>>,
    lost: Mutex<HashMap<u64, (u32, Instant)>>,
    met: Mutex<Met>,
    early: Mutex<HashMap<u64, Instant>>,
}

/// When we first met requests.
struct Met {
    first: HashMap<(u64, String), Instant>,
    /// As soon as there are so many, the old ones go: each costs the same, however many there are.
    sweep_at: usize,
}

impl Default for Met {
    fn default() -> Self {
        Self { first: HashMap::new(), sweep_at: FEW }
    }
}

impl Met {
    fn sweep(&mut self) {
        if self.first.len() >= self.sweep_at {
            self.first.retain(|_, first| first.elapsed() < MEMORY);
            self.sweep_at = FEW.max(2 * self.first.len());
        }
    }
}

/// The right to be answered; given back when it is dropped.
pub struct Turn<'a> {
    patience: &'a Patience,
    job: u64,
}

impl Patience {
    /// One request per job is answered at a time, and none after too many that were refused. `Busy` otherwise.
    pub fn turn(&self, job: u64) -> Result<Turn<'_>> {
        if self.is_lost(job) {
            return Err(Error::busy("too many of the job's requests were refused; try again in a minute"));
        }
        if lock(&self.early).get(&job).is_some_and(|at| at.elapsed() < EARLY_PAUSE) {
            return Err(Error::busy("the scheduler has just said that the job does not run yet; try again in a moment"));
        }
        if !lock(&self.answering).insert(job) {
            return Err(Error::busy("another request of the job is being answered; try again"));
        }
        Ok(Turn { patience: self, job })
    }

    /// A request is answered for the first time, or came again. Whether it may have the same answer (again). The time is counted from when
    /// this program first met it: the clock on the wall may jump, and the clock of another program that granted it may be another.
    pub fn repeats(&self, job: u64, nonce: &str) -> bool {
        let mut met = lock(&self.met);
        met.sweep();
        met.first.entry((job, nonce.to_owned())).or_insert_with(Instant::now).elapsed() < RETRY_WINDOW
    }

    /// The request is used up, which its grant says from now on.
    pub fn forget(&self, job: u64, nonce: &str) {
        lock(&self.met).first.remove(&(job, nonce.to_owned()));
    }

    /// The job asked before it ran: whoever has its script may do so again and again, and each time costs a look at the scheduler.
    pub fn asked_early(&self, job: u64) {
        let mut early = lock(&self.early);
        early.retain(|_, at| at.elapsed() < EARLY_PAUSE);
        early.insert(job, Instant::now());
    }

    /// A request of the job was signed and all the same wrong.
    pub fn lose(&self, job: u64) {
        let mut lost = lock(&self.lost);
        lost.retain(|_, (_, at)| at.elapsed() < PAUSE);
        let (count, at) = lost.entry(job).or_insert((0, Instant::now()));
        *count += 1;
        *at = Instant::now();
    }

    fn is_lost(&self, job: u64) -> bool {
        lock(&self.lost).get(&job).is_some_and(|(count, at)| *count >= TRIES && at.elapsed() < PAUSE)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.patience.answering).remove(&self.job);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn one_request_per_job_at_a_time() {
        let patience = Patience::default();
        let first = patience.turn(1).unwrap();
        assert_eq!(patience.turn(1).err().unwrap().kind, ErrorKind::Busy);
        assert!(patience.turn(2).is_ok());
        drop(first);
        assert!(patience.turn(1).is_ok());
    }

    #[test]
    fn a_request_repeats_within_its_window_and_each_has_its_own() {
        let patience = Patience::default();
        assert!(patience.repeats(1, "a") && patience.repeats(1, "a"));
        let long_ago = Instant::now().checked_sub(RETRY_WINDOW).expect("the machine runs for longer");
        lock(&patience.met).first.insert((1, "a".into()), long_ago);
        assert!(!patience.repeats(1, "a") && patience.repeats(1, "b") && patience.repeats(2, "a"));
    }

    #[test]
    fn what_was_met_is_forgotten_when_it_is_confirmed_or_long_ago() {
        let patience = Patience::default();
        let long_ago = Instant::now().checked_sub(MEMORY).expect("an instant may lie before the start of the machine");
        let old = |job: u64| ((job, "old".to_owned()), long_ago);
        lock(&patience.met).first.extend((0..FEW as u64 - 1).map(old));
        assert!(patience.repeats(1, "a") && lock(&patience.met).first.len() == FEW, "few may stay");
        assert!(patience.repeats(2, "b") && lock(&patience.met).first.len() == 2);
        patience.forget(1, "a");
        patience.forget(1, "unknown");
        assert_eq!(lock(&patience.met).first.keys().collect::<Vec<_>>(), [&(2, "b".to_owned())]);
    }

    #[test]
    fn all_that_lately_came_is_looked_through_less_and_less_often() {
        let patience = Patience::default();
        (0..5000).for_each(|job| assert!(patience.repeats(job, "a")));
        let met = lock(&patience.met);
        assert_eq!((met.first.len(), met.sweep_at), (5000, 8 * FEW));
    }

    #[test]
    fn a_job_that_asked_before_it_ran_waits_for_a_moment() {
        let patience = Patience::default();
        patience.asked_early(1);
        assert_eq!(patience.turn(1).err().unwrap().kind, ErrorKind::Busy);
        assert!(patience.turn(2).is_ok());
    }

    #[test]
    fn a_job_that_was_refused_too_often_waits_and_others_do_not() {
        let patience = Patience::default();
        (0..TRIES).for_each(|_| patience.lose(1));
        assert_eq!(patience.turn(1).err().unwrap().kind, ErrorKind::Busy);
        assert!(patience.turn(2).is_ok());
    }
}
