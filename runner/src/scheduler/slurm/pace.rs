//! Which way of asking for the details of some jobs is the sooner one: one by one, or for all together.
//!
//! One job is a program and a look-up of slurmctld's; all together are one program, to which slurmctld sends every job that it has. Which takes
//! longer depends on the queue, the machines and what else they do, so both are timed wherever they happen.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Questions for single jobs that are asked side by side.
pub const LANES: usize = 4;
/// More jobs than this are never asked for one by one, since that costs the command node a program for each.
const MOST: usize = 32;
/// A new time counts one in so many.
const SHARE: u32 = 4;

/// How long both ways take of late.
pub struct Pace(Mutex<Times>);

struct Times {
    one: Duration,
    all: Duration,
}

impl Default for Pace {
    /// Before anything was timed: as in a queue of some hundred jobs.
    fn default() -> Self {
        Self(Mutex::new(Times { one: Duration::from_millis(8), all: Duration::from_millis(16) }))
    }
}

impl Pace {
    /// Whether so many jobs are sooner asked for one by one.
    pub fn is_one_by_one(&self, jobs: usize) -> bool {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        jobs <= MOST && (jobs < 2 || times.one * rounds(jobs) <= times.all)
    }

    /// So many jobs were asked for one by one, and this is how long it took.
    pub fn note_one_by_one(&self, jobs: usize, took: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.one = mixed(times.one, took / rounds(jobs).max(1));
    }

    /// All were asked for together, in this time.
    pub fn note_all(&self, took: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.all = mixed(times.all, took);
    }
}

/// How many single questions one lane asks.
fn rounds(jobs: usize) -> u32 {
    u32::try_from(jobs.div_ceil(LANES)).unwrap_or(u32::MAX)
}

fn mixed(before: Duration, now: Duration) -> Duration {
    (before * (SHARE - 1) + now) / SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The most jobs that are asked for one by one.
    fn most(pace: &Pace) -> usize {
        (1..100).take_while(|&jobs| pace.is_one_by_one(jobs)).count()
    }

    #[test]
    fn a_long_queue_is_asked_for_single_jobs_longer_and_a_short_one_seldom() {
        let pace = Pace::default();
        assert_eq!(most(&pace), 8);
        (0..40).for_each(|_| pace.note_all(50 * MS));
        assert_eq!(most(&pace), 24, "six rounds of 8 ms");
        (0..40).for_each(|_| pace.note_all(500 * MS));
        assert_eq!(most(&pace), MOST, "whatever it takes");
        (0..40).for_each(|_| pace.note_one_by_one(6, 500 * MS));
        assert_eq!(most(&pace), 8, "two rounds of 250 ms");
        (0..40).for_each(|_| pace.note_all(10 * MS));
        assert_eq!(most(&pace), 1, "a single job is always asked for alone");
    }

    #[test]
    fn a_time_that_is_out_of_the_common_changes_little() {
        let pace = Pace::default();
        (0..40).for_each(|_| pace.note_all(16 * MS));
        pace.note_all(40 * MS);
        assert_eq!(most(&pace), 8);
    }
}
