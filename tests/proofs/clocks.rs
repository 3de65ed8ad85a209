//! Clocks on the wall that are wrong or jump: the runner's by `libfaketime`, which leaves the time since the start of the machine as it is.
//!
//! The keyhole-client reads only the clock that never goes back (`keyhole-client/src/program/network.rs`). A compute node whose clock is
//! off by an hour is outside of what can be proved: Slurm itself does not speak to it, since munge accepts no more than five minutes.

use crate::gateway_faults::without_sudo;
use crate::main_path::fetch;
use crate::templates::{HELD, PORTLESS, SERVICE};
use bwvisu_tests::gateway::{all_forwardings, forwardings_of};
use bwvisu_tests::keyhole::{ask, confirm, request, token_of};
use bwvisu_tests::wait::{throughout, until};
use bwvisu_tests::{Bed, Runner, Setup};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The runner as a developer builds it: linked dynamically, so that the library reaches it.
fn dynamic_runner() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let program = here.ancestors().nth(2).unwrap().join("bwvisu-runner");
    assert!(program.is_file(), "{} is not there: `cargo build -p bwvisu-runner` makes it", program.display());
    assert!(Path::new(LIBRARY).is_file(), "{LIBRARY} is not there: tests/install-packages installs it");
    program
}

/// A runner whose clock is as much off as the file says, in words of `faketime`.
fn runner_by<'b>(bed: &'b Bed, offset: &Path, templates: &[(&str, &str)]) -> Runner<'b> {
    let env = [
        ("LD_PRELOAD", LIBRARY.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", offset.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("BWVISU_INSTALL_DIR", bwvisu_tests::runner::dist().display().to_string()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
    // A gateway may be silent for longer than a minute on a slow machine, but not for as long as the clock jumps.
    let config = json!({"gateway-down-seconds": 600});
    Runner::with(bed, &Setup { templates, env, config, program: Some(dynamic_runner()), ..Setup::default() })
}

/// How many seconds the runner's clock is ahead, by a job that was just submitted.
fn ahead(bed: &Bed, job: &Value) -> i64 {
    let at = job["submitted-at"].as_str().unwrap();
    let seconds: i64 = bed.sh("ctl", &format!("date -d {at} +%s")).trim().parse().unwrap();
    seconds - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

#[test]
fn a_runner_whose_clock_is_an_hour_off_does_all_it_should() {
    let bed = Bed::take();
    let folder = tempfile::tempdir().unwrap();
    let offset = folder.path().join("offset");
    for (words, expected) in [("+3600", 3600), ("-3600", -3600)] {
        std::fs::write(&offset, words).unwrap();
        let runner = runner_by(&bed, &offset, &[SERVICE, PORTLESS]);
        let id = runner.api.submit("alice", SERVICE.0, &json!({}));
        let job = runner.wait_for(&id, "available", 40);
        assert!((ahead(&bed, &job) - expected).abs() < 120, "the clock is off: {job:#}");
        assert_eq!(job["stale"], false, "{job:#}");
        fetch(&bed, &job, "/bytes").unwrap();
        assert!(runner.log().contains("keyhole: job"), "it had its ports");
        let short = runner.api.submit("alice", PORTLESS.0, &json!({"seconds": "0"}));
        assert_eq!(runner.wait_for(&short, "finished", 30)["outcome"], "completed");
        runner.api.cancel(&id);
        assert_eq!(runner.wait_for(&id, "finished", 30)["outcome"], "cancelled");
        until("its rules to be gone", 15, || forwardings_of(&bed, &id), Vec::is_empty);
    }
}

#[test]
fn a_clock_that_jumps_by_hours_while_jobs_run_ends_and_moves_nothing() {
    let bed = Bed::take();
    let folder = tempfile::tempdir().unwrap();
    let offset = folder.path().join("offset");
    std::fs::write(&offset, "+0").unwrap();
    let runner = runner_by(&bed, &offset, &[SERVICE, PORTLESS, HELD]);
    until("the chains on both", 20, || runner.log().matches("chains BWVISU set up").count(), |count| *count >= 2);
    let service = runner.api.submit("alice", SERVICE.0, &json!({}));
    let held = runner.api.submit("alice", HELD.0, &json!({}));
    let mute = runner.api.submit("alice", PORTLESS.0, &json!({"seconds": "600"}));
    let available = runner.wait_for(&service, "available", 40);
    let node = runner.wait_for(&mute, "running", 20)["details"]["NodeList"].as_str().unwrap().to_owned();
    // A job asks for ports, and the answer is lost; it asks again after the clock has jumped.
    let (token, asked) = (token_of(&bed, &mute), request(&mute, 1, 1, &[&node]));
    let first = ask(&bed, &node, &token, &asked);
    assert_eq!(first.status, 200, "{first:?}");
    let rules = all_forwardings(&bed);
    assert!(first.body.contains(&bed.external("gw1").to_string()), "the gateway that carried less: {first:?}");
    // A gateway that is silent at the time of a jump must not pass for one that was silent for an hour.
    let silent = without_sudo(&bed, "gw1");
    let noted = format!("gateway {}: ", bed.ip("gw1"));
    until("its silence to be noted", 20, || runner.log(), |log| log.contains(&format!("{noted}{noted}")));
    for words in ["+3600", "-3600", "+7200", "+0"] {
        std::fs::write(&offset, words).unwrap();
        let states = || [&service, &held, &mute].map(|id| runner.api.job(id)["state"].clone());
        throughout(words, Duration::from_secs(2), states, |seen| *seen == ["available", "submitted", "running"]);
        let new = runner.api.submit("bob", PORTLESS.0, &json!({"seconds": "0"}));
        let jumped = ahead(&bed, &runner.api.job(&new));
        assert!((jumped - words.parse::<i64>().unwrap()).abs() < 120, "{words}: {jumped}");
        assert_eq!(ask(&bed, &node, &token, &asked), first, "{words}: the same request has the same answer");
    }
    silent.mend();
    assert_eq!(all_forwardings(&bed), rules, "nothing was moved, nothing was taken back");
    assert_eq!(confirm(&bed, &node, &token, &asked).status, 200);
    fetch(&bed, &available, "/bytes").unwrap();
    // Alone: the short jobs end meanwhile, and Slurm complains about those.
    let in_slurm = runner.api.job(&held)["scheduler-job-id"].as_str().unwrap().to_owned();
    bed.sh("ctl", &format!("scontrol release {in_slurm}"));
    std::fs::write(&offset, "-3600").unwrap();
    runner.wait_for(&held, "available", 60);
    let fresh = |job: &Value| job["stale"] == false;
    until("all to be fresh", 20, || runner.api.job(&service), fresh);
    for id in [&service, &held, &mute] {
        runner.api.cancel(id);
        runner.wait_for(id, "finished", 30);
    }
    until("all rules to be gone", 20, || all_forwardings(&bed), Vec::is_empty);
}

#[test]
fn a_job_whose_own_clock_is_an_hour_off_has_its_ports() {
    let bed = Bed::take();
    let text = |offset: &str| {
        let set = format!("export LD_PRELOAD={LIBRARY} FAKETIME={offset}\necho \"it is $(date +%s)\"\n#KEYHOLE-REQUEST-PORTS 1");
        SERVICE.1.replace("#KEYHOLE-REQUEST-PORTS 1", &set)
    };
    let (early, late) = (text("-3600"), text("+3600"));
    let runner = Runner::start(&bed, &[("early.txt", &early), ("late.txt", &late)]);
    for (template, expected) in [("early.txt", -3600), ("late.txt", 3600)] {
        let id = runner.api.submit("alice", template, &json!({}));
        let job = runner.wait_for(&id, "available", 40);
        let log = runner.job_log("alice", &id);
        let its: i64 = log.lines().find_map(|line| line.strip_prefix("it is ")).expect("it says").parse().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!((its - now - expected).abs() < 120, "the job's clock is off: {its}");
        fetch(&bed, &job, "/bytes").unwrap();
    }
}
