//! Front ends and users: they submit, cancel, release and requeue, and repeat a request until it is answered.

use super::plan::Dice;
use super::tally::{Entry, Kind, Tally};
use bwvisu_tests::{Api, Bed, Reply};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

/// More jobs than this are not wanted at a time.
const LIVE: usize = 24;
/// So long after everything was mended a front end repeats a request before it calls it lost. A submission that may have been cut off is
/// waited for two minutes, by every leader anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(240);
/// How long each front end waits for an answer. Who is hasty repeats a request that is still being answered.
pub const PATIENCE: [Duration; 4] =
    [Duration::from_secs(30), Duration::from_secs(10), Duration::from_secs(3), Duration::from_millis(300)];
/// Slurm's node daemon cleans up after a job's first run before the second may begin.
const SECOND_RUN_AFTER: Duration = Duration::from_secs(8);

/// Listens on two ports, and says on both of them whose they are.
pub const SERVICE: &str = r#"#!/bin/bash
#SBATCH --time=60 --nodes=1 --nodelist=c{{node}}
#KEYHOLE-REQUEST-PORTS 2
exec python3 -S -E -c '
import os, select, socket
doors = []
for i in range(2):
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("", int(os.environ["KEYHOLE_PORT%d" % i])))
    door.listen(64)
    doors.append(door)
while True:
    for door in select.select(doors, [], [])[0]:
        try:
            guest, _ = door.accept()
            guest.sendall(b"job {{bwvisu_job_id}}\n")
            guest.close()
        except OSError:
            pass # it only knocked
'
"#;

/// All templates: names and texts.
pub fn templates() -> Vec<(&'static str, String)> {
    vec![
        ("soak_service.txt", SERVICE.to_owned()),
        ("soak_held.txt", SERVICE.replace("--nodes=1", "--nodes=1 --hold")),
        ("soak_short.txt", "#!/bin/bash\n#SBATCH --time=60 --nodes=1\nexec sleep {{seconds}}\n".to_owned()),
        ("soak_failing.txt", "#!/bin/bash\n#SBATCH --time=60 --nodes=1\nsleep 1\nexit {{code}}\n".to_owned()),
    ]
}

/// A front end that knows all runners, and asks whichever answers.
pub struct Front<'b> {
    apis: Vec<Api<'b>>,
    next: AtomicUsize,
}

impl<'b> Front<'b> {
    /// It waits no longer than `patience` for one of them.
    pub fn new(apis: &[Api<'b>], patience: Duration) -> Self {
        Self { apis: apis.iter().map(|api| api.with_patience(patience)).collect(), next: AtomicUsize::new(0) }
    }

    /// One request to the next runner.
    pub fn ask(&self, method: &str, path: &str, key: Option<&str>, body: &str) -> Result<Reply, String> {
        let api = &self.apis[self.next.fetch_add(1, Ordering::Relaxed) % self.apis.len()];
        let authorization = api.authorization();
        let mut headers = vec![("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
        headers.extend(key.map(|key| ("Idempotency-Key", key)));
        api.try_send(method, path, &headers, body.as_bytes())
    }

    /// The same request until somebody answers it: not at all, with 429 or with 5xx is no answer.
    pub fn insist(&self, tally: &Tally, what: (&str, &str), key: Option<&str>, body: &str) -> Option<Reply> {
        let begun = Instant::now();
        while tally.mended_for() < ANSWER_WITHIN {
            match self.ask(what.0, what.1, key, body) {
                Ok(reply) if reply.status != 429 && reply.status < 500 => {
                    tally.took(
                        if what.0 == "POST" { "POST until answered" } else { "DELETE or GET until answered" },
                        begun.elapsed(),
                    );
                    return Some(reply);
                }
                Ok(reply) => tally.count(if reply.status == 429 { "answers 429" } else { "answers 5xx" }),
                Err(_) => tally.count("requests without an answer"),
            }
            if what.0 == "POST" {
                tally.count("POSTs repeated");
            }
            thread::sleep(Duration::from_millis(300));
        }
        tally.wrong(format!("{} {} {key:?}: no answer in {ANSWER_WITHIN:?}", what.0, what.1));
        None
    }
}

/// One front end at work.
pub struct Worker<'b> {
    bed: &'b Bed,
    tally: &'b Tally,
    front: Arc<Front<'b>>,
    dice: Dice,
    name: String,
    sent: usize,
    second_runs: Vec<(Instant, String)>,
}

impl<'b> Worker<'b> {
    /// Its wishes follow from the seed; what comes of them does not.
    pub fn new(bed: &'b Bed, tally: &'b Tally, apis: &[Api<'b>], seed: u64, number: usize) -> Self {
        let (front, dice) = (Arc::new(Front::new(apis, PATIENCE[number])), Dice::new(seed, 100 + number as u64));
        Self { bed, tally, front, dice, name: format!("soak-{seed}-{number}"), sent: 0, second_runs: Vec::new() }
    }

    /// Works until the end, and until all that it asked for is answered.
    pub fn work(mut self) {
        thread::scope(|scope| self.work_in(scope));
    }

    fn work_in<'s>(&mut self, scope: &'s Scope<'s, '_>)
    where
        'b: 's,
    {
        while !self.tally.sleep(self.dice.time((200, 900))) {
            self.begin_second_runs();
            match self.dice.below(20) {
                0..9 if self.tally.live() < LIVE => self.submit(scope),
                0..11 => self.cancel(),
                11..15 => self.requeue(),
                15..17 => self.release(),
                17 => self.misuse_a_key(),
                _ => self.repeat(),
            }
        }
    }

    fn submit<'s>(&mut self, scope: &'s Scope<'s, '_>)
    where
        'b: 's,
    {
        let node = self.dice.below(4).to_string();
        let (kind, template, variables) = match self.dice.below(10) {
            0..5 => (Kind::Service, "soak_service.txt", json!({"node": node})),
            5 => (Kind::Held, "soak_held.txt", json!({"node": node})),
            6..9 => (Kind::Short, "soak_short.txt", json!({"seconds": (1 + self.dice.below(10)).to_string()})),
            _ => (Kind::Failing, "soak_failing.txt", json!({"code": (1 + self.dice.below(9)).to_string()})),
        };
        let user = ["alice", "bob"][self.dice.below(2)];
        let body = json!({"uid": user, "template-name": template, "variables": variables}).to_string();
        self.sent += 1;
        let key = format!("{}-{}", self.name, self.sent);
        let (tally, front) = (self.tally, Arc::clone(&self.front));
        scope.spawn(move || tally.expecting(|| submit(tally, &front, &key, &body, kind)));
    }

    /// One of the jobs that are so, which nobody else touches until [`Self::put_back`].
    fn take(&mut self, so: impl Fn(&Entry) -> bool) -> Option<(u64, Entry)> {
        let mut jobs = self.tally.jobs();
        let ids: Vec<u64> = jobs.iter().filter(|(_, job)| !job.busy && so(job)).map(|(id, _)| *id).collect();
        let id = *ids.get(self.dice.below(ids.len()))?;
        let job = jobs.get_mut(&id)?;
        job.busy = true;
        Some((id, job.clone()))
    }

    fn put_back(&self, id: u64) {
        if let Some(job) = self.tally.jobs().get_mut(&id) {
            job.busy = false;
        }
    }

    fn cancel(&mut self) {
        // A job that ends by itself is mostly left to do so.
        let spare = self.dice.below(4) > 0;
        // Most services are used for a while first.
        let patience = |job: &Entry| Duration::from_secs(if job.state == "available" { 25 } else { 45 });
        let wanted = |job: &Entry| {
            let stays = matches!(job.kind, Kind::Service | Kind::Held);
            !job.finished() && !job.cancelled && (stays || !spare) && (!spare || job.since.elapsed() > patience(job))
        };
        let Some((id, _)) = self.take(wanted) else { return };
        if let Some(job) = self.tally.jobs().get_mut(&id) {
            job.cancelled = true;
        }
        // A cancelled job stays busy: it may not be requeued any more.
        cancel(self.tally, &self.front, id);
    }

    fn requeue(&mut self) {
        let wanted = |job: &Entry| {
            job.kind == Kind::Service && !job.cancelled && job.state == "available" && job.since.elapsed().as_secs() >= 15
        };
        let Some((id, job)) = self.take(wanted) else { return };
        let Some(slurm) = job.slurm else { return self.put_back(id) };
        if self.bed.exec("ctl", &["scontrol", "requeue", &slurm]).status.success() {
            self.tally.count("jobs requeued");
            self.second_runs.push((Instant::now() + SECOND_RUN_AFTER, slurm));
        }
        self.put_back(id);
    }

    /// Slurm would let a requeued job wait for two minutes.
    fn begin_second_runs(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.second_runs).into_iter().partition(|(at, _)| *at <= now);
        self.second_runs = later;
        let due: Vec<(Instant, String)> = due;
        for (_, slurm) in due {
            self.bed.exec("ctl", &["scontrol", "update", &format!("JobId={slurm}"), "StartTime=now"]);
        }
    }

    fn release(&mut self) {
        let wanted = |job: &Entry| job.kind == Kind::Held && !job.cancelled && job.state == "submitted" && job.slurm.is_some();
        let Some((id, job)) = self.take(wanted) else { return };
        if self.bed.exec("ctl", &["scontrol", "release", &job.slurm.unwrap_or_default()]).status.success() {
            self.tally.count("jobs released");
        }
        self.put_back(id);
    }

    /// A request that was answered is repeated: there is no other job.
    fn repeat(&mut self) {
        let Some((id, job)) = self.any() else { return };
        let Some(reply) = self.front.insist(self.tally, ("POST", "/jobs"), Some(&job.key), &job.body) else { return };
        self.tally.count("answered requests repeated");
        if reply.status != 200 || reply.body["job-id"].as_str() != Some(&id.to_string()) {
            self.tally.wrong(format!("{} was job {id}, and is now {reply:?}", job.key));
        }
    }

    fn misuse_a_key(&mut self) {
        let Some((id, job)) = self.any() else { return };
        let body = job.body.replacen("soak_", "another_", 1);
        let Some(reply) = self.front.insist(self.tally, ("POST", "/jobs"), Some(&job.key), &body) else { return };
        self.tally.count("keys misused");
        if reply.status != 409 {
            self.tally.wrong(format!("the key of job {id} with another body: {reply:?}"));
        }
    }

    fn any(&mut self) -> Option<(u64, Entry)> {
        let jobs = self.tally.jobs();
        let at = self.dice.below(jobs.len());
        jobs.iter().nth(at).map(|(id, job)| (*id, job.clone()))
    }
}

/// Submits a job, however often that must be asked for.
fn submit(tally: &Tally, front: &Front, key: &str, body: &str, kind: Kind) {
    let Some(reply) = front.insist(tally, ("POST", "/jobs"), Some(key), body) else { return };
    let id = reply.body["job-id"].as_str().and_then(|id| id.parse().ok());
    let Some(id) = id.filter(|_| reply.status == 200) else {
        return tally.wrong(format!("{key}: refused: {reply:?}"));
    };
    tally.count("jobs accepted");
    let other = tally.jobs().insert(id, Entry::new(key, body, kind));
    if let Some(other) = other {
        tally.wrong(format!("job {id} was given for {key} and for {}", other.key));
    }
}

/// Cancels a job, however often that must be asked for. It may have ended meanwhile.
pub fn cancel(tally: &Tally, front: &Front, id: u64) {
    let Some(reply) = front.insist(tally, ("DELETE", &format!("/jobs/{id}")), None, "") else { return };
    match reply.status {
        200 => tally.count("jobs cancelled"),
        404 => tally.count("cancels of jobs that had ended"),
        _ => tally.wrong(format!("DELETE of job {id}: {reply:?}")),
    }
}
