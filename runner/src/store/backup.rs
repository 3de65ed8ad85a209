//! Backups of the embedded store: lines of JSON, one for each record, between a line that says what it is and one that shows whether
//! all of it is there.
//!
//! ```text
//! {"format":"bwvisu-runner store backup","version":1,"program":"0.1.0","at":"2026-11-22T04:30:00Z","records":2}
//! {"key":"clusters/default/jobs/1","value":{"version":2,…}}
//! {"key":"next-job-id","value":{"version":1,"next":2}}
//! {"sha256":"…"}
//! ```
//!
//! The last line is about all bytes before it. A backup holds the tokens of all jobs that are not finished.

mod place;

pub use place::{check_target, exposure, open};

use super::{Backend, RECORD_VERSION, embedded, keys};
use crate::error::{Error, Result};
use crate::folder::{check_own, make_private};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, TryLockError};
use tempfile::NamedTempFile;

const FORMAT: &str = "bwvisu-runner store backup";
const VERSION: u32 = 1;
/// How many backups the service keeps of those that it was asked for.
pub const KEPT: usize = 5;
/// By so many the next job's id is moved on in a store that was restored: ids that were given after the backup are not given again.
pub const IDS_LEFT_OUT: u64 = 1000;
/// What the names of files begin with that are not whole yet.
const DRAFT: &str = ".draft-";
/// No line of a backup is longer.
const LONGEST_LINE: u64 = 64 << 20;

type Entry = (String, Vec<u8>);

/// A backup that the service has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The file's name in the folder of backups.
    pub name: String,
    /// How many records it holds.
    pub records: usize,
}

/// A backup that was read, whole and undamaged.
#[derive(Debug)]
pub struct Backup {
    /// When it was made.
    pub at: Timestamp,
    /// The version of the program that made it.
    pub program: String,
    /// Its records, by key.
    pub entries: Vec<Entry>,
}

/// What a restoration did.
#[derive(Debug)]
pub struct Restored {
    /// How many records the store holds now.
    pub records: usize,
    /// The id that the next job gets.
    pub next_job: u64,
    /// Where the store lies that was there before.
    pub kept: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    program: String,
    at: Timestamp,
    records: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    key: String,
    #[serde(borrow)]
    value: &'a RawValue,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tail {
    sha256: String,
}

/// Where the service keeps its backups of the store in the file `store`.
pub fn folder(store: &Path) -> PathBuf {
    folder_of(store).join("backups")
}

/// Has the service make a backup of its own store, under a name of its own choice; the oldest beyond [`KEPT`] are removed.
pub fn make(store: &dyn Backend, now: Timestamp) -> Result<Made> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let file = store.file().ok_or_else(in_etcd)?;
    let _turn = match ONE_AT_A_TIME.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(Error::busy("a backup is being made just now")),
        turn => turn,
    };
    let folder = folder(file);
    make_private(&folder)?;
    check_own(&folder)?;
    remove_drafts(&folder);
    let entries: Vec<Entry> = store.scan("")?.into_iter().map(|(key, found)| (key, found.value.to_vec())).collect();
    let name = format!("store-{}.jsonl", stamp(now));
    save(&folder.join(&name), false, |out| write(out, &entries, now))?;
    prune(&folder, &name);
    log::info!("backup {} made, {} records", folder.join(&name).display(), entries.len());
    Ok(Made { name, records: entries.len() })
}

/// What is said where the records lie in etcd.
pub fn in_etcd() -> Error {
    Error::conflict(
        "the records are in etcd, which makes its own backups: `etcdctl snapshot save FILE`, and `etcdctl snapshot restore FILE`",
    )
}

/// Whether `name` is one that [`make`] gives.
pub fn is_name(name: &str) -> bool {
    let stamp = name.strip_prefix("store-").and_then(|rest| rest.strip_suffix(".jsonl"));
    stamp.is_some_and(|stamp| !stamp.is_empty() && stamp.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn stamp(now: Timestamp) -> String {
    now.strftime("%Y%m%dT%H%M%S%6fZ").to_string()
}

fn prune(folder: &Path, newest: &str) {
    let mut names: Vec<String> = names(folder).filter(|name| is_name(name) && name != newest).collect();
    names.sort();
    for name in names.iter().rev().skip(KEPT - 1) {
        if let Err(error) = fs::remove_file(folder.join(name)) {
            log::warn!("old backup {name} cannot be removed: {error}");
        }
    }
}

/// What a process left that was killed in the middle.
fn remove_drafts(folder: &Path) {
    for name in names(folder).filter(|name| name.starts_with(DRAFT)) {
        let _ = fs::remove_file(folder.join(name));
    }
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok())
}

/// Writes a backup.
pub fn write(out: &mut dyn Write, entries: &[Entry], now: Timestamp) -> io::Result<()> {
    let mut out = Hashing { out: BufWriter::new(out), hash: Sha256::new() };
    let program = env!("CARGO_PKG_VERSION").to_owned();
    out.line(&Head { format: FORMAT.to_owned(), version: VERSION, program, at: now, records: entries.len() })?;
    for (key, value) in entries {
        out.line(&Line { key: key.clone(), value: serde_json::from_slice(value)? })?;
    }
    let sha256 = hex(&out.hash.clone().finalize());
    out.line(&Tail { sha256 })?;
    out.out.flush()
}

struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Hashing<W> {
    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.hash.update(&line);
        self.out.write_all(&line)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file for its owner alone: whole or not at all, and over another regular file only if `replace`.
pub fn save(file: &Path, replace: bool, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let failed =
        |error: io::Error| Error::unavailable(format!("{} cannot be written: {}", file.display(), embedded::reason(&error)));
    let folder = folder_of(file);
    let mut draft = draft(folder).map_err(failed)?;
    write(draft.as_file_mut()).and_then(|()| draft.as_file().sync_all()).map_err(failed)?;
    check_target(file, replace)?;
    let named = if replace { draft.persist(file) } else { draft.persist_noclobber(file) };
    match named {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Err(place::is_there(file)),
        Err(error) => return Err(failed(error.error)),
        Ok(_) => {}
    }
    sync_folder(folder).map_err(failed)
}

fn draft(folder: &Path) -> io::Result<NamedTempFile> {
    // Mode 0600 from the beginning.
    tempfile::Builder::new().prefix(DRAFT).tempfile_in(folder)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all())
}

/// Reads a backup; one that is not whole, not undamaged, or from a newer program is refused, with the line that shows it.
pub fn read(from: impl BufRead) -> Result<Backup> {
    let mut lines = Lines { from, hash: Sha256::new(), number: 0 };
    let head = head(&mut lines)?;
    let mut entries: Vec<Entry> = Vec::new();
    for missing in (1..=head.records).rev() {
        let line = lines.next()?;
        let ended = line.is_empty() || serde_json::from_slice::<Tail>(&line).is_ok();
        if ended {
            return Err(lines.damaged(format!("it ends here, and {missing} of {} records are missing", head.records)));
        }
        let entry = entry(&line).map_err(|why| lines.damaged(why))?;
        if entries.last().is_some_and(|(last, _)| *last >= entry.0) {
            return Err(lines.damaged(format!("the key {} is not behind the one before", entry.0)));
        }
        entries.push(entry);
    }
    check_tail(&mut lines)?;
    Ok(Backup { at: head.at, program: head.program, entries })
}

struct Lines<R> {
    from: R,
    hash: Sha256,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    /// The next line with its end; empty behind the last one.
    fn next(&mut self) -> Result<Vec<u8>> {
        self.number += 1;
        let mut line = Vec::new();
        let read = self.from.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        read.map_err(|error| Error::unavailable(format!("line {} of the backup cannot be read: {error}", self.number)))?;
        self.hash.update(&line);
        Ok(line)
    }

    fn damaged(&self, why: impl std::fmt::Display) -> Error {
        Error::bad_input(format!("line {} of the backup: {why}; nothing was restored", self.number))
    }
}

fn head<R: BufRead>(lines: &mut Lines<R>) -> Result<Head> {
    #[derive(Deserialize)]
    struct Form {
        format: String,
        version: u32,
    }
    let line = lines.next()?;
    let form = serde_json::from_slice::<Form>(&line).ok().filter(|form| form.format == FORMAT);
    let form = form.ok_or_else(|| lines.damaged("this is no backup of the runner's store"))?;
    if form.version > VERSION {
        return Err(lines.damaged(format!("it was made by a newer program, in the form {}: upgrade this one", form.version)));
    }
    serde_json::from_slice(&line).map_err(|error| lines.damaged(error))
}

fn entry(line: &[u8]) -> Result<Entry, String> {
    #[derive(Deserialize)]
    struct Record {
        version: u32,
    }
    if !line.ends_with(b"\n") {
        return Err("it ends in the middle of this line".to_owned());
    }
    let Line { key, value } = serde_json::from_slice(line).map_err(|error| format!("damaged: {error}"))?;
    let Record { version } = serde_json::from_str(value.get()).map_err(|error| format!("record {key}: {error}"))?;
    if version > RECORD_VERSION {
        return Err(format!(
            "record {key} has the form {version}, and this program knows forms up to {RECORD_VERSION}: upgrade it"
        ));
    }
    Ok((key, value.get().as_bytes().to_owned()))
}

fn check_tail<R: BufRead>(lines: &mut Lines<R>) -> Result<()> {
    let hash = hex(&lines.hash.clone().finalize());
    let line = lines.next()?;
    let tail = serde_json::from_slice::<Tail>(&line).ok().filter(|_| line.ends_with(b"\n"));
    let tail = tail.ok_or_else(|| lines.damaged("the checksum is missing: it is not whole"))?;
    if tail.sha256 != hash {
        return Err(lines.damaged("the checksum does not agree: something before it was altered or damaged"));
    }
    if lines.next()?.is_empty() { Ok(()) } else { Err(lines.damaged("there is something behind the end")) }
}

/// Makes `store` what the backup holds. The service must not run. A store in which there ever was a job is replaced only where `replace`
/// says so, and kept beside it under another name. Whatever happens in between, the old one or the new one is there.
pub fn restore(backup: Backup, store: &Path, replace: bool, now: Timestamp) -> Result<Restored> {
    let failed =
        |error: io::Error| Error::unavailable(format!("{} cannot be restored: {}", store.display(), embedded::reason(&error)));
    let folder = folder_of(store);
    make_private(folder)?;
    let old = if store.try_exists().map_err(failed)? { Some(take(store, replace)?) } else { None };
    if old.is_some() {
        // Nobody else restores while the lock is held.
        remove_drafts(folder);
    }
    let mut entries = backup.entries;
    let next_job = leave_out_ids(&mut entries)?;
    let draft = draft(folder).map_err(failed)?;
    embedded::fill(draft.path(), &entries)?;
    give_away(draft.as_file(), folder).and_then(|()| draft.as_file().sync_all()).map_err(failed)?;
    let kept = old.as_ref().map(|_| keep(store, now)).transpose().map_err(failed)?;
    let named = if old.is_some() { draft.persist(store) } else { draft.persist_noclobber(store) };
    named.map_err(|error| failed(error.error))?;
    sync_folder(folder).map_err(failed)?;
    Ok(Restored { records: entries.len(), next_job, kept })
}

/// Holds the store that is to be replaced.
fn take(store: &Path, replace: bool) -> Result<embedded::Held> {
    let name = store.display();
    let held = embedded::hold(store)?.ok_or_else(|| {
        Error::conflict(format!("the store {name} is in use: stop the service first (and every other command that uses it)"))
    })?;
    let empty = held.contents.as_ref().is_ok_and(|entries| !entries.iter().any(|(key, _)| key == keys::COUNTER));
    if empty || replace {
        return Ok(held);
    }
    let what = if held.contents.is_ok() { "holds jobs" } else { "is damaged" };
    Err(Error::conflict(format!(
        "the store {name} {what}: add --replace to put the backup in its place (the old one is kept beside it)"
    )))
}

/// Moves the counter of jobs on; returns where it stands then.
fn leave_out_ids(entries: &mut Vec<Entry>) -> Result<u64> {
    let unreadable = |error: serde_json::Error| Error::bad_input(format!("record {} of the backup: {error}", keys::COUNTER));
    let place = entries.binary_search_by(|(key, _)| key.as_str().cmp(keys::COUNTER));
    let mut counter = match place {
        Ok(index) => serde_json::from_slice(&entries[index].1).map_err(unreadable)?,
        Err(_) => serde_json::json!({"version": 1, "next": 1}),
    };
    let next = counter["next"].as_u64().and_then(|next| next.checked_add(IDS_LEFT_OUT));
    let next = next.ok_or_else(|| Error::bad_input(format!("record {} of the backup holds no number", keys::COUNTER)))?;
    counter["next"] = next.into();
    let value = serde_json::to_vec(&counter).map_err(unreadable)?;
    match place {
        Ok(index) => entries[index].1 = value,
        Err(index) => entries.insert(index, (keys::COUNTER.to_owned(), value)),
    }
    Ok(next)
}

/// Restored by root, the store must still belong to the account that the service runs as: whose its folder is.
fn give_away(draft: &File, folder: &Path) -> io::Result<()> {
    let (folder, own) = (fs::metadata(folder)?, draft.metadata()?);
    if folder.uid() == own.uid() { Ok(()) } else { fchown(draft, Some(folder.uid()), Some(folder.gid())) }
}

/// Gives the old store a second name, so that it is never without one.
fn keep(store: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let mut name = store.as_os_str().to_owned();
    name.push(format!(".before-restore-{}", stamp(now)));
    fs::hard_link(store, &name)?;
    Ok(name.into())
}

#[cfg(test)]
#[path = "backup_tests.rs"]
mod tests;
