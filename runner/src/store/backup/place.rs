//! Which files a backup is read from, and where one is written.
//!
//! Its checksum shows damage, not who made it: whoever may write to a backup chooses the jobs and the tokens of the store that is made
//! from it.

use super::folder_of;
use crate::error::{Error, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

const ROOT: u32 = 0;
const STICKY: u32 = 0o1000;
const NO_BACKUP: &str =
    "a backup is read from a regular file alone: name that file, or feed it into standard input (`store restore -`)";

/// Opens a backup that nobody can have written but root, this user and the owner of the folder of the store, which it is for.
pub fn open(file: &Path, store: &Path) -> Result<File> {
    // What is judged is what was opened, whatever becomes of the name meanwhile. Without NONBLOCK, a pipe would be waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(file);
    let opened = opened.map_err(|error| unopened(file, &error))?;
    let metadata = opened.metadata().map_err(|error| unopened(file, &error))?;
    check_source(&metadata, fs::metadata(folder_of(store)).ok().map(|folder| folder.uid()))
        .map_err(|why| Error::bad_input(format!("{} {why}", file.display())))?;
    Ok(opened)
}

fn unopened(file: &Path, error: &io::Error) -> Error {
    let name = file.display();
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
        return Error::bad_input(format!("{name} is a symbolic link, and {NO_BACKUP}"));
    }
    Error::bad_input(format!("{name}: {error}"))
}

fn check_source(metadata: &Metadata, keeper: Option<u32>) -> Result<(), String> {
    if !metadata.is_file() {
        return Err(format!("is {}, and {NO_BACKUP}", kind(metadata.file_type())));
    }
    let (owner, mode, own) = (metadata.uid(), metadata.mode() & 0o7777, own());
    let owned = [Some(ROOT), Some(own), keeper].contains(&Some(owner));
    if owned && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(format!(
        "belongs to user {owner} with mode {mode:04o}, so somebody else may have chosen the jobs and tokens in it: a backup must belong \
         to root, to this user ({own}) or to the owner of the store's folder, and nobody else may write to it; if you know what is in \
         it, restore a copy of your own, or `chown` it and `chmod go-w` it"
    ))
}

/// Refuses to write a backup over anything that is there: a regular file unless `replace`, everything else in any case.
pub fn check_target(file: &Path, replace: bool) -> Result<()> {
    let Ok(there) = file.symlink_metadata() else { return Ok(()) };
    if there.is_file() {
        return if replace { Ok(()) } else { Err(is_there(file)) };
    }
    Err(Error::conflict(format!(
        "{} is {}, and a backup replaces regular files alone: name another file (`-` is standard output)",
        file.display(),
        kind(there.file_type())
    )))
}

/// The answer to an existing file.
pub(super) fn is_there(file: &Path) -> Error {
    Error::conflict(format!("{} is there already: name another file, or add --force", file.display()))
}

fn kind(found: FileType) -> &'static str {
    match found {
        found if found.is_symlink() => "a symbolic link",
        found if found.is_dir() => "a folder",
        found if found.is_fifo() => "a named pipe",
        found if found.is_socket() => "a socket",
        found if found.is_block_device() || found.is_char_device() => "a device",
        _ => "no regular file",
    }
}

/// What is wrong with the place of `file` if somebody other than root and this user could put another file there.
pub fn exposure(file: &Path) -> Option<String> {
    let folder = fs::canonicalize(folder_of(file)).ok()?;
    // Whoever may write to a folder may rename those in it, with all that they hold.
    folder.ancestors().find_map(|folder| {
        let who = writer(&folder.metadata().ok()?)?;
        Some(format!(
            "{who} may write to the folder {}, and so put another file in the place of {}: keep backups where only root or this user may",
            folder.display(),
            file.display()
        ))
    })
}

fn writer(folder: &Metadata) -> Option<String> {
    let mode = folder.mode();
    if ![ROOT, own()].contains(&folder.uid()) {
        return Some(format!("user {}", folder.uid()));
    }
    // In a sticky folder others can neither rename nor remove what is not theirs.
    match mode & STICKY {
        0 if mode & 0o002 != 0 => Some("everybody".to_owned()),
        0 if mode & 0o020 != 0 => Some(format!("group {}", folder.gid())),
        _ => None,
    }
}

fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_neither_replaced_nor_read() {
        // Judged alone: were a command wrong about it, the machine would lose its /dev/null.
        for replace in [false, true] {
            let refused = check_target(Path::new("/dev/null"), replace).unwrap_err();
            assert!(refused.message.starts_with("/dev/null is a device, "), "{refused}");
        }
        let refused = open(Path::new("/dev/null"), Path::new("/store")).unwrap_err();
        assert!(refused.message.starts_with("/dev/null is a device, "), "{refused}");
    }
}
