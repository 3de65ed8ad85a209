//! One ticket per request behind the guard. There are as many as workers, so whoever holds one is served at once; a
//! ticket comes back when the worker has finished, not when the client has given up, so work cannot pile up.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The tickets of one listener.
pub(crate) struct Tickets {
    board: Mutex<Board>,
    returned: Condvar,
}

struct Board {
    free: usize,
    next: u64,
    /// Given to the guard, and no worker has taken them up yet.
    waiting: HashSet<u64>,
}

/// The guard's end of a request.
pub(crate) struct Ticket {
    tickets: Arc<Tickets>,
    id: u64,
}

/// The worker's end of it.
pub(crate) struct Work {
    tickets: Arc<Tickets>,
}

impl Tickets {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        let board = Board { free: count, next: 0, waiting: HashSet::new() };
        Arc::new(Self { board: Mutex::new(board), returned: Condvar::new() })
    }

    /// Waits for a ticket until `deadline`.
    pub(crate) fn get(self: &Arc<Self>, deadline: Instant) -> Option<Ticket> {
        let left = deadline.saturating_duration_since(Instant::now());
        let none_free = |board: &mut Board| board.free == 0;
        let waited = self.returned.wait_timeout_while(self.board(), left, none_free);
        let (mut board, result) = waited.unwrap_or_else(PoisonError::into_inner);
        if result.timed_out() {
            return None;
        }
        board.free -= 1;
        let id = board.next;
        board.next += 1;
        board.waiting.insert(id);
        Some(Ticket { tickets: Arc::clone(self), id })
    }

    /// The worker takes up the request with this ticket; `None` if the guard has given it up.
    pub(crate) fn take_up(self: &Arc<Self>, id: u64) -> Option<Work> {
        self.board().waiting.remove(&id).then(|| Work { tickets: Arc::clone(self) })
    }

    fn give_back(&self) {
        self.board().free += 1;
        self.returned.notify_one();
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether a worker has taken the request up.
    pub(crate) fn taken_up(&self) -> bool {
        !self.tickets.board().waiting.contains(&self.id)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let still_waiting = self.tickets.board().waiting.remove(&self.id);
        if still_waiting {
            self.tickets.give_back();
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.tickets.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_returns_when_the_work_is_done_or_was_never_begun() {
        let tickets = Tickets::new(1);
        let get = || tickets.get(Instant::now());
        let first = get().unwrap();
        assert!(get().is_none(), "there is one");
        let id = first.id();
        drop(first);
        assert!(tickets.take_up(id).is_none(), "a request that was given up is not begun");

        let second = get().unwrap();
        assert!(!second.taken_up());
        let work = tickets.take_up(second.id()).unwrap();
        assert!(second.taken_up());
        drop(second);
        assert!(get().is_none(), "the worker is still at it");
        drop(work);
        assert!(get().is_some());
    }
}
