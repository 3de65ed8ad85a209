//! `store`: backups of the embedded store.

use super::client::{ApiArgs, ApiClient};
use crate::config::{self, Config, StoreConfig};
use crate::error::{Error, Result};
use crate::store::{backup, embedded};
use clap::Subcommand;
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `store …`
#[derive(Subcommand)]
pub enum StoreCommand {
    /// Write all records into FILE (`-`: standard output), while the service runs or not. The file holds the jobs' tokens: keep it as
    /// safe as the store itself
    Backup {
        /// Where the running service is
        #[command(flatten)]
        api: ApiArgs,
        /// Replace FILE if it is there, and a regular file
        #[arg(long)]
        force: bool,
        /// Where to
        file: PathBuf,
    },
    /// Make the store what FILE (`-`: standard input) holds; the service must not run
    Restore {
        /// Also in place of a store that holds jobs; it is kept beside the new one
        #[arg(long)]
        replace: bool,
        /// A backup that nobody but root, you and the owner of the store's folder may write to
        file: PathBuf,
    },
}

/// Runs `store …`.
pub fn run(named: Option<&Path>, command: &StoreCommand) -> Result<ExitCode> {
    let config = config::load(named)?;
    let store = embedded_file(&config)?;
    match command {
        StoreCommand::Backup { api, force, file } => {
            if !is_standard(file) {
                backup::check_target(file, *force)?;
            }
            match embedded::hold(store)? {
                Some(held) => write(file, *force, &held.contents?)?,
                None => copy(&ask(named, api, store)?, file, *force)?,
            }
            if !is_standard(file) {
                report(file);
            }
        }
        StoreCommand::Restore { replace, file } => restore(store, file, *replace)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether `file` stands for standard output or standard input.
fn is_standard(file: &Path) -> bool {
    file == Path::new("-")
}

fn report(file: &Path) {
    println!("{} is written; it holds the jobs' tokens: keep it as safe as the store itself", file.display());
    if let Some(exposure) = backup::exposure(file) {
        eprintln!("bwvisu-runner: warning: {exposure}");
    }
}

fn embedded_file(config: &Config) -> Result<&Path> {
    match &config.store {
        StoreConfig::Embedded(path) => Ok(path),
        StoreConfig::Etcd(_) => Err(backup::in_etcd()),
    }
}

fn write(file: &Path, force: bool, entries: &[(String, Vec<u8>)]) -> Result<()> {
    output(file, force, |out| backup::write(out, entries, Timestamp::now()))
}

fn output(file: &Path, force: bool, write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<()> {
    if is_standard(file) {
        return write(&mut io::stdout().lock()).map_err(|e| Error::unavailable(format!("standard output: {e}")));
    }
    backup::save(file, force, write)
}

/// Has the service, which has the store open, make a backup on its side; where that lies.
fn ask(named: Option<&Path>, api: &ApiArgs, store: &Path) -> Result<PathBuf> {
    let made = ApiClient::new(named, api).and_then(|api| api.back_up());
    let name = made.map_err(|error| error.within("the store is in use, and whoever uses it was asked for a backup"))?;
    if !backup::is_name(&name) {
        return Err(Error::bad_gateway(format!("the API named {name:?}, which is no backup of its own")));
    }
    Ok(backup::folder(store).join(name))
}

/// Copies the service's backup, checked on the way.
fn copy(made: &Path, file: &Path, force: bool) -> Result<()> {
    let unreadable = |e: io::Error| {
        Error::unavailable(format!(
            "the service has made {}, but it cannot be read here: {e}; run this on its machine, as its account or as root",
            made.display()
        ))
    };
    let mut bytes = Vec::new();
    File::open(made).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(unreadable)?;
    backup::read(bytes.as_slice()).map_err(|error| error.within(made.display()))?;
    output(file, force, |out| out.write_all(&bytes))
}

fn restore(store: &Path, file: &Path, replace: bool) -> Result<()> {
    let backup = backup::read(input(file, store)?).map_err(|error| error.within(file.display()))?;
    let (at, program) = (backup.at, backup.program.clone());
    let done = backup::restore(backup, store, replace, Timestamp::now())?;
    println!("{}: {} records of {at:.0}, written by version {program}", store.display(), done.records);
    if let Some(kept) = done.kept {
        println!("the store that was there is kept as {}", kept.display());
    }
    println!(
        "the next job gets the id {}: {} ids are left out, since they may have been given after the backup",
        done.next_job,
        backup::IDS_LEFT_OUT
    );
    println!("jobs that were submitted after the backup are not known any more; they go on in the scheduler");
    Ok(())
}

fn input(file: &Path, store: &Path) -> Result<Box<dyn BufRead>> {
    if is_standard(file) {
        return Ok(Box::new(io::stdin().lock()));
    }
    Ok(Box::new(BufReader::new(backup::open(file, store)?)))
}
