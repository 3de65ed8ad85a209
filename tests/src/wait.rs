//! Waiting for something to become true.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
pub const PAUSE: Duration = Duration::from_millis(50);

/// So many times longer than anything takes on a machine of its own: it may be shared and slow. Who waits in vain fails later, no more.
pub const PATIENCE: u64 = 4;

/// Looks until `done` says yes, for at most `seconds` by [`PATIENCE`]; then fails with the last look.
pub fn until<T: Debug>(what: &str, seconds: u64, mut look: impl FnMut() -> T, done: impl Fn(&T) -> bool) -> T {
    let (begun, seconds) = (Instant::now(), seconds * PATIENCE);
    loop {
        let seen = look();
        if done(&seen) {
            return seen;
        }
        assert!(begun.elapsed().as_secs() < seconds, "waited {seconds} s in vain for: {what}; last seen: {seen:#?}");
        thread::sleep(PAUSE);
    }
}

/// Looks for `time`, and fails as soon as `fine` says no.
pub fn throughout<T: Debug>(what: &str, time: Duration, mut look: impl FnMut() -> T, fine: impl Fn(&T) -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        let seen = look();
        assert!(fine(&seen), "{what}: no longer after {:?}; seen: {seen:#?}", begun.elapsed());
        thread::sleep(PAUSE);
    }
}

/// Whether it takes less than `limit`, at its best of three times: for what takes longer each time where something is wrong.
pub fn is_quick(limit: Duration, mut work: impl FnMut()) -> bool {
    (0..3).any(|_| {
        let begun = Instant::now();
        work();
        begun.elapsed() < limit
    })
}
