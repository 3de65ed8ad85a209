//! A cluster that is played: `ssh` on the program's PATH is a script of ours, and so are the programs of the command nodes.

use crate::world::{Bench, until};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

/// A good connection breaks where the machine stands still for some seconds, and there is one more then. So whoever counts them may do so up to
/// five times; what breaks them needlessly does it each time.
pub fn counts<T: PartialEq + std::fmt::Debug>(expected: T, count: impl Fn() -> T, words: &str) {
    let seen: Vec<T> = (0..5).map(|_| count()).take_while(|found| *found != expected).collect();
    assert!(seen.len() < 5, "{seen:?} instead of {expected:?}: {words}");
}

/// The same, where whatever breaks them may do so by chance: three of five are needed.
pub fn mostly_counts<T: PartialEq + std::fmt::Debug>(expected: T, count: impl Fn() -> T, words: &str) {
    let (mut right, mut wrong) = (0, Vec::new());
    while right < 3 {
        match count() {
            found if found == expected => right += 1,
            found => wrong.push(found),
        }
        assert!(wrong.len() < 3, "{wrong:?} instead of {expected:?}: {words}");
    }
}

/// A Slurm cluster with the command nodes `cmd0` and `cmd1`.
pub struct Cluster {
    pub bench: Bench,
}

impl Cluster {
    pub fn new() -> Self {
        let mut bench = Bench::plain();
        bench.set("scheduler", "slurm");
        bench.set("bwvisu-home-prefix", "/srv/home_1/all.users-2");
        bench.set("users", json!({"min-uid": 1000}));
        bench.set("command-nodes", json!([{"ip": "cmd0", "user": "runner"}, {"ip": "cmd1", "user": "runner", "port": 2222}]));
        for folder in ["fake/bin", "fake/remote", "fake/queue", "fake/ids"] {
            fs::create_dir_all(bench.path(folder)).unwrap();
        }
        bench.write("fake/bin/ssh", include_str!("fake/ssh"), 0o755);
        bench.write("fake/play", include_str!("fake/remote"), 0o755);
        for program in ["sudo", "sbatch", "squeue", "sacct", "scancel", "getent"] {
            symlink(bench.path("fake/play"), bench.path(&format!("fake/remote/{program}"))).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/bash\nalice:x:2001:2001::/a:/bin/sh\nbob:x:2002:2002::/b:/bin/sh\nsys:x:99:99::/:/bin/sh\n";
        bench.write("fake/passwd", passwd, 0o644);
        let path = format!("{}:{}", bench.path("fake/bin").display(), std::env::var("PATH").unwrap());
        let fake = bench.path("fake").display().to_string();
        bench.environment = vec![("PATH".into(), path), ("FAKE".into(), fake)];
        Self { bench }
    }

    /// Everything that was called, in order: connections, commands, programs, each with its words.
    pub fn calls(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.bench.path("fake/calls")).unwrap_or_default();
        text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
    }

    /// The calls of one program.
    pub fn called(&self, program: &str) -> Vec<Vec<String>> {
        self.calls().into_iter().filter(|call| call[0] == program).collect()
    }

    /// How many scripts sbatch was given.
    pub fn scripts(&self) -> usize {
        let names = fs::read_dir(self.bench.path("fake")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("script.")).count()
    }

    /// Sets a stage: see the head of `fake/remote` and `fake/ssh`.
    pub fn play(&self, what: &str, text: &str) {
        self.bench.write(&format!("fake/{what}.new"), text, 0o644);
        fs::rename(self.bench.path(&format!("fake/{what}.new")), self.bench.path(&format!("fake/{what}"))).unwrap();
    }

    pub fn stop_playing(&self, what: &str) {
        fs::remove_file(self.bench.path(&format!("fake/{what}"))).unwrap();
    }

    /// From now on `program` hangs, and one call does already.
    pub fn hold(&self, program: &str) {
        let held = self.bench.path(&format!("fake/held.{program}"));
        // From another time, perhaps. Whoever hangs makes it anew.
        let _ = fs::remove_file(&held);
        self.play(&format!("hang.{program}"), "");
        until("a call is held", || held.exists().then_some(()), || format!("{:?}", self.calls()));
    }

    pub fn release(&self, program: &str) {
        self.stop_playing(&format!("hang.{program}"));
    }

    /// Changes what squeue shows of a job.
    pub fn show(&self, id: &str, field: &str, value: &str) {
        self.play(&format!("queue/{id}/{field}"), &format!("{value}\n"));
    }

    /// Adds a job of somebody's own.
    pub fn add_foreign(&self, id: &str, name: &str, user: &str, state: &str) {
        let folder = self.bench.path(&format!("fake/queue/{id}"));
        fs::create_dir_all(&folder).unwrap();
        let fields = [("JobID", id), ("UserName", user), ("State", state), ("RestartCnt", "0"), ("exit_code", "0")];
        // The name last: without it squeue does not show the job.
        for (field, value) in fields.into_iter().chain([("NodeList", "c9"), ("Reason", "None"), ("Name", name)]) {
            self.show(id, field, value);
        }
    }

    /// The job is gone from the queue.
    pub fn forget(&self, id: &str) {
        fs::rename(self.bench.path(&format!("fake/queue/{id}")), self.bench.path(&format!("fake/gone.{id}"))).unwrap();
    }

    /// What sbatch was given on its standard input.
    pub fn script(&self, id: &str) -> String {
        fs::read_to_string(self.bench.path(&format!("fake/script.{id}"))).unwrap()
    }

    /// Waits for so many further, complete looks of the watcher.
    pub fn looks(&self, count: usize) {
        // Each has one overview, and as many questions for details as there is reason for.
        let overviews =
            || self.called("squeue").iter().filter(|call| !call.iter().any(|word| word.starts_with("--name="))).count();
        let before = overviews();
        let enough = || (overviews() > before + count).then_some(());
        until("the watcher looks", enough, || format!("{:?}", self.calls()));
    }
}
