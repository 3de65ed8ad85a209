//! A scenario in which the runner may be killed at any point of its own, and is started again by somebody who looks after it.

use crate::api::Reply;
use crate::bed::Bed;
use crate::books::leftovers;
use crate::runner::{Runner, Setup};
use crate::slurm::Queue;
use crate::wait::{PATIENCE, PAUSE};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

/// Seconds until a lease has run out, a watcher is led again, and has looked around.
const DEATH: u64 = 15;

/// What a front end asked for under one key.
struct Posted {
    key: String,
    body: Value,
    /// The id that it was given, if it was accepted.
    id: Option<String>,
}

/// The bed, the runner on it, and a front end that repeats whatever got no answer.
pub struct Stage<'b> {
    /// The bed.
    pub bed: &'b Bed,
    /// The process, if it lives.
    pub runner: Runner<'b>,
    queue: Queue<'b>,
    /// Where it is still to die, one after the other.
    points: VecDeque<String>,
    /// Where it died.
    deaths: Vec<String>,
    posted: Vec<Posted>,
}

impl<'b> Stage<'b> {
    /// Everything anew, and a runner ([`mortal`](crate::runner::mortal)) that dies at the first of `points` (`NAME:before` or `NAME:after`); started again,
    /// at the next.
    pub fn set(bed: &'b Bed, setup: &Setup, points: &[String]) -> Self {
        bed.clean();
        let runner = Runner::prepare(bed, setup);
        let queue = Queue::from_now(bed);
        let mut stage = Self { bed, runner, queue, points: VecDeque::new(), deaths: Vec::new(), posted: Vec::new() };
        stage.arm(points);
        stage
    }

    /// Starts the runner, which does not run, so that it dies at these points.
    pub fn arm(&mut self, points: &[String]) {
        self.points = points.iter().cloned().collect();
        self.launch();
    }

    fn launch(&mut self) {
        let reached = self.reached_file().to_string_lossy().into_owned();
        let mut environment = vec![("BWVISU_EFFECTS_FILE", reached.as_str())];
        environment.extend(self.points.front().map(|point| ("BWVISU_DIE_AT", point.as_str())));
        self.runner.launch(&environment);
        thread::sleep(PAUSE);
    }

    fn reached_file(&self) -> PathBuf {
        self.runner.folder().join("effects")
    }

    /// The names that the runner came by, in their order.
    pub fn reached(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in fs::read_to_string(self.reached_file()).unwrap_or_default().lines() {
            if names.iter().all(|known| known != name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Where it died so far.
    pub fn deaths(&self) -> &[String] {
        &self.deaths
    }

    /// Starts the runner again if it died as it was told to. Any other end is a failure.
    pub fn tend(&mut self) {
        if let Some(status) = self.runner.ended() {
            self.bury(status);
            self.launch();
        }
    }

    fn bury(&mut self, status: ExitStatus) {
        assert_eq!(status.signal(), Some(9), "the runner ended by itself, {status}");
        let point = self.points.pop_front().expect("it dies only where it was told to");
        println!("    died at {point}");
        self.deaths.push(point);
    }

    /// Ends the runner in good order and starts it again; where it has not died yet, it still will.
    pub fn restart(&mut self) {
        self.tend();
        let status = self.runner.terminate();
        // It may die at its point while it ends; and one that has just been started does not listen for signals yet.
        if !status.success() && status.signal() != Some(15) {
            self.bury(status);
        }
        self.launch();
    }

    /// Looks, while the runner is looked after, until there is something. After each death in between there is as much more time as it takes until
    /// the watchers are led again.
    pub fn until<T>(&mut self, what: &str, seconds: u64, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let (begun, before) = (Instant::now(), self.deaths.len());
        loop {
            self.tend();
            if let Some(found) = look(self) {
                return found;
            }
            let seconds = PATIENCE * (seconds + DEATH * (self.deaths.len() - before) as u64);
            assert!(begun.elapsed() < Duration::from_secs(seconds), "waited {seconds} s in vain for {what}");
            thread::sleep(PAUSE);
        }
    }

    fn send(&self, method: &str, path: &str, key: Option<&str>, body: &Value) -> Option<Reply> {
        let authorization = self.runner.api.authorization();
        let mut headers = vec![("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
        headers.extend(key.map(|key| ("Idempotency-Key", key)));
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.runner.api.try_send(method, path, &headers, text.as_bytes()).ok()
    }

    /// A request that may be repeated, until it has an answer.
    pub fn call(&mut self, method: &str, path: &str, body: &Value) -> Reply {
        self.until(&format!("an answer to {method} {path}"), 60, |stage| stage.send(method, path, None, body))
    }

    /// Asks for a job under a key, again and again until it is accepted or refused. At most so many seconds.
    pub fn ask(&mut self, key: &str, template: &str, variables: &Value, seconds: u64) -> Reply {
        let body = json!({"uid": "alice", "template-name": template, "variables": variables});
        let reply = self.answer(key, &body, seconds);
        let id = reply.body["job-id"].as_str().map(str::to_owned);
        self.posted.push(Posted { key: key.to_owned(), body, id });
        reply
    }

    /// Asks for a job once. Nothing if there was no answer, or it is still open what came of it.
    pub fn ask_once(&self, key: &str, template: &str, variables: &Value) -> Option<Reply> {
        let body = json!({"uid": "alice", "template-name": template, "variables": variables});
        self.send("POST", "/jobs", Some(key), &body).filter(|reply| ![429, 503].contains(&reply.status))
    }

    /// Asks for a job once, without a key: nobody may ask again. Nothing if there was no answer.
    pub fn post_once(&self, template: &str, variables: &Value) -> Option<Reply> {
        let body = json!({"uid": "alice", "template-name": template, "variables": variables});
        self.send("POST", "/jobs", None, &body)
    }

    fn answer(&mut self, key: &str, body: &Value, seconds: u64) -> Reply {
        self.until(&format!("an answer for {key}"), seconds, |stage| {
            let open = |reply: &Reply| [429, 503].contains(&reply.status);
            let reply = stage.send("POST", "/jobs", Some(key), body)?;
            // Sooner than it is told to come back, but no flood either.
            thread::sleep(Duration::from_millis(if open(&reply) { 300 } else { 0 }));
            Some(reply).filter(|reply| !open(reply))
        })
    }

    /// The same for a job that must be accepted; returns its id.
    pub fn post(&mut self, key: &str, template: &str, variables: &Value) -> String {
        // A death of another thread's making may have left the submission open, which takes two minutes.
        let reply = self.ask(key, template, variables, 200);
        assert_eq!(reply.status, 200, "{key}: {reply:#?}");
        reply.body["job-id"].as_str().unwrap().to_owned()
    }

    /// A job as it is now.
    pub fn job(&mut self, id: &str) -> Value {
        let reply = self.call("GET", &format!("/jobs/{id}"), &Value::Null);
        assert_eq!(reply.status, 200, "job {id}: {reply:#?}");
        reply.body
    }

    /// Waits until a job is as `fine` says; it must not finish meanwhile.
    pub fn wait_until(&mut self, id: &str, what: &str, seconds: u64, fine: impl Fn(&Value) -> bool) -> Value {
        let job = self.until(&format!("job {id} to be {what}"), seconds, |stage| {
            let job = stage.job(id);
            (fine(&job) || job["state"] == "finished").then_some(job)
        });
        assert!(fine(&job), "job {id} was to be {what}: {job:#}");
        job
    }

    /// Waits for a state.
    pub fn wait_for(&mut self, id: &str, state: &str, seconds: u64) -> Value {
        self.wait_until(id, state, seconds, |job| job["state"] == state)
    }

    /// Waits for the end of a job, which must be this one.
    pub fn wait_for_end(&mut self, id: &str, outcome: &str) {
        let job = self.wait_for(id, "finished", 60);
        assert_eq!(job["outcome"], outcome, "{job:#}");
    }

    /// Cancels a job and waits for its end.
    pub fn cancel(&mut self, id: &str) {
        let before = self.deaths.len();
        let reply = self.call("DELETE", &format!("/jobs/{id}"), &Value::Null);
        // Repeated after a death, it may find that the first one has done it all. 503: noted, and the watcher does it.
        let late = reply.status == 404 && self.deaths.len() > before;
        assert!(reply.status == 200 || reply.status == 503 || late, "{reply:#?}");
        self.wait_for_end(id, "cancelled");
    }

    /// When all jobs have ended: nothing is left of them, in Slurm there was one job for each that was accepted and no other, and every
    /// request gets the same answer as before.
    pub fn settle(&mut self) {
        let mut left = Vec::new();
        let (begun, before) = (Instant::now(), self.deaths.len());
        while begun.elapsed() < Duration::from_secs(PATIENCE * (20 + DEATH * (self.deaths.len() - before) as u64)) {
            self.tend();
            left = leftovers(self.bed, &self.queue);
            if left.is_empty() {
                break;
            }
            thread::sleep(PAUSE);
        }
        assert!(left.is_empty(), "left over: {left:#?}");
        let audit = self.until("an audit", 40, |stage| stage.send("GET", "/cluster/audit", None, &Value::Null));
        assert_eq!((audit.status, &audit.body["disagreements"]), (200, &json!([])), "{audit:#?}");
        for Posted { key, body, id } in std::mem::take(&mut self.posted) {
            if id.is_some() {
                let again = self.answer(&key, &body, 20);
                assert_eq!(again.body["job-id"].as_str(), id.as_deref(), "{key}: the same answer again: {again:#?}");
            }
        }
    }

    /// Slurm had just these jobs of ours since the scenario began, each of them once.
    pub fn assert_in_slurm(&self, ids: &[&str]) {
        let of = |name: &String| name.trim_start_matches("bwvisu-").split('-').next().unwrap().to_owned();
        let mut had: Vec<String> = self.queue.jobs().keys().map(of).collect();
        let mut expected: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        had.sort();
        expected.sort();
        assert_eq!(had, expected, "one job in Slurm for each that was accepted: {:#?}", self.queue.jobs());
    }
}
