//! One child process: fed by standard input, both pipes drained, ended at its deadline. The only place that starts programs.
//!
//! Secrets go in by standard input, never by argument, so a command line may be logged.

use crate::error::{Error, Result};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// More output than this is cut off: nothing that we ask for is longer, and a broken program must not fill our memory.
pub const MAX_OUTPUT: u64 = 64 << 20;

/// What a child left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The end of its standard error on one line, for messages.
    pub fn complaint(&self) -> String {
        last_words(&self.stderr)
    }
}

/// The end of `text` on one line: whitespace folded, at most 400 characters.
pub fn last_words(text: &str) -> String {
    let folded = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let printable: String = folded.chars().filter(|c| !c.is_control()).collect();
    let skip = printable.chars().count().saturating_sub(400);
    printable.chars().skip(skip).collect()
}

/// Runs `command` with `stdin` until it ends, at most until `deadline`.
///
/// Errors: `Unavailable` when it could not be started (nothing happened), `Unknown` when it was killed at its deadline. A child
/// that ended by itself is no error, whatever its exit code says.
pub fn run(command: &mut Command, stdin: &[u8], deadline: Instant) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A Ctrl-C that is meant for us must not end what we have begun; we end it.
        .process_group(0)
        .spawn()
        .map_err(|e| Error::unavailable(format!("cannot start {name}: {e}")))?;
    let result = converse(&mut child, stdin, deadline);
    if result.is_err() {
        end(&mut child);
    }
    result.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => Error::unknown(format!("{name} did not end in time")),
        _ => Error::unknown(format!("cannot follow {name}: {error}")),
    })
}

fn converse(child: &mut Child, stdin: &[u8], deadline: Instant) -> io::Result<Output> {
    let stdout = drain(child.stdout.take())?;
    let stderr = drain(child.stderr.take())?;
    if let Some(mut pipe) = child.stdin.take() {
        let input = stdin.to_vec();
        // A child that does not read its input to the end is no fault: its exit code tells. Hence the ignored error.
        spawn(move || drop(pipe.write_all(&input)))?;
    }
    let stdout = receive(&stdout, deadline)?;
    let stderr = receive(&stderr, deadline)?;
    Ok(Output { status: wait(child, deadline)?, stdout, stderr })
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("pipe".into()).stack_size(128 << 10).spawn(work).map(drop)
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> io::Result<Receiver<Vec<u8>>> {
    let (sender, receiver) = channel();
    let pipe = pipe.ok_or_else(|| io::Error::other("no pipe"))?;
    spawn(move || {
        let mut bytes = Vec::new();
        // What came before a read error is still worth having.
        let _ = pipe.take(MAX_OUTPUT).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    })?;
    Ok(receiver)
}

fn receive(pipe: &Receiver<Vec<u8>>, deadline: Instant) -> io::Result<String> {
    let left = deadline.saturating_duration_since(Instant::now());
    let bytes = pipe.recv_timeout(left).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Both pipes are closed, so the child is gone or about to go: the short naps hardly ever happen.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<ExitStatus> {
    let mut nap = Duration::from_micros(100);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(20));
    }
}

/// Ends a child for good; it leaves no zombie.
pub fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn sh(script: &str, stdin: &[u8], millis: u64) -> Result<Output> {
        run(Command::new("sh").arg("-c").arg(script), stdin, Instant::now() + Duration::from_millis(millis))
    }

    #[test]
    fn input_output_and_exit_code_come_through() {
        let output = sh("cat; echo oops >&2; exit 3", b"hello", 5000).unwrap();
        assert_eq!((output.stdout.as_str(), output.complaint().as_str(), output.status.code()), ("hello", "oops", Some(3)));
    }

    #[test]
    fn megabytes_both_ways_do_not_block() {
        let input = vec![b'x'; 3 << 20];
        assert_eq!(sh("cat", &input, 20_000).unwrap().stdout.len(), input.len());
    }

    #[test]
    fn a_child_that_ignores_its_input_is_fine() {
        assert!(sh("exec <&-; echo done", &vec![b'x'; 1 << 20], 5000).unwrap().stdout.contains("done"));
    }

    #[test]
    fn a_hanging_child_is_ended_at_its_deadline() {
        let begin = Instant::now();
        assert_eq!(sh("exec sleep 30", b"", 200).unwrap_err().kind, ErrorKind::Unknown);
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program"), b"", Instant::now()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("no-such-program"));
    }

    #[test]
    fn last_words_are_short_and_printable() {
        assert_eq!(last_words("a\n b\t\u{1b}[31mc"), "a b [31mc");
        assert_eq!(last_words(&"x".repeat(900)).len(), 400);
    }
}
