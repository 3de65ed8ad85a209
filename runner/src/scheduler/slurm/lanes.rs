//! Questions for single jobs, asked side by side: in a long queue a few of them are sooner answered than one for all.
//!
//! Asked for one id, slurmctld looks up that job, and `sudo` and `squeue` take some 8 ms. Asked for anything else it sends every job that it has, which takes
//! 10 ms and 15 µs for each.

use std::sync::{Mutex, PoisonError};

/// So many lanes are used at most by one look, and three more than looks by all together: the other sessions on a command node are for other questions.
pub const LANES: usize = 4;
/// So many jobs are asked for one by one, however short the queue is.
const FEW: usize = 8;
/// Never more than these: eight in each lane, whose script has a limit of time.
const MANY: usize = 32;
/// One job in so many of the queue: by what both cost it would be one in five hundred, but several lanes answer sooner.
const QUEUE_PER_JOB: usize = 300;

/// How many jobs at most are asked for one by one in so many lanes while there are `queue` jobs in Slurm.
pub fn most_by_id(queue: usize, lanes: usize) -> usize {
    ((queue / QUEUE_PER_JOB).min(MANY) * lanes / LANES).max(FEW)
}

/// Whether the length of the queue makes a difference for so many.
pub(super) fn depends_on_queue(jobs: usize) -> bool {
    (FEW + 1..=MANY).contains(&jobs)
}

/// The lanes beside the first one, which each look has.
pub(super) struct Lanes(Mutex<usize>);

/// Some of them; given back when it is dropped.
pub(super) struct Taken<'a> {
    lanes: &'a Lanes,
    count: usize,
}

impl Default for Lanes {
    fn default() -> Self {
        Self(Mutex::new(LANES - 1))
    }
}

impl Lanes {
    /// Lanes for so many jobs, as far as others leave them: two jobs or more in each, since a lane may need a shell of its own first.
    pub(super) fn take(&self, jobs: usize) -> Taken<'_> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = (jobs.div_ceil(2).max(1) - 1).min(*left);
        *left -= count;
        Taken { lanes: self, count }
    }
}

impl Taken<'_> {
    /// How many there are, with the first one.
    pub(super) fn count(&self) -> usize {
        self.count + 1
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner) += self.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_the_queue_the_more_jobs_are_asked_for_one_by_one() {
        let most = [0, 100, 2_400, 2_700, 9_300, 10_000, 1_000_000].map(|queue| most_by_id(queue, LANES));
        assert_eq!(most, [8, 8, 8, 9, 31, 32, 32]);
        assert_eq!([1, 2, 3, 4].map(|lanes| most_by_id(1_000_000, lanes)), [8, 16, 24, 32], "eight in each lane");
        for jobs in 0..100 {
            assert_eq!(
                depends_on_queue(jobs),
                (jobs <= most_by_id(0, LANES)) != (jobs <= most_by_id(usize::MAX, LANES)),
                "{jobs}"
            );
        }
    }

    #[test]
    fn each_look_has_a_lane_and_all_together_three_more() {
        let lanes = Lanes::default();
        let counts: Vec<usize> = [0, 1, 2, 3, 4, 5, 7, 64].map(|jobs| lanes.take(jobs).count()).into();
        assert_eq!(counts, [1, 1, 1, 2, 2, 3, 4, 4], "and what is given back is there again");
        let first = lanes.take(5);
        let second = lanes.take(64);
        assert_eq!((first.count(), second.count(), lanes.take(64).count()), (3, 2, 1));
        drop(first);
        assert_eq!(lanes.take(64).count(), 3);
    }
}
