//! Much of the same at once: a change of a record waits for the database's disk, which writes down many of them in the time of one, and a question to
//! another machine waits for its answer.

use crate::logging::id;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

/// So many at once.
const AT_ONCE: usize = 16;

/// Does `act` for each of `items`, a few at a time, and returns what came of each, in no order. A thread that cannot be begun is done without.
pub fn for_each<I: Send, R: Send>(items: Vec<I>, act: impl Fn(I) -> R + Sync) -> Vec<R> {
    if items.len() < 2 {
        return items.into_iter().map(act).collect();
    }
    let (threads, work) = (items.len().min(AT_ONCE), id::work());
    let (left, done) = (Mutex::new(items.into_iter()), Mutex::new(Vec::new()));
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let go_on = || {
        while let Some(item) = next() {
            let result = act(item);
            done.lock().unwrap_or_else(PoisonError::into_inner).push(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            let (work, go_on) = (work.clone(), &go_on);
            let helper = thread::Builder::new().name("beside".into()).spawn_scoped(scope, move || {
                let _work = id::inherited(work);
                go_on();
            });
            if helper.is_err() {
                break;
            }
        }
        go_on();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::time::Duration;

    #[test]
    fn each_is_done_once_and_several_at_the_same_time() {
        let mut done = for_each((0..1000).collect(), |number: u32| number * 2);
        done.sort_unstable();
        assert_eq!(done, (0..1000).map(|number| number * 2).collect::<Vec<_>>());
        // It would never end one by one.
        let all = Barrier::new(AT_ONCE);
        for_each((0..AT_ONCE).collect(), |_| all.wait());
        assert!(for_each(Vec::<u8>::new(), |_| ()).is_empty());
    }

    #[test]
    fn what_is_done_bears_the_id_of_the_work_that_it_belongs_to() {
        let _work = id::within("abc".into());
        let ids = for_each((0..50).collect(), |_: u8| {
            thread::sleep(Duration::from_millis(1));
            id::current()
        });
        assert!(ids.iter().all(|id| id.as_deref() == Some("abc")), "{ids:?}");
    }
}
