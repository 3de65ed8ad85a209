//! Several users, and everything that is none of ours: jobs of others, rules of the admin.

use crate::main_path::fetch;
use crate::templates::SERVICE;
use bwvisu_tests::gateway::{GATEWAYS, all_forwardings, foreign};
use bwvisu_tests::wait::{throughout, until};
use bwvisu_tests::{Bed, Runner};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

#[test]
fn jobs_of_two_users_run_beside_each_other_with_ports_of_their_own() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE]);
    let users = ["alice", "bob", "alice", "bob", "alice", "bob"];
    let api = &runner.api;
    let ids: Vec<String> = thread::scope(|scope| {
        let submit = |user| scope.spawn(move || api.submit(user, SERVICE.0, &json!({})));
        let threads: Vec<_> = users.into_iter().map(submit).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let jobs: Vec<Value> = ids.iter().map(|id| runner.wait_for(id, "available", 60)).collect();
    for (job, user) in jobs.iter().zip(users) {
        assert_eq!(job["uid"], user);
        let uid = bed.sh("cmd0", &format!("id -u {user}"));
        assert_eq!(job["details"]["UserID"], uid.trim(), "{job:#}");
        let bytes = fetch(&bed, job, "/bytes").unwrap();
        assert!(bytes.ends_with(&format!("of job {}\n", job["job-id"].as_str().unwrap())), "{bytes}");
    }
    let ends: BTreeSet<String> = jobs.iter().map(|job| outer_end(&job["services"][0])).collect();
    assert_eq!(ends.len(), users.len(), "no two have the same port: {ends:?}");
}

fn outer_end(service: &Value) -> String {
    format!("{}:{}", service["external-ip"].as_str().unwrap(), service["external-port"])
}

#[test]
fn jobs_one_after_the_other_go_to_the_gateway_with_less_load() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE]);
    let gateway = |_| {
        let id = runner.api.submit("alice", SERVICE.0, &json!({}));
        let job = runner.wait_for(&id, "available", 40);
        // One of the two forwards nothing that no rule of ours lets pass.
        assert!(fetch(&bed, &job, "/bytes").unwrap().ends_with(&format!("of job {id}\n")));
        job["services"][0]["external-ip"].as_str().unwrap().to_owned()
    };
    let gateways: Vec<String> = (0..4).map(gateway).collect();
    assert!(gateways[0] != gateways[1] && gateways[2] != gateways[3], "{gateways:?}");
}

#[test]
fn jobs_of_others_never_appear_and_are_never_touched() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE]);
    let sleep = "#!/bin/bash\nexec sleep 600\n";
    let forged = "x\nbwvisu-1-00000000|alice|CANCELLED|0|0|c0|None\n7|bwvisu-1-00000000|alice|COMPLETED|0|0||None|";
    let mut theirs = vec![
        bed.sbatch("alice", &["--job-name=bwvisu-1-00000000"], sleep),
        bed.sbatch("bob", &["--job-name=bwvisu-2-00000000"], sleep),
        bed.sbatch("bob", &["--job-name=simulation"], sleep),
        bed.sbatch("bob", &[&format!("--job-name={forged}")], sleep),
        of_nobody(&bed),
    ];
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    let job = runner.wait_for(&id, "available", 40);
    let own = job["scheduler-job-id"].as_str().unwrap().to_owned();
    // Now that the name of ours is known: the same name, by another user and by its own.
    let name = bed.sh("cmd0", &format!("squeue --noheader --jobs={own} --format=%j"));
    for user in ["alice", "bob"] {
        theirs.push(bed.sbatch(user, &[&format!("--job-name={}", name.trim())], sleep));
    }
    let forged = forged.replace("bwvisu-1-00000000", name.trim());
    theirs.push(bed.sbatch("bob", &[&format!("--job-name={forged}")], sleep));

    let undisturbed = |(jobs, job): &(Vec<String>, Value)| {
        *jobs == [id.as_str()] && job["state"] == "available" && job["scheduler-job-id"] == own.as_str()
    };
    let look = || (runner.api.jobs(), runner.api.job(&id));
    throughout("only our job is seen, and as it is", Duration::from_secs(3), look, undisturbed);
    assert_eq!(running(&bed, &theirs), theirs.len());
    runner.api.cancel(&id);
    let job = runner.wait_for(&id, "finished", 30);
    assert_eq!(job["outcome"], "cancelled", "not what a forged line says: {job:#}");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(running(&bed, &theirs), theirs.len(), "all of theirs still run");
}

fn of_nobody(bed: &Bed) -> String {
    let submit = "sbatch --parsable --chdir=/tmp --output=/dev/null --job-name=bwvisu-3-00000000 --wrap 'exec sleep 600'";
    bed.sh("cmd0", &format!("setpriv --reuid 65534 --regid 65534 --clear-groups {submit}")).trim().to_owned()
}

fn running(bed: &Bed, ids: &[String]) -> usize {
    let listed = bed.sh("cmd0", &format!("squeue --noheader --jobs={} --states=RUNNING,PENDING --format=%A", ids.join(",")));
    listed.lines().filter(|line| ids.iter().any(|id| id == line)).count()
}

#[test]
fn foreign_rules_on_the_gateways_survive_byte_for_byte() {
    let bed = Bed::take();
    let before = GATEWAYS.map(|gateway| foreign(&bed, gateway));
    assert!(before.iter().all(|rules| rules.contains("site: no mail, \\\"ever\\\"")), "{before:?}");
    let runner = Runner::start(&bed, &[SERVICE]);
    let ids: Vec<String> = ["alice", "bob"].iter().map(|user| runner.api.submit(user, SERVICE.0, &json!({}))).collect();
    ids.iter().for_each(|id| drop(runner.wait_for(id, "available", 40)));
    assert_eq!(GATEWAYS.map(|gateway| foreign(&bed, gateway)), before, "while jobs run");
    ids.iter().for_each(|id| drop(runner.api.cancel(id)));
    ids.iter().for_each(|id| drop(runner.wait_for(id, "finished", 30)));
    until("our rules to be gone", 15, || all_forwardings(&bed), Vec::is_empty);
    assert_eq!(GATEWAYS.map(|gateway| foreign(&bed, gateway)), before, "afterwards");
}
