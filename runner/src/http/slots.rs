//! Room for requests that wait for other machines, so that they never take all the workers: when a cluster hangs, jobs can still be
//! looked at.

use crate::error::{Error, Result};
use crate::metrics::metrics;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Of the guard's 32 workers, so many at most may be given to submissions (`limits.submissions-in-flight`).
pub const MOST_SUBMISSIONS: usize = 28;
/// Of the guard's 32 workers, so many at most are with requests of this kind, under way or waiting. The others answer from the database.
const ROOM: usize = 28;
/// Of these, so many at most are under way and no submissions.
const MOST_OTHERS: usize = 24;
/// So many submissions wait for their turn: a small crowd goes by within the time of patience, if the cluster is well. More would take
/// the place of those who only want to cancel a job.
const WAITING: usize = 2;
const PATIENCE: Duration = Duration::from_secs(2);

/// How many such requests are here.
#[derive(Debug)]
pub(super) struct Slots {
    taken: Mutex<Taken>,
    returned: Condvar,
}

#[derive(Debug)]
struct Taken {
    most_submissions: usize,
    submissions: usize,
    others: usize,
    /// Of either kind.
    waiting: usize,
    waiting_submissions: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Submission,
    Other,
}

/// Held while the request is under way.
#[derive(Debug)]
pub(super) struct Slot<'a>(&'a Slots, Kind);

impl Slots {
    /// With so many submissions at a time.
    pub(super) fn new(most_submissions: usize) -> Self {
        let taken = Taken { most_submissions, submissions: 0, others: 0, waiting: 0, waiting_submissions: 0 };
        Self { taken: Mutex::new(taken), returned: Condvar::new() }
    }

    /// From now on with so many. Those that are under way are not counted out.
    pub(super) fn renew(&self, most_submissions: usize) {
        self.taken().most_submissions = most_submissions;
        self.returned.notify_all();
    }

    /// Takes a slot for a submission, or says that there are too many.
    pub(super) fn take_for_submission(&self) -> Result<Slot<'_>> {
        let refusal = |most| Error::busy(format!("{most} submissions are under way already, which is the limit; try again"));
        self.wait(Kind::Submission).ok_or_else(|| refusal(self.taken().most_submissions))
    }

    /// Takes a slot for any other request that waits for other machines, or refuses after a short while.
    pub(super) fn take(&self) -> Result<Slot<'_>> {
        self.wait(Kind::Other).ok_or_else(|| Error::unavailable("too many requests wait for the cluster; try again"))
    }

    fn wait(&self, kind: Kind) -> Option<Slot<'_>> {
        let deadline = Instant::now() + PATIENCE;
        let mut taken = self.taken();
        if !taken.lets_in(kind) {
            return None;
        }
        taken.queue(kind, true);
        while taken.is_full(kind) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                taken.queue(kind, false);
                return None;
            }
            taken = self.returned.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        taken.queue(kind, false);
        *taken.under_way(kind) += 1;
        if kind == Kind::Submission {
            metrics().submissions.inc();
        }
        Some(Slot(self, kind))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Whether one more of this kind has to wait.
    fn is_full(&self, kind: Kind) -> bool {
        let full = match kind {
            Kind::Submission => self.submissions >= self.most_submissions,
            Kind::Other => self.others >= MOST_OTHERS,
        };
        full || self.submissions + self.others >= ROOM
    }

    /// Whether there is a worker for it, and, if it has to wait, a place to wait.
    fn lets_in(&self, kind: Kind) -> bool {
        let may_wait = kind == Kind::Other || self.waiting_submissions < WAITING;
        self.submissions + self.others + self.waiting < ROOM && (may_wait || !self.is_full(kind))
    }

    fn queue(&mut self, kind: Kind, comes: bool) {
        let change = |count: &mut usize| *count = if comes { *count + 1 } else { *count - 1 };
        change(&mut self.waiting);
        if kind == Kind::Submission {
            change(&mut self.waiting_submissions);
        }
    }

    fn under_way(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Submission => &mut self.submissions,
            Kind::Other => &mut self.others,
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.taken().under_way(self.1) -= 1;
        if self.1 == Kind::Submission {
            metrics().submissions.dec();
        }
        // All: one that waits for the other kind's slot would let the sign pass.
        self.0.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::thread;

    fn submissions(slots: &Slots, count: usize) -> Vec<Slot<'_>> {
        (0..count).map(|_| slots.take_for_submission().unwrap()).collect()
    }

    #[test]
    fn one_submission_too_many_is_told_so_until_one_comes_back() {
        let slots = Slots::new(3);
        let mut held = submissions(&slots, 3);
        let error = slots.take_for_submission().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy);
        assert!(error.message.contains("3 submissions are under way already"), "{}", error.message);
        held.pop();
        assert!(slots.take_for_submission().is_ok());
    }

    #[test]
    fn while_submissions_are_at_their_limit_jobs_can_be_cancelled() {
        let slots = Slots::new(24);
        let _held = submissions(&slots, 24);
        let others: Vec<_> = (0..4).map(|_| slots.take().unwrap()).collect();
        assert_eq!(slots.take().unwrap_err().kind, ErrorKind::Unavailable, "four workers are left for the database");
        drop(others);
        assert!(slots.take().is_ok());
    }

    #[test]
    fn other_requests_leave_room_too() {
        let slots = Slots::new(24);
        let _held: Vec<_> = (0..MOST_OTHERS).map(|_| slots.take().unwrap()).collect();
        assert!(slots.take().is_err());
        assert!(slots.take_for_submission().is_ok());
    }

    #[test]
    fn few_wait_for_their_turn_and_the_rest_is_refused_at_once() {
        // On a busy machine the patience may be over before all is seen.
        let seen: Vec<_> =
            (0..5).map(|_| a_few_wait_and_one_more_comes()).take_while(|seen| *seen != (true, true, true)).collect();
        assert!(seen.len() < 5, "the rest refused, at once, and each of the few had its turn: {seen:?}");
    }

    fn a_few_wait_and_one_more_comes() -> (bool, bool, bool) {
        let slots = Slots::new(1);
        let held = submissions(&slots, 1);
        let seen = thread::scope(|scope| {
            let waiting: Vec<_> = (0..WAITING).map(|_| scope.spawn(|| slots.take_for_submission().is_ok())).collect();
            while slots.taken().waiting < WAITING && !waiting.iter().any(|waiter| waiter.is_finished()) {
                thread::yield_now();
            }
            let begin = Instant::now();
            let is_refused = slots.take_for_submission().is_err();
            let at_once = begin.elapsed() < PATIENCE / 4;
            drop(held);
            (is_refused, at_once, waiting.into_iter().all(|waiter| waiter.join().unwrap()))
        });
        let left = slots.taken();
        assert_eq!((left.waiting, left.waiting_submissions, left.submissions), (0, 0, 0));
        drop(left);
        seen
    }

    #[test]
    fn a_changed_limit_counts_for_those_that_wait() {
        let slots = Slots::new(1);
        let held = submissions(&slots, 1);
        // Up to five times: on a busy machine the patience may be over before the limit is changed.
        let is_let_in = || {
            slots.renew(1);
            thread::scope(|scope| {
                let waiting = scope.spawn(|| slots.take_for_submission().is_ok());
                while slots.taken().waiting == 0 && !waiting.is_finished() {
                    thread::yield_now();
                }
                slots.renew(2);
                waiting.join().unwrap()
            })
        };
        assert!((0..5).any(|_| is_let_in()));
        slots.renew(1);
        drop(held);
        assert!(slots.take_for_submission().is_ok(), "both are free again");
    }
}
