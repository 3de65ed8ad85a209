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
/// So long we remember when we met a request.
const MEMORY: Duration = Duration::from_secs(24 * 3600);

/// Who is being answered, and who has lost our patience.
#[derive(Default)]
pub struct Patience {
    answering: Mutex<HashSet<u64>>,
    lost: Mutex<HashMap<u64, (u32, Instant)>>,
    met: Mutex<HashMap<(u64, String), Instant>>,
    early: Mutex<HashMap<u64, Instant>>,
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
        met.retain(|_, first| first.elapsed() < MEMORY);
        met.entry((job, nonce.to_owned())).or_insert_with(Instant::now).elapsed() < RETRY_WINDOW
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
        lock(&patience.met).insert((1, "a".into()), long_ago);
        assert!(!patience.repeats(1, "a") && patience.repeats(1, "b") && patience.repeats(2, "a"));
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
