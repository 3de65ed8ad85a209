//! How many commands may run at once on one connection.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// The permits of one connection.
pub struct Permits {
    count: Mutex<Count>,
    returned: Condvar,
}

struct Count {
    usual: usize,
    most: usize,
    taken: usize,
}

/// One of them; given back when it is dropped.
pub struct Permit<'a>(&'a Permits);

impl Permits {
    /// So many at once, unless the other side takes fewer.
    pub fn new(usual: usize) -> Self {
        Self { count: Mutex::new(Count { usual, most: usual, taken: 0 }), returned: Condvar::new() }
    }

    /// One of them, as soon as there is one.
    pub fn take(&self, deadline: Instant) -> Option<Permit<'_>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let full = |count: &mut Count| count.taken >= count.most;
        let waited = self.returned.wait_timeout_while(super::lock(&self.count), left, full);
        let (mut count, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if count.taken >= count.most {
            return None;
        }
        count.taken += 1;
        Some(Permit(self))
    }

    /// The other side took one fewer than it was asked for, so that is the number from now on. Whether it is a new one.
    pub fn refused(&self) -> bool {
        let mut count = super::lock(&self.count);
        let before = count.most;
        count.most = before.min(count.taken).saturating_sub(1).max(1);
        count.most < before
    }

    /// A new connection may allow more.
    pub fn restore(&self) {
        let mut count = super::lock(&self.count);
        count.most = count.usual;
        self.returned.notify_all();
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        super::lock(&self.0.count).taken -= 1;
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn no_more_sessions_than_a_stock_sshd_takes() {
        let permits = Permits::new(2);
        let soon = || Instant::now() + Duration::from_millis(20);
        let first = permits.take(soon());
        let second = permits.take(soon());
        assert!(first.is_some() && second.is_some() && permits.take(soon()).is_none());
        drop(first);
        assert!(permits.take(soon()).is_some());
    }

    #[test]
    fn where_sessions_are_refused_fewer_are_asked_for_until_the_next_connection() {
        let permits = Permits::new(8);
        let soon = || Instant::now() + Duration::from_millis(20);
        let mut taken: Vec<_> = (0..8).map(|_| permits.take(soon()).unwrap()).collect();
        // An sshd with `MaxSessions 5`: one session is the connection's own.
        (0..4).for_each(|_| assert!(permits.refused()));
        taken.truncate(4);
        assert!(permits.take(soon()).is_none());
        taken.truncate(3);
        taken.push(permits.take(soon()).unwrap());
        (0..9).for_each(|_| assert!(permits.refused() || permits.take(Instant::now()).is_none()));
        taken.clear();
        let last = permits.take(soon());
        assert!(last.is_some() && permits.take(soon()).is_none(), "one is always left");
        permits.restore();
        assert!(permits.take(soon()).is_some());
    }
}
