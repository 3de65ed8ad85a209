//! Waiting for something to become true.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
pub const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `done` says yes, for at most `seconds`; then fails with the last look.
pub fn until<T: Debug>(what: &str, seconds: u64, mut look: impl FnMut() -> T, done: impl Fn(&T) -> bool) -> T {
    let begun = Instant::now();
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
