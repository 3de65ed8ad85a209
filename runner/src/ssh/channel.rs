//! A shell on the other side that runs one command after the other, so that a command costs neither a process here nor a login there.
//!
//! A command is one line and its standard input, which ends with the mark of the command (drawn anew for each):
//!
//! ```text
//! MARK BYTES LINE\n…input…MARK            BYTES counts what follows the newline
//! ```
//!
//! Its answer is what it prints on both streams, each followed by a line of its own: `MARK STATUS` on standard output, `MARK` on
//! standard error. No output can pretend to be that line, since nothing that is run knows the mark. The other side reads all of the input
//! before it begins: so a command that was cut off on its way is never run, and one that leaves its input unread cannot make the next one
//! of it.
//!
//! What runs as another user ([`Whose::Users`]) must not hold a stream of the shell: whoever a process belongs to can take its streams from it
//! (`pidfd_getfd`, `ptrace`), keep them, and write into the answers to later commands. So it gets a pipe for each, which a subshell relays up to
//! the line with the mark, and no further: what is written after that reaches nobody. Both pipes are closed then, whoever still holds their
//! other ends, so these hold up nobody either. Nothing but 0, 1 and 2 is open in the command. It may begin while its input is still on the
//! way, since programs as other users take a while to start (`sudo`); it gets all of the input or none. Such commands have shells of their own.
//!
//! The last bytes of that input, the mark, are held back until the other side has said that it begins (`ready MARK` on standard output, before
//! anything else). So it is certain of a command that acts on its input that nothing happened where that word never came: in a shell whose
//! machine has died since it was last used. Whether it is to begin may be asked meanwhile: where the answer is no, other bytes stand in the
//! place of the mark, and it gets none of its input.

use crate::command::{self, MAX_OUTPUT, Output};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What the other side runs for our own commands. `read` takes a line byte by byte, as it must where others read on, and `head` what belongs to
/// it.
const LOOP: &str = r#"exec sh -c 'ended() {
    printf "\n%s %s\n" "$mark" "$1"
    printf "\n%s\n" "$mark" >&2
}
while read -r mark size line; do
    input=$(head -c "$size") || exit
    case $input in *"$mark") input=${input%"$mark"} ;; *) exit ;; esac
    case $input in "") ( eval "$line" ) </dev/null ;; *) printf %s "$input" | ( eval "$line" ) ;; esac
    ended $?
done'"#;

/// The same for commands of users. All that stands between a command and our streams is there before the command comes: starting it would
/// cost as much as `sudo` itself. What is in between learns the mark from the first line. A line without an end must not fill the memory
/// there: hence the limit.
const LOOP_FOR_USERS: &str = r#"exec sh -c 'relay() {
    ulimit -d 65536 2>/dev/null
    read -r mark || exit 1
    while IFS= read -r words; do
        printf "%s\n" "$words" || exit 1
        case $words in "$mark"*) exit 0 ;; esac
    done
    exit 1
}
whole() {
    input=$(head -c "$size") || exit
    case $input in *"$mark") printf %s "${input%"$mark"}" ;; esac
}
ended() {
    printf "\n%s %s\n" "$mark" "$1"
    printf "\n%s\n" "$mark" >&2
}
one() {
    read -r mark size line || exit
    printf "%s\n" "$mark" >&2
    printf "%s\nready %s\n" "$mark" "$mark"
    whole | ( eval "$line" )
    ended $?
}
while { { one 2>&3 3>&- 4>&- | relay >&4; } 3>&1 | relay >&2; } 4>&1; do :; done'"#;

/// Letters of a mark.
const MARK: usize = 32;
/// How long the other side has to say that it begins.
const BEGIN_LIMIT: Duration = Duration::from_secs(4);
/// What a user's command prints is a line or two; and it is theirs to choose.
const USERS_OUTPUT: u64 = 1 << 20;

/// Who may have a hand in a command while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Only the account that we log in with, and root.
    Ours,
    /// Another user.
    Users,
}

impl Whose {
    fn program(self) -> &'static str {
        match self {
            Self::Ours => LOOP,
            Self::Users => LOOP_FOR_USERS,
        }
    }

    fn most_output(self) -> u64 {
        match self {
            Self::Ours => MAX_OUTPUT,
            Self::Users => USERS_OUTPUT,
        }
    }
}

/// Why a command has no answer.
#[derive(Debug)]
pub enum Broken {
    /// The shell ended, or printed more than is taken; the last thing that was said on its standard error.
    Ended(String),
    /// It did not answer in time.
    Late,
    /// It never began: what acts on its input has done nothing. Why it is believed to be dead.
    Unbegun(String),
}

/// The shell, and our ends of its streams. Dropping it ends the session.
pub struct Channel {
    whose: Whose,
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
    /// When it last answered.
    heard: Instant,
}

impl Channel {
    /// A shell for these commands behind `ssh`, which lacks nothing but its own. Comes back when it has answered, at most at `deadline`.
    pub fn open(mut ssh: Command, whose: Whose, deadline: Instant) -> Result<Self, Broken> {
        let gone = |words: &str| Broken::Ended(words.to_owned());
        let mut child = ssh
            .arg(whose.program())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C that is meant for us must not end what we have begun.
            .process_group(0)
            .spawn()
            .map_err(|e| Broken::Ended(format!("cannot start ssh: {e}")))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(gone("no pipes to ssh"));
        };
        for pipe in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
            ioctl_fionbio(pipe, true).map_err(|e| Broken::Ended(format!("no pipes to ssh: {e}")))?;
        }
        let mut channel = Self { whose, child, stdin, stdout, stderr, heard: Instant::now() };
        // A login shell may print a greeting, which goes before the first answer.
        // A login may take long, so nothing is held back for this one.
        channel.exchange(":", b"", deadline, 0, &|| true)?;
        Ok(channel)
    }

    /// How long nothing was heard of it.
    pub fn quiet(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Runs `line` (no newline in it) with `input` (no NUL in it) as its standard input. After an error the channel is of no more use.
    pub fn run(&mut self, line: &str, input: &[u8], deadline: Instant) -> Result<Output, Broken> {
        self.run_if(line, input, deadline, &|| true)
    }

    /// The same; a user's command gets its input if `go` says so, which is asked while it starts.
    pub fn run_if(&mut self, line: &str, input: &[u8], deadline: Instant, go: &dyn Fn() -> bool) -> Result<Output, Broken> {
        let held = if self.whose == Whose::Users { MARK } else { 0 };
        self.exchange(line, input, deadline, held, go)
    }

    fn exchange(
        &mut self,
        line: &str,
        input: &[u8],
        deadline: Instant,
        held: usize,
        go: &dyn Fn() -> bool,
    ) -> Result<Output, Broken> {
        let mark = mark().map_err(Broken::Ended)?;
        let mut request = format!("{mark} {} {line}\n", input.len() + mark.len()).into_bytes();
        request.extend_from_slice(input);
        request.extend_from_slice(mark.as_bytes());
        let mut exchange = Exchange { held, ..Exchange::new(&mark, request, self.whose) };
        let carried = exchange.carry(self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd(), deadline, go);
        carried.map_err(|broken| exchange.judge(broken))?;
        self.heard = Instant::now();
        exchange.output()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        command::end(&mut self.child);
    }
}

/// One command on its way, and its answer as far as it has come.
struct Exchange {
    mark: String,
    request: Vec<u8>,
    /// More bytes on a stream are too many.
    most: u64,
    sent: usize,
    /// So many of the last bytes wait until the other side begins, and somebody was asked whether it is to.
    held: usize,
    /// The other side has said that it begins.
    begun: bool,
    /// Since when it was to begin, as far as we are concerned.
    asked: Option<Instant>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Standard output and standard error have come to their end.
    ended: (bool, bool),
}

impl Exchange {
    fn new(mark: &str, request: Vec<u8>, whose: Whose) -> Self {
        Self {
            mark: mark.to_owned(),
            request,
            most: whose.most_output(),
            sent: 0,
            held: 0,
            begun: whose == Whose::Ours,
            asked: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            ended: (false, false),
        }
    }

    fn carry(
        &mut self,
        stdin: BorrowedFd,
        stdout: BorrowedFd,
        stderr: BorrowedFd,
        deadline: Instant,
        go: &dyn Fn() -> bool,
    ) -> Result<(), Broken> {
        let broken = |error: Errno, words: &[u8]| match error {
            Errno::FBIG => Broken::Ended("it printed more than is taken".into()),
            _ => Broken::Ended(format!("{error} {}", String::from_utf8_lossy(words))),
        };
        let (begun, mut cut) = (Instant::now(), false);
        while !self.answered() {
            if self.ended == (true, true) {
                return Err(Broken::Ended(String::from_utf8_lossy(&self.stderr).into_owned()));
            }
            let begin = deadline.min(self.asked.unwrap_or(begun) + BEGIN_LIMIT);
            self.wait(stdin, stdout, stderr, if self.held > 0 { begin } else { deadline })?;
            let due = self.due();
            if self.sent < due {
                match write(stdin, &self.request[self.sent..due]) {
                    Ok(count) => self.sent += count,
                    // What it said before it went is still to be read.
                    Err(Errno::PIPE) => (self.sent, cut) = (due, true),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(broken(error, &self.stderr)),
                }
            }
            self.ended.0 = take(stdout, &mut self.stdout, self.most).map_err(|error| broken(error, &self.stderr))?;
            self.ended.1 = take(stderr, &mut self.stderr, self.most).map_err(|error| broken(error, &self.stderr))?;
            self.note_beginning();
            if self.held > 0 && self.sent > 0 && self.asked.is_none() && !cut && !self.ended.0 {
                self.ask(go);
                if Instant::now() >= deadline {
                    return Err(Broken::Late);
                }
            }
            if self.begun && self.asked.is_some() {
                self.held = 0;
            }
        }
        Ok(())
    }

    fn ask(&mut self, go: &dyn Fn() -> bool) {
        if !go() {
            let mark = self.request.len() - self.held;
            self.request[mark..].fill(b'-');
        }
        self.asked = Some(Instant::now());
    }

    /// So many bytes may be sent.
    fn due(&self) -> usize {
        self.request.len() - self.held
    }

    /// Whether the other side has begun. What it said before that word is not the command's.
    fn note_beginning(&mut self) {
        let word = format!("ready {}\n", self.mark);
        let said = |at: &usize| self.stdout[*at..].starts_with(word.as_bytes());
        if !self.begun
            && let Some(at) = (0..self.stdout.len()).find(said)
        {
            self.stdout.drain(..at + word.len());
            self.begun = true;
        }
    }

    fn judge(&self, broken: Broken) -> Broken {
        match (self.held, broken) {
            (0, broken) => broken,
            (_, Broken::Late) => Broken::Unbegun("the shell there is silent".into()),
            (_, Broken::Ended(words) | Broken::Unbegun(words)) => Broken::Unbegun(words),
        }
    }

    fn wait(&self, stdin: BorrowedFd, stdout: BorrowedFd, stderr: BorrowedFd, deadline: Instant) -> Result<(), Broken> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Broken::Late)?;
        let to_send = self.sent < self.due();
        let ends =
            [(stdout, PollFlags::IN, !self.ended.0), (stderr, PollFlags::IN, !self.ended.1), (stdin, PollFlags::OUT, to_send)];
        let waited_for = ends.into_iter().filter(|(_, _, wanted)| *wanted);
        let mut fds: Vec<_> = waited_for.map(|(fd, flags, _)| PollFd::from_borrowed_fd(fd, flags)).collect();
        match poll(&mut fds, Some(&left)) {
            Ok(0) => Err(Broken::Late),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Broken::Ended(error.to_string())),
        }
    }

    /// Both streams have come to the line that ends the answer.
    fn answered(&self) -> bool {
        ends_with(&self.stderr, &format!("\n{}\n", self.mark)) && self.status().is_some()
    }

    /// What the last line says, and where it begins.
    fn status(&self) -> Option<(usize, i32)> {
        // A status has three digits at most.
        let tail = self.stdout.len().saturating_sub(self.mark.len() + 6);
        let line = format!("\n{} ", self.mark);
        let at = tail + self.stdout.get(tail..)?.windows(line.len()).position(|window| window == line.as_bytes())?;
        let status = std::str::from_utf8(&self.stdout[at + line.len()..]).ok()?.strip_suffix('\n')?;
        Some((at, status.parse().ok()?))
    }

    fn output(mut self) -> Result<Output, Broken> {
        let (at, status) = self.status().ok_or(Broken::Late)?;
        self.stdout.truncate(at);
        self.stderr.truncate(self.stderr.len() - (self.mark.len() + 2));
        let text =
            |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        Ok(Output { status: ExitStatus::from_raw(status << 8), stdout: text(self.stdout), stderr: text(self.stderr) })
    }
}

/// Reads what there is; whether it was the end.
fn take(pipe: BorrowedFd, bytes: &mut Vec<u8>, most: u64) -> Result<bool, Errno> {
    let mut buffer = [0; 64 << 10];
    loop {
        match read(pipe, &mut buffer) {
            Ok(0) => return Ok(true),
            Ok(_) if bytes.len() as u64 > most => return Err(Errno::FBIG),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn ends_with(bytes: &[u8], end: &str) -> bool {
    bytes.ends_with(end.as_bytes())
}

fn mark() -> Result<String, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| format!("no random bytes: {e}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
