//! The queue: at most so many jobs run at once, the others wait in the order in which they came. No daemon keeps it; the shepherds
//! of the waiting jobs do, with locks that end with their holders.

use super::spool::{JobFolder, Request, create};
use std::fs::{File, TryLockError};
use std::io;
use std::time::Duration;

/// How often the first in the queue looks for a free slot. Only one process does this, however long the queue is.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until all jobs before this one have left the queue and a slot is free, and takes it.
///
/// A job leaves the queue when it starts or when it is cancelled. Of one that was cancelled the predecessors may still be
/// waiting: then they come first.
pub(super) fn wait(folder: &JobFolder, request: &Request) -> io::Result<File> {
    let mut before = request.after;
    while let Some(id) = before {
        let previous = folder.sibling(id);
        left(&previous)?;
        let started = previous.state().ok().flatten().is_some_and(|state| state.started_at.is_some());
        before = previous.request().ok().flatten().filter(|_| !started).and_then(|request| request.after);
    }
    loop {
        if let Some(slot) = take(folder, request.slots)? {
            return Ok(slot);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until a job is not in the queue any more.
fn left(folder: &JobFolder) -> io::Result<()> {
    match File::open(folder.file("queued")) {
        Ok(file) => file.lock_shared(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn take(folder: &JobFolder, slots: usize) -> io::Result<Option<File>> {
    for number in 0..slots.max(1) {
        let file = create(&folder.spool().join("slots").join(number.to_string()))?;
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(None)
}
