//! Processes of this machine as `/proc` shows them. A number alone does not name a process, since numbers are used again: here a
//! process is its number, the moment it started, and the boot of the machine in which it did.

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use std::io;

/// The variable in the environment of a job's processes that tells whose they are, when nothing else does any more.
pub(super) const MARK: &str = "BWVISU_LOCAL_JOB";

/// One process, never to be mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pid: i32,
    start: u64,
    boot: String,
}

impl Process {
    /// The process that runs this.
    pub(super) fn this() -> Option<Self> {
        Self::find(rustix::process::getpid().as_raw_pid())
    }

    /// The process that has the number now.
    pub(super) fn find(pid: i32) -> Option<Self> {
        Stat::of(pid).map(|stat| Self { pid, start: stat.start, boot: boot() })
    }

    /// Sends it a signal; whether it was there to get it.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        self.boot == boot() && deliver(self.pid, signal, |pid| Stat::of(pid).is_some_and(|stat| stat.start == self.start))
    }
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Signals the process with this number if it passes `check`, which looks at it only once its number is held fast.
fn deliver(pid: i32, signal: Signal, check: impl Fn(i32) -> bool) -> bool {
    let Some(raw) = Pid::from_raw(pid) else { return false };
    match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
        Ok(held) => check(pid) && rustix::process::pidfd_send_signal(held, signal).is_ok(),
        // Kernels before 5.3.
        Err(rustix::io::Errno::NOSYS) => check(pid) && rustix::process::kill_process(raw, signal).is_ok(),
        Err(_) => false,
    }
}

/// What we need of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: i32,
    start: u64,
}

impl Stat {
    /// Nothing if there is no such process, or it is dead and only waits for its parent. One whose first thread has ended looks dead
    /// as well, and lives as long as it has others.
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        // The second field is the program's name in brackets, which may itself hold spaces and brackets.
        let mut fields = line.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let threads: u32 = fields.nth(15)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        (threads > 1 || !matches!(state, "Z" | "X")).then_some(Self { parent, start })
    }
}

fn all() -> io::Result<Vec<(i32, Stat)>> {
    let entries = std::fs::read_dir("/proc")?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids.filter_map(|pid| Stat::of(pid).map(|stat| (pid, stat))).collect())
}

/// Signals everything that descends from this process; how many were there to get it.
pub(super) fn signal_descendants(signal: Signal) -> usize {
    let all = all().unwrap_or_default();
    let mut family = vec![rustix::process::getpid().as_raw_pid()];
    let (mut next, mut reached) = (0, 0);
    while let Some(&parent) = family.get(next) {
        next += 1;
        for &(pid, stat) in all.iter().filter(|(pid, stat)| stat.parent == parent && !family.contains(pid)).collect::<Vec<_>>() {
            reached += usize::from(deliver(pid, signal, |pid| Stat::of(pid).is_some_and(|now| now.start == stat.start)));
            family.push(pid);
        }
    }
    reached
}

/// Kills every process of user `uid` that carries the mark in its environment; how many there were.
pub(super) fn kill_marked(uid: u32, mark: &str) -> usize {
    let ours = |pid: i32| owner(pid) == Some(uid) && carries(pid, mark);
    let pids = all().unwrap_or_default().into_iter().map(|(pid, _)| pid);
    pids.filter(|&pid| ours(pid) && deliver(pid, Signal::KILL, ours)).count()
}

fn owner(pid: i32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid())
}

fn carries(pid: i32, mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    let holds = |environment: Vec<u8>| environment.split(|&byte| byte == 0).any(|variable| variable == wanted.as_bytes());
    // A thread that has ended has no environment any more, and so has a process whose first thread it was.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| std::fs::read(thread.path().join("environ")).ok()).any(holds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_stat_of_a_process_is_read_whatever_its_program_is_called() {
        let rest = "4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 1 21 4711 23";
        let many = rest.replace(" 1 ", " 2 ");
        let stat = Some(Stat { parent: 4, start: 4711 });
        let cases = [
            (format!("3 (bash) S {rest}"), stat),
            (format!("3 (a) Z 1 (b) R {rest}"), stat),
            (format!("3 (bash) Z {rest}"), None),
            (format!("3 (bash) Z {many}"), stat),
            ("3 (bash) S 4".into(), None),
            (String::new(), None),
        ];
        for (line, expected) in cases {
            assert_eq!(Stat::parse(&line), expected, "{line:?}");
        }
    }

    #[test]
    fn a_process_with_the_same_number_and_another_start_gets_no_signal() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let real = Process::find(child.id() as i32).unwrap();
        assert!(!Process { start: real.start + 1, ..real.clone() }.signal(Signal::KILL));
        assert!(!Process { boot: "another".into(), ..real.clone() }.signal(Signal::KILL));
        assert_eq!(child.try_wait().unwrap(), None);
        assert!(real.signal(Signal::KILL));
        child.wait().unwrap();
        assert!(!real.signal(Signal::KILL));
    }

    #[test]
    fn only_marked_processes_of_the_right_user_are_killed() {
        let mut child = Command::new("sleep").arg("60").env(MARK, "here/17").spawn().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let waited = std::time::Instant::now();
        while !carries(child.id() as i32, "here/17") && waited.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        assert_eq!(kill_marked(uid, "here/1"), 0);
        assert_eq!(kill_marked(uid + 1, "here/17"), 0);
        assert_eq!(child.try_wait().unwrap(), None);
        assert_eq!(kill_marked(uid, "here/17"), 1);
        child.wait().unwrap();
    }
}
