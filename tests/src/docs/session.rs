//! A shell at a place of the documents. As at a terminal, variables and the folder that one is in last from command to command.

use super::machines::NewMachines;
use super::places::REPOSITORY;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// No command of the documents takes longer, `make demo` beside four other beds among them.
const PATIENCE: Duration = Duration::from_secs(900);

/// The shell.
pub struct Session {
    child: Child,
    input: ChildStdin,
    ended: Receiver<String>,
    /// Where command and output lie: as this machine sees it, and as the shell does.
    folder: PathBuf,
    there: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub status: i32,
    /// All that it printed.
    pub output: String,
}

impl Session {
    /// A shell of `user` on `host`, in an empty folder; on this machine itself, in the project's.
    pub fn open(machines: &NewMachines, host: &str, user: &str) -> Self {
        let bed = machines.bed();
        let below = format!("documents/{host}-{user}");
        let folder = PathBuf::from(bed.get("BED_DIR")).join(&below);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let there = if host == REPOSITORY { folder.clone() } else { PathBuf::from(bed.get("BED_MOUNT")).join(&below) };
        let mut command = if host == REPOSITORY {
            machines.command(host, &["bash", "--norc"])
        } else {
            on(machines, host, user, &there.to_string_lossy())
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (tell, ended) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        let input = child.stdin.take().unwrap();
        Self { child, input, ended, folder, there }
    }

    /// Types a command, and these answers to what it asks.
    pub fn run(&mut self, command: &str, answers: &[String]) -> Ended {
        let there = self.there.display();
        fs::write(self.folder.join(".command"), format!("{command}\n")).unwrap();
        fs::write(self.folder.join(".answers"), answers.iter().map(|answer| format!("{answer}\n")).collect::<String>()).unwrap();
        // Who asks questions wants a terminal.
        let typed = if answers.is_empty() {
            format!(". {there}/.command </dev/null")
        } else {
            format!("script --quiet --return --echo never --command 'bash {there}/.command' /dev/null <{there}/.answers")
        };
        writeln!(self.input, "{typed} >{there}/.output 2>&1; echo \"ended $?\"").unwrap();
        let status = self.ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let _ = self.child.kill();
            panic!("it has not ended after {PATIENCE:?}, or has ended the shell:\n{command}\n{}", self.output())
        });
        let status = status.strip_prefix("ended ").and_then(|word| word.parse().ok()).expect("an exit code");
        Ended { status, output: self.output() }
    }

    fn output(&self) -> String {
        let bytes = fs::read(self.folder.join(".output")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nothing of the environment of whoever runs the tests. A terminal would keep curl from showing how far it is; so does its file.
fn on(machines: &NewMachines, host: &str, user: &str, folder: &str) -> Command {
    const SHELL: &str = r#"
        set -e
        cd "$2"
        [ "$1" != root ] || cp /root/*.rpm . 2>/dev/null || true
        printf 'silent\nshow-error\n' >.curlrc
        chown -R "$1:" .
        export HOME=$2 USER=$1 LOGNAME=$1 LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        exec setpriv --reuid "$1" --regid "$1" --init-groups bash --norc"#;
    machines.command(host, &["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "bash", "-c", SHELL, "bash", user, folder])
}
