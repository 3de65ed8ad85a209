//! Jobs as processes on this machine: the scheduler of a workstation, and of people who write front ends. Nothing needs to be installed
//! but bash.
//!
//! - A job **outlives the runner**. Each has a shepherd ([`shepherd()`]), which is this program again, in a session of its own without a
//!   terminal; what is known of a job lies in the spool, so that a runner that starts again finds it. Under systemd the unit of the runner needs
//!   `KillMode=process`, or stopping the runner ends the jobs.
//! - At most so many jobs run at once; the others wait in order.
//! - Of `#SBATCH` lines only `--time` counts. Memory and processors are not limited. The script is always run by bash.
//! - A runner that is not root runs jobs of its own user only. A runner that is root runs them as the user who is asked for, never
//!   as root, **without supplementary groups**: files that only such a group may read are out of reach.

mod account;
mod limit;
mod process;
mod queue;
mod shepherd;
mod spool;
mod trouble;
mod view;

pub use shepherd::shepherd;

use super::{Before, Scheduler, Submission, Wanted};
use crate::domain::job::{Outcome, Seen};
use crate::domain::user::User;
use crate::error::{Error, ErrorKind, Result};
use account::Account;
use jiff::Timestamp;
use rustix::process::Signal;
use spool::{JobFolder, Request, Spool, Stage, State};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

/// The name of the only node.
pub const NODE: &str = "localhost";

/// How long a shepherd may take until it has the job in its care.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the local scheduler works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalOptions {
    /// The program that knows the sub-command `local-job`; by default this very program.
    pub program: Option<PathBuf>,
    /// How many jobs run at once, at least one.
    pub slots: usize,
    /// How long a job is still shown after its end.
    pub keep: Duration,
    /// How long processes have between the request to end and the force.
    pub grace: Duration,
}

impl Default for LocalOptions {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { program: None, slots: cpus * 2, keep: Duration::from_secs(300), grace: Duration::from_secs(5) }
    }
}

/// The scheduler of this machine.
#[derive(Debug)]
pub struct Local {
    spool: Spool,
    program: PathBuf,
    options: LocalOptions,
    /// Shepherds that this process started; to be asked for their end, or they would stay as zombies.
    children: Mutex<Vec<Child>>,
}

impl Local {
    /// Opens the spool folder, which is made if it is not there. Several runners of the same user may share it.
    pub fn open(spool: &Path, options: LocalOptions) -> Result<Self> {
        let unknown =
            |error| Error::internal("the path of this program cannot be found").with_detail(format!("current_exe: {error}"));
        let program = match &options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(unknown)?,
        };
        Ok(Self { spool: Spool::open(spool)?, program, options, children: Mutex::default() })
    }

    fn children(&self) -> std::sync::MutexGuard<'_, Vec<Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        self.children().retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    fn request(&self, submission: &Submission, account: &Account) -> Result<Request> {
        Ok(Request {
            version: 1,
            name: submission.name.to_owned(),
            user: submission.user.name.clone(),
            uid: submission.user.uid,
            gid: submission.user.gid,
            folder: submission.folder.to_owned(),
            log: submission.log.to_owned(),
            environment: environment(account),
            wall_seconds: limit::wall_time(submission.script)?.map(|limit| limit.as_secs()),
            grace_millis: u64::try_from(self.options.grace.as_millis()).unwrap_or(u64::MAX),
            slots: self.options.slots,
            descriptors: crate::descriptors::given(),
            after: None,
            mark: String::new(),
            submitted_at: Timestamp::now(),
        })
    }

    /// The id of a job of this name that is there already.
    fn taken(&self, name: &str, user: &str) -> Result<Option<String>> {
        for folder in self.spool.folders()? {
            match look_past_damage(&folder)? {
                Some((request, _)) if request.name == name && request.user == user => return Ok(Some(folder.id.to_string())),
                Some((request, _)) if request.name == name => {
                    return Err(Error::conflict(format!("another user has a job with the name {name}")));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Starts the shepherd and waits until it has the job in its care.
    fn start(&self, folder: &JobFolder, alive: File, script: &str) -> Result<()> {
        let mut child = self.spawn(folder, alive).map_err(|error| {
            let message = "the local scheduler cannot start a process";
            Error::unavailable(message).with_detail(format!("{}: {error}", self.program.display()))
        })?;
        let answer = converse(&mut child, script);
        if answer.is_err() {
            // It may just have answered; what it has begun by then shows in the folder, once it is certain that it goes no further.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children().push(child);
        answer
    }

    fn spawn(&self, folder: &JobFolder, alive: File) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        // Not the leader of a process group: it makes itself the leader of a session, so that no job has the terminal of the runner.
        command.arg("local-job").arg(folder.path()).env_clear().current_dir("/");
        // The lock goes along as standard error: it is held until the last of the two has closed it.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(alive).spawn()
    }

    /// All jobs. Those that ended long ago are shown for the last time.
    fn all(&self) -> Result<Vec<Seen>> {
        self.reap();
        let folders = self.spool.folders()?;
        Ok(folders.iter().map(|folder| self.show(folder)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// What is there of all jobs, without a last look at any.
    fn glance(&self) -> Result<Vec<Seen>> {
        self.reap();
        let one = |folder: &JobFolder| Ok(look_past_damage(folder)?.map(|(request, state)| view::seen(folder, &request, &state)));
        Ok(self.spool.folders()?.iter().map(one).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// A job that ended long ago is shown for the last time.
    fn show(&self, folder: &JobFolder) -> Result<Option<Seen>> {
        let Some((request, state)) = look_past_damage(folder)? else { return Ok(None) };
        let age = state.ended_at.map(|end| Duration::try_from(Timestamp::now().duration_since(end)).unwrap_or_default());
        if age.is_some_and(|age| age > self.options.keep) {
            folder.remove();
        }
        Ok(Some(view::seen(folder, &request, &state)))
    }
}

impl Scheduler for Local {
    fn submit(&self, submission: &Submission, before: &Before) -> Result<String> {
        self.reap();
        check_user(submission.user)?;
        check_folder(submission.folder)?;
        let account = account::find(&submission.user.name)?;
        let account = account.unwrap_or_else(|| Account::without_home(submission.user, submission.folder));
        let mut request = self.request(submission, &account)?;
        before.run()?;
        // Until the shepherd has answered: one submission at a time, so that a name is never taken twice.
        let _turn = self.spool.turn()?;
        if let Some(id) = self.taken(submission.name, &submission.user.name)? {
            return Ok(id);
        }
        let (folder, alive) = self.spool.add(&mut request)?;
        match self.start(&folder, alive, submission.script) {
            Ok(()) => Ok(folder.id.to_string()),
            Err(error) => Err(withdraw(&folder, error)),
        }
    }

    fn cancel(&self, user: &str, scheduler_job_id: &str) -> Result<()> {
        let Some(id) = spool::id(scheduler_job_id) else { return Ok(()) };
        let folder = self.spool.folder(id);
        let Some((request, state)) = look(&folder)? else { return Ok(()) };
        if request.user != user {
            return Err(Error::refused(format!("the job {id} of the local scheduler is not {user}'s")));
        }
        if state.stage != Stage::Ended {
            folder.cancel()?;
            // For speed only: the shepherd looks for the file by itself, too.
            let told = state.shepherd.is_some_and(|shepherd| shepherd.signal(Signal::TERM));
            log::debug!("the shepherd of the local scheduler's job {id} was told to end it: {told}");
        }
        Ok(())
    }

    fn look(&self, wanted: &[Wanted]) -> Result<Vec<Seen>> {
        let names: HashSet<&str> = wanted.iter().map(|job| job.name.as_str()).collect();
        let mut seen = self.all()?;
        seen.retain(|seen| names.contains(seen.name.as_str()));
        Ok(seen)
    }

    fn overview(&self) -> Result<HashMap<String, String>> {
        Ok(self.glance()?.into_iter().map(|seen| (seen.scheduler_job_id.clone(), format!("{seen:?}"))).collect())
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in self.spool.folders()? {
            names.extend(look_past_damage(&folder)?.map(|(request, _)| request.name));
        }
        names.retain(|name| name.starts_with(prefix));
        Ok(names)
    }

    fn user(&self, name: &str) -> Result<Option<User>> {
        let account = account::find(name)?;
        Ok(account.map(|account| User { groups: account::groups(&account.user.name), ..account.user }))
    }
}

/// The script in, one line out.
fn converse(child: &mut Child, script: &str) -> Result<()> {
    let sent = child.stdin.take().map(|mut stdin| shepherd::send(&mut stdin, script));
    match child.stdout.take().and_then(first_line) {
        Some(line) if line == shepherd::READY => Ok(()),
        Some(line) if !line.is_empty() => Err(Error::bad_gateway(line)),
        _ => Err(Error::unavailable("the job's shepherd did not answer").with_detail(format!("script sent: {sent:?}"))),
    }
}

fn first_line(from: ChildStdout) -> Option<String> {
    let (send, receive) = mpsc::channel();
    let read = move || {
        let mut line = String::new();
        let _ = BufReader::new(from).read_line(&mut line);
        let _ = send.send(line.trim_end().to_owned());
    };
    std::thread::Builder::new().spawn(read).ok()?;
    receive.recv_timeout(PATIENCE).ok()
}

/// Undoes a submission that failed, where it is certain that nothing ran.
fn withdraw(folder: &JobFolder, error: Error) -> Error {
    match folder.state() {
        Ok(None) => {
            folder.remove();
            error
        }
        _ => Error::unknown("the local scheduler may or may not have taken the job").with_detail(error.to_string()),
    }
}

/// A job as it is now. One whose shepherd is gone before its time is ended here; one that was never in a shepherd's care is forgotten.
fn look(folder: &JobFolder) -> Result<Option<(Request, State)>> {
    // First whether it lives, then its state: of one that does not live the state is the last one.
    let alive = folder.alive()?;
    let Some(request) = folder.request()? else { return Ok(None) };
    match (folder.state()?, alive) {
        (Some(state), true) => Ok(Some((request, state))),
        (Some(state), false) if state.stage == Stage::Ended => Ok(Some((request, state))),
        (Some(state), false) => bury(folder, &request, state).map(|state| Some((request, state))),
        (None, true) => Ok(Some((request, State { shepherd: None, ..State::waiting() }))),
        (None, false) => {
            folder.remove();
            Ok(None)
        }
    }
}

/// The same, and one job with a damaged record does not hide the others.
fn look_past_damage(folder: &JobFolder) -> Result<Option<(Request, State)>> {
    match look(folder) {
        Err(error) if error.kind == ErrorKind::Internal => {
            log::error!("the local scheduler's job {} cannot be shown: {error}", folder.id);
            Ok(None)
        }
        other => other,
    }
}

fn bury(folder: &JobFolder, request: &Request, state: State) -> Result<State> {
    let left = process::kill_marked(request.uid, &request.mark);
    log::warn!("the shepherd of the local scheduler's job {} vanished; {left} processes were left and are killed", folder.id);
    let outcome = if folder.cancelled() { Outcome::Cancelled } else { Outcome::NodeFail };
    let state = state.ended(outcome, None, Some("the shepherd vanished".to_owned()));
    folder.write_state(&state)?;
    Ok(state)
}

fn check_user(user: &User) -> Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if user.uid == 0 {
        return Err(Error::bad_input("uid: the local scheduler runs no jobs as root"));
    }
    if own != 0 && user.uid != own {
        let message = format!("uid: the local scheduler runs jobs only as the runner's own user, whose user id is {own}");
        return Err(Error::bad_input(message));
    }
    Ok(())
}

fn check_folder(folder: &str) -> Result<()> {
    match std::fs::metadata(folder) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Error::bad_gateway(format!("the job cannot run in {folder}: it is not a folder"))),
        Err(error) => Err(Error::bad_gateway(format!("the job cannot run in {folder}: {error}"))),
    }
}

/// The environment of a job: small, and of the runner's own only what says where things are on this machine.
fn environment(account: &Account) -> BTreeMap<String, String> {
    let root = rustix::process::geteuid().is_root();
    let standard = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
    let path = std::env::var("PATH").ok().filter(|path| !root && !path.is_empty()).unwrap_or_else(|| standard.into());
    let of_account =
        [("HOME", &account.home), ("SHELL", &account.shell), ("USER", &account.user.name), ("LOGNAME", &account.user.name)];
    // Root's folder for temporary files is not the user's.
    let inherited = ["LANG", "TMPDIR"].into_iter().filter(|&name| !root || name == "LANG");
    let inherited = inherited.filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    let mut environment: BTreeMap<String, String> = inherited.collect();
    environment.insert("PATH".into(), path);
    environment.extend(of_account.map(|(name, value)| (name.to_owned(), value.clone())));
    environment
}
