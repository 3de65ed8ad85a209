//! The store in one file on this machine: redb, which is ACID and needs nothing installed. For one process.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use redb::{Builder, Database, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition};

use super::limits::{check_change, check_read};
use super::{Backend, Change, Versioned};
use crate::error::{Error, Result};

/// Key → (number of the change that wrote it, value).
const ENTRIES: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("entries");
/// The number of the last change; it stands alone in its table.
const REVISION: TableDefinition<(), u64> = TableDefinition::new("revision");
/// redb would take up to 1 GiB; the whole store of a busy centre is smaller than this.
const CACHE_BYTES: usize = 64 << 20;
/// How many changes may share one fsync.
const BATCH: usize = 256;

/// The embedded store. One thread writes, so that changes that arrive together share one fsync; reads go past it.
pub struct Embedded {
    file: Arc<StoreFile>,
    orders: Option<Sender<Order>>,
    writer: Option<JoinHandle<()>>,
}

/// A change that waits for the writer, and where its answer goes.
struct Order {
    change: Change,
    answer: SyncSender<Result<bool>>,
}

impl Embedded {
    /// Opens the store in the file `path`; makes it, and its folder, where absent, for this user alone.
    pub fn open(path: &Path) -> Result<Embedded> {
        make_folder(folder_of(path))?;
        if !path.try_exists().map_err(|error| out_of_reach(path, error))? {
            create(path)?;
        }
        keep_private(path)?;
        let file = Arc::new(StoreFile { path: path.to_owned(), database: RwLock::new(Some(open(path)?)) });
        let (orders, receiver) = channel();
        let writer = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn({
                let file = Arc::clone(&file);
                move || write_all(&file, &receiver)
            })
            .map_err(|error| Error::unavailable(format!("no thread for the store: {error}")))?;
        Ok(Self { file, orders: Some(orders), writer: Some(writer) })
    }
}

impl Drop for Embedded {
    /// Waits for the writer, so that the file may be opened again at once.
    fn drop(&mut self) {
        self.orders = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Backend for Embedded {
    fn get(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>> {
        check_read(keys.len())?;
        self.file.read(|database| {
            let entries = database.begin_read()?.open_table(ENTRIES)?;
            keys.iter().map(|key| Ok(entries.get(key.as_str())?.map(|entry| versioned(entry.value())))).collect()
        })
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>> {
        self.file.read(|database| {
            let entries = database.begin_read()?.open_table(ENTRIES)?;
            let mut found = Vec::new();
            for entry in entries.range(prefix..)? {
                let (key, entry) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                found.push((key.value().to_owned(), versioned(entry.value())));
            }
            Ok(found)
        })
    }

    fn commit(&self, change: &Change) -> Result<bool> {
        check_change(change)?;
        let (answer, answered) = sync_channel(1);
        let gone = || Error::unavailable("the store's writer has ended; restart the runner");
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(Order { change: change.clone(), answer }).map_err(|_| gone())?;
        answered.recv().unwrap_or_else(|_| Err(Error::unknown("the store's writer ended before it answered")))
    }

    fn lead(&self, _role: &str) -> Result<bool> {
        // The file is locked: no other program is on this database.
        Ok(true)
    }

    fn resign(&self) {}
}

fn versioned((version, value): (u64, &[u8])) -> Versioned {
    Versioned { value: value.to_owned(), version }
}

/// The open file. After a fault of the disk redb answers nothing more until it is opened anew; then it is `None` for a while.
struct StoreFile {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

impl StoreFile {
    /// Runs `job` on a database that works: one that an earlier fault has broken is opened again first.
    fn with_database<T>(&self, job: impl Fn(&Database) -> Result<T, Failure>) -> Result<T, Failure> {
        for _ in 0..2 {
            let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
            match open.as_ref().map(&job) {
                Some(Err(Failure { broken: true, .. })) | None => {}
                Some(outcome) => return outcome,
            }
            drop(open);
            self.reopen().map_err(|error| Failure { error, broken: false })?;
        }
        let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map_or_else(|| Err(Failure { error: self.out_of_reach("closed"), broken: false }), job)
    }

    fn reopen(&self) -> Result<()> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        *database = Some(open(&self.path)?);
        log::warn!("{}: opened again after a fault", self.path.display());
        Ok(())
    }

    fn read<T>(&self, job: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T> {
        self.with_database(|database| job(database).map_err(|error| self.failure(error))).map_err(|failure| failure.error)
    }

    /// An error from before the commit: nothing has happened.
    fn failure(&self, error: impl Into<redb::Error>) -> Failure {
        let error = error.into();
        let broken = matches!(error, redb::Error::PreviousIo | redb::Error::DatabaseClosed);
        Failure { error: self.out_of_reach(error), broken }
    }

    fn out_of_reach(&self, reason: impl std::fmt::Display) -> Error {
        out_of_reach(&self.path, reason)
    }
}

/// Why a job on the database failed, and whether it was `broken` before, so that the job may be done again on a fresh one.
struct Failure {
    error: Error,
    broken: bool,
}

/// The writer's life: takes all changes that wait, writes them with one fsync, answers.
fn write_all(file: &StoreFile, orders: &Receiver<Order>) {
    while let Ok(first) = orders.recv() {
        let mut batch = vec![first];
        batch.extend(orders.try_iter().take(BATCH - 1));
        let outcome = file.with_database(|database| write(file, database, &batch));
        for (index, order) in batch.iter().enumerate() {
            let answer = match &outcome {
                Ok(done) => Ok(done.get(index).copied().unwrap_or(false)),
                Err(failure) => Err(failure.error.clone()),
            };
            // Whoever does not wait any more has no use for it.
            let _ = order.answer.send(answer);
        }
    }
}

/// Writes a batch in one transaction; each change sees those before it.
fn write(file: &StoreFile, database: &Database, batch: &[Order]) -> Result<Vec<bool>, Failure> {
    let before = |error: redb::Error| file.failure(error);
    let transaction = database.begin_write().map_err(|error| before(error.into()))?;
    let done = {
        let mut entries = transaction.open_table(ENTRIES).map_err(|error| before(error.into()))?;
        let mut revision = transaction.open_table(REVISION).map_err(|error| before(error.into()))?;
        batch.iter().map(|order| apply(&mut entries, &mut revision, &order.change)).collect::<Result<Vec<_>, _>>()
    };
    let done = done.map_err(|error| before(error.into()))?;
    transaction.commit().map_err(|error| Failure {
        error: Error::unknown(format!("{}: the change may or may not be written: {error}", file.path.display())),
        broken: false,
    })?;
    Ok(done)
}

fn apply(entries: &mut Table<&str, (u64, &[u8])>, revision: &mut Table<(), u64>, change: &Change) -> Result<bool, StorageError> {
    for (key, version) in &change.expect {
        if entries.get(key.as_str())?.map_or(0, |entry| entry.value().0) != *version {
            return Ok(false);
        }
    }
    let number = revision.get(())?.map_or(0, |last| last.value()) + 1;
    revision.insert((), number)?;
    for (key, value) in &change.put {
        entries.insert(key.as_str(), (number, value.as_slice()))?;
    }
    for key in &change.delete {
        entries.remove(key.as_str())?;
    }
    Ok(true)
}

fn out_of_reach(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::unavailable(format!("the store {} is out of reach: {reason}", path.display()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn make_folder(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| Error::unavailable(format!("cannot make the folder {}: {error}", folder.display())))
}

/// Makes an empty store under another name first: whoever sees the file at `path` sees a whole one, whatever happens here.
fn create(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    let fault = |error: &dyn std::fmt::Display| Error::unavailable(format!("cannot make {}: {error}", path.display()));
    let draft = tempfile::Builder::new().prefix(".store-").tempfile_in(folder).map_err(|error| fault(&error))?;
    fill(draft.path()).map_err(|error| fault(&error))?;
    match draft.persist_noclobber(path) {
        Err(error) if error.error.kind() != IoErrorKind::AlreadyExists => return Err(fault(&error.error)),
        // Else it is there: ours, or that of a process which was faster.
        _ => {}
    }
    // The name must survive a power loss as well as the bytes.
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| fault(&error))
}

fn fill(path: &Path) -> Result<(), redb::Error> {
    let database = Database::create(path)?;
    let transaction = database.begin_write()?;
    transaction.open_table(ENTRIES)?;
    transaction.open_table(REVISION)?.insert((), 0)?;
    transaction.commit()?;
    Ok(())
}

/// The store holds the jobs' tokens: nobody else may read it, also when it was copied here by hand.
fn keep_private(path: &Path) -> Result<()> {
    let mode = fs::metadata(path).map_err(|error| out_of_reach(path, error))?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(|error| Error::unavailable(format!("{} is open to others and cannot be closed: {error}", path.display())))
}

/// Opens a file that must be a store. All of it is checked: a damaged one is better refused than served.
fn open(path: &Path) -> Result<Database> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).open(path)?;
        let reader = database.begin_read().map_err(redb::Error::from)?;
        reader.open_table(ENTRIES)?;
        reader.open_table(REVISION)?;
        Ok(database)
    }));
    // redb may panic on a file that others have altered.
    opened.unwrap_or_else(|_| Err(redb::Error::Corrupted("unreadable".to_owned()))).map_err(|error| refusal(path, error))
}

fn refusal(path: &Path, error: redb::Error) -> Error {
    let path = path.display();
    match error {
        redb::Error::DatabaseAlreadyOpen => Error::unavailable(format!(
            "the store {path} is in use by another process; parts of the runner that run apart need etcd"
        )),
        redb::Error::Io(error) if error.kind() != IoErrorKind::InvalidData && error.kind() != IoErrorKind::UnexpectedEof => {
            Error::unavailable(format!("the store {path} cannot be opened: {error}"))
        }
        error => Error::internal(format!(
            "{path} is damaged, or no store of the runner ({error}); put back a copy of it, or move it away to begin with an empty one"
        )),
    }
}
