//! Cancellations that the watcher repeats, and does not wait for: they run as the jobs' owners, who may stop them.

use crate::cluster::Cluster;
use crate::error::ErrorKind;
use crate::logging::id;
use crate::side_by_side;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// So many users' at once; the other sessions of a command node are left to those who submit.
const AT_ONCE: usize = 4;

/// The users whose cancellations are under way, and whose turn it was last.
#[derive(Default, Clone)]
pub(super) struct Cancels(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    under_way: BTreeSet<String>,
    last: String,
}

/// One of them; it is no longer when this is dropped.
struct UnderWay(Cancels, String);

impl Cancels {
    /// Begins to cancel these jobs (owner, scheduler's id), those of one user one after another. What finds no room comes with the next look,
    /// if it is still there then. An admin who asks for it waits for it.
    pub(super) fn begin(&self, cluster: &Arc<Cluster>, jobs: Vec<(String, String)>) {
        let mut by_user: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (user, job) in jobs {
            by_user.entry(user).or_default().push(job);
        }
        if id::in_request() {
            return side_by_side::for_each(by_user.into_iter().collect(), |(user, jobs)| cancel_all(cluster, &user, &jobs))
                .into_iter()
                .collect();
        }
        // Whoever comes first in the alphabet is not always the first.
        let behind = by_user.split_off(&self.state().last);
        for (user, jobs) in behind.into_iter().chain(by_user) {
            if let Some(under_way) = self.claim(&user) {
                let (cluster, work) = (Arc::clone(cluster), id::work());
                let act = move || {
                    let _work = id::inherited(work);
                    cancel_all(&cluster, &under_way.1, &jobs);
                };
                if let Err(error) = thread::Builder::new().name("cancel".into()).spawn(act) {
                    log::warn!("the jobs of {user} that are to be cancelled wait for the next look: no thread: {error}");
                }
            }
        }
    }

    fn claim(&self, user: &str) -> Option<UnderWay> {
        let mut state = self.state();
        let claimed = state.under_way.len() < AT_ONCE && state.under_way.insert(user.to_owned());
        if claimed {
            // The next in order, whoever that is.
            state.last = format!("{user}\0");
        }
        claimed.then(|| UnderWay(self.clone(), user.to_owned()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.state().under_way.remove(&self.1);
    }
}

fn cancel_all(cluster: &Cluster, user: &str, jobs: &[String]) {
    for job in jobs {
        if let Err(error) = cluster.cancel(user, job) {
            log::warn!("the scheduler's job {job}, which was cancelled, is still there: {error}");
            // What is in the way of one is in the way of the others.
            if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Unknown) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_one_at_a_time_and_few_users_have_any() {
        let cancels = Cancels::default();
        let alice = cancels.claim("alice").unwrap();
        assert!(cancels.claim("alice").is_none());
        let others: Vec<_> = (1..AT_ONCE).map(|user| cancels.claim(&user.to_string()).unwrap()).collect();
        assert!(cancels.claim("bob").is_none());
        drop(alice);
        assert!(cancels.claim("bob").is_some() && cancels.claim("alice").is_some());
        drop(others);
        assert!(cancels.state().under_way.is_empty());
    }
}
