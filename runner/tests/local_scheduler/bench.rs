//! What the tests of the local scheduler share.

use bwvisu_runner::domain::job::{Phase, Seen};
use bwvisu_runner::domain::user::User;
use bwvisu_runner::scheduler::local::{Local, LocalOptions};
use bwvisu_runner::scheduler::{Before, Scheduler, Submission, Wanted};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A spool, a folder that jobs run in, and a user who may run them: `nobody` where the tests run as root, else who runs them.
pub struct Bench {
    pub root: tempfile::TempDir,
    pub local: Local,
    pub user: User,
}

pub fn options() -> LocalOptions {
    let program = Some(PathBuf::from(env!("CARGO_BIN_EXE_bwvisu-runner")));
    LocalOptions { program, slots: 8, keep: Duration::from_secs(300), grace: Duration::from_secs(1) }
}

pub fn own_uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

impl Bench {
    pub fn new() -> Self {
        Self::with(options())
    }

    pub fn with(options: LocalOptions) -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let local = Local::open(&root.path().join("spool"), options).unwrap();
        let user = user(&local);
        chown(&home, Some(user.uid), Some(user.gid)).unwrap();
        Self { root, local, user }
    }

    pub fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    pub fn spool(&self) -> PathBuf {
        self.root.path().join("spool")
    }

    pub fn submit(&self, name: &str, script: &str) -> String {
        let folder = self.home();
        let log = format!("{name}.out");
        let submission = Submission { name, user: &self.user, folder: folder.to_str().unwrap(), log: &log, script };
        self.local.submit(&submission, &Before::nothing()).unwrap()
    }

    /// What the spool holds of a job of this name in this folder of it.
    pub fn record(&self, name: &str, folder: &Path) -> serde_json::Value {
        serde_json::json!({
            "version": 1, "name": name, "user": self.user.name, "uid": self.user.uid, "gid": self.user.gid, "folder": self.home(),
            "log": format!("{name}.out"), "environment": {"PATH": "/usr/bin:/bin"}, "wall-seconds": null, "grace-millis": 1000,
            "slots": 1, "after": null, "mark": folder, "submitted-at": "2026-01-01T00:00:00Z",
        })
    }

    pub fn seen(&self, name: &str) -> Option<Seen> {
        self.local.look(&[Wanted { name: name.to_owned(), scheduler_job_id: None }]).unwrap().pop()
    }

    pub fn cancel(&self, id: &str) {
        self.local.cancel(&self.user.name, id).unwrap();
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.home().join(format!("{name}.out"))).unwrap_or_default()
    }

    pub fn wait(&self, name: &str, what: &str, done: impl Fn(&Seen) -> bool) -> Seen {
        until(
            &format!("{name} {what}"),
            || self.seen(name).filter(&done),
            || format!("{:?}\n{}", self.seen(name), self.log(name)),
        )
    }

    pub fn ended(&self, name: &str) -> Seen {
        self.wait(name, "has ended", |seen| matches!(seen.phase, Phase::Ended(_)))
    }

    pub fn running(&self, name: &str) -> Seen {
        self.wait(name, "runs", |seen| seen.phase == Phase::Running)
    }

    /// The number that the job `name` has written into the file `file`.
    pub fn pid(&self, file: &str) -> i32 {
        let path = self.home().join(file);
        let read = || fs::read_to_string(&path).ok()?.trim().parse().ok();
        until(&format!("{file} holds a number"), read, || fs::read_to_string(&path).unwrap_or_default())
    }

    pub fn shepherd(&self, id: &str) -> i32 {
        let state = fs::read(self.spool().join(id).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        i32::try_from(state["shepherd"]["pid"].as_i64().unwrap()).unwrap()
    }
}

/// No test leaves a process behind, whatever became of it.
impl Drop for Bench {
    fn drop(&mut self) {
        let jobs = fs::read_dir(self.spool()).into_iter().flatten().flatten();
        for id in jobs.filter_map(|entry| entry.file_name().into_string().ok()) {
            let _ = self.local.cancel(&self.user.name, &id);
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) && !mentions(self.root.path().to_str().unwrap()).is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub fn until<T>(what: &str, look: impl Fn() -> Option<T>, story: impl Fn() -> String) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "not in time: {what}\n{}", story());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A process of which only the first thread has ended looks dead, too.
    let threads = |rest: &str| rest.split(' ').nth(17).and_then(|count| count.parse().ok()).unwrap_or(0);
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']) || threads(rest) > 1)
}

pub fn gone(pid: i32) {
    until(&format!("process {pid} is gone"), || (!lives(pid)).then_some(()), || format!("{pid} lives"));
}

pub fn kill(pid: i32) {
    assert!(Command::new("kill").args(["-9", "--", &pid.to_string()]).status().unwrap().success());
}

/// The processes with this text among their arguments or in their environment.
pub fn mentions(text: &str) -> Vec<String> {
    let holds = |path: PathBuf| fs::read(path).is_ok_and(|bytes| contains(&bytes, text));
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let others = processes.filter(|pid| pid.parse::<u32>().is_ok_and(|pid| pid != std::process::id()));
    others.filter(|pid| ["cmdline", "environ"].iter().any(|file| holds(Path::new("/proc").join(pid).join(file)))).collect()
}

pub fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Who may run jobs here.
pub fn user(local: &Local) -> User {
    let name = if own_uid() == 0 { "nobody".to_owned() } else { own_uid().to_string() };
    local.user(&name).unwrap().unwrap()
}
