//! Gateways whose iptables is flushed, locked, missing or forbidden.

use crate::gateways::steps_until;
use crate::main_path::fetch;
use crate::templates::SERVICE;
use bwvisu_tests::gateway::{all_forwardings, forwardings, forwardings_of, records, saved};
use bwvisu_tests::wait::until;
use bwvisu_tests::{Bed, Broken, Runner, Setup};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A runner that has set up both gateways, and an available job behind gw0.
fn with_a_job_behind_gw0(bed: &Bed) -> (Runner<'_>, Value) {
    // Nothing is to be moved, however long a fault lasts.
    let config = json!({"gateway-down-seconds": 600});
    let runner = Runner::with(bed, &Setup { templates: &[SERVICE], config, ..Setup::default() });
    until("the chains on both", 20, || runner.log().matches("chains BWVISU set up").count(), |count| *count >= 2);
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    let job = runner.wait_for(&id, "available", 40);
    assert_eq!(gateway_of(&job), bed.external("gw0").to_string(), "the first of two that carry nothing");
    (runner, job)
}

fn gateway_of(job: &Value) -> &str {
    job["services"][0]["external-ip"].as_str().unwrap()
}

fn id(job: &Value) -> &str {
    job["job-id"].as_str().unwrap()
}

fn ours(bed: &Bed, gateway: &str) -> Vec<String> {
    let mut lines: Vec<String> = saved(bed, gateway).lines().filter(|line| line.contains("BWVISU")).map(str::to_owned).collect();
    // Where a hook stands among the site's rules depends on what was there.
    lines.sort();
    lines
}

#[test]
fn whatever_is_flushed_on_a_gateway_is_there_again_within_a_few_cycles() {
    let bed = Bed::take();
    let (runner, job) = with_a_job_behind_gw0(&bed);
    let before = ours(&bed, "gw0");
    let is_back = |what: &str| {
        let steps =
            steps_until(&runner, &format!("all of ours to be back after {what}"), || ours(&bed, "gw0"), |now| *now == before);
        println!("after {what}: mended after {steps} steps, of which four are a cycle");
        assert!(steps <= 24, "{what}");
    };
    let rule = &forwardings_of(&bed, id(&job))[0];
    let chain = rule.split(' ').nth(1).unwrap();
    let flushes = [
        ("the table nat", "iptables -t nat -F".to_owned()),
        ("the table filter", "iptables -F".to_owned()),
        ("one of our chains", format!("iptables -t nat -F {chain}")),
        ("the way to our chains", "iptables -t nat -F BWVISU".to_owned()),
        ("our hook", "iptables -t nat -F PREROUTING".to_owned()),
        ("our masquerading", "iptables -t nat -F BWVISU-POST".to_owned()),
        // As one change, or the watcher is in its way.
        ("everything", "printf '*filter\\nCOMMIT\\n*nat\\nCOMMIT\\n' | iptables-restore".to_owned()),
    ];
    for (what, flush) in flushes {
        // What the site had goes with it, and is there again at the end: as after a reboot.
        let site = "iptables-save | grep -v BWVISU >/run/site";
        let flushed = Broken::by(&bed, "gw0", &format!("{site}; {flush}"), "iptables-restore </run/site");
        is_back(&format!("a flush of {what}"));
        fetch(&bed, &job, "/bytes").unwrap_or_else(|error| panic!("after a flush of {what}: {error}"));
        drop(flushed);
        is_back("a reboot");
    }
}

/// gw0 without iptables: a folder of programs that has all but those.
fn no_iptables(bed: &Bed) -> Broken<'_> {
    let breaks = "set -e; mkdir -p /run/real/sbin /run/real/without; mount --bind /usr/sbin /run/real/sbin\n\
                  for f in /run/real/sbin/*; do ln -sf \"$f\" /run/real/without/; done; rm -f /run/real/without/*tables*\n\
                  mount --bind /run/real/without /usr/sbin; ! command -v iptables";
    Broken::by(bed, "gw0", breaks, "umount /usr/sbin /run/real/sbin")
}

/// A gateway without the line that allows the service account to be root for iptables.
pub fn without_sudo<'b>(bed: &'b Bed, gateway: &str) -> Broken<'b> {
    let breaks = "set -e; : >/run/nothing; chmod 440 /run/nothing; mount --bind /run/nothing /etc/sudoers.d/bwvisurunner";
    Broken::by(bed, gateway, breaks, "umount /etc/sudoers.d/bwvisurunner")
}

#[test]
fn without_iptables_a_gateway_keeps_its_jobs_and_the_other_takes_the_new_ones() {
    let bed = Bed::take();
    serve_through_the_other(&bed, no_iptables, "iptables-save is not installed");
}

#[test]
fn without_sudo_a_gateway_keeps_its_jobs_and_the_other_takes_the_new_ones() {
    let bed = Bed::take();
    serve_through_the_other(&bed, |bed| without_sudo(bed, "gw0"), "a password is required");
}

fn serve_through_the_other<'b>(bed: &'b Bed, fault: impl Fn(&'b Bed) -> Broken<'b>, cause: &str) {
    let (runner, kept) = with_a_job_behind_gw0(bed);
    let ending = runner.api.submit("alice", SERVICE.0, &json!({}));
    runner.wait_for(&ending, "available", 40);
    let on_gw0 = forwardings(bed, "gw0");
    let broken = fault(bed);
    let new: Vec<String> = (0..2).map(|_| runner.api.submit("bob", SERVICE.0, &json!({}))).collect();
    for new in &new {
        let job = runner.wait_for(new, "available", 60);
        assert_eq!(gateway_of(&job), bed.external("gw1").to_string(), "{job:#}");
    }
    runner.api.cancel(&ending);
    runner.wait_for(&ending, "finished", 40);
    fetch(bed, &kept, "/bytes").expect("users of a gateway that cannot be changed stay connected");
    let address = bed.ip("gw0").to_string();
    let told = |log: &String| log.lines().any(|line| line.contains(&address) && line.contains(cause));
    until("the log to name the gateway and the cause", 20, || runner.log(), told);
    let stale = |job: &Value| {
        job["state"] == "available" && job["stale"] == true && job["message"].as_str().unwrap().contains("does not answer")
    };
    until("its job to be called stale", 20, || runner.api.job(id(&kept)), stale);
    drop(broken);
    until("its job to be fresh", 20, || runner.api.job(id(&kept)), |job| job["state"] == "available" && job["stale"] == false);
    // What ended meanwhile leaves nothing behind, and what stays is as it was.
    until("the rules of what ended to be gone", 20, || forwardings_of(bed, &ending), Vec::is_empty);
    let others = new.iter().chain([&id(&kept).to_owned()]).map(|id| forwardings_of(bed, id).len()).collect::<Vec<_>>();
    assert_eq!(others, [1, 1, 1]);
    assert!(forwardings(bed, "gw0").iter().all(|rule| on_gw0.contains(rule)));
    for id in runner.api.jobs() {
        runner.api.cancel(&id);
    }
    until("all rules to be gone", 40, || all_forwardings(bed), Vec::is_empty);
    until("all ports to be free", 20, || records(bed, "gateways/").contains("\"job\":"), |taken| !taken);
}

/// gw0 with the old iptables, which knows a lock; Debian's own has none.
fn legacy(bed: &Bed) -> Broken<'_> {
    let breaks =
        "set -e; mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi; iptables --version | grep legacy";
    let clean =
        "for t in filter nat; do iptables-legacy -t $t -F; iptables-legacy -t $t -X; done; umount /usr/sbin/xtables-nft-multi";
    Broken::by(bed, "gw0", breaks, clean)
}

/// Somebody holds the lock of iptables on gw0 for so long. Returns when it is held.
fn lock(bed: &Bed, seconds: u32) -> bwvisu_tests::bed::Background {
    let held = bed.spawn("gw0", &["flock", "/run/xtables.lock", "sleep", &seconds.to_string()]);
    let is_free = || bed.exec("gw0", &["flock", "-n", "/run/xtables.lock", "true"]).status.success();
    until("the lock to be held", 5, is_free, |free| !free);
    held
}

#[test]
fn a_lock_that_somebody_holds_is_waited_for_and_then_the_other_gateway_is_taken() {
    let bed = Bed::take();
    assert!(bed.sh("gw0", "iptables --version").contains("nf_tables"), "the bed has Debian's default");
    let _legacy = legacy(&bed);
    let (runner, kept) = with_a_job_behind_gw0(&bed);
    let other = runner.api.submit("alice", SERVICE.0, &json!({}));
    assert_eq!(gateway_of(&runner.wait_for(&other, "available", 40)), bed.external("gw1").to_string());
    let short = lock(&bed, 4);
    let begun = Instant::now();
    let waited = runner.api.submit("bob", SERVICE.0, &json!({}));
    let job = runner.wait_for(&waited, "available", 40);
    println!("behind a lock of 4 s: available after {:.1?} on {}", begun.elapsed(), gateway_of(&job));
    assert_eq!(gateway_of(&job), bed.external("gw0").to_string(), "it was waited for");
    drop(short);
    // Until gw1 carries more than gw0, which is then the next one's choice.
    let gw0 = bed.external("gw0").to_string();
    let on_gw0 = || {
        let jobs = runner.api.jobs();
        let there = jobs.iter().filter(|id| gateway_of(&runner.wait_for(id, "available", 40)) == gw0).count();
        (there, jobs.len() - there)
    };
    for _ in 0..8 {
        if matches!(on_gw0(), (here, there) if here < there) {
            break;
        }
        runner.api.submit("bob", SERVICE.0, &json!({}));
    }
    let _long = lock(&bed, 60);
    let begun = Instant::now();
    let moved = runner.api.submit("bob", SERVICE.0, &json!({}));
    let job = runner.wait_for(&moved, "available", 90);
    println!("behind a lock that stays: available after {:.1?} on {}", begun.elapsed(), gateway_of(&job));
    assert_eq!(gateway_of(&job), bed.external("gw1").to_string(), "{job:#}");
    assert!(runner.log().contains("xtables lock"), "the log names the cause");
    fetch(&bed, &kept, "/bytes").expect("what is there stays there");
    assert_eq!(runner.api.job(id(&kept))["state"], "available");
    drop(_long);
    let all = runner.api.jobs();
    all.iter().for_each(|id| drop(runner.api.cancel(id)));
    until("all rules to be gone", 60, || all_forwardings(&bed), Vec::is_empty);
    until("all ports to be free", 20, || records(&bed, "gateways/").contains("\"job\":"), |taken| !taken);
}

#[test]
fn debians_own_iptables_has_no_lock_to_wait_for() {
    let bed = Bed::take();
    let (runner, _) = with_a_job_behind_gw0(&bed);
    let _locks = lock(&bed, 120);
    let begun = Instant::now();
    // One after the other, since jobs that ask at once take the same gateway. Waiting for the lock would drive both to the other one.
    let served: Vec<Value> =
        (0..2).map(|_| runner.wait_for(&runner.api.submit("bob", SERVICE.0, &json!({})), "available", 40)).collect();
    let gateways: BTreeSet<&str> = served.iter().map(gateway_of).collect();
    assert!(begun.elapsed() < Duration::from_secs(90) && gateways.len() == 2, "{gateways:?} after {:?}", begun.elapsed());
}
