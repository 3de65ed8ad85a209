//! Gateways that die, come back, forget, and are drained; jobs that begin anew; and how long a rule outlives its job.

use crate::main_path::fetch;
use crate::templates::{SERVICE, SEVERAL};
use bwvisu_tests::books::{Books, disagreements, leftovers};
use bwvisu_tests::gateway::{GATEWAYS, all_forwardings, forget_rules, forwardings, forwardings_of, host_of, other, without_ssh};
use bwvisu_tests::slurm::Queue;
use bwvisu_tests::wait::{throughout, until};
use bwvisu_tests::{Bed, Broken, Runner, Setup};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

const HALF: f64 = 0.5;

/// Cycles of this many seconds, and gateways that are not given up while a test lasts: nothing moves by itself.
fn setup(cycle: f64) -> Setup<'static> {
    giving_up(cycle, 600.0)
}

/// Gateways that are given up after so many seconds.
fn giving_up(cycle: f64, after: f64) -> Setup<'static> {
    let config = json!({"watch": {"jobs-seconds": cycle, "keyhole-seconds": cycle}, "gateway-down-seconds": after});
    Setup { templates: &[SERVICE, SEVERAL], config, ..Setup::default() }
}

/// How often the watcher of the gateways has done something: a whole cycle, or a look at jobs that are starting, one of them every half
/// second. On a slow machine it comes round less often.
pub fn steps(runner: &Runner) -> u64 {
    runner.api.count("bwvisu_watch_cycle_seconds_count{role=\"keyhole-watch-default\"}")
}

/// Looks until it is done; how many steps the watcher had made before the last look that found it not done.
pub fn steps_until<T: Debug>(runner: &Runner, what: &str, mut look: impl FnMut() -> T, done: impl Fn(&T) -> bool) -> u64 {
    let begun = steps(runner);
    let (mut in_vain, mut now) = (begun, begun);
    let look = || {
        (in_vain, now) = (now, steps(runner));
        look()
    };
    until(what, 15, look, done);
    in_vain - begun
}

/// What each service of a job says to a user outside.
fn greetings(bed: &Bed, job: &Value) -> Vec<String> {
    let services = job["services"].as_array().unwrap().iter();
    let address = |service: &Value| format!("{}:{}", service["external-ip"].as_str().unwrap(), service["external-port"]);
    services.map(|service| greeting(bed, &address(service)).unwrap_or_else(|error| error.to_string())).collect()
}

fn greeting(bed: &Bed, address: &str) -> std::io::Result<String> {
    bed.at("outside", || {
        let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    })
}

/// All three ports of a job of [`SEVERAL`] lead to the right ones inside.
fn assert_reached(bed: &Bed, id: &str, job: &Value) {
    let expected: Vec<String> = (0..3).map(|port| format!("port {port} of job {id}")).collect();
    assert_eq!(greetings(bed, job), expected, "{job:#}");
}

fn numbers(job: &Value, member: &str) -> Vec<u64> {
    job["services"].as_array().unwrap().iter().map(|service| service[member].as_u64().unwrap()).collect()
}

fn external(job: &Value) -> Vec<u64> {
    numbers(job, "external-port")
}

/// Waits until a job is available behind this gateway.
fn behind(runner: &Runner, bed: &Bed, id: &str, gateway: &str, seconds: u64) -> Value {
    let address = bed.external(gateway).to_string();
    let there = |job: &Value| job["state"] == "available" && job["services"][0]["external-ip"] == address.as_str();
    until(&format!("job {id} behind {gateway}"), seconds, || runner.api.job(id), there)
}

/// Keeps new forwardings away from a gateway, as an admin would by the configuration file.
fn drain_by_file(runner: &Runner, bed: &Bed, drained: &[&str]) {
    let path = runner.config_file();
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for gateway in config["gateway-nodes"].as_array_mut().unwrap() {
        let is_drained = drained.iter().any(|host| gateway["internal-ip"] == bed.ip(host).to_string());
        gateway["drain"] = is_drained.into();
    }
    fs::write(&path, config.to_string()).unwrap();
    reload(runner);
}

fn reload(runner: &Runner) {
    let count = || runner.log().matches(RELOADED).count();
    let before = count();
    let pid = i32::try_from(runner.pid()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    until("the new configuration", 20, count, |count| *count > before);
}

const RELOADED: &str = "SIGHUP: read again";

/// Store, Slurm and gateways agree, by our own account and by the runner's.
fn settled(bed: &Bed, queue: &Queue, runner: &Runner, seconds: u64) {
    until("everything to agree", seconds, || disagreements(bed, queue), Vec::is_empty);
    assert_eq!(runner.api.audit(), [] as [Value; 0]);
}

fn nothing_left(bed: &Bed, queue: &Queue, runner: &Runner) {
    for id in runner.api.jobs() {
        runner.api.cancel(&id);
        runner.wait_for(&id, "finished", 40);
    }
    until("nothing to be left", 30, || leftovers(bed, queue), Vec::is_empty);
    assert_eq!(runner.api.audit(), [] as [Value; 0]);
}

/// What has still to be removed from gateways.
fn closings(bed: &Bed) -> Vec<String> {
    Books::read(bed).under("gateways/").map(|(key, _)| key.to_owned()).filter(|key| key.contains("/closing/")).collect()
}

#[test]
fn the_jobs_of_a_gateway_that_dies_are_reached_through_the_other_and_back_again() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::with(&bed, &giving_up(HALF, 3.0));
    drain_by_file(&runner, &bed, &["gw1"]);
    let ids: Vec<String> = (0..4).map(|_| runner.api.submit("alice", SEVERAL.0, &json!({}))).collect();
    let before: Vec<Value> = ids.iter().map(|id| behind(&runner, &bed, id, "gw0", 60)).collect();
    ids.iter().zip(&before).take(3).for_each(|(id, job)| assert_reached(&bed, id, job));
    drain_by_file(&runner, &bed, &[]);
    // On the other gateway somebody has one of the second job's ports.
    let taken = external(&before[1])[1];
    let stranger = bed.spawn("gw1", &["sh", "-c", &format!("cd /; exec python3 -m http.server {taken}")]);
    until("the stranger", 20, || bed.sh("gw1", "ss -Hltn"), |list| list.contains(&format!(":{taken} ")));

    let dead = bed.fault("stop-host", "gw0", None);
    let begun = Instant::now();
    // The fourth ends while its gateway is dead, before anything moves.
    assert_eq!(runner.api.cancel(&ids[3]).status, 200);
    let moved: Vec<Value> = ids[..3].iter().map(|id| behind(&runner, &bed, id, "gw1", 90)).collect();
    println!("three jobs were behind the other gateway {:.1} s after theirs died", begun.elapsed().as_secs_f64());
    runner.wait_for(&ids[3], "finished", 30);
    ids.iter().zip(&moved).for_each(|(id, job)| assert_reached(&bed, id, job));
    for (at, (moved, before)) in moved.iter().zip(&before).enumerate() {
        assert_eq!(numbers(moved, "internal-port"), numbers(before, "internal-port"), "the application noticed nothing");
        assert_eq!(external(moved) == external(before), at != 1, "other numbers only where one is taken: {moved:#}");
    }
    assert!(!external(&moved[1]).contains(&taken));
    assert_eq!(closings(&bed).len(), 4, "what has to go when it comes back");

    dead.mend();
    let begun = Instant::now();
    until("the ports on the rebooted gateway to be free", 60, || closings(&bed), Vec::is_empty);
    println!("rebooted: its ports were free {:.1} s after it stood again", begun.elapsed().as_secs_f64());
    settled(&bed, &queue, &runner, 20);
    drop(stranger);

    let dead = bed.fault("stop-host", "gw1", None);
    let back: Vec<Value> = ids[..3].iter().map(|id| behind(&runner, &bed, id, "gw0", 90)).collect();
    ids.iter().zip(&back).for_each(|(id, job)| assert_reached(&bed, id, job));
    back.iter().zip(&moved).for_each(|(back, moved)| assert_eq!(external(back), external(moved), "all of them are free there"));
    dead.mend();
    until("the ports on the second gateway to be free", 60, || closings(&bed), Vec::is_empty);
    settled(&bed, &queue, &runner, 20);
    nothing_left(&bed, &queue, &runner);
}

#[test]
fn a_gateway_that_was_cut_off_loses_its_stale_rules_within_two_cycles_of_its_return() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::with(&bed, &giving_up(1.0, 6.0));
    let id = runner.api.submit("alice", SEVERAL.0, &json!({}));
    let job = runner.wait_for(&id, "available", 60);
    let gateway = host_of(&bed, &job);
    let cut = bed.fault("unplug", gateway, None);
    let begun = Instant::now();
    let moved = behind(&runner, &bed, &id, other(gateway), 120);
    println!("behind the other gateway {:.1} s after the cut", begun.elapsed().as_secs_f64());
    assert_reached(&bed, &id, &moved);
    assert!(!forwardings(&bed, gateway).is_empty(), "nobody could remove its rules");
    cut.mend();
    let begun = Instant::now();
    let left = || (forwardings(&bed, gateway), closings(&bed));
    let gone = |(rules, ports): &(Vec<String>, Vec<String>)| rules.is_empty() && ports.is_empty();
    let steps = steps_until(&runner, "its stale rules to be gone, and its ports to be free", left, gone);
    println!("plugged in again: rules gone, and ports free, after {:.1?} and {steps} steps", begun.elapsed());
    assert!(steps <= 8, "a cycle that was under way, and two more of two steps each: {steps} steps");
    settled(&bed, &queue, &runner, 20);
    nothing_left(&bed, &queue, &runner);
}

#[test]
fn a_gateway_that_is_drained_by_the_configuration_gets_nothing_new_and_keeps_what_it_has() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::with(&bed, &setup(HALF));
    let old = runner.api.submit("alice", SEVERAL.0, &json!({}));
    let before = runner.wait_for(&old, "available", 60);
    let drained = host_of(&bed, &before);
    drain_by_file(&runner, &bed, &[drained]);
    for _ in 0..3 {
        let id = runner.api.submit("alice", SEVERAL.0, &json!({}));
        behind(&runner, &bed, &id, other(drained), 60);
    }
    assert_reached(&bed, &old, &before);
    assert_eq!(runner.api.job(&old)["services"], before["services"]);

    drain_by_file(&runner, &bed, &GATEWAYS);
    let waiting = runner.api.submit("alice", SEVERAL.0, &json!({}));
    runner.wait_for(&waiting, "running", 30);
    until("the log to say why", 30, || runner.log(), |log| log.contains("all gateways are drained"));
    throughout("the client keeps trying", Duration::from_secs(4), || runner.api.job(&waiting), |job| job["state"] == "running");
    drain_by_file(&runner, &bed, &[other(drained)]);
    behind(&runner, &bed, &waiting, drained, 60);
    settled(&bed, &queue, &runner, 20);
    nothing_left(&bed, &queue, &runner);
}

/// `bwvisu-runner gateway …`: what it printed.
fn gateway_command(bed: &Bed, runner: &Runner, words: &str) -> String {
    let words = runner.program(&format!("gateway {words}"));
    let output = bed.exec("runner", &words.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_admin_drains_a_gateway_by_command_and_opens_it_again_by_request() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let mut runner = Runner::with(&bed, &setup(HALF));
    let [first, second] = GATEWAYS.map(|host| bed.ip(host).to_string());
    let line = |text: &str, address: &str| text.lines().find(|line| line.contains(address)).unwrap_or_default().to_owned();
    let condition = |runner: &Runner, address: &str| line(&gateway_command(&bed, runner, "list"), address);
    assert!(condition(&runner, &first).ends_with("ok"), "{}", condition(&runner, &first));
    assert!(gateway_command(&bed, &runner, &format!("drain {first}")).contains("drained by an admin"));
    // It outlives the program.
    runner.kill();
    runner.start_again();
    assert!(condition(&runner, &first).contains("drained by an admin") && condition(&runner, &second).ends_with("ok"));
    let id = runner.api.submit("alice", SEVERAL.0, &json!({}));
    let job = behind(&runner, &bed, &id, "gw1", 60);
    assert_reached(&bed, &id, &job);

    let drain =
        |method: &str, address: &str| runner.api.call(method, &format!("/cluster/gateways/{address}/drain"), &Value::Null);
    assert_eq!(drain("PUT", &second).body["drained"], "by an admin");
    let waiting = runner.api.submit("alice", SEVERAL.0, &json!({}));
    runner.wait_for(&waiting, "running", 30);
    until("the log to say why", 30, || runner.log(), |log| log.contains("all gateways are drained"));
    assert_eq!(runner.api.job(&id)["services"], job["services"], "what is there stays");
    assert_eq!(drain("DELETE", &first).body["drained"], Value::Null);
    behind(&runner, &bed, &waiting, "gw0", 60);
    drain("PUT", "10.9.9.9").assert_problem("a gateway that nobody knows", 404, "no gateway 10.9.9.9");
    settled(&bed, &queue, &runner, 20);
    assert!(gateway_command(&bed, &runner, &format!("undrain {second}")).lines().last().unwrap().ends_with("ok"));
    nothing_left(&bed, &queue, &runner);
}

/// Puts a running job back into the queue, and waits until everybody knows.
pub fn requeue(bed: &Bed, runner: &Runner, id: &str) -> String {
    let slurm = runner.api.job(id)["scheduler-job-id"].as_str().unwrap().to_owned();
    // Slurm calls a job failed, rather than requeued, whose script it was just about to start.
    thread::sleep(Duration::from_secs(1));
    bed.sh("cmd0", &format!("scontrol requeue {slurm}"));
    runner.wait_for(id, "submitted", 30);
    slurm
}

/// Starts a requeued job's next run; Slurm itself would wait for two minutes.
pub fn start_next_run(bed: &Bed, runner: &Runner, id: &str, slurm: &str) -> Value {
    // Its node needs some seconds to clean up after the first run.
    thread::sleep(Duration::from_secs(7));
    let look = || {
        let _ = bed.exec("cmd0", &["scontrol", "update", &format!("JobId={slurm}"), "StartTime=now"]);
        runner.api.job(id)
    };
    let job = until("the next run", 90, look, |job| job["state"] == "available" || job["state"] == "finished");
    assert_eq!(job["state"], "available", "{job:#}");
    job
}

#[test]
fn a_requeued_job_keeps_its_ports_gets_others_where_they_are_taken_and_another_gateway_where_its_own_is_dead() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::with(&bed, &setup(HALF));
    let ids: Vec<String> = (0..3).map(|_| runner.api.submit("alice", SEVERAL.0, &json!({}))).collect();
    let before: Vec<Value> = ids.iter().map(|id| runner.wait_for(id, "available", 60)).collect();
    let slurm: Vec<String> = ids.iter().map(|id| requeue(&bed, &runner, id)).collect();
    until("the first runs' rules to be gone", 20, || all_forwardings(&bed), Vec::is_empty);
    until("their ports to be free", 20, || closings(&bed), Vec::is_empty);
    // The first is undisturbed; a port of the second is taken; the third's gateway does not answer.
    let kept = start_next_run(&bed, &runner, &ids[0], &slurm[0]);
    assert_eq!(kept["services"].as_array().unwrap().len(), 3);
    assert_eq!((external(&kept), host_of(&bed, &kept)), (external(&before[0]), host_of(&bed, &before[0])));
    assert_reached(&bed, &ids[0], &kept);

    let taken = external(&before[1])[0];
    let stranger = bed.spawn(host_of(&bed, &before[1]), &["sh", "-c", &format!("cd /; exec python3 -m http.server {taken}")]);
    until("the stranger", 20, || bed.sh(host_of(&bed, &before[1]), "ss -Hltn"), |list| list.contains(&format!(":{taken} ")));
    let other_ports = start_next_run(&bed, &runner, &ids[1], &slurm[1]);
    assert!(!external(&other_ports).contains(&taken), "{other_ports:#}");
    assert_reached(&bed, &ids[1], &other_ports);
    drop(stranger);

    let gateway = host_of(&bed, &before[2]);
    let dead = bed.fault("stop-host", gateway, None);
    let begun = Instant::now();
    let elsewhere = start_next_run(&bed, &runner, &ids[2], &slurm[2]);
    println!("behind the other gateway {:.1} s after its own died (7 s of them its node's)", begun.elapsed().as_secs_f64());
    assert_eq!(host_of(&bed, &elsewhere), other(gateway));
    assert_eq!(external(&elsewhere), external(&before[2]), "the same numbers");
    assert_reached(&bed, &ids[2], &elsewhere);
    dead.mend();
    settled(&bed, &queue, &runner, 60);
    nothing_left(&bed, &queue, &runner);
}

#[test]
fn a_job_that_begins_anew_while_its_gateway_is_dead_gets_ports_on_the_other_at_once() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::with(&bed, &setup(HALF));
    let id = runner.api.submit("alice", SEVERAL.0, &json!({}));
    let before = runner.wait_for(&id, "available", 60);
    let gateway = host_of(&bed, &before);
    let dead = without_ssh(&bed, gateway);
    until("the gateway to be missed", 30, || runner.log(), |log| log.contains("cannot be reached"));
    let slurm = requeue(&bed, &runner, &id);
    let after = start_next_run(&bed, &runner, &id, &slurm);
    assert_eq!(host_of(&bed, &after), other(gateway));
    assert_reached(&bed, &id, &after);
    assert!(!forwardings(&bed, gateway).is_empty(), "the first run's rules are still there");
    drop(dead);
    until("they go when it is back", 30, || forwardings(&bed, gateway), Vec::is_empty);
    settled(&bed, &queue, &runner, 20);
    nothing_left(&bed, &queue, &runner);
}

/// A partition whose jobs push out those of the usual one.
const PREEMPTION: &str = "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n\
    PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE\n\
    PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF";

fn restart_slurmctld(bed: &Bed) {
    bed.fault("stop-daemon", "ctl", Some("slurmctld")).mend();
    until("Slurm to answer", 40, || bed.exec("cmd0", &["squeue"]).status.success(), |answers| *answers);
}

#[test]
fn a_job_that_makes_room_for_another_comes_back_with_the_same_ports() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let conf = Broken::slurm_conf(&bed, PREEMPTION, false);
    restart_slurmctld(&bed);
    let whole_node = SEVERAL.1.replace("--nodes=1", "--nodes=1 --exclusive --nodelist=c2 --requeue");
    let runner = Runner::with(&bed, &Setup { templates: &[("whole_node.txt", &whole_node)], ..setup(HALF) });
    let id = runner.api.submit("alice", "whole_node.txt", &json!({}));
    let before = runner.wait_for(&id, "available", 60);
    thread::sleep(Duration::from_secs(1));
    let urgent =
        bed.sh_as("cmd0", "bob", "sbatch --parsable -p urgent --exclusive --nodelist=c2 --wrap 'sleep 60'").trim().to_owned();
    runner.wait_for(&id, "submitted", 60);
    until("its rules to be gone", 20, || forwardings_of(&bed, &id), Vec::is_empty);
    let state = || bed.sh("cmd0", &format!("squeue --noheader --job {urgent} --format=%T")).trim().to_owned();
    until("the other to run", 60, state, |state| state == "RUNNING");
    bed.sh("cmd0", &format!("scancel {urgent}"));
    let slurm = runner.api.job(&id)["scheduler-job-id"].as_str().unwrap().to_owned();
    let after = start_next_run(&bed, &runner, &id, &slurm);
    assert_eq!((external(&after), host_of(&bed, &after)), (external(&before), host_of(&bed, &before)));
    assert_reached(&bed, &id, &after);
    nothing_left(&bed, &queue, &runner);
    drop(conf);
    restart_slurmctld(&bed);
}

#[test]
fn a_gateway_that_forgot_its_rules_has_them_again_within_one_cycle() {
    let bed = Bed::take();
    let runner = Runner::with(&bed, &setup(4.0));
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    let job = runner.wait_for(&id, "available", 60);
    let gateway = host_of(&bed, &job);
    let mut taken = Vec::new();
    for at in 0_u64..5 {
        // At different times of the cycle.
        thread::sleep(Duration::from_millis(4000 + 700 * at));
        if at % 2 == 0 {
            forget_rules(&bed, gateway);
        } else {
            bed.sh(
                gateway,
                "iptables -t nat -S | awk '/^-A BWVISU-[0-9]/ { print $2 }' | sort -u | xargs -n 1 iptables -t nat -F",
            );
        }
        let rules = || forwardings_of(&bed, &id).len();
        taken.push(steps_until(&runner, "its rule to be there again", rules, |count| *count == 1));
        until("users to get through", 5, || fetch(&bed, &job, "/bytes").is_ok(), |reached| *reached);
    }
    println!("rules were there again after {taken:?} steps, with cycles of 8");
    taken.sort_unstable();
    // A cycle that was under way may have looked before. Once a machine that stands still may make the gateway miss a cycle; a watcher that
    // needed two of them would be late most of the times.
    assert!(taken[3] <= 10, "one cycle is eight steps: {taken:?}");
}

/// For how many steps each job's rules were there after Slurm showed it as ended.
fn lifetimes_after_the_end(bed: &Bed, queue: &Queue, runner: &Runner, names: &BTreeMap<String, String>) -> Vec<u64> {
    let (mut ended, mut gone) = (BTreeMap::new(), BTreeMap::new());
    let mut before = steps(runner);
    until(
        "all rules to be gone",
        60,
        || {
            let slurm = queue.jobs();
            let now = steps(runner);
            let over = |name: &str| {
                slurm.get(name).is_none_or(|entry| !["PENDING", "RUNNING", "COMPLETING"].contains(&entry.state.as_str()))
            };
            names.iter().filter(|(_, name)| over(name)).for_each(|(id, _)| {
                ended.entry(id.clone()).or_insert(now);
            });
            let rules = all_forwardings(bed);
            let there = |id: &str| rules.iter().any(|rule| rule.contains(&format!("bwvisu:default:{id}:")));
            names.keys().filter(|id| !there(id)).for_each(|id| {
                gone.entry(id.clone()).or_insert(before);
            });
            // Whatever is there by now was there at this step.
            before = now;
            gone.len()
        },
        |count| *count == names.len(),
    );
    names.keys().map(|id| gone[id].saturating_sub(*ended.get(id).unwrap_or(&gone[id]))).collect()
}

/// For how many steps the rules of ten jobs outlive them at most.
fn longest_lifetime(bed: &Bed, queue: &Queue, runner: &Runner) -> u64 {
    let ids: Vec<String> = (0..10).map(|_| runner.api.submit("alice", SERVICE.0, &json!({}))).collect();
    let jobs: Vec<Value> = ids.iter().map(|id| runner.wait_for(id, "available", 90)).collect();
    let slurm: BTreeMap<String, String> = queue.jobs().into_iter().map(|(name, entry)| (entry.id, name)).collect();
    let name = |job: &Value| slurm[job["scheduler-job-id"].as_str().unwrap()].clone();
    let names: BTreeMap<String, String> = ids.iter().cloned().zip(jobs.iter().map(name)).collect();
    let times = thread::scope(|scope| {
        let watching = scope.spawn(|| lifetimes_after_the_end(bed, queue, runner, &names));
        // Past the runner, so that it learns of each end by its own looks alone; at all times of the cycle.
        for job in &jobs {
            bed.sh("cmd1", &format!("scancel {}", job["scheduler-job-id"].as_str().unwrap()));
            thread::sleep(Duration::from_millis(1300));
        }
        watching.join().unwrap()
    });
    println!("rules outlived their jobs by {times:?} steps, with cycles of 12");
    times.into_iter().max().unwrap()
}

#[test]
fn a_rule_outlives_its_job_by_two_cycles_at_most() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::with(&bed, &setup(6.0));
    // Two cycles are 24 steps, and the look at Slurm comes on top. A machine that stands still may spoil a look, so this is the best of three.
    let fine = (0..3).any(|_| longest_lifetime(&bed, &queue, &runner) < 35);
    assert!(fine, "a rule outlives its job by three cycles");
    nothing_left(&bed, &queue, &runner);
}
