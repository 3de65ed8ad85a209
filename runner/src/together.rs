//! Calls that are made together: threads that want the same kind of thing at the same time hand in an item each, and one of them does it
//! for all that wait. While that is under way the next batch collects, so a crowd costs a few calls and a single caller waits for nobody.

use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Items that wait to be dealt with, and whether somebody is at it.
pub struct Together<I, R> {
    most: usize,
    at_once: usize,
    slow: Duration,
    queue: Mutex<Queue<I, R>>,
}

struct Queue<I, R> {
    /// How many lead, or have been told to.
    under_way: usize,
    /// When the last of them began.
    begun: Instant,
    waiting: VecDeque<Waiting<I, R>>,
    tickets: u64,
}

struct Waiting<I, R> {
    ticket: u64,
    item: I,
    tell: Sender<Message<I, R>>,
}

enum Message<I, R> {
    /// Deal with this, which is your own, and with what others wait for.
    Lead(Waiting<I, R>),
    Done(Result<R>),
}

/// A batch at work. Whatever becomes of its leader: when this goes, those who have no answer get an error, and the next one leads.
struct Batch<'a, I, R> {
    of: &'a Together<I, R>,
    open: Vec<Sender<Message<I, R>>>,
}

impl<I, R> Together<I, R> {
    /// At most so many items in one batch, and one batch at a time.
    pub fn of_at_most(most: usize) -> Self {
        let queue = Mutex::new(Queue { under_way: 0, begun: Instant::now(), waiting: VecDeque::new(), tickets: 0 });
        Self { most: most.max(1), at_once: 1, slow: Duration::MAX, queue }
    }

    /// Where a batch may take long because of what is in it: when the last one has not ended after `slow`, the next one need not wait for it, as
    /// long as no more than `at_once` are under way.
    #[must_use]
    pub fn past_slow_ones(self, at_once: usize, slow: Duration) -> Self {
        Self { at_once: at_once.max(1), slow, ..self }
    }

    /// Has `item` dealt with, alone or with others, and returns its part of the result. `act` gets all items of a batch and returns as many
    /// results, in their order; it is called by whoever happens to lead, so all callers must mean the same by it. An error of it
    /// reaches each of the batch.
    ///
    /// Who still waits at `deadline` gets `Unavailable` if nobody has begun with the item, and `Unknown` if somebody has. The leader is bound
    /// by `act` alone, which must end by itself.
    pub fn call(&self, item: I, deadline: Instant, act: impl FnOnce(&[I]) -> Result<Vec<R>>) -> Result<R> {
        let (tell, told) = channel();
        let (ticket, own) = self.enter(item, tell);
        if let Some(own) = own {
            return self.lead(own, act, &told);
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match told.recv_timeout(left.min(self.slow)) {
                Ok(Message::Done(result)) => return result,
                Ok(Message::Lead(own)) => return self.lead(own, act, &told),
                Err(_) if Instant::now() >= deadline => return self.leave(ticket, &told),
                Err(_) => {}
            }
            if let Some(own) = self.overtake(ticket) {
                return self.lead(own, act, &told);
            }
        }
    }

    /// Comes back with what is to be led, if it has waited long enough for those before.
    fn overtake(&self, ticket: u64) -> Option<Waiting<I, R>> {
        let mut queue = self.lock();
        if queue.under_way >= self.at_once || queue.begun.elapsed() < self.slow {
            return None;
        }
        let at = queue.waiting.iter().position(|waiting| waiting.ticket == ticket)?;
        let own = queue.waiting.remove(at)?;
        queue.under_way += 1;
        queue.begun = Instant::now();
        Some(own)
    }

    /// Waits in the queue, or comes back with what is to be led at once.
    fn enter(&self, item: I, tell: Sender<Message<I, R>>) -> (u64, Option<Waiting<I, R>>) {
        let mut queue = self.lock();
        queue.tickets += 1;
        let ticket = queue.tickets;
        let waiting = Waiting { ticket, item, tell };
        let slow = queue.begun.elapsed() >= self.slow && queue.under_way < self.at_once;
        if queue.under_way == 0 || slow {
            queue.under_way += 1;
            queue.begun = Instant::now();
            return (ticket, Some(waiting));
        }
        queue.waiting.push_back(waiting);
        (ticket, None)
    }

    /// Deals with one's own and with what others wait for.
    fn lead(&self, own: Waiting<I, R>, act: impl FnOnce(&[I]) -> Result<Vec<R>>, told: &Receiver<Message<I, R>>) -> Result<R> {
        let (items, open): (Vec<I>, Vec<_>) = {
            let mut queue = self.lock();
            let count = queue.waiting.len().min(self.most - 1);
            std::iter::once(own).chain(queue.waiting.drain(..count)).map(|waiting| (waiting.item, waiting.tell)).unzip()
        };
        let batch = Batch { of: self, open };
        batch.answer(act(&items));
        match told.recv() {
            Ok(Message::Done(result)) => result,
            _ => Err(Error::internal("the leader of a batch has no result of its own")),
        }
    }

    /// The time is over.
    fn leave(&self, ticket: u64, told: &Receiver<Message<I, R>>) -> Result<R> {
        let waited = {
            let mut queue = self.lock();
            let before = queue.waiting.len();
            queue.waiting.retain(|waiting| waiting.ticket != ticket);
            queue.waiting.len() < before
        };
        // It may have been told something at the last moment.
        let not_begun = match told.try_recv() {
            Ok(Message::Done(result)) => return result,
            Ok(Message::Lead(_)) => {
                self.hand_over();
                true
            }
            Err(_) => waited,
        };
        Err(match not_begun {
            true => Error::unavailable("too many others were to be dealt with before; try again"),
            false => Error::unknown("it was begun together with others and did not end in time"),
        })
    }

    /// The next one leads, if anybody waits.
    fn hand_over(&self) {
        let mut queue = self.lock();
        queue.begun = Instant::now();
        while let Some(next) = queue.waiting.pop_front() {
            let tell = next.tell.clone();
            if tell.send(Message::Lead(next)).is_ok() {
                return;
            }
        }
        queue.under_way -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Queue<I, R>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I, R> Batch<'_, I, R> {
    fn answer(mut self, results: Result<Vec<R>>) {
        let wrong = |count| Error::internal(format!("{count} results for {} that were dealt with together", self.open.len()));
        let results = results.and_then(|results| match results.len() == self.open.len() {
            true => Ok(results),
            false => Err(wrong(results.len())),
        });
        // Who has left meanwhile does not hear it.
        let tell = |(tell, result): (Sender<_>, Result<R>)| drop(tell.send(Message::Done(result)));
        let open = std::mem::take(&mut self.open);
        match results {
            Ok(results) => open.into_iter().zip(results.into_iter().map(Ok)).for_each(tell),
            Err(error) => open.into_iter().map(|one| (one, Err(error.clone()))).for_each(tell),
        }
    }
}

impl<I, R> Drop for Batch<'_, I, R> {
    fn drop(&mut self) {
        for tell in self.open.drain(..) {
            let _ = tell.send(Message::Done(Err(Error::unknown("whoever dealt with it together with others has failed"))));
        }
        self.of.hand_over();
    }
}

#[cfg(test)]
#[path = "together_tests.rs"]
mod tests;
