//! Taking turns for a bounded time: who waits for a machine that hangs must not wait for all that wait before it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// One turn at a time.
#[derive(Default)]
pub(crate) struct Turns {
    taken: Mutex<bool>,
    given_back: Condvar,
}

/// A turn; given back when it is dropped.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits for a turn, at most so long.
    pub(crate) fn take(&self, within: Duration) -> Result<Turn<'_>> {
        let waited = self.given_back.wait_timeout_while(self.lock(), within, |taken| *taken);
        let (mut taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *taken {
            return Err(Error::unavailable("the database is slow, and too many wait for it already"));
        }
        *taken = true;
        Ok(Turn(self))
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.given_back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Instant;

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn who_waits_too_long_is_sent_away_and_a_turn_given_back_is_had_at_once() {
        let turns = Turns::default();
        let first = turns.take(SHORT).unwrap();
        let begin = Instant::now();
        assert!(turns.take(SHORT).is_err());
        assert!(begin.elapsed() >= SHORT);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| turns.take(Duration::from_secs(60)).is_ok());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        assert!(turns.take(SHORT).is_ok());
    }
}
