//! The shepherd: a process of its own for each job, which outlives the runner. It waits for a slot, starts the batch script,
//! ends it when it must, and writes down what happened.
//!
//! It takes the script from its standard input and hands it to bash by another pipe: the script holds a token, and is at no time a
//! file, an argument, or a part of an environment. bash runs it with `eval`, which behaves as a script does, and with
//! `/dev/null` as its input.

use super::process::{MARK, signal_descendants};
use super::queue;
use super::spool::{JobFolder, Request, Stage, State, create};
use super::trouble::{Trouble, printable};
use crate::domain::job::Outcome;
use crate::error::{Error, Result};
use jiff::Timestamp;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// What the shepherd answers to whoever started it, once the job is in its care.
pub(super) const READY: &str = "ready";

/// What bash does before it becomes the job. As the job's user, so that no file is opened with rights that the user does not have:
/// the log gets all output, descriptors that somebody left open on the way here are closed, and the script is taken from the
/// pipe. Opened for reading as well, a pipe with a name does not keep bash waiting; what is opened is looked at, and only that is
/// opened again for appending, so that nobody can put something else in its place meanwhile. All in one line, so that the lines that
/// bash names are the script's.
const PRELUDE: &str = r#"mask=$(umask); umask 077; exec {log}<>"$1" || exit 126; [[ -f /proc/self/fd/$log ]] || { echo "the log $1 is not a regular file; remove it" >&2; exit 126; }; exec >>"/proc/self/fd/$log" 2>&1 || exit 126; umask "$mask"; shift; unset mask log; for fd in /proc/self/fd/*; do fd=${fd##*/}; ((fd < 3)) || exec {fd}>&-; done; unset fd; eval "$(cat || echo exit 127)" </dev/null"#;

/// The longest time between two looks at the `cancel` file, should a signal get lost.
const TICK: Duration = Duration::from_secs(1);

/// Something that the shepherd waits for.
enum Event {
    /// Somebody sent a signal.
    Signal,
    /// It is the job's turn.
    Slot(io::Result<File>),
    /// The batch script ended.
    Exited(WaitStatus),
    /// No process of the job is left.
    Alone,
}

/// Why the batch script is over.
enum Fate {
    Exited,
    Cancelled,
    Timeout,
    /// The shepherd itself was told to end, as at the shutdown of the machine.
    Told,
}

struct Shepherd {
    folder: JobFolder,
    request: Request,
    state: State,
    events: Receiver<Event>,
    send: Sender<Event>,
    status: Option<WaitStatus>,
    trouble: Trouble,
    /// How many processes were still there when everything had been tried.
    left: usize,
}

/// Takes care of the job in this folder of the spool until it is over; the script comes by standard input. For the hidden sub-command
/// `local-job FOLDER` of the program, and for nothing else.
pub fn shepherd(folder: &Path) -> ExitCode {
    let done = match rustix::process::setsid() {
        Ok(_) => Shepherd::take(folder).and_then(|(shepherd, script)| shepherd.tend(script)),
        // The leader of a process group, as after a start by hand, cannot leave its session and terminal; a child of it can.
        Err(_) => return stand_in(folder).unwrap_or_else(|error| complain(&fault("start itself again", error))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

/// To the `alive` file, where it helps whoever looks for the reason; and to the runner, if it still listens.
fn complain(error: &Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "{error}");
    let _ = writeln!(io::stdout(), "{}", error.message.replace('\n', " "));
    ExitCode::FAILURE
}

fn stand_in(folder: &Path) -> io::Result<ExitCode> {
    let status = Command::new(std::env::current_exe()?).arg("local-job").arg(folder).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Shepherd {
    /// Reads what is to be done and answers that it will be done.
    fn take(path: &Path) -> Result<(Self, String)> {
        let absent = || Error::bad_input(format!("{} is not the folder of a job of the local scheduler", path.display()));
        let folder = JobFolder::at(path).ok_or_else(absent)?;
        let request = folder.request()?.ok_or_else(absent)?;
        let script = receive(&mut io::stdin().lock())?;
        let (send, events) = mpsc::channel();
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| fault("become the parent of orphans", error))?;
        watch_signals(send.clone()).map_err(|error| fault("watch signals", error))?;
        let shepherd =
            Self { folder, request, state: State::waiting(), events, send, status: None, trouble: Trouble::default(), left: 0 };
        Ok((shepherd, script))
    }

    fn tend(mut self, script: String) -> Result<()> {
        let queued = create(&self.folder.file("queued")).and_then(|file| file.lock().map(|()| file));
        let queued = queued.map_err(|error| fault("join the queue", error))?;
        self.folder.write_state(&self.state)?;
        let _ = writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush());
        let _slot = match self.queue() {
            Ok(slot) => slot,
            Err(fate) => return self.end(&fate),
        };
        if let Err(error) = self.start(script) {
            return self.conclude(Outcome::Failed, None, Some(error.to_string()));
        }
        self.state.started_at = Some(Timestamp::now());
        self.enter(Stage::Running);
        drop(queued);
        let fate = self.watch();
        self.enter(Stage::Ending);
        self.sweep();
        self.end(&fate)
    }

    /// A state that cannot be written is no reason to harm the job.
    fn enter(&mut self, stage: Stage) {
        self.state.stage = stage;
        if let Err(error) = self.folder.write_state(&self.state) {
            let _ = writeln!(io::stderr(), "{error}");
        }
    }

    fn next(&self, until: Option<Instant>) -> Option<Event> {
        let pause = until.map_or(TICK, |until| until.saturating_duration_since(Instant::now()).min(TICK));
        self.events.recv_timeout(pause).ok()
    }

    fn told(&self) -> Fate {
        if self.folder.cancelled() { Fate::Cancelled } else { Fate::Told }
    }

    fn queue(&self) -> Result<File, Fate> {
        let (folder, request, send) = (self.folder.clone(), self.request.clone(), self.send.clone());
        let waiter = Builder::new().spawn(move || send.send(Event::Slot(queue::wait(&folder, &request))));
        if let Err(error) = waiter {
            let _ = self.send.send(Event::Slot(Err(error)));
        }
        while !self.folder.cancelled() {
            match self.next(None) {
                Some(Event::Slot(Ok(slot))) => return Ok(slot),
                Some(Event::Slot(Err(error))) => {
                    let _ = writeln!(io::stderr(), "cannot wait for a slot: {error}");
                    return Err(Fate::Told);
                }
                Some(Event::Signal) => return Err(self.told()),
                _ => {}
            }
        }
        Err(Fate::Cancelled)
    }

    fn start(&mut self, script: String) -> io::Result<()> {
        // For the job alone; the shepherd needs few.
        self.request.descriptors.map_or(Ok(()), crate::descriptors::restore)?;
        let mut command = self.command();
        let mut child = command.spawn().map_err(|error| {
            let Request { user, folder, .. } = &self.request;
            io::Error::new(error.kind(), format!("bash could not be started as {user} in {folder}: {error}"))
        })?;
        let pid = Pid::from_child(&child);
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        feed(stdin, script)?;
        self.trouble = stderr.map_or(Ok(Trouble::default()), Trouble::listen)?;
        // From here on the reaper alone waits for children; `child` is not asked any more.
        let send = self.send.clone();
        Builder::new().spawn(move || reap(pid, &send)).map(drop)
    }

    fn command(&self) -> Command {
        let request = &self.request;
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc", "-c", PRELUDE, "batch-script", &request.log]);
        command.env_clear().envs(&request.environment).envs(self.variables()).current_dir(&request.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.process_group(0);
        if rustix::process::geteuid().is_root() {
            // The standard library drops all supplementary groups with this.
            command.gid(request.gid).uid(request.uid);
        }
        command
    }

    fn variables(&self) -> [(&'static str, String); 8] {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        [
            ("SLURM_JOB_ID", self.folder.id.to_string()),
            ("SLURM_JOB_NAME", self.request.name.clone()),
            ("SLURM_JOB_NODELIST", super::NODE.to_owned()),
            ("SLURM_NODELIST", super::NODE.to_owned()),
            ("SLURM_JOB_NUM_NODES", "1".to_owned()),
            ("SLURM_SUBMIT_DIR", self.request.folder.clone()),
            ("SLURM_CPUS_ON_NODE", cpus.to_string()),
            (MARK, self.request.mark.clone()),
        ]
    }

    /// Waits until the script has ended or must be ended.
    fn watch(&mut self) -> Fate {
        let deadline = self.request.wall_seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        loop {
            if self.folder.cancelled() {
                return Fate::Cancelled;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Fate::Timeout;
            }
            match self.next(deadline) {
                Some(Event::Exited(status)) => {
                    self.status = Some(status);
                    return Fate::Exited;
                }
                Some(Event::Signal) => return self.told(),
                _ => {}
            }
        }
    }

    /// Ends all that is left of the job: kindly, and after the grace period by force. As parent of all orphans, the shepherd also
    /// finds what has left the process group.
    fn sweep(&mut self) {
        signal_descendants(Signal::TERM);
        signal_descendants(Signal::CONT);
        if self.alone_within(Duration::from_millis(self.request.grace_millis)) {
            return;
        }
        // What cannot be killed hangs in the kernel; it must not keep the job for ever.
        for _ in 0..100 {
            self.left = signal_descendants(Signal::KILL);
            if self.alone_within(Duration::from_millis(100)) {
                self.left = 0;
                return;
            }
        }
        let _ = writeln!(io::stderr(), "{} processes cannot be ended", self.left);
    }

    fn alone_within(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            match self.next(Some(until)) {
                Some(Event::Alone) => return true,
                Some(Event::Exited(status)) => self.status = Some(status),
                _ => {}
            }
        }
        false
    }

    fn end(self, fate: &Fate) -> Result<()> {
        let code = self.status.and_then(exit_code);
        let (outcome, reason) = match fate {
            Fate::Cancelled => (Outcome::Cancelled, None),
            Fate::Timeout => (Outcome::Timeout, Some("TimeLimit".to_owned())),
            Fate::Told => (Outcome::NodeFail, Some("the job's shepherd was told to end, as at a shutdown".to_owned())),
            Fate::Exited if code == Some(0) => (Outcome::Completed, None),
            Fate::Exited => (Outcome::Failed, self.why()),
        };
        self.conclude(outcome, code, reason)
    }

    /// What bash said before it reached the log, or which signal ended the script.
    fn why(&self) -> Option<String> {
        let signal = || self.status?.terminating_signal().map(|signal| format!("the batch script was ended by signal {signal}"));
        self.trouble.last_line(TICK).or_else(signal)
    }

    /// A full disk may be empty again in a moment.
    fn conclude(self, outcome: Outcome, code: Option<i32>, reason: Option<String>) -> Result<()> {
        let state = self.state.ended(outcome, code, with_rest(reason, self.left).as_deref().map(printable));
        let mut written = self.folder.write_state(&state);
        for _ in 0..30 {
            if written.is_ok() {
                break;
            }
            std::thread::sleep(TICK);
            written = self.folder.write_state(&state);
        }
        written
    }
}

/// The reason, and that not all is over.
fn with_rest(reason: Option<String>, left: usize) -> Option<String> {
    let rest = (left > 0).then(|| format!("{left} processes of the job could not be ended and may still run"));
    match (reason, rest) {
        (Some(reason), Some(rest)) => Some(format!("{reason}; {rest}")),
        (reason, rest) => reason.or(rest),
    }
}

/// As every shell says it: 128 and the signal's number for what a signal ended.
fn exit_code(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
}

fn fault(what: &str, error: impl Into<io::Error>) -> Error {
    Error::internal(format!("the job's shepherd cannot {what}: {}", error.into()))
}

fn watch_signals(send: Sender<Event>) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    // A terminal's signals are not for the job, which outlives the terminal; they are caught so that they do no harm.
    let meant = move || signals.forever().filter(|&signal| signal == SIGTERM).all(|_| send.send(Event::Signal).is_ok());
    Builder::new().spawn(meant).map(drop)
}

/// Hands the script over, in a thread of its own: it may be larger than a pipe.
fn feed(stdin: Option<ChildStdin>, script: String) -> io::Result<()> {
    let write = move || stdin.map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    Builder::new().spawn(write).map(drop)
}

fn reap(script: Pid, send: &Sender<Event>) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == script => drop(send.send(Event::Exited(status))),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return drop(send.send(Event::Alone)),
        }
    }
}

/// The script with its length before it: a runner that dies half-way must not make half a script run.
pub(super) fn send(to: &mut impl Write, script: &str) -> io::Result<()> {
    writeln!(to, "{}", script.len())?;
    to.write_all(script.as_bytes())?;
    to.flush()
}

fn receive(from: &mut impl Read) -> Result<String> {
    let mut text = String::new();
    from.read_to_string(&mut text).map_err(|error| fault("read the batch script", error))?;
    let (length, script) = text.split_once('\n').unwrap_or_default();
    if length.parse() != Ok(script.len()) {
        return Err(Error::unavailable("the submission was cut off before the whole batch script was there"));
    }
    Ok(script.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_are_left_are_told_of() {
        assert_eq!(with_rest(None, 0), None);
        assert_eq!(with_rest(Some("TimeLimit".into()), 0).unwrap(), "TimeLimit");
        assert!(with_rest(None, 2).unwrap().starts_with("2 processes of the job could not be ended"));
        assert!(with_rest(Some("TimeLimit".into()), 1).unwrap().starts_with("TimeLimit; 1 process"));
    }

    #[test]
    fn a_script_arrives_whole_or_not_at_all() {
        for script in ["", "echo ä\n", "1\n2\n"] {
            let mut pipe = Vec::new();
            send(&mut pipe, script).unwrap();
            assert_eq!(receive(&mut pipe.as_slice()).unwrap(), script);
            assert!(receive(&mut &pipe[..pipe.len() - 1]).is_err(), "{script:?}");
        }
        assert!(receive(&mut &b""[..]).is_err());
    }
}
