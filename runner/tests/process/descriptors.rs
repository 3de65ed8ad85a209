//! The limit of open files: raised at the start, named where it cannot be, and given back to jobs.

use crate::world::{Bench, ended, until, user};
use std::fs;

/// Soft and hard limit of a process.
fn limits(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn a_hard_limit_that_is_too_low_ends_the_start_with_both_numbers() {
    let bench = Bench::plain();
    let serve = ended(bench.command_after("ulimit -n 3000").arg("serve"));
    let demo = ended(bench.command_after("ulimit -n 3000").args(["demo", "--once"]));
    for ended in [serve, demo] {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        for part in ["may need ", " open files, and 3000 are allowed", "LimitNOFILE=", "ulimit -Hn"] {
            assert!(ended.stderr.contains(part), "{}", ended.stderr);
        }
    }
}

#[test]
fn a_low_soft_limit_is_raised_and_jobs_get_it_back() {
    let bench = Bench::plain();
    bench.template("template_limit.txt", "#!/bin/bash\nulimit -Sn\nulimit -Hn\n");
    let served = bench.serve_as(bench.command_after("ulimit -Sn 256").arg("serve"));
    let (soft, hard) = limits(served.pid());
    assert!(soft > 4096 && hard >= soft, "{soft} of {hard}");
    assert!(served.log().contains(&format!("open files: the limit is raised from 256 to {soft}")), "{}", served.log());
    let id = served.submit(&user().name, "template_limit.txt", serde_json::json!({}));
    served.await_state(&id, "finished");
    let log = bench.home().join(format!("bwvisu-job-{id}.out"));
    let said = until("the job has spoken", || fs::read_to_string(&log).ok().filter(|text| !text.is_empty()), || served.log());
    assert_eq!(said.lines().collect::<Vec<_>>(), ["256", &hard.to_string()]);
}
