//! `serve`: the service until it is told to end.

use super::logging;
use crate::app::{Part, Runner};
use crate::config;
use crate::error::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::Path;
use std::process::ExitCode;

/// Runs `only` these parts, or all when none is named.
pub fn serve(named: Option<&Path>, only: &[Part]) -> Result<ExitCode> {
    logging::start("info");
    let config = config::load(named)?;
    let parts = if only.is_empty() { Part::ALL.to_vec() } else { only.to_vec() };
    log::info!("bwvisu-runner {}: configuration {}, parts {parts:?}", env!("CARGO_PKG_VERSION"), config.file.display());
    // Before anything starts: a signal during the start ends the program in the ordinary way afterwards.
    let mut signals = end_signals()?;
    let runner = Runner::start(&config, &parts.into_iter().collect())?;
    log::info!("ready");
    wait_for_end(&mut signals);
    runner.stop();
    log::info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// The signals that end the program. SIGHUP is caught, so that a closed terminal or an eager admin does not end a service.
pub fn end_signals() -> Result<Signals> {
    Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| Error::internal(format!("signals cannot be caught: {e}")))
}

/// Sleeps until the program should end.
pub fn wait_for_end(signals: &mut Signals) {
    for signal in signals.forever() {
        match signal {
            SIGHUP => log::info!("SIGHUP is ignored; restart to read a changed configuration"),
            SIGTERM => return log::info!("SIGTERM: ending"),
            _ => return log::info!("interrupted: ending"),
        }
    }
}
