//! Requests for ports that must be refused: each is counted and logged, and no rule appears.

use crate::templates::PORTLESS;
use bwvisu_tests::gateway::{GATEWAYS, all_forwardings, saved};
use bwvisu_tests::keyhole::{Answer, ask, confirm, nonce, post, request, token_of};
use bwvisu_tests::wait::until;
use bwvisu_tests::{Bed, Runner, Setup};
use keyhole_protocol::{CONFIRM_PATH, Grant, PORTS_PATH, Purpose, Request, Token, sign};
use serde_json::{Value, json};
use std::thread;

/// A job that runs on one node and has not asked for ports: we ask in its name.
struct Mute {
    id: String,
    node: String,
    token: Token,
}

fn start<'b>(bed: &'b Bed) -> (Runner<'b>, Mute) {
    let runner = Runner::with(bed, &Setup { templates: &[PORTLESS], max_ports: 10, ..Setup::default() });
    let mute = mute(bed, &runner);
    until("the chains to be there", 15, || runner.log(), |log| log.matches("chains BWVISU set up").count() == 2);
    (runner, mute)
}

fn mute(bed: &Bed, runner: &Runner) -> Mute {
    let id = runner.api.submit("alice", PORTLESS.0, &json!({"seconds": "300"}));
    let job = runner.wait_for(&id, "running", 20);
    let node = job["details"]["NodeList"].as_str().unwrap().to_owned();
    Mute { token: token_of(bed, &id), id, node }
}

/// What both gateways hold.
fn tables(bed: &Bed) -> [String; 2] {
    GATEWAYS.map(|gateway| saved(bed, gateway))
}

#[test]
fn wrong_altered_and_excessive_requests_are_refused_counted_and_logged_and_no_rule_appears() {
    let bed = Bed::take();
    let (runner, mute) = start(&bed);
    let other = ["c0", "c1", "c2", "c3"].into_iter().find(|node| *node != mute.node).unwrap();
    let before = tables(&bed);
    let good = request(&mute.id, 1, 2, &[&mute.node]);
    let ask_with = |change: &dyn Fn(&mut Request)| {
        let mut request = good.clone();
        change(&mut request);
        ask(&bed, &mute.node, &mute.token, &request)
    };
    let body = good.to_body();
    let signature = sign(&mute.token, Purpose::Request, body.as_bytes());
    let send = |body: &str, signature: &str| post(&bed, &mute.node, PORTS_PATH, body, signature);
    let as_confirmation = sign(&mute.token, Purpose::Confirm, body.as_bytes());

    type Case<'c> = (&'c str, Answer, u16, &'c str);
    let cases: [Case; 13] = [
        ("a wrong token", ask(&bed, &mute.node, &Token::from_bytes([7; 32]), &good), 403, "wrong signature"),
        ("no signature", send(&body, ""), 403, "wrong signature"),
        ("a signature for another purpose", send(&body, &as_confirmation), 403, "wrong signature"),
        ("more ports than were signed", send(&body.replace("ports 2", "ports 3"), &signature), 403, "wrong signature"),
        ("another node than was signed", send(&body.replace(&mute.node, other), &signature), 403, "wrong signature"),
        (
            "another nonce than was signed",
            send(&Request { nonce: nonce(9), ..good.clone() }.to_body(), &signature),
            403,
            "wrong signature",
        ),
        ("an unknown job", ask_with(&|request| request.job = 4711), 403, "unknown job"),
        ("a run that is to come", ask_with(&|request| request.run = 1), 403, "not the job's present run"),
        (
            "a host that is not the job's",
            ask_with(&|request| request.nodes = vec![other.to_owned()]),
            403,
            "hosts that are not the job's",
        ),
        ("one host too many", ask_with(&|request| request.nodes.push(other.to_owned())), 403, "hosts that are not the job's"),
        ("a gateway as host", ask_with(&|request| request.nodes = vec!["gw0".to_owned()]), 403, "hosts that are not the job's"),
        ("too many ports", ask_with(&|request| request.ports = 11), 400, "too many ports"),
        ("no ports", ask_with(&|request| request.ports = 0), 400, "expected `ports` and a decimal number from 1 to 1000"),
    ];
    let log = runner.log();
    for (what, answer, status, reason) in &cases {
        assert_eq!(answer.status, *status, "{what}: {answer:?}");
        let line = |line: &&str| line.contains("keyhole: ") && line.contains(reason);
        assert!(log.lines().any(|text| line(&text)), "{what}: no line with {reason:?} in the log");
    }
    assert_counted(&log, "wrong signature", 6);
    assert_counted(&log, "hosts that are not the job's", 3);
    assert_counted(&log, "unknown job", 1);
    assert_same_words(cases.iter().filter(|case| case.2 == 403).map(|case| &case.1));
    assert_eq!(tables(&bed), before, "no rule appears");

    let granted = ask(&bed, &mute.node, &mute.token, &good);
    assert_eq!(granted.status, 200, "the request as it should be: {granted:?}");
    assert!(!all_forwardings(&bed).is_empty());
}

/// The log line of the last refusal for this reason holds the count.
fn assert_counted(log: &str, reason: &str, count: usize) {
    assert!(log.contains(&format!("refused: {reason} ({count} so far)")), "{reason}: not counted to {count}");
}

/// Those who guess learn nothing from the answer.
fn assert_same_words<'a>(mut answers: impl Iterator<Item = &'a Answer>) {
    // All but a refusal's id, which is drawn anew for each request.
    let words = |answer: &Answer| {
        let mut body = serde_json::from_str(&answer.body).unwrap_or_else(|_| Value::from(answer.body.as_str()));
        let id = body.as_object_mut().and_then(|members| members.remove("request-id"));
        assert_eq!(id.is_some(), answer.status != 200, "{answer:?}");
        (answer.status, body)
    };
    let first = words(answers.next().unwrap());
    answers.for_each(|answer| assert_eq!(words(answer), first));
}

#[test]
fn a_request_may_be_repeated_until_it_is_confirmed_and_never_after() {
    let bed = Bed::take();
    let (runner, mute) = start(&bed);
    let good = request(&mute.id, 1, 2, &[&mute.node]);
    let ask_again = |request: &Request| ask(&bed, &mute.node, &mute.token, request);

    let first = ask_again(&good);
    let grant = Grant::parse(&first.body).unwrap_or_else(|error| panic!("{first:?}: {error:?}"));
    assert_eq!((grant.nonce, grant.ports.len()), (good.nonce, 2));
    let rules = tables(&bed);
    assert_eq!(ask_again(&good), first, "the same request gets the same answer");
    assert_eq!(ask_again(&request(&mute.id, 2, 2, &[&mute.node])).status, 403, "a second request");
    let stranger = post(&bed, "c3", CONFIRM_PATH, &good.to_body(), "");
    assert_ne!(stranger.status, 200, "nobody else can use it up");
    assert_eq!(ask_again(&good), first);

    assert_eq!(confirm(&bed, &mute.node, &mute.token, &good).status, 200);
    for (what, request) in [("a replay", good.clone()), ("a second request", request(&mute.id, 3, 1, &[&mute.node]))] {
        assert_eq!(ask_again(&request).status, 403, "{what}");
    }
    assert_counted(&runner.log(), "already used", 3);
    assert_eq!(tables(&bed), rules, "no rule appears");
}

#[test]
fn the_same_request_many_times_at_once_is_one_grant() {
    let bed = Bed::take();
    let (_runner, mute) = start(&bed);
    let good = request(&mute.id, 1, 3, &[&mute.node]);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(&bed, &mute.node, &mute.token, &good))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Those that came while the first was being answered are told to try again.
    assert!(answers.iter().all(|answer| answer.status == 200 || answer.status == 429), "{answers:?}");
    let granted: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert!(!granted.is_empty(), "{answers:?}");
    assert_same_words(granted.into_iter());
    let again = ask(&bed, &mute.node, &mute.token, &good);
    let ports = Grant::parse(&again.body).unwrap().ports.len();
    let rules: usize = all_forwardings(&bed).iter().map(|rule| ports_of(rule)).sum();
    assert_eq!((ports, rules), (3, 3), "{:?}", all_forwardings(&bed));
}

/// How many ports a rule forwards.
fn ports_of(rule: &str) -> usize {
    let words: Vec<&str> = rule.split(' ').collect();
    let at = words.iter().position(|word| *word == "--dport").unwrap();
    let (lo, hi) = words[at + 1].split_once(':').unwrap_or((words[at + 1], words[at + 1]));
    hi.parse::<usize>().unwrap() - lo.parse::<usize>().unwrap() + 1
}

#[test]
fn the_token_of_a_finished_job_is_worth_nothing() {
    let bed = Bed::take();
    let (runner, mute) = start(&bed);
    runner.api.cancel(&mute.id);
    runner.wait_for(&mute.id, "finished", 30);
    let before = tables(&bed);
    let answer = ask(&bed, &mute.node, &mute.token, &request(&mute.id, 1, 1, &[&mute.node]));
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_counted(&runner.log(), "the job has ended", 1);
    assert_eq!(tables(&bed), before);
}

#[test]
fn a_requeued_job_may_ask_once_more_and_only_for_its_present_run() {
    let bed = Bed::take();
    let (runner, mute) = start(&bed);
    let first = request(&mute.id, 1, 1, &[&mute.node]);
    assert_eq!(ask(&bed, &mute.node, &mute.token, &first).status, 200);
    let slurm = runner.api.job(&mute.id)["scheduler-job-id"].as_str().unwrap().to_owned();
    // Slurm calls a job failed, rather than requeued, whose script it was just about to start.
    std::thread::sleep(std::time::Duration::from_secs(2));
    bed.sh("cmd0", &format!("scontrol requeue {slurm}"));
    runner.wait_for(&mute.id, "submitted", 20);
    until("the first run's rules to be gone", 15, || all_forwardings(&bed), Vec::is_empty);
    // Slurm would wait two minutes, which is for its node daemon to clean up after the first run: some seconds do here.
    std::thread::sleep(std::time::Duration::from_secs(8));
    until("the second run", 60, || release(&bed, &runner, &slurm, &mute.id), |state| state == "running");

    let node = runner.api.job(&mute.id)["details"]["NodeList"].as_str().unwrap().to_owned();
    let stale = ask(&bed, &node, &mute.token, &request(&mute.id, 1, 1, &[&node]));
    assert_eq!(stale.status, 403, "a request of the first run: {stale:?}");
    assert!(all_forwardings(&bed).is_empty());
    let second = Request { run: 1, ..request(&mute.id, 2, 1, &[&node]) };
    assert_eq!(ask(&bed, &node, &mute.token, &second).status, 200);
    assert_eq!(all_forwardings(&bed).len(), 1);
}

fn release(bed: &Bed, runner: &Runner, slurm: &str, id: &str) -> String {
    let _ = bed.exec("cmd0", &["scontrol", "update", &format!("JobId={slurm}"), "StartTime=now"]);
    runner.api.job(id)["state"].as_str().unwrap().to_owned()
}
