//! The store in one file on this machine: redb, which is ACID and needs nothing installed. For one process.

mod file;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use redb::{Database, ReadableDatabase, ReadableTable, Table, WriteTransaction};

use super::limits::{check_change, check_read};
use super::{Backend, Change, Versioned};
use crate::error::{Error, ErrorKind, Result};
use crate::seldom::Seldom;
pub(super) use file::reason;
use file::{ENTRIES, REVISION, folder_of, identity};

/// How often a job is done again on a file that is opened anew: while the disk is full, each change that is tried breaks what a reader
/// has just been given.
const REOPENINGS: usize = 20;
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
        file::make_folder(folder_of(path))?;
        if !path.try_exists().map_err(|error| file::refusal(path, error.into()))? {
            file::create(path)?;
        }
        file::keep_private(path)?;
        Self::on(path, file::open(path).map_err(|error| file::refusal(path, error))?)
    }

    fn on(path: &Path, database: Database) -> Result<Embedded> {
        let identity = identity(path).map_err(|error| file::refusal(path, error.into()))?;
        let file = Arc::new(StoreFile {
            path: path.to_owned(),
            identity,
            database: RwLock::new(Some(database)),
            faults: Seldom::default(),
        });
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
        self.page(prefix, "", usize::MAX)
    }

    fn page(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<(String, Versioned)>> {
        self.file.read(|database| {
            let entries = database.begin_read()?.open_table(ENTRIES)?;
            let mut found = Vec::new();
            for entry in entries.range(prefix.max(after)..)? {
                let (key, entry) = entry?;
                if !key.value().starts_with(prefix) || found.len() == most {
                    break;
                }
                if key.value() != after {
                    found.push((key.value().to_owned(), versioned(entry.value())));
                }
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

    fn file(&self) -> Option<&Path> {
        Some(&self.file.path)
    }
}

/// A store that nobody else can open while this is there, however damaged it is.
pub struct Held {
    _lock: Lock,
    /// What is in it, or why it cannot be read.
    pub contents: Result<Vec<(String, Vec<u8>)>>,
}

enum Lock {
    /// As whoever uses it holds it.
    Open { _database: Database },
    /// A damaged one: redb takes this lock on the whole file before it reads.
    Damaged { _file: File },
}

/// Takes hold of the store at `path`; nothing if another process has it.
pub fn hold(path: &Path) -> Result<Option<Held>> {
    let error = match file::open(path) {
        Ok(database) => {
            let entries = entries(&database).map_err(|error| file::refusal(path, error))?;
            return Ok(Some(Held { _lock: Lock::Open { _database: database }, contents: Ok(entries) }));
        }
        Err(redb::Error::DatabaseAlreadyOpen) => return Ok(None),
        Err(error) => file::refusal(path, error),
    };
    if error.kind != ErrorKind::Internal {
        return Err(error);
    }
    let unreadable = |error: std::io::Error| file::refusal(path, error.into());
    let file = File::open(path).map_err(unreadable)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Held { _lock: Lock::Damaged { _file: file }, contents: Err(error) })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(unreadable(error)),
    }
}

fn entries(database: &Database) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let table = database.begin_read()?.open_table(ENTRIES)?;
    let all = table.iter()?.map(|entry| entry.map(|(key, entry)| (key.value().to_owned(), entry.value().1.to_owned())));
    Ok(all.collect::<Result<_, _>>()?)
}

/// Makes the empty file `path` a store of these entries.
pub fn fill(path: &Path, entries: &[(String, Vec<u8>)]) -> Result<()> {
    file::fill(path, entries).map_err(|error| file::out_of_reach(path, error))
}

fn versioned((version, value): (u64, &[u8])) -> Versioned {
    Versioned { value: value.into(), version }
}

/// The open file. After a fault of the disk redb answers nothing more until it is opened anew; then it is `None` for a while.
struct StoreFile {
    path: PathBuf,
    /// Which file it is: one that was moved away or replaced must not be written to, since nobody would find that again.
    identity: (u64, u64),
    database: RwLock<Option<Database>>,
    /// Faults come with every request while they last.
    faults: Seldom,
}

impl StoreFile {
    /// Runs `job` on a database that works: one that an earlier fault has broken is opened again first.
    fn with_database<T>(&self, job: impl Fn(&Database) -> Result<T, Failure>) -> Result<T, Failure> {
        for _ in 0..REOPENINGS {
            let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
            match open.as_ref().map(&job) {
                Some(Err(Failure { broken: true, .. })) | None => {}
                Some(outcome) => return outcome,
            }
            drop(open);
            self.reopen().map_err(Failure::before)?;
        }
        let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map_or_else(|| Err(self.failure(redb::Error::DatabaseClosed)), job)
    }

    fn reopen(&self) -> Result<()> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        self.check_place()?;
        file::forget_cached(&self.path);
        *database = Some(file::open(&self.path).map_err(|error| file::refusal(&self.path, error))?);
        if let Some(others) = self.faults.due(()) {
            log::warn!("{}: opened again after a fault{others}", self.path.display());
        }
        Ok(())
    }

    fn check_place(&self) -> Result<()> {
        let path = self.path.display();
        let found = identity(&self.path).map_err(|error| file::refusal(&self.path, error.into()))?;
        if found == self.identity {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "the store {path} was replaced by another file while it was in use: put the old one back, or restart the runner"
        )))
    }

    fn read<T>(&self, job: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T> {
        self.with_database(|database| job(database).map_err(|error| self.failure(error))).map_err(|failure| failure.error)
    }

    /// An error from before the commit: nothing has happened.
    fn failure(&self, error: impl Into<redb::Error>) -> Failure {
        let error = error.into();
        let broken = matches!(error, redb::Error::PreviousIo | redb::Error::DatabaseClosed);
        Failure { error: file::out_of_reach(&self.path, error), broken, since: None }
    }
}

/// Why a job on the database failed, and whether it was `broken` before, so that the job may be done again on a fresh one.
struct Failure {
    error: Error,
    broken: bool,
    /// A commit that failed half-way, from this revision on: it may have happened.
    since: Option<u64>,
}

impl Failure {
    /// Nothing has happened.
    fn before(error: Error) -> Self {
        Self { error, broken: false, since: None }
    }
}

/// The writer's life: takes all changes that wait, writes them with one fsync, answers.
fn write_all(file: &StoreFile, orders: &Receiver<Order>) {
    while let Ok(first) = orders.recv() {
        let mut batch = vec![first];
        batch.extend(orders.try_iter().take(BATCH - 1));
        let outcome = file.with_database(|database| write(file, database, &batch)).map_err(|failure| settle(file, failure));
        for (index, order) in batch.iter().enumerate() {
            let answer = match &outcome {
                Ok(done) => Ok(done.get(index).copied().unwrap_or(false)),
                Err(error) => Err(error.clone()),
            };
            // Whoever does not wait any more has no use for it.
            let _ = order.answer.send(answer);
        }
    }
}

/// Looks into the file whether a commit that failed has happened. Most often it certainly has not, as on a full disk.
fn settle(file: &StoreFile, failure: Failure) -> Error {
    let Some(since) = failure.since else { return failure.error };
    // Opened anew: what this process still has in its memory is what was there before.
    let now = file.reopen().and_then(|()| file.read(|database| revision(&database.begin_read()?.open_table(REVISION)?)));
    match now {
        Ok(now) if now == since => failure.error,
        _ => Error::unknown(format!("{}; the change may or may not be written", failure.error.message)),
    }
}

/// Writes a batch in one transaction; each change sees those before it.
fn write(file: &StoreFile, database: &Database, batch: &[Order]) -> Result<Vec<bool>, Failure> {
    file.check_place().map_err(Failure::before)?;
    let before = |error: redb::Error| file.failure(error);
    let transaction = database.begin_write().map_err(|error| before(error.into()))?;
    let prepared = prepare(&transaction, batch).map_err(before)?;
    let (done, since) = prepared;
    let committed = transaction.commit();
    committed.map_err(|error| Failure { since: Some(since), broken: false, ..file.failure(error) })?;
    Ok(done)
}

/// Does a batch, but for the commit; which changes happen, and the revision before them.
fn prepare(transaction: &WriteTransaction, batch: &[Order]) -> Result<(Vec<bool>, u64), redb::Error> {
    let mut entries = transaction.open_table(ENTRIES)?;
    let mut numbers = transaction.open_table(REVISION)?;
    let since = revision(&numbers)?;
    let done = batch.iter().map(|order| apply(&mut entries, &mut numbers, &order.change)).collect::<Result<_, _>>()?;
    Ok((done, since))
}

fn revision(numbers: &impl ReadableTable<(), u64>) -> Result<u64, redb::Error> {
    Ok(numbers.get(())?.map_or(0, |last| last.value()))
}

fn apply(entries: &mut Table<&str, (u64, &[u8])>, numbers: &mut Table<(), u64>, change: &Change) -> Result<bool, redb::Error> {
    for (key, version) in &change.expect {
        if entries.get(key.as_str())?.map_or(0, |entry| entry.value().0) != *version {
            return Ok(false);
        }
    }
    let number = revision(numbers)? + 1;
    numbers.insert((), number)?;
    for (key, value) in &change.put {
        entries.insert(key.as_str(), (number, value.as_slice()))?;
    }
    for key in &change.delete {
        entries.remove(key.as_str())?;
    }
    Ok(true)
}
