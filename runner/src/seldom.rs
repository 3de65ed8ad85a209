//! Log lines that strangers can cause are written seldom: a flood of clients is not to become a flood of lines.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(10);
/// More subjects than these share one line.
const MOST_SUBJECTS: usize = 64;

/// Lets one line about each subject pass (or a few, see `bursts_of`), and then not another for ten seconds.
pub(crate) struct Seldom<S = ()> {
    burst: u32,
    pause: Duration,
    lines: Mutex<Lines<S>>,
}

struct Lines<S> {
    known: HashMap<S, Line>,
    others: Line,
}

#[derive(Default)]
struct Line {
    /// When the first line passed, and how many did since.
    first: Option<Instant>,
    passed: u32,
    left_out: u64,
}

/// How many lines were left out before this one; nothing if none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " ({} such lines were left out)", self.0) }
    }
}

impl<S> Default for Seldom<S> {
    fn default() -> Self {
        Self::new(1, PAUSE)
    }
}

impl<S> Seldom<S> {
    /// Lets so many lines about each subject pass in ten seconds.
    pub(crate) fn bursts_of(burst: u32) -> Self {
        Self::new(burst, PAUSE)
    }

    fn new(burst: u32, pause: Duration) -> Self {
        Self { burst, pause, lines: Mutex::new(Lines { known: HashMap::new(), others: Line::default() }) }
    }
}

impl<S: Eq + Hash> Seldom<S> {
    /// Whether a line about `subject` is to be written now; it ends with what this returns.
    pub(crate) fn due(&self, subject: S) -> Option<LeftOut> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.line(subject, self.pause).due(self.burst, self.pause)
    }
}

impl<S: Eq + Hash> Lines<S> {
    fn line(&mut self, subject: S, pause: Duration) -> &mut Line {
        if self.known.len() >= MOST_SUBJECTS && !self.known.contains_key(&subject) {
            let others = &mut self.others;
            self.known.retain(|_, line| {
                let rests = line.rests(pause);
                // What nobody was told yet is told with the others.
                others.left_out += if rests { 0 } else { line.left_out };
                rests
            });
            if self.known.len() >= MOST_SUBJECTS {
                return &mut self.others;
            }
        }
        self.known.entry(subject).or_default()
    }
}

impl Line {
    fn rests(&self, pause: Duration) -> bool {
        self.first.is_some_and(|first| first.elapsed() < pause)
    }

    fn due(&mut self, burst: u32, pause: Duration) -> Option<LeftOut> {
        if !self.rests(pause) {
            (self.first, self.passed) = (Some(Instant::now()), 0);
        }
        if self.passed >= burst {
            self.left_out += 1;
            return None;
        }
        self.passed += 1;
        Some(LeftOut(std::mem::take(&mut self.left_out)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn each_subject_has_one_line_and_the_next_tells_how_many_were_left_out() {
        let pause = Duration::from_secs(60);
        let seldom = Seldom::new(1, pause);
        assert_eq!(seldom.due("a"), Some(LeftOut(0)));
        assert_eq!([seldom.due("a"), seldom.due("a")], [None, None]);
        assert_eq!(seldom.due("b"), Some(LeftOut(0)));
        // As if it were over.
        let mut lines = seldom.lines.lock().unwrap();
        lines.known.values_mut().for_each(|line| line.first = line.first.and_then(|first| first.checked_sub(pause)));
        drop(lines);
        assert_eq!(seldom.due("a").unwrap().to_string(), " (2 such lines were left out)");
        assert_eq!(seldom.due("b").unwrap().to_string(), "");
    }

    #[test]
    fn a_few_lines_pass_where_that_is_wanted() {
        let seldom = Seldom::bursts_of(3);
        assert_eq!((0..9).filter(|_| seldom.due(()).is_some()).count(), 3);
    }

    #[test]
    fn a_flood_of_subjects_shares_one_line_and_takes_no_memory() {
        // So long that the flood is over before too many have passed, also on a machine that has other things to do.
        let pause = Duration::from_secs(2);
        let seldom = Seldom::new(1, pause);
        let written = (0..100_000).filter(|subject| seldom.due(*subject).is_some()).count();
        assert!((65..=1000).contains(&written), "{written} lines");
        assert!(seldom.lines.lock().unwrap().known.len() <= MOST_SUBJECTS);
        thread::sleep(pause);
        assert!(seldom.due(200_000).is_some(), "old subjects make room");
        assert_eq!(seldom.lines.lock().unwrap().known.len(), 1);
    }
}
