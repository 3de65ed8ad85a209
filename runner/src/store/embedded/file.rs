//! The file of the embedded store: made, opened, checked, replaced.

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, ReadableDatabase, StorageBackend, TableDefinition};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind as IoErrorKind};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::{Error, Result};

/// Key → (number of the change that wrote it, value).
pub(super) const ENTRIES: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("entries");
/// The number of the last change; it stands alone in its table.
pub(super) const REVISION: TableDefinition<(), u64> = TableDefinition::new("revision");
/// redb would take up to 1 GiB; the whole store of a busy centre is smaller than this.
const CACHE_BYTES: usize = 64 << 20;

/// Makes an empty store under another name first: whoever sees the file at `path` sees a whole one, whatever happens here.
pub(super) fn create(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    let fault = |error: &dyn std::fmt::Display| Error::unavailable(format!("cannot make {}: {error}", path.display()));
    let draft = tempfile::Builder::new().prefix(".store-").tempfile_in(folder).map_err(|error| fault(&error))?;
    fill(draft.path(), &[]).map_err(|error| fault(&error))?;
    match draft.persist_noclobber(path) {
        Err(error) if error.error.kind() != IoErrorKind::AlreadyExists => return Err(fault(&error.error)),
        // Else it is there: ours, or that of a process which was faster.
        _ => {}
    }
    // The name must survive a power loss as well as the bytes.
    sync_folder(folder).map_err(|error| fault(&error))
}

/// Makes the empty file `path` a store of these entries, in one transaction that is on the disk when this returns.
pub(super) fn fill(path: &Path, entries: &[(String, Vec<u8>)]) -> Result<(), redb::Error> {
    let database = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(Allocated::open(path)?)?;
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(ENTRIES)?;
        let number = u64::from(!entries.is_empty());
        for (key, value) in entries {
            table.insert(key.as_str(), (number, value.as_slice()))?;
        }
        transaction.open_table(REVISION)?.insert((), number)?;
    }
    transaction.commit()?;
    Ok(database.close()?)
}

/// Opens a file that must be a store. All of it is checked: a damaged one is better refused than served.
pub(super) fn open(path: &Path) -> Result<Database, redb::Error> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let file = Allocated::open(path)?;
        if file.len()? == 0 {
            // redb would take it for a new one.
            return Err(redb::Error::Corrupted("empty".to_owned()));
        }
        let database = Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create_with_backend(file)?;
        let reader = database.begin_read().map_err(redb::Error::from)?;
        reader.open_table(ENTRIES)?;
        reader.open_table(REVISION)?;
        Ok(database)
    }));
    // redb may panic on a file that others have altered.
    opened.unwrap_or_else(|_| Err(redb::Error::Corrupted("unreadable".to_owned())))
}

/// What to tell of a store that could not be opened.
pub(super) fn refusal(path: &Path, error: redb::Error) -> Error {
    let name = path.display();
    match error {
        redb::Error::DatabaseAlreadyOpen => Error::unavailable(format!(
            "the store {name} is in use by another process; parts of the runner that run apart need etcd"
        )),
        redb::Error::Io(error) if error.kind() == IoErrorKind::PermissionDenied => Error::unavailable(format!(
            "the store {name} cannot be opened: {error}; {}: give it to the account that the runner runs as, with mode 0600",
            ownership(path)
        )),
        redb::Error::Io(error) if error.kind() != IoErrorKind::InvalidData && error.kind() != IoErrorKind::UnexpectedEof => {
            Error::unavailable(format!("the store {name} cannot be opened: {}", reason(&error)))
        }
        error => Error::internal(format!(
            "{name} is damaged, or no store of the runner ({error}); put back a copy of it (`bwvisu-runner store restore --replace`), \
             or move it away to begin with an empty one"
        )),
    }
}

fn ownership(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(file) => {
            let own = rustix::process::geteuid().as_raw();
            format!("it belongs to user {} with mode {:04o}, and this is user {own}", file.uid(), file.mode() & 0o7777)
        }
        Err(_) => "its folder is closed to this account".to_owned(),
    }
}

/// The file is out of reach for now.
pub(super) fn out_of_reach(path: &Path, error: redb::Error) -> Error {
    let reason = match &error {
        redb::Error::Io(error) => reason(error),
        other => other.to_string(),
    };
    Error::unavailable(format!("the store {} is out of reach: {reason}", path.display()))
}

/// An error of the file system, with what to do where that is plain.
pub(in crate::store) fn reason(error: &io::Error) -> String {
    let advice = match error.kind() {
        IoErrorKind::StorageFull => "; make room on its disk, then all goes on by itself",
        IoErrorKind::QuotaExceeded => "; raise the quota, then all goes on by itself",
        IoErrorKind::ReadOnlyFilesystem => "; its file system may have met a fault: see the kernel's log",
        _ => "",
    };
    format!("{error}{advice}")
}

/// The folder that a file lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn make_folder(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| Error::unavailable(format!("cannot make the folder {}: {}", folder.display(), reason(&error))))
}

/// Makes the names in a folder survive a power loss.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all())
}

/// The store holds the jobs' tokens: nobody else may read it, also when it was copied here by hand.
pub(super) fn keep_private(path: &Path) -> Result<()> {
    let mode = fs::metadata(path).map_err(|error| refusal(path, error.into()))?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(|error| Error::unavailable(format!("{} is open to others and cannot be closed: {error}", path.display())))
}

/// Which file a name stands for: its device and number there.
pub(super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// After a failed write or sync the kernel may show what never reached the disk; this makes it read the disk.
pub(super) fn forget_cached(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
    }
}

/// A file of which every byte has its place on the disk before redb writes there: a full disk shows while the file grows, when
/// nothing has been written yet, and what has to be written to mend the file always has room.
#[derive(Debug)]
struct Allocated {
    file: File,
    backend: FileBackend,
}

impl Allocated {
    fn open(path: &Path) -> Result<Self, redb::Error> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let backend = FileBackend::new(file.try_clone()?)?;
        Ok(Self { file, backend })
    }

    fn grow(&self, from: u64, to: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::empty(), from, to - from) {
            Ok(()) => Ok(()),
            // Some network file systems cannot; then it is as it would be without this.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.file.set_len(to),
            Err(error) => {
                // What was got of it is of no use to us, and others may need it.
                let _ = self.file.set_len(from);
                Err(error.into())
            }
        }
    }
}

type Locked = Result<bool, BackendError>;

impl StorageBackend for Allocated {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, to: u64) -> io::Result<()> {
        let from = self.backend.len()?;
        if to > from { self.grow(from, to) } else { self.backend.set_len(to) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.backend.query_lock_range(start, end)
    }
}
