//! Ids: every request and every cycle of a watcher has one, and every line of the log that it causes bears it.
//!
//! The id belongs to the thread that works on the request. Who hands work to another thread hands the id on.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Letters and digits that are not taken for one another.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// The longest id that a client may choose.
const LONGEST: usize = 64;

thread_local! {
    static CURRENT: RefCell<Option<Work>> = const { RefCell::new(None) };
    static CHANCE: RefCell<Chance> = const { RefCell::new(Chance { bytes: [0; 16 * 16], left: 0 }) };
}

/// An id.
pub type Id = Arc<str>;

/// What a thread works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    id: Id,
    /// A cycle of a watcher, which comes again and again, and not somebody's request.
    cycle: bool,
}

/// A new one: 16 letters and digits, by chance.
pub fn fresh() -> Id {
    let bytes = CHANCE.with_borrow_mut(Chance::take);
    let letters = bytes.map(|byte| LETTERS[usize::from(byte % 32)]);
    // They are ASCII.
    std::str::from_utf8(&letters).unwrap_or_default().into()
}

/// Bytes by chance, drawn from the system for many ids at once.
struct Chance {
    bytes: [u8; 16 * 16],
    left: usize,
}

impl Chance {
    fn take(&mut self) -> [u8; 16] {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if self.left == 0 {
            self.left = self.bytes.len();
            if getrandom::fill(&mut self.bytes).is_err() {
                // An id that can be guessed is still an id.
                self.left = 16;
                self.bytes[8..16].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
            }
        }
        self.left -= 16;
        let mut taken = [0; 16];
        taken.copy_from_slice(&self.bytes[self.left..self.left + 16]);
        taken
    }
}

/// The id that a client chose, if it is one: 1 to 64 of letters, digits and `.` `_` `-`.
pub fn chosen(text: &str) -> Option<Id> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    ((1..=LONGEST).contains(&text.len()) && text.bytes().all(good)).then(|| text.into())
}

/// The id of what this thread works on.
pub fn current() -> Option<Id> {
    work().map(|work| work.id)
}

/// What this thread works on, to be handed to another one.
pub fn work() -> Option<Work> {
    CURRENT.with_borrow(Clone::clone)
}

/// Whether this thread works on somebody's request.
pub fn in_request() -> bool {
    CURRENT.with_borrow(|work| work.as_ref().is_some_and(|work| !work.cycle))
}

/// From now on this thread works on this request.
pub fn set(id: Id) {
    CURRENT.set(Some(Work { id, cycle: false }));
}

/// This thread works on this request until what is returned is dropped.
pub fn within(id: Id) -> Within {
    inherited(Some(Work { id, cycle: false }))
}

/// The same for a cycle of a watcher.
pub fn within_cycle(id: Id) -> Within {
    inherited(Some(Work { id, cycle: true }))
}

/// The same for what another thread hands over.
pub fn inherited(work: Option<Work>) -> Within {
    Within(CURRENT.replace(work))
}

/// See [`within`].
#[must_use]
pub struct Within(Option<Work>);

impl Drop for Within {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ids_are_sixteen_letters_and_digits_and_no_two_are_the_same() {
        let ids: std::collections::BTreeSet<Id> = (0..1000).map(|_| fresh()).collect();
        assert_eq!(ids.len(), 1000);
        let good = |id: &Id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        assert!(ids.iter().all(good), "{ids:?}");
        assert!(ids.iter().all(|id| chosen(id).is_some()), "what one runner made another one takes");
    }

    #[test]
    fn a_client_chooses_an_id_that_cannot_break_a_line_and_is_not_long() {
        let long = "x".repeat(LONGEST);
        for good in ["a", "A-b_c.9", &long] {
            assert_eq!(chosen(good).as_deref(), Some(good));
        }
        for bad in ["", "a b", "a\n", "a]", "é", "a\"", &format!("{long}x")] {
            assert_eq!(chosen(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_id_holds_until_its_end_and_then_the_one_before() {
        assert_eq!(current(), None);
        let outer = within("a".into());
        assert!(in_request());
        let inner = within_cycle("b".into());
        assert_eq!((current().as_deref(), in_request()), (Some("b"), false));
        let handed = work();
        std::thread::spawn(move || {
            let _work = inherited(handed);
            assert_eq!(current().as_deref(), Some("b"));
        })
        .join()
        .unwrap();
        drop(inner);
        assert_eq!(current().as_deref(), Some("a"));
        drop(outer);
        assert_eq!(current(), None);
        assert_eq!(std::thread::spawn(current).join().unwrap(), None, "another thread has its own");
    }
}
