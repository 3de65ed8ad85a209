//! `serve`: the service until it is told to end.

use crate::app::{Part, Runner};
use crate::config;
use crate::error::{Error, Result};
use crate::logging::{self, Format};
use crate::systemd::{self, Sockets};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

/// Runs `only` these parts, or all when none is named, with a log in this `format`.
pub fn serve(named: Option<&Path>, only: &[Part], format: Format) -> Result<ExitCode> {
    logging::start("info", format);
    let mut sockets = Sockets::passed();
    let config = config::load(named)?;
    let parts = if only.is_empty() { Part::ALL.to_vec() } else { only.to_vec() };
    log::info!("bwvisu-runner {}: configuration {}, parts {parts:?}", env!("CARGO_PKG_VERSION"), config.file.display());
    // Before anything starts: a signal during the start ends the program in the ordinary way afterwards.
    let mut signals = end_signals()?;
    let runner = Arc::new(Runner::start_on(&config, &parts.into_iter().collect(), &mut sockets)?);
    sockets.let_go();
    let bell = reloader(Arc::clone(&runner), named.map(Path::to_owned))?;
    let watched = Arc::clone(&runner);
    systemd::feed_watchdog(move || watched.ailing())?;
    log::info!("ready");
    systemd::ready(&status(&runner));
    wait_for_end(&mut signals, || ring(&bell));
    systemd::stopping();
    runner.stop();
    log::info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// One line for `systemctl status`.
fn status(runner: &Runner) -> String {
    let listening = [("api", runner.api_address()), ("keyhole", runner.keyhole_address())];
    let words = listening.map(|(name, address)| address.map(|address| format!("{name} on {address}")));
    let words: Vec<String> = words.into_iter().flatten().collect();
    if words.is_empty() { "watching".to_owned() } else { words.join(", ") }
}

/// The signals that end the program. SIGHUP is caught, so that a closed terminal does not end a service.
pub fn end_signals() -> Result<Signals> {
    Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| Error::internal(format!("signals cannot be caught: {e}")))
}

/// Sleeps until the program should end, and calls `look_again` at each SIGHUP.
pub fn wait_for_end(signals: &mut Signals, look_again: impl Fn()) {
    for signal in signals.forever() {
        match signal {
            SIGHUP => look_again(),
            SIGTERM => return log::info!("SIGTERM: ending"),
            _ => return log::info!("interrupted: ending"),
        }
    }
}

/// A thread that reads the configuration again when the bell rings. It is one of its own: a name service that hangs must not keep the program
/// from ending.
fn reloader(runner: Arc<Runner>, named: Option<PathBuf>) -> Result<SyncSender<()>> {
    // One ring waits while another is heeded; it stands for all that come meanwhile.
    let (bell, rings) = sync_channel(1);
    let work = move || rings.iter().for_each(|()| reload(&runner, named.as_deref()));
    let thread = thread::Builder::new().name("reload".into()).spawn(work);
    thread.map(|_| bell).map_err(|e| Error::internal(format!("no thread can be started: {e}")))
}

fn ring(bell: &SyncSender<()>) {
    if let Err(TrySendError::Disconnected(())) = bell.try_send(()) {
        log::error!("SIGHUP: what reads the configuration again has ended; restart to read it");
    }
}

fn reload(runner: &Runner, named: Option<&Path>) {
    systemd::reloading();
    match config::load(named).and_then(|config| runner.reload(config)) {
        Ok(changed) if changed.is_empty() => log::info!("SIGHUP: read again; nothing has changed"),
        Ok(changed) => log::info!("SIGHUP: read again; changed: {}", changed.join(", ")),
        Err(error) => log::error!("SIGHUP: {error}; everything stays as it was"),
    }
    systemd::ready(&status(runner));
}
