//! The same short way of a job on whatever stands on the machines: `tests/matrix` plays it on beds whose parts are replaced by those of
//! other releases. What costs no other system is played on every bed: each kind of `nc`, and both of iptables.

use crate::gateways::{requeue, start_next_run};
use crate::main_path::fetch;
use crate::templates::{EXITING, SERVICE};
use bwvisu_tests::bed::repository;
use bwvisu_tests::gateway::{GATEWAYS, all_forwardings, foreign, forwardings, forwardings_of};
use bwvisu_tests::wait::{throughout, until};
use bwvisu_tests::{Bed, Broken, Runner, Setup};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

fn assert_reached(bed: &Bed, id: &str, job: &Value) {
    let bytes = fetch(bed, job, "/bytes").expect("the outside reaches the application");
    assert!(bytes.ends_with(&format!("bytes of the application of job {id}\n")), "{bytes}");
}

fn assert_ends(runner: &Runner, id: &str, outcome: &str, code: &Value) {
    let job = runner.wait_for(id, "finished", 60);
    assert_eq!((&job["outcome"], &job["exit-code"]), (&json!(outcome), code), "{job:#}");
}

fn cancel(runner: &Runner, id: &str) {
    assert_eq!(runner.api.cancel(id).status, 200);
    let job = runner.wait_for(id, "finished", 60);
    assert_eq!(job["outcome"], "cancelled", "{job:#}");
}

#[test]
fn a_job_is_led_from_its_request_to_its_exact_end() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE, EXITING]);
    let service = runner.api.submit("alice", SERVICE.0, &json!({}));
    let again = runner.api.submit("bob", SERVICE.0, &json!({}));
    let completed = runner.api.submit("alice", EXITING.0, &json!({"code": "0"}));
    let failed = runner.api.submit("bob", EXITING.0, &json!({"code": "3"}));
    assert_reached(&bed, &service, &runner.wait_for(&service, "available", 60));
    let before = runner.wait_for(&again, "available", 60);
    assert_ends(&runner, &completed, "completed", &json!(0));
    assert_ends(&runner, &failed, "failed", &json!(3));
    let slurm = requeue(&bed, &runner, &again);
    cancel(&runner, &service);
    let after = start_next_run(&bed, &runner, &again, &slurm);
    assert_eq!(after["services"], before["services"], "a job that began anew is where it was");
    assert_reached(&bed, &again, &after);
    cancel(&runner, &again);
    until("all rules to be gone", 20, || all_forwardings(&bed), Vec::is_empty);
    assert_eq!(runner.api.audit(), [] as [Value; 0]);
}

/// What `nc` is on a gateway, and who therefore looks at ports.
const FLAVOURS: [(&str, &str); 5] = [
    ("openbsd", "/bin/nc.openbsd"),
    ("traditional", "/bin/nc.traditional"),
    ("ncat", "/usr/bin/ncat"),
    ("busybox", "/bin/busybox"),
    ("none", "/nowhere"),
];

#[test]
fn every_kind_of_nc_tells_open_closed_silent_and_unknown_apart_and_a_job_is_found_by_it() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE]);
    let _open: Vec<TcpListener> =
        bed.at("c0", || [49000, 49002].map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap()).into());
    let rule = "INPUT -p tcp --dport 49003 -j DROP";
    let _silent = Broken::by(&bed, "c0", &format!("iptables -A {rule}"), &format!("iptables -D {rule}"));
    for (name, program) in FLAVOURS {
        let _nc = Broken::by(
            &bed,
            "gw0",
            &format!("ln -sfn {program} /etc/alternatives/nc"),
            "ln -sfn /bin/nc.openbsd /etc/alternatives/nc",
        );
        assert_told_apart(name, &look(&bed, name));
        let id = runner.api.submit("alice", SERVICE.0, &json!({}));
        assert_reached(&bed, &id, &runner.wait_for(&id, "available", 60));
        cancel(&runner, &id);
    }
}

/// What the runner's own script reports.
fn look(bed: &Bed, flavour: &str) -> String {
    let functions = fs::read_to_string(repository().join("runner/src/gateway/iptables/probe.sh")).unwrap();
    let script = format!(
        "{functions}\nchoose\necho \"flavour $(flavour)\"\nprobe 0 c0 49000-49004 &\nprobe 1 nowhere 49000-49001 &\nprobe 2 c1 49000 &\nwait"
    );
    let report = bed.sh("gw0", &format!("exec sh <<'END-OF-SCRIPT'\n{script}\nEND-OF-SCRIPT"));
    assert!(report.contains(&format!("flavour {flavour}\n")), "{report}");
    report
}

fn assert_told_apart(name: &str, report: &str) {
    let ports = |number: &str, words: &[&str]| -> BTreeSet<u16> {
        let lines = report.lines().filter(|line| line.starts_with(number) && words.iter().any(|word| line.contains(word)));
        (49000..=49004).filter(|port| lines.clone().any(|line| line.contains(&format!(" {port}")))).collect()
    };
    assert_eq!(ports("0 ", &["succeeded!", " open"]), BTreeSet::from([49000, 49002]), "{name}: open: {report}");
    assert_eq!(ports("0 ", &["timed out", "silent"]), BTreeSet::from([49003]), "{name}: silent: {report}");
    assert!(!report.contains("49001") && !report.contains("49004"), "{name}: what is closed is not named: {report}");
    assert!(report.lines().any(|line| line.starts_with("1 ") && line.contains("nowhere")), "{name}: unknown: {report}");
    assert!(report.lines().all(|line| !line.starts_with("2 ") || line.starts_with("2 exit ")), "{name}: closed: {report}");
}

/// Both gateways' `iptables` is this one from now on, with the site's rules where `site` says.
fn backend<'b>(bed: &'b Bed, ours: &str, site: &str) -> [Broken<'b>; 2] {
    let use_one = |kind: &str| {
        let link = |name: &str| {
            let real = name.replace("iptables", &format!("iptables-{kind}"));
            format!("ln -sfn /usr/sbin/{real} /etc/alternatives/{name}")
        };
        ["iptables", "iptables-save", "iptables-restore"].map(link).join("; ")
    };
    let empty = |kind: &str| format!("printf '*filter\\n:FORWARD ACCEPT\\nCOMMIT\\n*nat\\nCOMMIT\\n' | iptables-{kind}-restore");
    GATEWAYS.map(|gateway| {
        let breaks = format!(
            "set -e; iptables-nft-save >/run/site; {}; iptables-{site}-restore </run/site; {}",
            empty("nft"),
            use_one(ours)
        );
        let mends = format!("{}; {}; {}; iptables-nft-restore </run/site", use_one("nft"), empty("legacy"), empty("nft"));
        Broken::by(bed, gateway, &breaks, &mends)
    })
}

/// Our chains' kind, the site's kind, and whether gw1 is used: what it drops in one kind no rule of the other kind lets pass.
const BACKENDS: [(&str, &str, bool); 3] = [("legacy", "legacy", true), ("legacy", "nft", false), ("nft", "legacy", false)];

#[test]
fn gateways_of_either_kind_of_iptables_forward_and_rules_of_the_other_kind_are_left_alone() {
    for (ours, site, both) in BACKENDS {
        let bed = Bed::take();
        let kinds = backend(&bed, ours, site);
        let of_the_site = |gateway: &str| {
            let others = bed.sh(gateway, &format!("iptables-{site}-save | grep -v -e '^#' -e BWVISU | sed 's/ \\[.*//'"));
            (foreign(&bed, gateway), others)
        };
        let before = GATEWAYS.map(of_the_site);
        assert!(before.iter().all(|(_, others)| others.contains("SITE-NAT")), "the site's rules are there: {before:#?}");
        let runner = Runner::with(&bed, &Setup { templates: &[SERVICE], ..Setup::default() });
        if !both {
            let drain = runner.api.call("PUT", &format!("/cluster/gateways/{}/drain", bed.ip("gw1")), &Value::Null);
            assert_eq!(drain.status, 200, "{drain:#?}");
        }
        let mut ids = Vec::new();
        // Of two jobs, one after the other, each gateway gets one.
        for _ in 0..if both { 2 } else { 1 } {
            let id = runner.api.submit("alice", SERVICE.0, &json!({}));
            assert_reached(&bed, &id, &runner.wait_for(&id, "available", 60));
            assert_eq!(forwardings_of(&bed, &id).len(), 1, "{ours}");
            ids.push(id);
        }
        let other = if ours == "nft" { "legacy" } else { "nft" };
        for gateway in GATEWAYS {
            assert!(!bed.sh(gateway, &format!("iptables-{other}-save")).contains("BWVISU"), "{gateway}: ours in {other}");
        }
        assert!(!both || GATEWAYS.iter().all(|gateway| forwardings(&bed, gateway).len() == 1), "each gateway has one");
        ids.iter().for_each(|id| assert_eq!(runner.api.cancel(id).status, 200));
        ids.iter().for_each(|id| drop(runner.wait_for(id, "finished", 60)));
        until("all rules to be gone", 20, || all_forwardings(&bed), Vec::is_empty);
        assert_eq!(GATEWAYS.map(of_the_site), before, "ours in {ours}, the site's in {site}");
        assert_eq!(runner.api.audit(), [] as [Value; 0]);
        drop(runner);
        drop(kinds);
    }
}

/// Runs until somebody makes its file, then ends with a code.
const LATE: (&str, &str) = (
    "late.txt",
    "#!/bin/bash
#SBATCH --time=10 --nodes=1
until [ -e late-{{code}} ]; do sleep 0.2; done
exit {{code}}
",
);

#[test]
#[ignore = "needs a bed with BED_ACCOUNTING=yes, as tests/matrix makes it"]
fn how_jobs_ended_that_slurm_forgot_while_nobody_looked_stands_in_its_accounts() {
    let bed = Bed::take();
    // Slurm forgets what has ended once a minute.
    let _hasty = Broken::slurm_conf(&bed, "MinJobAge=2", true);
    let mut runner = Runner::start(&bed, &[LATE]);
    let ids = ["0", "3", "7"].map(|code| runner.api.submit("alice", LATE.0, &json!({"code": code})));
    let jobs = ids.clone().map(|id| runner.wait_for(&id, "running", 30));
    runner.kill();
    bed.sh_as("cmd0", "alice", "touch late-0 late-3");
    bed.sh_as("cmd0", "alice", &format!("scancel {}", jobs[2]["scheduler-job-id"].as_str().unwrap()));
    until(
        "Slurm to forget them",
        150,
        || bed.sh("cmd0", "squeue --noheader --states=all --format=%j"),
        |list| !list.contains("bwvisu-"),
    );
    bed.sh_as("cmd0", "alice", "rm late-0 late-3");
    let away = bed.fault("stop-daemon", "ctl", Some("slurmdbd"));
    runner.start_again();
    let state = |id: &String| runner.api.job(id)["state"].clone();
    throughout(
        "accounts that are away are waited for",
        Duration::from_secs(6),
        || ids.each_ref().map(state),
        |states| states.iter().all(|state| state == "running"),
    );
    away.mend();
    assert_ends(&runner, &ids[0], "completed", &json!(0));
    assert_ends(&runner, &ids[1], "failed", &json!(3));
    let job = runner.wait_for(&ids[2], "finished", 60);
    assert_eq!(job["outcome"], "cancelled", "{job:#}");
}
