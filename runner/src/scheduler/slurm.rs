//! Slurm, by its commands on the command nodes, over ssh.
//!
//! `sbatch` runs as the job's owner (`sudo -n -u USER`), with the script on its standard input. What jobs do is asked of `squeue` in two
//! ways: by an overview of all jobs of the cluster, which is short, and for the details of some, by their exact names, and ids if they are few: so a foreign job never
//! appears in these, and none can smuggle a line into the answer with a clever name. Only fields that a job's owner cannot fill with free text
//! are asked for, for the same reason: a folder's name may hold newlines, and anybody may call a job like ours.

mod accounts;
mod lanes;
pub(crate) mod squeue;

use super::{Before, Scheduler, Submission, Wanted};
use crate::command::Output;
use crate::domain::job::{Ended, Seen};
use crate::domain::shell;
use crate::domain::user::{User, parse_passwd};
use crate::error::{Error, ErrorKind, Result};
use crate::side_by_side;
use crate::ssh::Node;
use crate::together::Together;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::lanes::Lanes;
pub use self::lanes::{LANES, most_by_id};

const SUBMIT_LIMIT: Duration = Duration::from_secs(45);
const LOOK_LIMIT: Duration = Duration::from_secs(20);
/// A command node that failed is asked last for this long.
const REST: Duration = Duration::from_secs(30);
/// How long we believe what a command node said about an account.
const USER_CACHE: Duration = Duration::from_secs(60);
/// How long the length of Slurm's queue is taken for what it was.
const QUEUE_CACHE: Duration = Duration::from_secs(60);
/// The first line of an answer.
const BEGIN: &str = "bwvisu-begin";
/// The last line of a complete answer.
const END: &str = "bwvisu-end";

/// Slurm behind one or several command nodes.
pub struct Slurm {
    nodes: Vec<CommandNode>,
    with_groups: bool,
    users: Mutex<HashMap<String, (Instant, User)>>,
    /// Looks at single jobs, made together.
    looks: Together<Wanted, Vec<Seen>>,
    lanes: Lanes,
    /// How many jobs there were in Slurm, and when.
    queue: Mutex<Option<(Instant, usize)>>,
}

struct CommandNode {
    node: Arc<Node>,
    rests_until: Mutex<Option<Instant>>,
}

impl Slurm {
    /// Slurm behind `nodes`, which are tried in this order. `with_groups`: also ask for the groups of accounts.
    pub fn new(nodes: Vec<Arc<Node>>, with_groups: bool) -> Self {
        let nodes = nodes.into_iter().map(|node| CommandNode { node, rests_until: Mutex::new(None) }).collect();
        let looks = Together::of_at_most(squeue::NAMES_PER_CALL);
        Self { nodes, with_groups, users: Mutex::default(), looks, lanes: Lanes::default(), queue: Mutex::default() }
    }

    /// In the way that is sooner with a queue of this length (see [`lanes`]).
    fn look_at(&self, wanted: &[Wanted]) -> Result<Vec<Seen>> {
        let queue = if lanes::depends_on_queue(wanted.len()) { self.queue() } else { 0 };
        let lanes = self.lanes.take(wanted.len());
        match squeue::ids(wanted).filter(|ids| ids.len() <= most_by_id(queue, lanes.count())) {
            Some(ids) => self.look_at_each(&ids, lanes.count()),
            None => {
                drop(lanes);
                self.details(&squeue::by_name_script(wanted))
            }
        }
    }

    /// About how many jobs there are in Slurm.
    fn queue(&self) -> usize {
        let known = *self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match known.filter(|(at, _)| at.elapsed() < QUEUE_CACHE) {
            Some((_, count)) => count,
            // Nobody watches here. What is wrong shows again in the look itself, and one look has to wait for it.
            None => self.overview().map_or_else(|_| self.note_queue(0), |jobs| jobs.len()),
        }
    }

    fn note_queue(&self, jobs: usize) -> usize {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), jobs));
        jobs
    }

    fn look_at_each(&self, ids: &[(&str, &str)], lanes: usize) -> Result<Vec<Seen>> {
        let shares = ids.chunks(ids.len().div_ceil(lanes).max(1)).collect();
        let answers = side_by_side::for_each(shares, |ids: &[(&str, &str)]| self.details(&squeue::by_id_script(ids)));
        // An answer without one of the shares would say that its jobs are gone.
        Ok(answers.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    fn details(&self, script: &str) -> Result<Vec<Seen>> {
        self.on_first("exec sh", script.as_bytes(), LOOK_LIMIT, squeue::judge_squeue)
    }

    /// The look that a waiting caller gets begins after its call, so it is as fresh as one of its own.
    fn look_with_others(&self, wanted: &Wanted) -> Result<Vec<Seen>> {
        let together = |batch: &[Wanted]| self.look_at(batch).map(|seen| squeue::shares(batch, &seen));
        self.looks.call(wanted.clone(), Instant::now() + LOOK_LIMIT * 2, together).map_err(as_nothing_done)
    }

    /// The nodes in the order to try them: those that failed a short while ago come last.
    fn in_order(&self) -> Vec<&CommandNode> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|node| node.rests());
        nodes
    }

    /// Runs a command that may be repeated on the first node that answers it, also when a connection broke over it.
    fn on_first<T>(&self, line: &str, stdin: &[u8], limit: Duration, judge: impl Fn(&Output) -> Result<T>) -> Result<T> {
        self.on_first_by(|node| node.run(line, stdin, limit), judge)
    }

    fn on_first_by<T>(&self, run: impl Fn(&Node) -> Result<Output>, judge: impl Fn(&Output) -> Result<T>) -> Result<T> {
        self.first_answer(|node| run(node).map_err(as_nothing_done), judge)
    }

    /// Runs a command on the first node that can: `judge` says what an answer is worth, and `Unavailable` sends us to the
    /// next node.
    fn first_answer<A, T>(&self, run: impl Fn(&Node) -> Result<A>, judge: impl Fn(&A) -> Result<T>) -> Result<T> {
        let mut failures = Vec::new();
        for command_node in self.in_order() {
            let address = command_node.node.address();
            let result = run(&command_node.node).and_then(|output| judge(&output));
            match result {
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    log::warn!("command node {address}: {error}");
                    command_node.rest();
                    failures.push(error.message);
                }
                Err(error) => {
                    if error.kind == ErrorKind::Unknown {
                        command_node.rest();
                    }
                    return Err(error.within(format!("command node {address}")));
                }
                Ok(value) => return Ok(value),
            }
        }
        Err(Error::unavailable(format!("no command node could do it: {}", failures.join("; "))))
    }
}

/// What may be repeated may as well not have happened.
fn as_nothing_done(error: Error) -> Error {
    match error.kind {
        ErrorKind::Unknown => Error { kind: ErrorKind::Unavailable, ..error },
        _ => error,
    }
}

impl CommandNode {
    fn rest(&self) {
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST);
    }

    fn rests(&self) -> bool {
        self.rests_until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| until > Instant::now())
    }
}

impl Scheduler for Slurm {
    fn submit(&self, submission: &Submission, before: &Before) -> Result<String> {
        let line = sbatch_line(submission);
        let script = submission.script.as_bytes();
        let run = |node: &Node| {
            let answer = node.run_as_user_once(&line, script, SUBMIT_LIMIT, &|| before.run().is_ok());
            match before.failure() {
                // Whatever became of a command without its input: no other node is to be asked.
                Some(error) => Ok(Err(error.clone())),
                None => answer.map(Ok),
            }
        };
        self.first_answer(run, |answer| match answer {
            Ok(output) => judge_sbatch(output).map(Ok),
            Err(error) => Ok(Err(error.clone())),
        })?
    }

    fn cancel(&self, user: &str, scheduler_job_id: &str) -> Result<()> {
        let line = shell::join(["exec", "sudo", "-n", "-u", user, "scancel", scheduler_job_id]);
        self.on_first_by(|node| node.run_as_user(&line, b"", LOOK_LIMIT), judge_scancel)
    }

    fn look(&self, wanted: &[Wanted]) -> Result<Vec<Seen>> {
        match wanted {
            [] => Ok(Vec::new()),
            // A crowd of jobs that ask for their ports, each on its own.
            [one] => self.look_with_others(one),
            many => self.look_at(many),
        }
    }

    fn overview(&self) -> Result<HashMap<String, String>> {
        let jobs = self.on_first("exec sh", squeue::overview_script().as_bytes(), LOOK_LIMIT, squeue::judge_overview)?;
        self.note_queue(jobs.len());
        Ok(jobs)
    }

    fn accounts(&self, scheduler_job_ids: &[String]) -> Result<Option<Vec<Ended>>> {
        self.on_first("exec sh", accounts::script(scheduler_job_ids).as_bytes(), LOOK_LIMIT, accounts::judge)
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names = self.on_first("exec sh", squeue::NAMES_SCRIPT.as_bytes(), LOOK_LIMIT, squeue::judge_names)?;
        names.retain(|name| name.starts_with(prefix));
        Ok(names)
    }

    fn user(&self, name: &str) -> Result<Option<User>> {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, user)) = users.get(name).filter(|(since, _)| since.elapsed() < USER_CACHE) {
            return Ok(Some(user.clone()));
        }
        drop(users);
        let found = self.on_first(&user_line(name, self.with_groups), b"", LOOK_LIMIT, judge_user)?;
        if let Some(user) = &found {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.retain(|_, (since, _)| since.elapsed() < USER_CACHE);
            users.insert(name.to_owned(), (Instant::now(), user.clone()));
        }
        Ok(found)
    }
}

fn sbatch_line(submission: &Submission) -> String {
    let name = format!("--job-name={}", submission.name);
    let folder = format!("--chdir={}", submission.folder);
    let log = format!("--output={}", submission.log);
    shell::join(["exec", "sudo", "-n", "-u", &submission.user.name, "sbatch", "--parsable", &name, &folder, &log])
}

fn judge_sbatch(output: &Output) -> Result<String> {
    // `--parsable` prints the id, and `;cluster` behind it in a federation.
    let last = output.stdout.trim().lines().last().unwrap_or_default();
    let id = last.split(';').next().unwrap_or_default();
    let named = squeue::is_id(id);
    match (output.status.success(), named) {
        (true, true) => Ok(id.to_owned()),
        (true, false) => Err(Error::unknown("sbatch succeeded without naming the job")),
        // Whatever failed then, sudo or a login shell: the job is there.
        (false, true) => Err(Error::unknown(format!("sbatch named job {id} and failed all the same: {}", output.complaint()))),
        // Whoever is killed may have sent its request before.
        (false, false) if killed(output) => Err(Error::unknown(format!("sbatch was killed: {}", output.complaint()))),
        (false, false) => Err(refusal("sbatch", output)),
    }
}

/// Shells write 128 + the signal's number; 254 is an exit code (see `ssh`).
fn killed(output: &Output) -> bool {
    output.status.code().is_none_or(|code| (129..=192).contains(&code))
}

/// What a failed command of Slurm's means for us.
fn refusal(program: &str, output: &Output) -> Error {
    let words = output.complaint();
    // sudo and the shell, or a node whose Slurm is not there: nothing happened, another node may do better.
    let node_is_unfit =
        ["sudo:", "not found", "No such file", "Unable to contact slurm controller", "Unable to process configuration"];
    // The request was sent; whether it was carried out is open.
    let lost = ["Socket timed out", "Zero Bytes were transmitted", "Unexpected message received", "Connection reset"];
    // sudo may mutter about names and carry on.
    let by_slurm = words.contains(&format!("{program}: error"));
    let is_unfit = |mark: &&str| words.contains(mark) && !(by_slurm && *mark == "sudo:");
    if lost.iter().any(|mark| words.contains(mark)) {
        Error::unknown(format!("{program}: {words}"))
    } else if node_is_unfit.iter().any(is_unfit) {
        Error::unavailable(format!("{program}: {words}"))
    } else if words.is_empty() {
        Error::unknown(format!("{program} ended with {} and said nothing", output.status))
    } else {
        Error::bad_gateway(format!("the scheduler refused it: {words}"))
    }
}

fn judge_scancel(output: &Output) -> Result<()> {
    let words = output.complaint();
    let over = ["Invalid job id", "already completing or completed"];
    if output.status.success() || over.iter().any(|mark| words.contains(mark)) { Ok(()) } else { Err(refusal("scancel", output)) }
}

fn user_line(name: &str, with_groups: bool) -> String {
    let name = shell::quote(name);
    let groups = if with_groups { format!(" && id -Gn -- {name}") } else { String::new() };
    // 2 is getent's word for "no such account".
    format!("getent passwd -- {name}{groups}; echo {END} $?")
}

pub(crate) fn judge_user(output: &Output) -> Result<Option<User>> {
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    // With its newline: half a number is another number.
    let end = lines.pop().filter(|_| output.stdout.ends_with('\n')).and_then(|line| line.strip_prefix(END));
    match end {
        _ if lines.iter().any(|line| line.starts_with(END)) => return Err(Error::unavailable("getent: two answers in one")),
        Some(" 0") => {}
        Some(" 2") => return Ok(None),
        _ => return Err(Error::unavailable(format!("getent: {}", output.complaint()))),
    }
    let mut user =
        lines.iter().find_map(|line| parse_passwd(line)).ok_or_else(|| Error::unavailable("getent printed no account"))?;
    user.groups = lines
        .iter()
        .skip_while(|line| parse_passwd(line).is_none())
        .skip(1)
        .flat_map(|line| line.split_whitespace())
        .map(str::to_owned)
        .collect();
    Ok(Some(user))
}

#[cfg(test)]
#[path = "slurm_tests.rs"]
mod tests;
