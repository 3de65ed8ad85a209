//! What a look means for one job.

use crate::domain::job::{Ended, Job, Outcome, Seen};
use crate::domain::summary::Summary;
use crate::error::Result;
use std::time::Duration;

/// So long a submission may be under way: a job without a scheduler's id may still get one. Counted while the scheduler answers this
/// watcher: other machines' clocks may be wrong, and a scheduler that is away may hold a submission that it has yet to read.
const SUBMISSION_LIMIT: Duration = Duration::from_secs(120);
/// A scheduler that was too busy to answer may still come out with a job that we have given up; so long its name is asked for.
pub(super) const LATE_LIMIT: Duration = Duration::from_secs(900);
/// A job that vanished may not have reached the scheduler's accounts yet, or these may be away: so long its end is asked for.
const ACCOUNTS_LIMIT: Duration = Duration::from_secs(120);

/// What one look showed of one job.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// This.
    Seen(Seen),
    /// What it showed before.
    Same,
    /// Nothing.
    Nothing,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// It is there.
    Observe(Seen),
    /// It is as it was.
    Leave,
    /// It was not there for the first time.
    Missed,
    /// It is gone for good.
    Gone,
    /// Its submission may still be under way.
    Patience,
}

/// The step for a job that was missed so often before, and that the scheduler should have had for so long.
pub(super) fn plan(job: &Summary, found: Found, misses: u32, waited: Duration) -> Step {
    let young = waited < if job.cancel_requested { LATE_LIMIT } else { SUBMISSION_LIMIT };
    match found {
        Found::Seen(seen) => Step::Observe(seen),
        Found::Same => Step::Leave,
        Found::Nothing if job.scheduler_job_id.is_none() && young => Step::Patience,
        Found::Nothing if misses == 0 => Step::Missed,
        Found::Nothing => Step::Gone,
    }
}

/// Outcome, exit code, and the sentence for people.
pub(super) type Ending = (Outcome, Option<i32>, String);

/// How a job ended whose end nobody can tell.
pub(super) fn ending(job: &Job) -> Ending {
    let (outcome, message) = match (&job.scheduler_job_id, job.cancel_requested) {
        (None, true) => (Outcome::Cancelled, "cancelled before the scheduler had it".into()),
        (None, false) => (Outcome::Failed, "the submission was cut off before the scheduler took it; submit it again".into()),
        (Some(_), true) => (Outcome::Cancelled, format!("cancelled; its log is {}", job.log)),
        (Some(_), false) => (
            Outcome::Unknown,
            format!("it ended while nobody looked, and the scheduler no longer knows how; its log is {}", job.log),
        ),
    };
    (outcome, None, message)
}

/// Whether a job that has been gone for `since` may be ended; not while the accounts may yet say more of it.
pub(super) fn is_settled(job: &Summary, accounts: &Result<Option<Vec<Ended>>>, since: Duration) -> bool {
    match accounts {
        // There are none.
        Ok(None) => true,
        Ok(Some(entries)) if entries.iter().any(|ended| job.is_accounted(ended)) => true,
        _ => since >= ACCOUNTS_LIMIT,
    }
}

/// How it ended, by what the accounts say.
pub(super) fn accounted(job: &Job, accounts: &Result<Option<Vec<Ended>>>) -> Ending {
    let entries = accounts.as_ref().ok().and_then(Option::as_ref);
    let entry = entries.and_then(|entries| entries.iter().find(|ended| job.is_accounted(ended)));
    entry.map_or_else(
        || ending(job),
        |Ended { outcome, exit_code, .. }| (*outcome, *exit_code, job.end_message(*outcome, *exit_code, None)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::{Phase, State};

    fn job(scheduler_job_id: Option<&str>) -> Job {
        Job { id: 1, scheduler_job_id: scheduler_job_id.map(str::to_owned), ..Job::default() }
    }

    fn step(job: &Job, found: Found, misses: u32, waited: u64) -> Step {
        plan(&Summary::from(job), found, misses, Duration::from_secs(waited))
    }

    #[test]
    fn a_job_is_gone_only_after_two_looks_that_missed_it() {
        assert_eq!(step(&job(Some("7")), Found::Nothing, 0, 0), Step::Missed);
        assert_eq!(step(&job(Some("7")), Found::Nothing, 1, 0), Step::Gone);
    }

    #[test]
    fn a_submission_under_way_is_waited_for_and_one_that_was_cut_off_is_given_up() {
        assert_eq!(step(&job(None), Found::Nothing, 5, 10), Step::Patience);
        assert_eq!(step(&job(None), Found::Nothing, 0, 300), Step::Missed);
        assert_eq!(step(&job(None), Found::Nothing, 1, 300), Step::Gone);
    }

    #[test]
    fn a_submission_that_was_given_up_is_looked_for_much_longer() {
        let given_up = Job { cancel_requested: true, ..job(None) };
        assert_eq!(step(&given_up, Found::Nothing, 1, 300), Step::Patience);
        assert_eq!(step(&given_up, Found::Nothing, 1, 1000), Step::Gone);
    }

    #[test]
    fn a_job_that_is_there_is_observed_whatever_was_missed_before() {
        let seen = Seen {
            scheduler_job_id: "7".into(),
            name: String::new(),
            user: String::new(),
            phase: Phase::Running,
            run: 0,
            nodes: Vec::new(),
            exit_code: None,
            reason: None,
            details: serde_json::Map::new(),
        };
        assert_eq!(step(&job(Some("7")), Found::Seen(seen.clone()), 1, 0), Step::Observe(seen));
        assert_eq!(step(&job(Some("7")), Found::Same, 1, 0), Step::Leave);
    }

    #[test]
    fn the_accounts_say_how_a_vanished_job_ended_and_are_waited_for_where_there_are_any() {
        let job = Job { state: State::Running, name: "bwvisu-1-x".into(), user: "alice".into(), ..job(Some("7")) };
        let entry = |name: &str, outcome| Ended {
            scheduler_job_id: "7".into(),
            name: name.into(),
            user: "alice".into(),
            outcome,
            exit_code: Some(3),
        };
        let failed = || Ok(Some(vec![entry("bwvisu-1-x", Outcome::Failed)]));
        let anothers = || Ok(Some(vec![entry("bwvisu-1-y", Outcome::Failed)]));
        type Case = (&'static str, Result<Option<Vec<Ended>>>, u64, Option<Outcome>);
        let cases: [Case; 6] = [
            ("an entry", failed(), 0, Some(Outcome::Failed)),
            ("no accounts", Ok(None), 0, Some(Outcome::Unknown)),
            ("no entry yet", Ok(Some(Vec::new())), 119, None),
            ("no entry at all", Ok(Some(Vec::new())), 120, Some(Outcome::Unknown)),
            ("another job's entry", anothers(), 0, None),
            ("accounts that are away", Err(crate::error::Error::bad_gateway("away")), 119, None),
        ];
        for (what, accounts, since, expected) in cases {
            let settled = is_settled(&Summary::from(&job), &accounts, Duration::from_secs(since));
            assert_eq!(settled.then(|| accounted(&job, &accounts).0), expected, "{what}");
        }
        let (_, code, message) = accounted(&job, &failed());
        assert!(code == Some(3) && message.contains("exit code 3"), "{message}");
    }

    #[test]
    fn how_a_vanished_job_ended_depends_on_what_was_known() {
        assert_eq!(ending(&job(None)).0, Outcome::Failed);
        assert_eq!(ending(&Job { cancel_requested: true, ..job(Some("7")) }).0, Outcome::Cancelled);
        assert_eq!(ending(&Job { state: State::Running, ..job(Some("7")) }).0, Outcome::Unknown);
    }
}
