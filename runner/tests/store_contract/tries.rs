//! What is quick, and what ends, on a machine that may stand still for a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// After a call that failed: members that elect need the processors, too.
pub const REST: Duration = Duration::from_millis(50);

/// Sets the flag at its end, and so after a panic: threads that wait for it would go on for ever.
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs up to five times, until it took less than `bound` once. What is wrong takes longer each time, what is right does so while the
/// machine stands still.
pub fn one_takes_less_than(bound: Duration, mut run: impl FnMut(usize) -> Duration) -> Duration {
    let mut times = Vec::new();
    for number in 0..5 {
        let time = run(number);
        if time < bound {
            return time;
        }
        times.push(time);
    }
    panic!("none takes less than {bound:?}: {times:?}");
}
