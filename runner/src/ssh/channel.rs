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

use crate::command::{self, MAX_OUTPUT, Output};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What the other side runs. `read` takes a line byte by byte, as it must where others read on, and `head` what belongs to it.
const LOOP: &str = r#"exec sh -c 'while read -r mark size line; do
    input=$(head -c "$size") || exit
    case $input in *"$mark") input=${input%"$mark"} ;; *) exit ;; esac
    case $input in "") ( eval "$line" ) </dev/null ;; *) printf %s "$input" | ( eval "$line" ) ;; esac
    status=$?
    printf "\n%s %s\n" "$mark" "$status"
    printf "\n%s\n" "$mark" >&2
done'"#;

/// How long a session may take to end in good order.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why a command has no answer.
#[derive(Debug)]
pub enum Broken {
    /// The shell ended; the last thing that was said on its standard error.
    Ended(String),
    /// It did not answer in time.
    Late,
}

/// The shell, and our ends of its streams. Dropping it ends the session.
pub struct Channel {
    child: Child,
    /// Closed when the shell is to end.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: ChildStderr,
    /// When it last answered.
    heard: Instant,
}

impl Channel {
    /// A shell behind `ssh`, which lacks nothing but the command. Comes back when it has answered, at most at `deadline`.
    pub fn open(ssh: Command, deadline: Instant) -> Result<Self, Broken> {
        Self::open_with(ssh, LOOP, deadline)
    }

    fn open_with(mut ssh: Command, script: &str, deadline: Instant) -> Result<Self, Broken> {
        let gone = |words: &str| Broken::Ended(words.to_owned());
        let mut child = ssh
            .arg(script)
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
        let mut channel = Self { child, stdin: Some(stdin), stdout, stderr, heard: Instant::now() };
        // A login shell may print a greeting, which goes before the first answer.
        channel.run(":", b"", deadline)?;
        Ok(channel)
    }

    /// How long nothing was heard of it.
    pub fn quiet(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Runs `line` (no newline in it) with `input` (no NUL in it) as its standard input. After an error the channel is of no more use.
    pub fn run(&mut self, line: &str, input: &[u8], deadline: Instant) -> Result<Output, Broken> {
        let mark = mark().map_err(Broken::Ended)?;
        let mut request = format!("{mark} {} {line}\n", input.len() + mark.len()).into_bytes();
        request.extend_from_slice(input);
        request.extend_from_slice(mark.as_bytes());
        let mut exchange = Exchange::new(&mark, request);
        let stdin = self.stdin.as_ref().ok_or_else(|| Broken::Ended("the shell was ended".into()))?;
        exchange.carry(stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd(), deadline)?;
        self.heard = Instant::now();
        exchange.output()
    }

    /// Ends the session in good order, so that sshd has room for the next one. Whoever holds on to its streams does not hold us up.
    pub fn finish(mut self) {
        self.stdin = None;
        let until = Instant::now() + FAREWELL;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
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
    sent: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Standard output and standard error have come to their end.
    ended: (bool, bool),
}

impl Exchange {
    fn new(mark: &str, request: Vec<u8>) -> Self {
        Self { mark: mark.to_owned(), request, sent: 0, stdout: Vec::new(), stderr: Vec::new(), ended: (false, false) }
    }

    fn carry(&mut self, stdin: BorrowedFd, stdout: BorrowedFd, stderr: BorrowedFd, deadline: Instant) -> Result<(), Broken> {
        let broken = |error: Errno, words: &[u8]| Broken::Ended(format!("{error} {}", String::from_utf8_lossy(words)));
        while !self.answered() {
            if self.ended == (true, true) {
                return Err(Broken::Ended(String::from_utf8_lossy(&self.stderr).into_owned()));
            }
            self.wait(stdin, stdout, stderr, deadline)?;
            if self.sent < self.request.len() {
                match write(stdin, &self.request[self.sent..]) {
                    Ok(count) => self.sent += count,
                    // What it said before it went is still to be read.
                    Err(Errno::PIPE) => self.sent = self.request.len(),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(broken(error, &self.stderr)),
                }
            }
            self.ended.0 = take(stdout, &mut self.stdout).map_err(|error| broken(error, &self.stderr))?;
            self.ended.1 = take(stderr, &mut self.stderr).map_err(|error| broken(error, &self.stderr))?;
        }
        Ok(())
    }

    fn wait(&self, stdin: BorrowedFd, stdout: BorrowedFd, stderr: BorrowedFd, deadline: Instant) -> Result<(), Broken> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Broken::Late)?;
        let to_send = self.sent < self.request.len();
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
fn take(pipe: BorrowedFd, bytes: &mut Vec<u8>) -> Result<bool, Errno> {
    let mut buffer = [0; 64 << 10];
    loop {
        match read(pipe, &mut buffer) {
            Ok(0) => return Ok(true),
            Ok(_) if bytes.len() as u64 > MAX_OUTPUT => return Err(Errno::FBIG),
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
mod tests {
    use super::*;
    use std::path::Path;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// A channel whose other side is this machine with `sh` being that program.
    fn channel(folder: &Path, shell: &str) -> Channel {
        let path = std::env::var("PATH").unwrap();
        std::fs::write(folder.join("sh"), format!("#!/bin/sh\nPATH='{path}' exec {shell} \"$@\"\n")).unwrap();
        std::fs::set_permissions(folder.join("sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut ssh = Command::new("/bin/sh");
        ssh.env("PATH", format!("{}:{path}", folder.display())).current_dir(folder).arg("-c");
        Channel::open(ssh, soon()).unwrap()
    }

    /// Every shell that may stand behind `sh`.
    fn with_each_shell(test: impl Fn(&mut Channel, &Path, &str)) {
        for shell in ["dash", "bash", "busybox sh"] {
            let program = shell.split(' ').next().unwrap();
            if Command::new(program).args(["-c", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status().is_err() {
                println!("NOT RUN with {shell}: not installed");
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            test(&mut channel(folder.path(), shell), folder.path(), shell);
        }
    }

    #[test]
    fn output_status_and_input_come_through_byte_by_byte() {
        with_each_shell(|channel, _, shell| {
            for (line, input, stdout, stderr, status) in [
                ("true", "", "", "", 0),
                ("echo a; echo b >&2; exit 7", "", "a\n", "b\n", 7),
                ("printf x; printf y >&2", "", "x", "y", 0),
                ("cat", "no newline at the end", "no newline at the end", "", 0),
                ("cat", "three newlines\n\n\n", "three newlines\n\n\n", "", 0),
                ("exec cat", "a 'quote', a \\ and a $dollar\n", "a 'quote', a \\ and a $dollar\n", "", 0),
                ("exec sh", "echo from a script; exit 3", "from a script\n", "", 3),
                ("exit 255", "", "", "", 255),
            ] {
                let output = channel.run(line, input.as_bytes(), soon()).unwrap_or_else(|e| panic!("{shell}: {line}: {e:?}"));
                assert_eq!((output.stdout.as_str(), output.stderr.as_str()), (stdout, stderr), "{shell}: {line}");
                assert_eq!(output.status.code(), Some(status), "{shell}: {line}");
            }
        });
    }
    #[test]
    fn input_that_nobody_reads_is_never_a_command() {
        let input = "x\ntouch broken-out\n0123456789abcdef 1 touch broken-out\n".repeat(20_000);
        with_each_shell(|channel, folder, shell| {
            for line in ["true", "exec <&-", "exit 1", "head -c 10 >/dev/null", "exec true"] {
                channel.run(line, input.as_bytes(), soon()).unwrap_or_else(|e| panic!("{shell}: {line}: {e:?}"));
                assert_eq!(channel.run("echo next", b"", soon()).unwrap().stdout, "next\n", "{shell}: {line}");
            }
            assert!(!folder.join("broken-out").exists(), "{shell}");
        });
    }

    #[test]
    fn no_output_passes_for_the_end_of_the_answer() {
        let forged = "0123456789abcdef0123456789abcdef 0\n";
        with_each_shell(|channel, _, shell| {
            let line = format!("printf '\\n{0}'; printf '\\n{0}' >&2; sleep 0.2; exit 5", forged.trim());
            let output = channel.run(&line, b"", soon()).unwrap();
            assert_eq!((output.stdout.trim(), output.status.code()), (forged.trim(), Some(5)), "{shell}");
            // Nor does a program learn the mark from its environment.
            let environment = channel.run("env", b"", soon()).unwrap().stdout;
            assert!(environment.contains("PATH=") && !environment.contains("mark="), "{shell}: {environment}");
        });
    }

    #[test]
    fn a_command_that_was_cut_off_on_its_way_is_never_run() {
        with_each_shell(|channel, folder, shell| {
            let whole = "0123456789abcdef 40 touch broken-out\nonly a part of it";
            let stdin = channel.stdin.as_mut().unwrap();
            write(stdin.as_fd(), whole.as_bytes()).unwrap();
            // The connection ends here.
            let (nothing, other) = std::io::pipe().unwrap();
            drop(std::mem::replace(stdin, ChildStdin::from(std::os::fd::OwnedFd::from(other))));
            drop(nothing);
            assert!(channel.child.wait().unwrap().success(), "{shell}");
            assert!(!folder.join("broken-out").exists(), "{shell}");
        });
    }

    #[test]
    fn a_command_that_hangs_is_late_and_one_that_ends_the_shell_says_so() {
        with_each_shell(|channel, _, shell| {
            let late = channel.run("sleep 30", b"", Instant::now() + Duration::from_millis(300));
            assert!(matches!(late, Err(Broken::Late)), "{shell}");
        });
        with_each_shell(|channel, _, shell| {
            let ended = channel.run("echo why >&2; kill -9 $$", b"", soon());
            assert!(matches!(&ended, Err(Broken::Ended(words)) if words.contains("why")), "{shell}: {ended:?}");
        });
    }

    #[test]
    fn a_session_ends_in_good_order_and_nobody_who_keeps_its_streams_holds_that_up() {
        let folder = tempfile::tempdir().unwrap();
        let at_its_end = "trap 'echo over >over' 0; ";
        let mut ssh = Command::new("sh");
        ssh.args(["-c", &format!("{at_its_end}eval \"$1\""), "sh"]).current_dir(folder.path());
        // The subshell keeps what is run from replacing the shell that has the trap.
        let script = LOOP.strip_prefix("exec ").unwrap();
        let mut channel = Channel::open_with(ssh, script, soon()).unwrap();
        assert_eq!(channel.run("sleep 3 & echo done", b"", soon()).unwrap().stdout, "done\n");
        let begun = Instant::now();
        channel.finish();
        assert!(folder.path().join("over").exists());
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }

    #[test]
    fn megabytes_come_through_both_ways() {
        let input = "0123456789abcde\n".repeat(1 << 17);
        with_each_shell(|channel, _, shell| {
            assert!(channel.run("cat; cat /dev/null", input.as_bytes(), soon()).unwrap().stdout == input, "{shell}");
            let output = channel.run("head -c 3000000 /dev/zero | tr '\\0' x | tee /dev/stderr", b"", soon()).unwrap();
            assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 3_000_000), "{shell}");
        });
    }
}
