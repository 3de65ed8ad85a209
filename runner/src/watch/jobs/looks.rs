//! Which jobs' details are asked for: work follows what changed.

use crate::domain::job::{Job, State};
use crate::domain::summary::Summary;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Details that change without any change of state (why a job waits, when it is expected to start, a limit that an admin moved) are asked
/// for again after this time, but of few jobs in each cycle: of those whose turn it has been for the longest.
const REFRESH: Duration = Duration::from_secs(60);
/// The same for jobs that wait, whose users do, too.
const REFRESH_WAITING: Duration = Duration::from_secs(15);
const REFRESHED_AT_ONCE: usize = 8;

/// What was last done about each job.
#[derive(Default)]
pub(super) struct Looks(HashMap<u64, Acted>);

struct Acted {
    /// What the overview said of it.
    words: String,
    /// Where the job was afterwards.
    state: State,
    run: u32,
    at: Instant,
}

impl Looks {
    /// The ids of the jobs to ask for: those of which the overview says something else than when they were last asked for.
    pub(super) fn to_ask(&self, jobs: &[Arc<Summary>], overview: &HashMap<String, String>) -> HashSet<u64> {
        let (mut asked, mut old) = (HashSet::new(), Vec::new());
        for job in jobs {
            let Some(id) = &job.scheduler_job_id else {
                asked.insert(job.id);
                continue;
            };
            let Some(words) = overview.get(id) else { continue };
            match self.0.get(&job.id).filter(|acted| acted.covers(job, words)) {
                None => drop(asked.insert(job.id)),
                Some(acted) if acted.at.elapsed() >= acted.lasts() => old.push((acted.at, job.id)),
                Some(_) => {}
            }
        }
        old.sort_unstable();
        asked.extend(old.into_iter().take(REFRESHED_AT_ONCE).map(|(_, id)| id));
        asked
    }

    /// The job was asked for when the overview said this of it, and is as the answer said.
    pub(super) fn acted(&mut self, job: &Job, words: &str) {
        self.0.insert(job.id, Acted { words: words.to_owned(), state: job.state, run: job.run, at: Instant::now() });
    }

    pub(super) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.0.retain(|id, _| keep(*id));
    }
}

impl Acted {
    fn lasts(&self) -> Duration {
        if self.state == State::Submitted { REFRESH_WAITING } else { REFRESH }
    }

    fn covers(&self, job: &Summary, words: &str) -> bool {
        // Whether a running job's application listens is not the scheduler's business. A cancellation is repeated until it has come through.
        let runs = |state| matches!(state, State::Running | State::Available);
        let same = self.state == job.state || runs(self.state) && runs(job.state);
        same && !job.cancel_requested && self.run == job.run && self.words == words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: u64, state: State) -> Job {
        Job { id, state, scheduler_job_id: Some(id.to_string()), ..Job::default() }
    }

    fn asked(looks: &Looks, jobs: &[Job], words: &str) -> Vec<u64> {
        let overview = jobs.iter().map(|job| (job.id.to_string(), words.to_owned())).collect();
        let jobs: Vec<_> = jobs.iter().map(|job| Arc::new(Summary::from(job))).collect();
        let mut asked: Vec<u64> = looks.to_ask(&jobs, &overview).into_iter().collect();
        asked.sort_unstable();
        asked
    }

    #[test]
    fn only_what_changed_is_asked_for() {
        let mut looks = Looks::default();
        let running = job(1, State::Running);
        assert_eq!(asked(&looks, std::slice::from_ref(&running), "RUNNING"), [1], "never asked for");
        looks.acted(&running, "RUNNING");
        let cases: [(&str, Job, &str, &[u64]); 7] = [
            ("nothing", running.clone(), "RUNNING", &[]),
            ("its words", running.clone(), "COMPLETING", &[1]),
            ("its application listens", job(1, State::Available), "RUNNING", &[]),
            ("somebody with an older look", job(1, State::Submitted), "RUNNING", &[1]),
            ("another run", Job { run: 1, ..running.clone() }, "RUNNING", &[1]),
            ("it is to be cancelled", Job { cancel_requested: true, ..running.clone() }, "RUNNING", &[1]),
            ("no id yet", Job { scheduler_job_id: None, ..running.clone() }, "RUNNING", &[1]),
        ];
        for (what, job, words, expected) in cases {
            assert_eq!(asked(&looks, &[job], words), expected, "{what}");
        }
        let gone = [Arc::new(Summary::from(&running))];
        assert!(looks.to_ask(&gone, &HashMap::new()).is_empty(), "what the overview does not show has no details");
    }

    #[test]
    fn old_details_are_asked_for_again_a_few_at_a_time() {
        let mut looks = Looks::default();
        let jobs: Vec<Job> = (1..=20).map(|id| job(id, State::Submitted)).collect();
        jobs.iter().for_each(|job| looks.acted(job, "PENDING"));
        for (id, acted) in &mut looks.0 {
            acted.at = Instant::now().checked_sub(REFRESH + Duration::from_secs(*id)).unwrap();
        }
        assert_eq!(asked(&looks, &jobs, "PENDING"), (13..=20).collect::<Vec<_>>());
    }
}
