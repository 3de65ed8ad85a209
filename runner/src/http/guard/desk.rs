//! The requests that are at work: no more at once than the listener has workers, and none of them keeps its client waiting for ever.
//!
//! The thread of a connection works on the request itself, and leaves the connection here meanwhile. Whoever takes it from here answers the
//! client: that thread when its work is done, or another one when the client has waited long enough. The place at the desk is free again
//! when the work is done, not when the client has its answer, so work cannot pile up.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a request waits for a place.
const QUEUE: Duration = Duration::from_secs(10);
/// When a late client is announced again, should nobody have come to answer it.
const AGAIN: Duration = Duration::from_secs(1);

/// The places of one listener, and the connections (`T`) whose requests are at work.
pub(super) struct Desk<T> {
    /// How long a client waits.
    within: Duration,
    board: Mutex<Board<T>>,
    freed: Condvar,
    /// Rung when somebody is late sooner than could be foreseen, and at the end.
    clock: Condvar,
}

struct Board<T> {
    free: usize,
    next: u64,
    waiting: Vec<Waiting<T>>,
    ended: bool,
}

struct Waiting<T> {
    id: u64,
    late: Instant,
    client: T,
}

/// A place at the desk, free again when this is dropped.
pub(super) struct Work<'a, T> {
    desk: &'a Desk<T>,
    id: u64,
}

impl<T> Desk<T> {
    pub(super) fn new(places: usize, within: Duration) -> Self {
        let board = Board { free: places, next: 0, waiting: Vec::with_capacity(places), ended: false };
        Self { within, board: Mutex::new(board), freed: Condvar::new(), clock: Condvar::new() }
    }

    /// Takes a place for the request of `client`, who comes back if none becomes free.
    pub(super) fn begin(&self, client: T) -> Result<Work<'_, T>, T> {
        let late = Instant::now() + self.within;
        let mut board = self.board();
        if board.free == 0 {
            let none = |board: &mut Board<T>| board.free == 0;
            let waited = self.freed.wait_timeout_while(board, self.within.min(QUEUE), none);
            board = waited.unwrap_or_else(PoisonError::into_inner).0;
            if board.free == 0 {
                return Err(client);
            }
            self.clock.notify_one();
        }
        let id = board.next;
        (board.free, board.next) = (board.free - 1, id + 1);
        board.waiting.push(Waiting { id, late, client });
        Ok(Work { desk: self, id })
    }

    /// The client of this request, unless it was taken already: who gets it has to answer.
    pub(super) fn take(&self, id: u64) -> Option<T> {
        self.board().take(id)
    }

    /// Waits until a client is late, and says whose; `None` when the end has come.
    pub(super) fn next_late(&self) -> Option<u64> {
        let mut board = self.board();
        while !board.ended {
            let now = Instant::now();
            // Whoever comes while we sleep is late after `within` at the earliest, or rings the clock. So nobody needs to wake us who begins.
            let wait = match board.waiting.iter_mut().min_by_key(|waiting| waiting.late) {
                Some(waiting) if waiting.late <= now => {
                    waiting.late = now + AGAIN;
                    return Some(waiting.id);
                }
                Some(waiting) => waiting.late - now,
                None => self.within,
            };
            board = self.clock.wait_timeout(board, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }

    /// How long clients wait.
    pub(super) fn patience(&self) -> Duration {
        self.within
    }

    /// Whether nothing is at work.
    pub(super) fn is_clear(&self, places: usize) -> bool {
        self.board().free == places
    }

    /// Nobody is announced as late any more.
    pub(super) fn end(&self) {
        self.board().ended = true;
        self.clock.notify_all();
    }

    fn board(&self) -> MutexGuard<'_, Board<T>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Board<T> {
    fn take(&mut self, id: u64) -> Option<T> {
        let at = self.waiting.iter().position(|waiting| waiting.id == id)?;
        Some(self.waiting.swap_remove(at).client)
    }
}

impl<T> Work<'_, T> {
    /// The work is done. Returns the client, unless somebody else has answered it meanwhile.
    pub(super) fn done(self) -> Option<T> {
        self.desk.take(self.id)
    }
}

impl<T> Drop for Work<'_, T> {
    fn drop(&mut self) {
        let mut board = self.desk.board();
        board.free += 1;
        // A client that is still here then was left by a panic.
        let left = board.take(self.id);
        drop(board);
        self.desk.freed.notify_one();
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;

    const MOMENT: Duration = Duration::from_millis(50);

    #[test]
    fn a_place_is_free_again_when_the_work_is_done_whoever_answered() {
        let desk = Desk::new(1, MOMENT);
        let work = desk.begin("a").ok().unwrap();
        assert_eq!(desk.begin("b").err(), Some("b"), "there is one");
        assert_eq!(work.done(), Some("a"));

        let work = desk.begin("c").ok().unwrap();
        let late = desk.next_late().unwrap();
        assert_eq!((desk.take(late), desk.take(late)), (Some("c"), None));
        assert!(desk.begin("d").is_err() && !desk.is_clear(1), "the work goes on");
        assert_eq!(work.done(), None);
        assert!(desk.is_clear(1) && desk.begin("e").is_ok());
        assert!(desk.is_clear(1) && desk.board().waiting.is_empty(), "also where nobody said that it is done");
    }

    #[test]
    fn who_waited_for_a_place_is_not_answered_later_for_it() {
        // On a busy machine somebody may come only when the place is free already.
        assert!((0..5).any(|_| the_time_of_one_who_waits_begins_before_the_place_is_free()));
    }

    fn the_time_of_one_who_waits_begins_before_the_place_is_free() -> bool {
        const WITHIN: Duration = Duration::from_secs(60);
        let desk = &Desk::new(1, WITHIN);
        thread::scope(|scope| {
            let first = desk.begin("a").ok().unwrap();
            let clerk = scope.spawn(|| desk.next_late().and_then(|late| desk.take(late)));
            let (answered, end) = channel();
            let second = scope.spawn(move || {
                let work = desk.begin("b").ok().unwrap();
                end.recv().unwrap();
                work.done()
            });
            thread::sleep(6 * MOMENT);
            let freed = Instant::now();
            assert_eq!(first.done(), Some("a"));
            let late = loop {
                // Nobody needs to wait here until that time has come.
                if let Some(waiting) = desk.board().waiting.first_mut() {
                    break std::mem::replace(&mut waiting.late, freed);
                }
                if freed.elapsed() > Duration::from_secs(20) {
                    // Or the clerk would wait for ever.
                    desk.end();
                    panic!("the place is not free");
                }
                thread::sleep(Duration::from_millis(1));
            };
            desk.clock.notify_one();
            assert_eq!(clerk.join().unwrap(), Some("b"));
            answered.send(()).unwrap();
            assert_eq!(second.join().unwrap(), None);
            late < freed + WITHIN
        })
    }

    #[test]
    fn who_is_late_is_announced_until_somebody_comes_or_the_end() {
        let desk = Desk::new(2, MOMENT);
        let _work = desk.begin(()).ok().unwrap();
        let late = desk.next_late();
        assert!(late.is_some());
        let begun = Instant::now();
        assert_eq!(desk.next_late(), late);
        assert!(begun.elapsed() >= AGAIN, "not in a storm");
        desk.end();
        assert_eq!(desk.next_late(), None);
    }
}
