//! Faults that are really caused: system calls that kill or fail (strace, Debian: strace), and file systems that are small (tmpfs in a
//! mount namespace of its own, which ends with its last process). Where this machine cannot, a test says so, or fails with
//! `REQUIRE_FAULTS=1`.

#![allow(dead_code, reason = "each of the tests that share this file uses some of it")]

use rustix::fs::statvfs;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// Whether system calls can be made to kill and to fail here.
pub fn tracing_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    // Attached to a process that is not its child, as below.
    // That one ends once it is attached, however long that takes, or once strace has given up.
    let script = "sleep 60 & pid=$!
                  (while kill -0 $$ && ! grep -q 'TracerPid:.[1-9]' /proc/$pid/status; do sleep 0.05; done; kill $pid) &
                  exec strace -qq -o /dev/null -e trace=none -p $pid";
    *WORKS.get_or_init(|| works("strace cannot trace here (Debian: strace)", "sh", &["-c", script]))
}

/// Freezes a process, and comes back when none of its threads runs any more: that is some time after the signal was sent.
pub fn freeze(pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).unwrap_or_default();
    let tasks = || fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let begin = Instant::now();
    while !tasks().all(|task| stat(task).contains(") T ")) {
        assert!(begin.elapsed() < Duration::from_secs(20), "{pid} does not stop");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process can have a small file system of its own here.
pub fn small_disks_work() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    let mount = "mount -t tmpfs -o size=1m tmpfs /mnt";
    *WORKS.get_or_init(|| works("no file system can be mounted here (needs root)", "unshare", &["-m", "sh", "-c", mount]))
}

fn works(advice: &str, program: &str, words: &[&str]) -> bool {
    let ended = Command::new(program).args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let works = ended.is_ok_and(|status| status.success());
    assert!(works || std::env::var("REQUIRE_FAULTS").as_deref() != Ok("1"), "REQUIRE_FAULTS=1, but {advice}");
    if !works {
        // Written past the test harness, which would keep it to itself where the test passes.
        std::io::stderr().lock().write_all(format!("\n*** NOT TESTED: {advice} ***\n").as_bytes()).unwrap();
    }
    works
}

/// All calls by which a process changes files.
pub const CHANGING: &str = "write,writev,pwrite64,pwritev,fsync,fdatasync,ftruncate,fallocate,rename,renameat,renameat2,link,linkat,unlink,\
                            unlinkat,mkdir,mkdirat,chmod,fchmod,fchmodat,chown,fchown,fchownat";
/// Those by which a process that has its files open changes their bytes; not what it prints.
pub const WRITING: &str = "pwrite64,pwritev,fsync,fdatasync,ftruncate,fallocate";

/// `program`, killed as by `kill -9` when it is about to make its `nth` call of this name (each thread counts its own).
pub fn killed_at(call: &str, nth: usize, program: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    command.arg("-e").arg(format!("inject={call}:signal=KILL:when={nth}")).arg("--").arg(program);
    command
}

/// `program`, which writes the names of its calls among these into the file `log`.
pub fn watched(calls: &str, log: &Path, program: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", &format!("trace={calls}"), "-e", "signal=none", "-o"]).arg(log).arg("--").arg(program);
    command
}

/// The names of the calls in such a file, each once.
pub fn calls_in(log: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(log).unwrap();
    let name = |line: &str| Some(line.split_once(' ')?.1.trim_start().split_once('(')?.0.to_owned());
    let calls: BTreeSet<String> = text.lines().filter(|line| !line.contains("resumed>")).filter_map(name).collect();
    assert!(!calls.is_empty(), "no call was seen: {text}");
    calls
}

/// `run`s a program again and again, killed at each of these calls in turn, at the first, the second …, until it is not reached any more
/// (then `run` says that it ended by itself). Returns at how many places it was killed.
pub fn walk(calls: &BTreeSet<String>, mut run: impl FnMut(&str, usize) -> bool) -> usize {
    let until_it_ends = |call: &String| (1..TOO_FAR).find(|&nth| run(call, nth)).expect("the walk ends") - 1;
    calls.iter().map(until_it_ends).sum()
}

/// A walk that gets so far is no walk but a mistake.
const TOO_FAR: usize = 5000;

/// A folder in memory where there is room for those of many tests: no test here loses power, so the disk need not be waited for.
pub fn quick_folder() -> tempfile::TempDir {
    const ROOM: u64 = 512 << 20;
    let mut named = tempfile::Builder::new();
    named.prefix("bwvisu-");
    let memory = Path::new("/dev/shm");
    let roomy = statvfs(memory).is_ok_and(|found| found.f_bavail * found.f_frsize >= ROOM);
    let quick = roomy.then(|| named.tempdir_in(memory).ok()).flatten();
    quick.unwrap_or_else(|| named.tempdir().unwrap())
}

/// A tracer of a running process; its end is the end of what it does.
pub struct Tracer {
    child: Child,
    _stderr: BufReader<ChildStderr>,
}

impl Tracer {
    /// The process `pid` is killed when one of its threads is about to make its `nth` call of this name from now on.
    pub fn kill_at(pid: u32, call: &str, nth: usize) -> Self {
        Self::attach(pid, call, &format!("signal=KILL:when={nth}"))
    }

    /// All such calls of the process fail, until the tracer is dropped.
    pub fn fail(pid: u32, calls: &str, error: &str) -> Self {
        Self::attach(pid, calls, &format!("error={error}"))
    }

    fn attach(pid: u32, calls: &str, what: &str) -> Self {
        let mut child = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}")])
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        // It says so once all threads are attached.
        while !line.contains(" attached") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "strace ended before it was attached");
        }
        Self { child, _stderr: stderr }
    }
}

impl Drop for Tracer {
    /// Detaches; the process goes on.
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(3) {
            thread::sleep(Duration::from_millis(5));
        }
        // It may wait for ever for a process that dies just then; its own death detaches as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command with a file system of its own of so many KiB mounted on `folder`, for this user alone.
pub fn on_a_small_disk(command: &Command, folder: &Path, kib: u32) -> Command {
    let script = "mount -t tmpfs -o \"size=$1k,mode=700\" tmpfs \"$2\" && shift 2 && exec \"$@\"";
    let mut small = Command::new("unshare");
    small.args(["-m", "--propagation", "private", "sh", "-c", script, "sh", &kib.to_string()]).arg(folder);
    small.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => small.env(name, value),
            None => small.env_remove(name),
        };
    }
    small
}

/// A path as the process `pid` sees it.
pub fn seen_by(pid: u32, path: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap())
}

/// Takes all room that is left in `folder`; the file is the room's.
pub fn fill_up(folder: &Path) -> PathBuf {
    let path = folder.join("fills-the-disk");
    let mut file = File::create(&path).unwrap();
    for piece in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0x55; piece]).is_ok() {}
    }
    path
}
