//! `kill -9` before and after every act of the runner's that leaves something behind.
//!
//! Each scenario is played once to learn which acts it comes by. Then it is played again, and the runner dies before, or after, the first
//! act of each name that no earlier scenario has walked; it is started again, and the scenario must come to the same end. In the end
//! every name that stands in the source must have been walked on both sides. Each side is a test, so that two beds share them.
//!
//! In one play the runner dies up to four times, at points that lie apart. With `WALK=single` it dies once in each play, which takes
//! three times as long. `WALK_ONLY=WORDS` plays the scenarios whose names hold these words.

use crate::main_path::fetch;
use crate::templates::{PORTLESS, SERVICE};
use bwvisu_tests::gateway::{forwardings, forwardings_of, host_of, other, without_ssh};
use bwvisu_tests::runner::mortal;
use bwvisu_tests::{Bed, Broken, Setup, Stage, effects};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// One way of a job, or of something else that leaves traces.
struct Scenario {
    name: &'static str,
    play: fn(&mut Stage),
    /// Members of the configuration.
    config: fn() -> Value,
}

/// The short ones first: each act is walked in the first scenario that comes by it.
const SCENARIOS: [Scenario; 11] = [
    Scenario { name: "a job that ends by itself", play: ends_by_itself, config: ordinary },
    Scenario { name: "a submission that is refused", play: refused, config: ordinary },
    Scenario { name: "a gateway that is drained for a while", play: drained, config: ordinary },
    Scenario { name: "a service, cancelled", play: service, config: ordinary },
    Scenario { name: "rules that vanish", play: rules_vanish, config: ordinary },
    Scenario { name: "a job that Slurm no longer knows", play: vanishes, config: ordinary },
    Scenario { name: "a gateway that is silent for a while", play: silent_gateway, config: ordinary },
    Scenario { name: "a gateway that is down", play: dead_gateway, config: short_patience },
    Scenario { name: "a job that is requeued", play: requeued, config: ordinary },
    Scenario { name: "a job that comes out late", play: late, config: ordinary },
    Scenario { name: "records that grow old", play: sweep, config: short_memory },
];

/// What dies here leaves a submission of which nobody knows whether the scheduler has it: it is given up after two minutes. These points have a
/// test of their own, which waits for all of them at once.
const OPEN_SUBMISSIONS: [(&str, &str); 2] = [("create-job", "after"), ("reject", "before")];

/// Slurm refuses it: there is no such time.
const WRONG: (&str, &str) = ("wrong.txt", "#!/bin/bash\n#SBATCH --time=abc\ntrue\n");

fn ordinary() -> Value {
    // A gateway that is silent for a while is not down, on a slow machine either.
    json!({"watch": {"jobs-seconds": 0.3, "keyhole-seconds": 0.3}, "gateway-down-seconds": 600})
}

fn short_patience() -> Value {
    json!({"watch": {"jobs-seconds": 0.3, "keyhole-seconds": 0.3}, "gateway-down-seconds": 0.9})
}

fn short_memory() -> Value {
    json!({"watch": {"jobs-seconds": 0.3, "keyhole-seconds": 0.3}, "keep-finished-jobs-days": 0.000_001})
}

fn setup(config: Value) -> Setup<'static> {
    Setup { templates: &[SERVICE, PORTLESS, WRONG, LATE], program: Some(mortal()), config, ..Setup::default() }
}

fn ends_by_itself(stage: &mut Stage) {
    let id = stage.post("short", PORTLESS.0, &json!({"seconds": "1"}));
    stage.wait_for_end(&id, "completed");
    stage.settle();
    stage.assert_in_slurm(&[&id]);
}

fn refused(stage: &mut Stage) {
    let reply = stage.ask("wrong", WRONG.0, &json!({}), 200);
    reply.assert_problem("a script that Slurm refuses", 502, "--time");
    stage.settle();
    stage.assert_in_slurm(&[]);
}

fn drained(stage: &mut Stage) {
    let address = stage.bed.ip("gw0").to_string();
    for (method, expected) in [("PUT", json!("by an admin")), ("DELETE", Value::Null)] {
        let reply = stage.call(method, &format!("/cluster/gateways/{address}/drain"), &Value::Null);
        assert_eq!((reply.status, &reply.body["drained"]), (200, &expected), "{reply:#?}");
        let list = stage.call("GET", "/cluster/gateways", &Value::Null);
        let gateway = list.body["gateways"].as_array().unwrap().iter().find(|gateway| gateway["address"] == address.as_str());
        assert_eq!(gateway.unwrap()["drained"], expected, "{list:#?}");
    }
    stage.settle();
}

/// A service that users reach.
fn start_service(stage: &mut Stage) -> (String, Value) {
    let id = stage.post("service", SERVICE.0, &json!({}));
    let job = stage.wait_for(&id, "available", 40);
    fetch(stage.bed, &job, "/bytes").expect("users reach it");
    (id, job)
}

fn end_service(stage: &mut Stage, id: &str) {
    stage.cancel(id);
    stage.settle();
    stage.assert_in_slurm(&[id]);
}

fn service(stage: &mut Stage) {
    let (id, _) = start_service(stage);
    end_service(stage, &id);
}

fn rules_vanish(stage: &mut Stage) {
    let (id, job) = start_service(stage);
    let rule = forwardings_of(stage.bed, &id).pop().unwrap();
    let chain = rule.split(' ').nth(1).unwrap().to_owned();
    stage.bed.sh(host_of(stage.bed, &job), &format!("iptables -t nat -F {chain}"));
    stage.until("the rule to be there again", 20, |stage| forwardings_of(stage.bed, &id).pop());
    fetch(stage.bed, &job, "/bytes").expect("users reach it again");
    end_service(stage, &id);
}

fn vanishes(stage: &mut Stage) {
    let id = stage.post("vanishing", PORTLESS.0, &json!({"seconds": "600"}));
    stage.wait_for(&id, "running", 20);
    let _blind = ["cmd0", "cmd1"].map(|host| Broken::stub(stage.bed, host, "/usr/bin/squeue", "exit 0"));
    stage.bed.sh("ctl", "squeue --noheader --format=%A | xargs scancel");
    stage.wait_for_end(&id, "unknown");
    drop(_blind);
    stage.settle();
    stage.assert_in_slurm(&[&id]);
}

fn silent_gateway(stage: &mut Stage) {
    let (id, job) = start_service(stage);
    let silent = without_ssh(stage.bed, host_of(stage.bed, &job));
    let stale = stage.wait_until(&id, "stale", 20, |job| job["stale"] == true);
    assert_eq!(stale["state"], "available", "a failed look changes no state");
    drop(silent);
    stage.wait_until(&id, "fresh again", 40, |job| job["stale"] != true && job["state"] == "available");
    end_service(stage, &id);
}

fn dead_gateway(stage: &mut Stage) {
    let (id, job) = start_service(stage);
    let gateway = host_of(stage.bed, &job);
    let down = without_ssh(stage.bed, gateway);
    let address = stage.bed.external(other(gateway)).to_string();
    let moved = stage.wait_until(&id, "available behind the other gateway", 40, |job| {
        job["state"] == "available" && job["services"][0]["external-ip"] == address.as_str()
    });
    assert_eq!(moved["services"][0]["external-port"], job["services"][0]["external-port"], "the same port, where it is free");
    fetch(stage.bed, &moved, "/bytes").expect("users reach it there");
    drop(down);
    stage.until("no rule to be left on the other gateway", 40, |stage| forwardings(stage.bed, gateway).is_empty().then_some(()));
    end_service(stage, &id);
}

fn requeued(stage: &mut Stage) {
    let (id, job) = start_service(stage);
    let slurm = job["scheduler-job-id"].as_str().unwrap().to_owned();
    // Slurm calls a job failed, rather than requeued, whose script it was just about to start; and it wants two minutes before the next
    // run, of which its node needs some seconds.
    std::thread::sleep(Duration::from_secs(1));
    stage.bed.sh("cmd0", &format!("scontrol requeue {slurm}"));
    stage.wait_for(&id, "submitted", 20);
    std::thread::sleep(Duration::from_secs(7));
    let again = stage.until("the second run", 60, |stage| {
        let _ = stage.bed.exec("cmd0", &["scontrol", "update", &format!("JobId={slurm}"), "StartTime=now"]);
        let job = stage.job(&id);
        assert_ne!(job["state"], "finished", "{job:#}");
        (job["state"] == "available").then_some(job)
    });
    assert_eq!(again["services"][0]["external-port"], job["services"][0]["external-port"]);
    assert_eq!(again["services"][0]["external-ip"], job["services"][0]["external-ip"]);
    fetch(stage.bed, &again, "/bytes").expect("users reach the second run");
    end_service(stage, &id);
}

/// Its sbatch says nothing, and hands it in some seconds after everybody has stopped waiting.
const LATE: (&str, &str) = ("late.txt", "#!/bin/bash\n#SBATCH --time=10 --nodes=1\n# late\nexec sleep 600\n");

fn late(stage: &mut Stage) {
    let script = "script=$(cat)\ncase $script in *'# late'*) ;; *) exec \"$real\" \"$@\" <<<\"$script\" ;; esac\n\
                  ( exec >/dev/null 2>&1; sleep 15; \"$real\" \"$@\" <<<\"$script\" ) &\nexit 0";
    let _slow = ["cmd0", "cmd1"].map(|host| Broken::stub(stage.bed, host, "/usr/bin/sbatch", script));
    let given_up = stage.until("an answer, or a job without one", 60, |stage| {
        // Without a key, and only if there is nothing to be seen of the try before.
        let answer = stage.post_once(LATE.0, &json!({}));
        let written = || stage.bed.sh("runner", "ETCDCTL_API=3 etcdctl get --prefix /bwvisu-runner/clusters/default/jobs/");
        answer.map(|reply| reply.status == 503).or_else(|| (!written().is_empty()).then_some(false))
    });
    if given_up {
        // The front end was told that there is no job, so there must be none for long.
        stage.wait_for_end("1", "cancelled");
    } else {
        // It was told nothing: what turns up is adopted, and is found by whoever looks for it.
        stage.wait_until("1", "in Slurm", 60, |job| !job["scheduler-job-id"].is_null());
        stage.cancel("1");
    }
    stage.settle();
    stage.assert_in_slurm(&["1"]);
}

fn sweep(stage: &mut Stage) {
    // Without a key: a job that a key leads to is kept as long as the key.
    let body = json!({"uid": "alice", "template-name": PORTLESS.0, "variables": {"seconds": "0"}});
    let reply = stage.call("POST", "/jobs", &body);
    let id = reply.body["job-id"].as_str().unwrap().to_owned();
    stage.wait_for_end(&id, "completed");
    let old = json!({"version": 2, "cluster": "default", "key": "00", "body": "00", "job": 7, "at": "2020-01-01T00:00:00Z"});
    let keys = "/bwvisu-runner/clusters/default/keys/00";
    stage.bed.sh("runner", &format!("ETCDCTL_API=3 etcdctl put {keys} '{old}'"));
    stage.restart();
    stage.until("the old job to be removed", 20, |stage| {
        (stage.call("GET", &format!("/jobs/{id}"), &Value::Null).status == 404).then_some(())
    });
    let list = format!("ETCDCTL_API=3 etcdctl get {keys}");
    stage.until("the old key to be removed", 20, |stage| stage.bed.sh("runner", &list).is_empty().then_some(()));
    stage.settle();
}

/// Plays a scenario; returns where the runner died, and what it came by.
fn play(bed: &Bed, scenario: &Scenario, points: &[String]) -> (Vec<String>, Vec<String>) {
    let begun = Instant::now();
    println!("{}: {}", scenario.name, if points.is_empty() { "nobody dies".to_owned() } else { points.join(", ") });
    let mut stage = Stage::set(bed, &setup((scenario.config)()), points);
    (scenario.play)(&mut stage);
    println!("    {:.1} s", begun.elapsed().as_secs_f64());
    (stage.deaths().to_vec(), stage.reached())
}

/// Which points have been walked.
struct Walk<'b> {
    bed: &'b Bed,
    side: &'static str,
    walked: BTreeSet<String>,
    kills: usize,
    /// Deaths in one play.
    at_once: usize,
}

impl Walk<'_> {
    /// Walks the points that no earlier scenario has walked, and that this one comes by.
    fn scenario(&mut self, scenario: &Scenario) {
        let (deaths, reached) = play(self.bed, scenario, &[]);
        assert!(deaths.is_empty());
        let points = reached.iter().map(|name| format!("{name}:{}", self.side));
        let points: Vec<String> = points.filter(|point| !self.walked.contains(point)).collect();
        // Points of one play lie apart, so that each recovery has some time.
        let plays = points.len().div_ceil(self.at_once);
        for first in 0..plays {
            let some: Vec<String> = points[first..].iter().step_by(plays).cloned().collect();
            self.play(scenario, &some);
        }
        // What a death before it had made superfluous has a play of its own.
        let superfluous: Vec<String> = points.into_iter().filter(|point| !self.walked.contains(point)).collect();
        for point in superfluous.chunks(1) {
            self.play(scenario, point);
        }
    }

    fn play(&mut self, scenario: &Scenario, points: &[String]) {
        let (deaths, _) = play(self.bed, scenario, points);
        self.kills += deaths.len();
        self.walked.extend(deaths);
    }
}

/// Walks one side of every act: `before` or `after`.
pub fn walk(side: &'static str) {
    let bed = Bed::take();
    let begun = Instant::now();
    let at_once = if std::env::var("WALK").is_ok_and(|word| word == "single") { 1 } else { 4 };
    let only = std::env::var("WALK_ONLY").ok();
    let elsewhere = OPEN_SUBMISSIONS.map(|(name, side)| format!("{name}:{side}"));
    let mut walk = Walk { bed: &bed, side, walked: BTreeSet::from(elsewhere), kills: 0, at_once };
    for scenario in SCENARIOS.iter().filter(|one| only.as_ref().is_none_or(|only| one.name.contains(only))) {
        walk.scenario(scenario);
    }
    let names = effects::in_source();
    println!("{} effects, {} kills {side} them survived in {:.0} s", names.len(), walk.kills, begun.elapsed().as_secs_f64());
    let unknown = walk.walked.iter().filter(|point| !names.contains(point.split(':').next().unwrap())).collect::<Vec<_>>();
    assert!(unknown.is_empty(), "the runner came by acts that are not found in the source: {unknown:?}");
    let points = names.iter().map(|name| format!("{name}:{side}"));
    let left: Vec<String> = points.filter(|point| !walk.walked.contains(point)).collect();
    assert!(left.is_empty() || only.is_some(), "the runner died in no scenario at {left:?}");
}

/// A key, what is asked for under it, where the runner dies meanwhile, and what the answer is in the end.
type Open = (&'static str, (&'static str, &'static str), fn() -> Value, &'static str, u16);

const OPEN: [Open; 4] = [
    ("created", PORTLESS, || json!({"seconds": "600"}), "create-job:after", 200),
    ("not yet begun", PORTLESS, || json!({"seconds": "600"}), "submit:before", 200),
    ("refused", WRONG, || json!({}), "reject:before", 502),
    ("refused and not heard", WRONG, || json!({}), "submit:after", 502),
];

#[test]
fn a_submission_that_died_before_the_scheduler_had_it_is_given_up_and_then_made_once() {
    for (name, side) in OPEN_SUBMISSIONS {
        assert!(
            OPEN.iter().any(|open| open.3 == format!("{name}:{side}")),
            "{name}:{side} is left out of the walk, and not here"
        );
    }
    let bed = Bed::take();
    let mut stage = Stage::set(&bed, &setup(ordinary()), &[]);
    for (at, (key, template, variables, point, _)) in OPEN.iter().enumerate() {
        stage.call("GET", "/jobs", &Value::Null);
        stage.runner.kill();
        stage.arm(&[(*point).to_owned()]);
        stage.until("the death", 30, |stage| {
            let answer = stage.ask_once(key, template.0, &variables());
            assert!(answer.is_none(), "{key}: {answer:#?}");
            (stage.deaths().len() == at + 1).then_some(())
        });
    }
    // Nobody can know whether Slurm has them, so they are waited for.
    let mut ids = Vec::new();
    for (key, template, variables, _, status) in OPEN {
        let reply = stage.ask(key, template.0, &variables(), 200);
        assert_eq!(reply.status, status, "{key}: {reply:#?}");
        ids.extend(reply.body["job-id"].as_str().map(str::to_owned));
    }
    assert_eq!(ids.len(), 2);
    stage.assert_in_slurm(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    ids.iter().for_each(|id| stage.cancel(id));
    stage.settle();
    stage.assert_in_slurm(&ids.iter().map(String::as_str).collect::<Vec<_>>());
}
