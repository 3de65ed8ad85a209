//! What is kept for a while and then removed: some of it in each cycle, since there may be very much.

use crate::error::{Error, ErrorKind, Result};
use crate::store::{Progress, Store};
use jiff::{SignedDuration, Timestamp};
use std::time::{Duration, Instant};

/// How often each kind is looked through: all of its records are read then, so a kind that is kept for long waits longer, by a hundredth of the
/// time that it is kept.
const INTERVAL: Duration = Duration::from_secs(600);
const LONGEST_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// How long one cycle is at it; the next one goes on.
const SLICE: Duration = Duration::from_millis(500);
/// How long the key of a request stands for its job, at least.
const KEEP_KEYS: SignedDuration = SignedDuration::from_hours(24);

/// The kinds, each with a time of its own: what keeps one of them from being swept is none of the others' business.
#[derive(Default)]
pub(super) struct Sweeps {
    traces: Kind,
    keys: Kind,
    finished: Kind,
}

impl Sweeps {
    /// Begins with what is due, or goes on with it. Finished jobs are kept for `keep_finished`, traces of ports for `keep_trail`; where the
    /// time began after that, nothing is removed.
    pub(super) fn go_on(&mut self, store: &Store, cluster: &str, keep_finished: Duration, keep_trail: Duration) -> Result<()> {
        let (now, until) = (Timestamp::now(), Instant::now() + SLICE);
        let ago = |keep: SignedDuration| now.checked_sub(keep).unwrap_or(Timestamp::MIN);
        let ago_by_clock = |keep: Duration| SignedDuration::try_from(keep).map_or(Timestamp::MIN, ago);
        let before = ago_by_clock(keep_trail);
        // These lie by days, so the others are not read.
        let traces =
            self.traces.go_on(INTERVAL, "traces of ports", |progress| store.trim_trail(cluster, before, progress, until));
        let (before, with_key) = (ago_by_clock(keep_finished), ago(KEEP_KEYS));
        if before == Timestamp::MIN {
            return traces;
        }
        let keys =
            self.keys.go_on(INTERVAL, "keys of requests", |progress| store.remove_keys(cluster, with_key, progress, until));
        let finished = |progress: &mut Progress| store.remove_finished(cluster, (before, with_key), progress, until);
        traces.and(keys).and(self.finished.go_on(interval(keep_finished), "finished jobs", finished))
    }
}

fn interval(kept: Duration) -> Duration {
    (kept / 100).clamp(INTERVAL, LONGEST_INTERVAL)
}

#[derive(Default)]
struct Kind {
    begun: Option<Instant>,
    progress: Option<Progress>,
}

impl Kind {
    /// An error of the database's is one of the cycle's, and the next one goes on. Whatever else is wrong waits for the next time.
    fn go_on(&mut self, every: Duration, what: &str, sweep: impl FnOnce(&mut Progress) -> Result<()>) -> Result<()> {
        let progress = match &mut self.progress {
            Some(progress) => progress,
            None if self.begun.is_some_and(|begun| begun.elapsed() < every) => return Ok(()),
            None => {
                self.begun = Some(Instant::now());
                self.progress.insert(Progress::default())
            }
        };
        match sweep(progress) {
            Err(error) if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Unknown) => Err(error),
            Ok(()) if !progress.is_done() => Ok(()),
            result => {
                report(what, progress, result.err());
                self.progress = None;
                Ok(())
            }
        }
    }
}

fn report(what: &str, progress: &Progress, error: Option<Error>) {
    if progress.removed() > 0 {
        log::info!("{} {what} were removed after their time", progress.removed());
    }
    if let Some(error) = error.as_ref().or(progress.unreadable()) {
        log::warn!("{what}: some are kept beyond their time: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_for_long_is_looked_through_seldom() {
        let day = Duration::from_secs(86400);
        for (kept, seconds) in
            [(Duration::ZERO, 600), (day / 2, 600), (day * 10, 8640), (day * 365, 21600), (Duration::MAX, 21600)]
        {
            assert_eq!(interval(kept).as_secs(), seconds, "{kept:?}");
        }
    }

    #[test]
    fn a_kind_goes_on_until_it_is_done_and_then_rests() {
        let (mut kind, calls) = (Kind::default(), std::cell::Cell::new(0));
        let mut sweep = |done| {
            kind.go_on(INTERVAL, "things", |progress| {
                calls.set(calls.get() + 1);
                if done {
                    progress.end();
                }
                Ok(())
            })
        };
        [false, false, true, true, true].into_iter().for_each(|done| sweep(done).unwrap());
        assert_eq!(calls.get(), 3);
    }

    #[test]
    fn a_database_that_is_away_is_asked_again_and_what_cannot_be_mended_so_is_given_up_for_a_while() {
        for (error, calls) in [(Error::unavailable("away"), 3), (Error::unknown("away"), 3), (Error::internal("damaged"), 1)] {
            let (mut kind, mut count, away) = (Kind::default(), 0, calls > 1);
            for _ in 0..3 {
                let result = kind.go_on(INTERVAL, "things", |_| {
                    count += 1;
                    Err(error.clone())
                });
                assert_eq!(result.is_err(), away, "{error}");
            }
            assert_eq!(count, calls, "{error}");
            // The time is over, and it begins anew.
            kind.begun = Instant::now().checked_sub(INTERVAL);
            let _ = kind.go_on(INTERVAL, "things", |_| {
                count += 1;
                Ok(())
            });
            assert_eq!(count, calls + 1, "{error}");
        }
    }
}
