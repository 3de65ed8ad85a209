//! The log: one line per event on standard error, with nothing in it that cannot be seen. `RUST_LOG` chooses what is shown; `info` without it.

use crate::domain::text::printable;
use std::io::Write;

/// Starts logging. `level` is what is shown where `RUST_LOG` says nothing. Under systemd the journal adds the time itself.
pub fn start(level: &str) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let format = move |line: &mut env_logger::fmt::Formatter, record: &log::Record| {
        let message = printable(&record.args().to_string());
        if journal {
            writeln!(line, "{:<5} {message}", record.level())
        } else {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
            writeln!(line, "{now} {:<5} {message}", record.level())
        }
    };
    // Other crates' chatter only when asked for: it is not written with secrets in mind.
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| format!("warn,bwvisu_runner={level}"));
    // A second start, in tests, keeps the first.
    let _ = env_logger::Builder::new().parse_filters(&filter).format(format).try_init();
}
