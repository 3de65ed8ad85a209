//! The spool: one folder for each job, named by its id, and what is in it.
//!
//! ```text
//! <spool>/lock       held while a job is added
//! <spool>/last       the last id that was given
//! <spool>/slots/K    held by the shepherd of a running job
//! <spool>/17/job.json     what was asked for; never changes
//! <spool>/17/state.json   how far it is; only its shepherd writes it, or whoever finds the shepherd dead
//! <spool>/17/alive   held from before the folder is seen until the shepherd is gone, however it goes
//! <spool>/17/queued  held by the shepherd while the job waits for a slot
//! <spool>/17/cancel  exists once somebody asked for the end
//! ```
//!
//! Locks are the kernel's (`flock`): they end with the process that holds them, so that nothing here can be stale.

use crate::domain::job::Outcome;
use crate::error::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::process::Process;

/// What was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Request {
    pub(super) version: u32,
    pub(super) name: String,
    pub(super) user: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) folder: String,
    pub(super) log: String,
    /// The job's environment; the ids are added when it starts.
    pub(super) environment: BTreeMap<String, String>,
    pub(super) wall_seconds: Option<u64>,
    pub(super) grace_millis: u64,
    pub(super) slots: usize,
    /// The soft limit of open files that the runner was started with, and not the one that it raised for itself.
    #[serde(default)]
    pub(super) descriptors: Option<u64>,
    /// The job before this one, which leaves the queue first.
    pub(super) after: Option<u64>,
    /// The mark in the environment of its processes.
    pub(super) mark: String,
    pub(super) submitted_at: Timestamp,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    Waiting,
    Running,
    Ending,
    Ended,
}

/// How far a job is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct State {
    pub(super) version: u32,
    pub(super) stage: Stage,
    pub(super) shepherd: Option<Process>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) ended_at: Option<Timestamp>,
    pub(super) outcome: Option<Outcome>,
    pub(super) exit_code: Option<i32>,
    pub(super) reason: Option<String>,
}

impl State {
    /// The state of a job that waits under the care of this process.
    pub(super) fn waiting() -> Self {
        Self {
            version: 1,
            stage: Stage::Waiting,
            shepherd: Process::this(),
            started_at: None,
            ended_at: None,
            outcome: None,
            exit_code: None,
            reason: None,
        }
    }

    /// The same job, over.
    pub(super) fn ended(self, outcome: Outcome, exit_code: Option<i32>, reason: Option<String>) -> Self {
        Self { stage: Stage::Ended, ended_at: Some(Timestamp::now()), outcome: Some(outcome), exit_code, reason, ..self }
    }
}

/// The folder of one job.
#[derive(Debug, Clone)]
pub(super) struct JobFolder {
    pub(super) id: u64,
    path: PathBuf,
}

impl JobFolder {
    /// The folder at this path, which ends in the job's id.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let id = path.file_name()?.to_str().and_then(id)?;
        Some(Self { id, path: path.to_owned() })
    }

    /// The folder of another job in the same spool.
    pub(super) fn sibling(&self, id: u64) -> Self {
        Self { id, path: self.path.with_file_name(id.to_string()) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The spool that it lies in.
    pub(super) fn spool(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn request(&self) -> Result<Option<Request>> {
        read_json(&self.file("job.json"))
    }

    pub(super) fn state(&self) -> Result<Option<State>> {
        read_json(&self.file("state.json"))
    }

    pub(super) fn write_state(&self, state: &State) -> Result<()> {
        write_json(&self.file("state.json"), state)
    }

    pub(super) fn cancelled(&self) -> bool {
        self.file("cancel").exists()
    }

    pub(super) fn cancel(&self) -> Result<()> {
        match create(&self.file("cancel")) {
            Ok(_) => Ok(()),
            // It has ended, and was forgotten just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(trouble("cannot be written", &self.path, &error)),
        }
    }

    /// Whether its shepherd, or who is about to start one, lives.
    pub(super) fn alive(&self) -> Result<bool> {
        let file = match File::open(self.file("alive")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(trouble("cannot be read", &self.path, &error)),
        };
        // A shared lock, so that two who look at the same time do not take each other for the shepherd.
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(trouble("cannot be locked", &self.path, &error)),
        }
    }

    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("the folder {} of a job cannot be removed: {error}", self.path.display());
        }
    }
}

/// The folder of all jobs.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
}

impl Spool {
    /// Opens or makes the spool; nobody else may look into it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let wrong = |error: &io::Error| trouble("cannot be used", path, error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| wrong(&error))?;
        let path = fs::canonicalize(path).map_err(|error| wrong(&error))?;
        let meta = fs::metadata(&path).map_err(|error| wrong(&error))?;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            let message =
                format!("the local scheduler's folder {} belongs to another user; give it to the runner's", path.display());
            return Err(Error::refused(message));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(|error| wrong(&error))?;
        DirBuilder::new().recursive(true).mode(0o700).create(path.join("slots")).map_err(|error| wrong(&error))?;
        Ok(Self { path })
    }

    /// Waits for the right to add a job; it ends with the returned value, or with this process.
    pub(super) fn turn(&self) -> Result<File> {
        let path = self.path.join("lock");
        create(&path).and_then(|file| file.lock().map(|()| file)).map_err(|error| trouble("cannot be locked", &path, &error))
    }

    /// All jobs, in the order of their ids.
    pub(super) fn folders(&self) -> Result<Vec<JobFolder>> {
        let entries = fs::read_dir(&self.path).map_err(|error| trouble("cannot be read", &self.path, &error))?;
        let mut folders: Vec<JobFolder> = entries.flatten().filter_map(|entry| JobFolder::at(&entry.path())).collect();
        folders.sort_by_key(|folder| folder.id);
        Ok(folders)
    }

    /// The folder of a job.
    pub(super) fn folder(&self, id: u64) -> JobFolder {
        JobFolder { id, path: self.path.join(id.to_string()) }
    }

    /// Adds a job under the next id, for the holder of the turn. Until the returned file and its copies are closed, the job counts
    /// as alive.
    pub(super) fn add(&self, request: &mut Request) -> Result<(JobFolder, File)> {
        let before = self.folders()?.last().map(|folder| folder.id);
        let last = read_json::<u64>(&self.path.join("last"))?;
        let id = before.max(last).unwrap_or(0) + 1;
        write_json(&self.path.join("last"), &id)?;
        let folder = self.folder(id);
        request.after = before;
        request.mark = folder.path.display().to_string();
        // Made aside and renamed: nobody sees the folder before it is complete and its lock is held.
        let draft = self.path.join("draft");
        self.draft(&draft, request)
            .and_then(|alive| fs::rename(&draft, &folder.path).map(|()| alive))
            .map(|alive| (folder, alive))
            .map_err(|error| trouble("cannot be made", &draft, &error))
    }

    fn draft(&self, draft: &Path, request: &Request) -> io::Result<File> {
        match fs::remove_dir_all(draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => DirBuilder::new().mode(0o700).create(draft)?,
        }
        write_json_io(&draft.join("job.json"), request)?;
        let alive = create(&draft.join("alive"))?;
        alive.lock()?;
        Ok(alive)
    }
}

/// A job's id as a folder's name or a caller says it.
pub(super) fn id(text: &str) -> Option<u64> {
    crate::domain::job::parse_job_id(text).ok()
}

/// Opens a file that nobody else may read, for appending.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn trouble(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::unavailable(format!("the local scheduler's folder {what}")).with_detail(format!("{}: {error}", path.display()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(trouble("cannot be read", path, &error)),
    };
    let damaged =
        |error| Error::internal("a record of the local scheduler is damaged").with_detail(format!("{}: {error}", path.display()));
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_json_io(path, value).map_err(|error| trouble("cannot be written", path, &error))
}

/// All or nothing, and on the disk when it returns.
fn write_json_io(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            version: 1,
            name: "bwvisu-1-x".into(),
            user: "alice".into(),
            uid: 1001,
            gid: 100,
            folder: "/home/alice".into(),
            log: "job.out".into(),
            environment: BTreeMap::new(),
            wall_seconds: None,
            grace_millis: 5000,
            slots: 1,
            descriptors: None,
            after: None,
            mark: String::new(),
            submitted_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn ids_are_never_used_again_even_when_the_folders_are_gone() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::open(root.path()).unwrap();
        let add = || spool.add(&mut request()).unwrap().0;
        assert_eq!((add().id, add().id), (1, 2));
        spool.folders().unwrap().iter().for_each(JobFolder::remove);
        assert_eq!(add().id, 3);
        fs::remove_file(root.path().join("last")).unwrap();
        assert_eq!(add().id, 4, "the folders count as well");
    }

    #[test]
    fn a_job_is_alive_until_the_last_copy_of_its_lock_is_closed() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::open(root.path()).unwrap();
        let (folder, alive) = spool.add(&mut request()).unwrap();
        let copy = alive.try_clone().unwrap();
        drop(alive);
        assert!(folder.alive().unwrap());
        drop(copy);
        assert!(!folder.alive().unwrap());
        folder.remove();
        assert!(!folder.alive().unwrap());
        folder.cancel().unwrap();
    }

    #[test]
    fn the_spool_is_for_the_runner_alone_and_survives_a_broken_draft() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(root.path().join("draft/rest")).unwrap();
        let spool = Spool::open(root.path()).unwrap();
        assert_eq!(fs::metadata(root.path()).unwrap().mode() & 0o777, 0o700);
        let (folder, _alive) = spool.add(&mut request()).unwrap();
        assert_eq!(folder.request().unwrap().unwrap().mark, folder.path().display().to_string());
        assert_eq!(fs::metadata(folder.file("job.json")).unwrap().mode() & 0o077, 0);
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_file() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::open(root.path()).unwrap();
        let (folder, _alive) = spool.add(&mut request()).unwrap();
        fs::write(folder.file("state.json"), "{").unwrap();
        assert!(folder.state().unwrap_err().to_string().contains("state.json"));
    }
}
