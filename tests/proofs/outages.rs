//! Parts that break while jobs run or are submitted.

use crate::main_path::fetch;
use crate::templates::{HELD, PORTLESS, SERVICE};
use bwvisu_tests::gateway::{GATEWAYS, forwardings_of};
use bwvisu_tests::wait::{is_quick, throughout, until};
use bwvisu_tests::{Bed, Reply, Runner, Setup};
use serde_json::{Value, json};
use std::thread;
use std::time::Duration;

fn submit(runner: &Runner) -> Reply {
    let body = json!({"uid": "alice", "template-name": PORTLESS.0, "variables": {"seconds": "600"}});
    runner.api.call("POST", "/jobs", &body)
}

#[test]
fn a_submission_goes_through_the_other_command_node_when_one_has_died() {
    submit_while_the_first_command_node_suffers("stop-host");
}

#[test]
fn a_submission_goes_through_the_other_command_node_when_one_is_silent() {
    submit_while_the_first_command_node_suffers("unplug");
}

fn submit_while_the_first_command_node_suffers(fault: &'static str) {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    // The connections are there when the node goes: the harder case.
    assert_eq!(submit(&runner).status, 200);
    let _down = bed.fault(fault, "cmd0", None);
    // A node that was heard a moment ago is believed to live: only a submission of that very moment is of unknown fate.
    thread::sleep(Duration::from_millis(2500));
    let reply = submit(&runner);
    assert_eq!(reply.status, 200, "{reply:#?}");
    // At once: after half a minute it would be tried first again.
    let quick = is_quick(Duration::from_secs(3), || assert_eq!(submit(&runner).status, 200));
    assert!(quick, "the node that failed is tried last for a while");
    runner.wait_for(reply.body["job-id"].as_str().unwrap(), "running", 60);
}

#[test]
fn with_all_command_nodes_down_jobs_are_refused_with_503_and_keep_their_states() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS, SERVICE]);
    let id = runner.api.submit("bob", SERVICE.0, &json!({}));
    let before = runner.wait_for(&id, "available", 40);
    let down = NoSsh::on(&bed, ["cmd0", "cmd1"]);
    submit(&runner).assert_problem("no command node", 503, "no command node could do it");
    // Not all of the object: a look that was under way may still say when it looked, and three silent cycles make it stale.
    let known = |job: &Value| ["state", "services", "outcome", "details", "scheduler-job-id"].map(|member| job[member].clone());
    throughout(
        "the last known state is kept",
        Duration::from_secs(4),
        || known(&runner.api.job(&id)),
        |job| *job == known(&before),
    );
    assert_eq!(runner.api.jobs(), [id.as_str()]);
    until(
        "the watcher to complain",
        20,
        || runner.log(),
        |log| log.contains("watch jobs-watch-default: no command node could do it"),
    );
    fetch(&bed, &before, "/bytes").expect("users stay connected");
    drop(down);
    until("a submission to be accepted again", 60, || submit(&runner).status, |status| *status == 200);
    until("the watcher to work again", 60, || runner.log(), |log| log.contains("watch jobs-watch-default: works again"));
    assert_eq!(runner.api.job(&id)["state"], "available");
}

/// Hosts whose ssh refuses every connection and has dropped those that it had.
struct NoSsh<'b>(&'b Bed, [&'static str; 2]);

impl<'b> NoSsh<'b> {
    fn on(bed: &'b Bed, hosts: [&'static str; 2]) -> Self {
        let refuse = Self(bed, hosts);
        refuse.rule("-I");
        refuse
    }

    fn rule(&self, verb: &str) {
        for host in self.1 {
            self.0.sh(host, &format!("iptables {verb} INPUT -p tcp --dport 22 -j REJECT --reject-with tcp-reset"));
        }
    }
}

impl Drop for NoSsh<'_> {
    fn drop(&mut self) {
        self.rule("-D");
    }
}

#[test]
fn a_job_becomes_available_though_the_runner_was_killed_between_submission_and_start() {
    let bed = Bed::take();
    let mut runner = Runner::start(&bed, &[HELD]);
    let id = runner.api.submit("alice", HELD.0, &json!({}));
    runner.kill();
    // It begins while nobody is there to be asked for ports.
    bed.sh("cmd0", "squeue --noheader --format=%A | xargs scontrol release");
    until("Slurm to start it", 20, || bed.sh("cmd0", "squeue --noheader --format=%T"), |state| state.trim() == "RUNNING");
    runner.start_again();
    let job = runner.wait_for(&id, "available", 60);
    fetch(&bed, &job, "/bytes").unwrap();

    assert!(runner.terminate().success(), "SIGTERM ends it in good order");
    fetch(&bed, &job, "/bytes").expect("users stay connected without a runner");
    runner.start_again();
    assert_eq!(runner.api.job(&id)["state"], "available");
    runner.api.cancel(&id);
    runner.wait_for(&id, "finished", 30);
}

#[test]
fn a_job_that_ended_while_no_runner_was_there_is_found_finished_and_its_rules_go() {
    let bed = Bed::take();
    let mut runner = Runner::start(&bed, &[SERVICE]);
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    runner.wait_for(&id, "available", 40);
    runner.kill();
    bed.sh("cmd0", "squeue --noheader --format=%A | xargs scancel");
    until("Slurm to end it", 20, || bed.sh("cmd0", "squeue --noheader"), String::is_empty);
    assert_eq!(forwardings_of(&bed, &id).len(), 1);
    runner.start_again();
    assert_eq!(runner.wait_for(&id, "finished", 20)["outcome"], "cancelled");
    until("its rules to be gone", 15, || forwardings_of(&bed, &id), Vec::is_empty);
}

#[test]
fn a_flushed_gateway_is_mended_and_a_stray_rule_of_ours_removed() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE]);
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    let job = runner.wait_for(&id, "available", 40);
    let set_up = |gateway: &str| runner.log().matches(&format!("gateway {}: chains BWVISU set up", bed.ip(gateway))).count();
    let set_up = || GATEWAYS.map(set_up);
    let before = until("the chains on both", 20, set_up, |counts| !counts.contains(&0));
    let stray = "-p tcp --dport 50999 -m comment --comment bwvisu:default:4711:c3 -j DNAT --to-destination 10.0.0.1";
    for gateway in GATEWAYS {
        let site = bed.sh(gateway, "iptables-save | grep -v BWVISU");
        // As after a reboot: the admin's rules are loaded, ours are not.
        bed.sh(gateway, &format!("iptables-restore <<'END'\n{site}END"));
    }
    // The runner says what was missing; by now it may be there again already.
    until("the chains on both again", 15, set_up, |counts| counts.iter().zip(&before).all(|(now, before)| now > before));
    until("the service to be there again", 15, || fetch(&bed, &job, "/bytes").is_ok(), |there| *there);
    for gateway in GATEWAYS {
        bed.sh(gateway, &format!("iptables -t nat -A BWVISU-509 {stray}"));
    }
    until("the stray rules to be gone", 15, || forwardings_of(&bed, "4711"), Vec::is_empty);
    assert_eq!(forwardings_of(&bed, &id).len(), 1);
}

#[test]
fn a_gateway_that_is_down_gets_no_new_forwardings() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE]);
    until("the chains on both", 15, || runner.log().matches("chains BWVISU set up").count(), |count| *count >= 2);
    let _down = bed.fault("unplug", "gw0", None);
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    let job = runner.wait_for(&id, "available", 90);
    assert_eq!(job["services"][0]["external-ip"], bed.external("gw1").to_string());
}

#[test]
fn no_state_changes_while_slurmctld_is_stopped_or_gone() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE, PORTLESS]);
    let (service, portless) = (runner.api.submit("alice", SERVICE.0, &json!({})), submit(&runner));
    let portless = portless.body["job-id"].as_str().unwrap().to_owned();
    runner.wait_for(&service, "available", 40);
    runner.wait_for(&portless, "running", 20);
    let states = || [&service, &portless].map(|id| runner.api.job(id)["state"].clone());
    let kept = |seen: &[Value; 2]| *seen == ["available", "running"];
    for verb in ["pause-daemon", "stop-daemon"] {
        let fault = bed.fault(verb, "ctl", Some("slurmctld"));
        throughout(verb, Duration::from_secs(5), states, kept);
        fault.mend();
        until("Slurm to answer again", 40, || bed.exec("cmd0", &["squeue"]).status.success(), |answers| *answers);
        throughout("afterwards", Duration::from_secs(2), states, kept);
    }
}

#[test]
fn a_host_whose_key_is_not_known_is_not_spoken_to_and_the_message_says_what_to_do() {
    let bed = Bed::take();
    let runner = Runner::with(&bed, &Setup { templates: &[PORTLESS], trusts_hosts: false, ..Setup::default() });
    let detail = submit(&runner).assert_problem("unknown host keys", 503, "bwvisu-runner hosts trust");
    assert!(detail.contains(&bed.ip("cmd0").to_string()) && detail.contains("known_hosts"), "{detail}");
    assert!(bed.sh("cmd0", "squeue --noheader").is_empty());

    let words = runner.program("hosts trust --yes");
    let output = bed.exec("runner", &words.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("SHA256:"), "{output:?}");
    until("a submission to be accepted", 60, || submit(&runner).status, |status| *status == 200);
}

#[test]
fn without_etcd_calls_get_503_and_all_is_back_by_itself() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE, PORTLESS]);
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    let job = runner.wait_for(&id, "available", 40);
    let fault = bed.fault("stop-daemon", "runner", Some("etcd"));
    for path in ["/jobs", "/jobs/1"] {
        assert_eq!(runner.api.call("GET", path, &Value::Null).status, 503, "{path}");
    }
    assert_eq!(submit(&runner).status, 503);
    fetch(&bed, &job, "/bytes").expect("users stay connected");
    fault.mend();
    until("etcd to be back", 60, || runner.api.call("GET", "/jobs", &Value::Null).status, |status| *status == 200);
    assert_eq!(runner.api.jobs(), [id.as_str()], "nothing was half-written");
    runner.api.cancel(&id);
    runner.wait_for(&id, "finished", 60);
}

/// Several submissions at once, each its status.
fn submit_at_once(runner: &Runner, template: &str, variables: &[Value]) -> Vec<u16> {
    let one = |variables: &Value| {
        let body = json!({"uid": "alice", "template-name": template, "variables": variables});
        runner.api.call("POST", "/jobs", &body).status
    };
    thread::scope(|scope| {
        let threads: Vec<_> = variables.iter().map(|variables| scope.spawn(|| one(variables))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_burst_of_submissions_after_a_quiet_time_is_taken_whole() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    assert_eq!(submit(&runner).status, 200);
    for _ in 0..2 {
        // Longer than a connection is believed to live without a word.
        thread::sleep(Duration::from_secs(3));
        let burst = vec![json!({"seconds": "1"}); 24];
        assert_eq!(submit_at_once(&runner, PORTLESS.0, &burst), [200; 24]);
    }
}

#[test]
fn a_submission_that_sbatch_refuses_with_255_disturbs_no_other() {
    let bed = Bed::take();
    let timed = ("timed.txt", "#!/bin/bash\n#SBATCH --time={{minutes}}\nsleep 1\n");
    let runner = Runner::start(&bed, &[timed]);
    let variables: Vec<Value> = (0..16).map(|i| json!({"minutes": if i % 4 == 0 { "abc" } else { "1" }})).collect();
    let expected: Vec<u16> = (0..16).map(|i| if i % 4 == 0 { 502 } else { 200 }).collect();
    let broken = || runner.log().matches("the connection to").count();
    // A machine that stands still for three seconds breaks connections; a 255 that is taken for ssh's own would break one each time.
    let undisturbed = (0..3).any(|_| {
        let before = broken();
        let answers = submit_at_once(&runner, timed.0, &variables);
        println!("answers {answers:?}, connections that broke: {}", broken() - before);
        let none_broke = broken() == before;
        assert!(!none_broke || answers == expected, "{answers:?}");
        none_broke
    });
    assert!(undisturbed, "no connection broke, and all others went on");
}

#[test]
fn a_connection_that_breaks_is_made_again_once_and_all_go_on() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    assert_eq!(submit(&runner).status, 200);
    for host in ["cmd0", "cmd1"] {
        // The servers' ends of all connections; the listening sshd stays.
        bed.exec(host, &["pkill", "-KILL", "-f", "sshd: bwvisurunner"]);
    }
    let burst = vec![json!({"seconds": "1"}); 16];
    submit_at_once(&runner, PORTLESS.0, &burst);
    assert_eq!(submit_at_once(&runner, PORTLESS.0, &burst), [200; 16], "after the break all is well again");
}

#[test]
fn a_job_behind_a_silent_gateway_is_stale_and_stays_as_it_is_until_the_gateway_answers_again() {
    let bed = Bed::take();
    // Longer than this takes: nothing is to be moved.
    let config = json!({"gateway-down-seconds": 600});
    let runner = Runner::with(&bed, &Setup { templates: &[SERVICE], config, ..Setup::default() });
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    let before = runner.wait_for(&id, "available", 60);
    let external = before["services"][0]["external-ip"].as_str().unwrap().to_owned();
    let gateway = GATEWAYS.into_iter().find(|gateway| bed.external(gateway).to_string() == external).unwrap();
    let down = bed.fault("unplug", gateway, None);
    let told = until("it is called stale", 90, || runner.api.job(&id), |job| job["stale"] == true);
    assert!(told["message"].as_str().unwrap().contains("does not answer"), "{told:#}");
    assert_eq!((&told["state"], &told["services"]), (&json!("available"), &before["services"]));
    down.mend();
    let after =
        until("it is fresh again", 60, || runner.api.job(&id), |job| job["stale"] == false && job["state"] == "available");
    assert_eq!(after["services"], before["services"]);
}

#[test]
fn a_name_that_the_gateways_cannot_resolve_costs_no_other_job_anything() {
    let bed = Bed::take();
    let on = |name: &'static str, node: &str| {
        let text = SERVICE.1.replace("--nodes=1", &format!("--nodes=1 --nodelist={node}"));
        (name, text)
    };
    let (first, second) = (on("on_c1.txt", "c1"), on("on_c2.txt", "c2"));
    let templates = [(first.0, first.1.as_str()), (second.0, second.1.as_str())];
    // One block of ports, so that both jobs have theirs in the same chain.
    let runner = Runner::with(&bed, &Setup { templates: &templates, ports: (50000, 50099), ..Setup::default() });
    let old = runner.api.submit("alice", first.0, &json!({}));
    let before = runner.wait_for(&old, "available", 60);
    let _forgotten = Forgotten::name(&bed, "c1-ib0");
    let new: Vec<String> = (0..2).map(|_| runner.api.submit("alice", second.0, &json!({}))).collect();
    for id in &new {
        runner.wait_for(id, "available", 60);
    }
    fetch(&bed, &before, "/bytes").expect("the rule that was there keeps its address");
}

/// A name that no host of the bed knows for as long as this lives.
struct Forgotten<'b> {
    bed: &'b Bed,
    hosts: String,
}

impl<'b> Forgotten<'b> {
    fn name(bed: &'b Bed, name: &str) -> Self {
        let hosts = bed.sh("gw0", "cat /etc/hosts");
        let others: Vec<&str> = hosts.lines().filter(|line| !line.split_whitespace().any(|word| word == name)).collect();
        assert!(others.len() < hosts.lines().count(), "{name} stands in {hosts}");
        let forgotten = Self { bed, hosts: hosts.clone() };
        forgotten.write(&others.join("\n"));
        forgotten
    }

    fn write(&self, hosts: &str) {
        self.bed.sh("gw0", &format!("cat >/etc/hosts <<'END'\n{hosts}\nEND"));
    }
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        self.write(&self.hosts);
    }
}
