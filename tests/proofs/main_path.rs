//! From the front end's request to bytes at the user's browser, and back to nothing.

use crate::templates::{EXITING, PORTLESS, SERVICE, SLOW_SERVICE};
use bwvisu_tests::gateway::{all_forwardings, forwardings_of, records};
use bwvisu_tests::wait::{throughout, until};
use bwvisu_tests::{Bed, Runner, Setup};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What a user outside gets from a job's first service.
pub fn fetch(bed: &Bed, job: &Value, path: &str) -> std::io::Result<String> {
    let service = &job["services"][0];
    let address = format!("{}:{}", service["external-ip"].as_str().expect("an address"), service["external-port"]);
    bed.at("outside", || {
        let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    })
}

#[test]
fn a_posted_job_becomes_a_service_that_the_outside_reaches_until_it_is_cancelled() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SLOW_SERVICE]);
    let variables = json!({"image_name": "images/unused.sif"});
    let id = runner.api.submit("alice", SLOW_SERVICE.0, &variables);
    assert_eq!(id, "1", "ids are counted up from 1");
    assert_eq!(runner.api.jobs(), [id.as_str()]);
    let states = states_until_available(&runner, &id);
    assert_eq!(states, ["submitted", "running", "available"]);

    let job = runner.api.job(&id);
    assert_members(&bed, &job, &variables);
    let bytes = fetch(&bed, &job, "/bytes").expect("the outside reaches the application");
    assert!(bytes.ends_with("bytes of the application of job 1\n"), "{bytes}");
    assert_eq!(forwardings_of(&bed, &id).len(), 1);

    let reply = runner.api.cancel(&id);
    assert_eq!((reply.status, &reply.body), (200, &json!({"response": "job cancelled"})));
    let state = runner.api.job(&id)["state"].clone();
    assert!(state == "completing" || state == "finished", "{state}");
    let job = runner.wait_for(&id, "finished", 30);
    assert_eq!(job["outcome"], "cancelled", "{job:#}");
    assert!(job["finished-at"].is_string() && job["message"].as_str().unwrap().contains("cancelled"), "{job:#}");
    assert_nothing_is_left(&bed, &runner, &job);
    runner.api.cancel(&id).assert_problem("a second cancel", 404, "no such running job");
}

fn states_until_available(runner: &Runner, id: &str) -> Vec<String> {
    let mut states: Vec<String> = Vec::new();
    let look = || {
        let job = runner.api.job(id);
        let state = job["state"].as_str().unwrap().to_owned();
        let shown = job["services"].as_array().unwrap().len();
        assert_eq!(shown, usize::from(state == "available"), "services are shown while available: {job:#}");
        if states.last() != Some(&state) {
            states.push(state.clone());
        }
        state
    };
    until("the job to be available", 40, look, |state| state == "available" || state == "finished");
    states
}

fn assert_members(bed: &Bed, job: &Value, variables: &Value) {
    let gateways = [bed.external("gw0").to_string(), bed.external("gw1").to_string()];
    assert_eq!(job["job-id"], "1");
    assert_eq!(job["uid"], "alice");
    assert_eq!(job["batch-script"], json!({"template-name": SLOW_SERVICE.0, "variables": variables}));
    let service = job["services"][0].as_object().unwrap();
    assert_eq!(service.len(), 3, "{job:#}");
    assert!(gateways.iter().any(|ip| service["external-ip"] == ip.as_str()), "{job:#}");
    for port in ["internal-port", "external-port"] {
        assert!((50000..51000).contains(&service[port].as_u64().expect("an integer")), "{job:#}");
    }
    assert!(job["scheduler-job-id"].as_str().is_some_and(|id| id.bytes().all(|b| b.is_ascii_digit())), "{job:#}");
    assert_eq!((&job["details"]["State"], &job["details"]["Partition"]), (&json!("RUNNING"), &json!("all")), "{job:#}");
    assert_eq!((&job["outcome"], &job["finished-at"]), (&Value::Null, &Value::Null));
    let times: Vec<&str> =
        ["submitted-at", "started-at", "available-at"].iter().map(|name| job[name].as_str().unwrap()).collect();
    assert!(times.is_sorted() && times.iter().all(|time| time.len() == 20 && time.ends_with('Z')), "{times:?}");
    assert!(job["message"].as_str().is_some_and(|message| !message.is_empty()));
}

fn assert_nothing_is_left(bed: &Bed, runner: &Runner, job: &Value) {
    until("its rules to be gone", 15, || all_forwardings(bed), Vec::is_empty);
    until("its ports to be free", 15, || records(bed, "grants/"), String::is_empty);
    let ledger = records(bed, "gateways/");
    assert!(!ledger.contains("\"job\":"), "{ledger}");
    fetch(bed, job, "/bytes").expect_err("the forwarding is closed");
    assert!(runner.api.jobs().is_empty());
}

#[test]
fn the_ports_of_a_finished_job_are_given_to_the_next() {
    let bed = Bed::take();
    // Room for one job on each node, whichever gateway it is.
    let text = SERVICE.1.replace("PORTS 1", "PORTS 2");
    let setup = Setup { templates: &[(SERVICE.0, &text)], ports: (50000, 50001), max_ports: 2, ..Setup::default() };
    let runner = Runner::with(&bed, &setup);
    for _ in 0..3 {
        let id = runner.api.submit("bob", SERVICE.0, &json!({}));
        let job = runner.wait_for(&id, "available", 40);
        assert_eq!(job["services"][0]["external-port"], 50000);
        runner.api.cancel(&id);
        runner.wait_for(&id, "finished", 30);
    }
}

#[test]
fn jobs_that_end_by_themselves_say_how() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[EXITING, PORTLESS]);
    let timeout = runner.api.submit("alice", PORTLESS.0, &json!({"seconds": "300"}));
    let completed = runner.api.submit("alice", EXITING.0, &json!({"code": "0"}));
    let failed = runner.api.submit("bob", EXITING.0, &json!({"code": "3"}));
    let slurm = runner.wait_for(&timeout, "running", 20)["scheduler-job-id"].as_str().unwrap().to_owned();
    // Its wall time is over in a moment; Slurm looks at such things twice a minute.
    bed.sh("cmd0", &format!("scontrol update JobId={slurm} EndTime=now+1"));
    let job = runner.wait_for(&completed, "finished", 20);
    assert_eq!((&job["outcome"], &job["exit-code"]), (&json!("completed"), &json!(0)), "{job:#}");
    let job = runner.wait_for(&failed, "finished", 20);
    assert_eq!((&job["outcome"], &job["exit-code"]), (&json!("failed"), &json!(3)), "{job:#}");
    assert!(job["message"].as_str().unwrap().contains("exit code 3"), "{job:#}");
    let job = runner.wait_for(&timeout, "finished", 60);
    assert_eq!(job["outcome"], "timeout", "{job:#}");
    assert!(runner.api.jobs().is_empty());
}

#[test]
fn a_job_without_a_ports_line_runs_and_is_never_available() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    let id = runner.api.submit("alice", PORTLESS.0, &json!({"seconds": "15"}));
    runner.wait_for(&id, "running", 20);
    let running = |job: &Value| job["state"] == "running" && job["services"] == json!([]) && job["available-at"].is_null();
    throughout("it runs without services", Duration::from_secs(2), || runner.api.job(&id), running);
    let job = runner.wait_for(&id, "finished", 60);
    assert_eq!((&job["outcome"], &job["available-at"]), (&json!("completed"), &Value::Null), "{job:#}");
}
