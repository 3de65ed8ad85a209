//! One batch at a time, everybody gets their own result, and nobody waits for ever. Who is held is let go by the drop of a sender, which a
//! failed assertion drops too.

use super::*;
use crate::error::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn doubled(items: &[u64]) -> Result<Vec<u64>> {
    Ok(items.iter().map(|item| item * 2).collect())
}

type Act = Box<dyn FnOnce(&[u64]) -> Result<Vec<u64>> + Send>;

/// A batch that says how many are in it when it has begun, which is when nobody can join it any more, and then is held until the sender is
/// dropped.
fn held() -> (Act, Receiver<usize>, Sender<()>) {
    let ((begun, told), (release, gate)) = (channel(), channel());
    let act = move |items: &[u64]| {
        let _ = begun.send(items.len());
        let _ = gate.recv();
        doubled(items)
    };
    (Box::new(act), told, release)
}

/// Waits until so many wait, while `first` leads.
fn until_waiting(together: &Together<u64, u64>, count: usize) {
    let begun = Instant::now();
    while together.lock().waiting.len() < count {
        assert!(begun.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(1));
    }
}

/// One leads as `first` does; when `others` wait, it is let go. What each of the others got, and in how many batches.
fn crowd(most: usize, others: usize, first: impl FnOnce(&[u64]) -> Result<Vec<u64>> + Send) -> (Vec<Result<u64>>, usize) {
    let together = Together::of_at_most(most);
    let batches = AtomicUsize::new(0);
    let (begun, go) = (AtomicBool::new(false), channel::<()>());
    let results = thread::scope(|scope| {
        let leader = scope.spawn(|| {
            let (begun, wait) = (&begun, go.1);
            let act = move |items: &[u64]| {
                begun.store(true, Ordering::SeqCst);
                let _ = wait.recv();
                first(items)
            };
            catch_unwind(AssertUnwindSafe(|| together.call(0, soon(), act)))
        });
        while !begun.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let ask = |item| {
            let (together, batches) = (&together, &batches);
            scope.spawn(move || {
                together.call(item, soon(), |items| {
                    batches.fetch_add(1, Ordering::SeqCst);
                    doubled(items)
                })
            })
        };
        let asked: Vec<_> = (1..=others as u64).map(ask).collect();
        until_waiting(&together, others);
        drop(go.0);
        let _ = leader.join().unwrap();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together.lock().under_way, 0, "nobody leads when nobody waits");
    (results, batches.into_inner())
}

#[test]
fn who_waits_is_dealt_with_in_one_batch_and_gets_what_is_theirs() {
    for (most, others, batches) in [(1000, 50, 1), (10, 50, 5), (1, 3, 3)] {
        let (results, count) = crowd(most, others, doubled);
        let results: Vec<u64> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(results, (1..=others as u64).map(|item| item * 2).collect::<Vec<_>>());
        assert_eq!(count, batches, "{most} at most of {others}");
    }
}

#[test]
fn a_leader_that_panics_or_fails_does_not_stop_those_behind() {
    let panics: fn(&[u64]) -> Result<Vec<u64>> = |_| panic!("as it should");
    for first in [panics, |_| Err(Error::unavailable("no"))] {
        let (results, _) = crowd(1000, 5, first);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
}

#[test]
fn an_error_reaches_everybody_of_the_batch_and_so_do_a_panic_and_a_wrong_number_of_results() {
    type Batch = fn() -> Result<Vec<u64>>;
    let cases: [(Batch, ErrorKind); 3] = [
        (|| Err(Error::conflict("no")), ErrorKind::Conflict),
        (|| panic!("as it should"), ErrorKind::Unknown),
        (|| Ok(vec![7]), ErrorKind::Internal),
    ];
    for (act, kind) in cases {
        let together: Together<u64, u64> = Together::of_at_most(9);
        let (hold, begun, release) = held();
        let kinds: Vec<ErrorKind> = thread::scope(|scope| {
            let together = &together;
            scope.spawn(move || together.call(0, soon(), hold));
            assert_eq!(begun.recv().unwrap(), 1);
            let ask = || scope.spawn(move || catch_unwind(AssertUnwindSafe(|| together.call(1, soon(), |_| act()))));
            let asked = [ask(), ask(), ask()];
            until_waiting(together, 3);
            drop(release);
            // A leader that panics hears its own panic.
            asked.into_iter().filter_map(|one| one.join().unwrap().ok()).map(|result| result.unwrap_err().kind).collect()
        });
        assert!(kinds.len() >= 2 && kinds.iter().all(|found| *found == kind), "{kinds:?}");
        assert_eq!(together.call(4, soon(), doubled).unwrap(), 8, "and the next one is well");
    }
}

#[test]
fn who_waits_too_long_goes_and_knows_whether_it_was_begun() {
    let together: Together<u64, u64> = Together::of_at_most(9);
    let (hold, begun, release) = held();
    let short = || Instant::now() + Duration::from_millis(50);
    thread::scope(|scope| {
        let leader = scope.spawn(|| together.call(3, soon(), hold));
        assert_eq!(begun.recv().unwrap(), 1);
        assert_eq!(together.call(1, short(), doubled).unwrap_err().kind, ErrorKind::Unavailable, "nobody has begun with it");
        assert!(together.lock().waiting.is_empty());
        drop(release);
        assert_eq!(leader.join().unwrap().unwrap(), 6);
    });
    thread::scope(|scope| {
        let together = &together;
        // The third is taken along by the second, who leads after the first.
        let ((first, begun, release_first), (second, begun_again, release)) = (held(), held());
        scope.spawn(move || together.call(1, soon(), first));
        assert_eq!(begun.recv().unwrap(), 1);
        scope.spawn(move || together.call(2, soon(), second));
        until_waiting(together, 1);
        let late = scope.spawn(move || together.call(3, Instant::now() + Duration::from_secs(5), doubled));
        until_waiting(together, 2);
        drop(release_first);
        assert_eq!(begun_again.recv().unwrap(), 2);
        assert_eq!(late.join().unwrap().unwrap_err().kind, ErrorKind::Unknown, "somebody has begun with it");
        drop(release);
    });
    assert_eq!(together.call(4, soon(), doubled).unwrap(), 8);
}

#[test]
fn a_thousand_calls_from_many_threads_each_get_their_own() {
    let together: Together<u64, u64> = Together::of_at_most(7);
    let batches = AtomicUsize::new(0);
    let (at_once, overlaps) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let act = |items: &[u64]| {
        batches.fetch_add(1, Ordering::SeqCst);
        overlaps.fetch_add(at_once.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
        thread::yield_now();
        at_once.fetch_sub(1, Ordering::SeqCst);
        doubled(items)
    };
    thread::scope(|scope| {
        for thread in 0..20 {
            let (together, act) = (&together, &act);
            scope.spawn(move || {
                for item in thread * 50..(thread + 1) * 50 {
                    assert_eq!(together.call(item, soon(), act).unwrap(), item * 2);
                }
            });
        }
    });
    assert_eq!(overlaps.into_inner(), 0, "one batch at a time");
    assert!(batches.into_inner() <= 1000);
}

#[test]
fn one_that_takes_long_holds_up_the_others_for_a_moment() {
    let slow = Duration::from_millis(100);
    let together: Together<u64, u64> = Together::of_at_most(9).past_slow_ones(2, slow);
    let (hold, told, release) = held();
    let begun = Instant::now();
    thread::scope(|scope| {
        let hangs = scope.spawn(|| together.call(1, soon(), hold));
        assert_eq!(told.recv().unwrap(), 1);
        assert_eq!(together.call(2, soon(), doubled).unwrap(), 4);
        assert!(begun.elapsed() >= slow, "the batch before might have ended");
        assert_eq!((3..9).map(|item| together.call(item, soon(), doubled).unwrap()).sum::<u64>(), 66);
        drop(release);
        assert_eq!(hangs.join().unwrap().unwrap(), 2);
    });
    assert_eq!(together.lock().under_way, 0);
}
