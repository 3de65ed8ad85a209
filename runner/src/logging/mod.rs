//! The log: one line per event on standard error, with nothing in it that cannot be seen, and the id of the request that it belongs to.
//! `RUST_LOG` chooses what is shown; `info` without it.

pub mod id;
mod json;

use crate::domain::text::printable;
use crate::metrics::metrics;
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use log::{Level, Record};
use std::io::Write;
use std::str::FromStr;

/// The target of the lines about requests, one for each.
pub const ACCESS: &str = "access";
/// The target of the lines about commands on other machines.
pub const SSH: &str = "ssh";

/// Times are in UTC, with milliseconds.
const TIME: DateTimePrinter = DateTimePrinter::new().precision(Some(3));

/// Who reads the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// People: time, level, sentence, id.
    #[default]
    People,
    /// Programs: an object in JSON per line.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "people" => Ok(Self::People),
            "json" => Ok(Self::Json),
            _ => Err(format!("{word:?} is not one of people, json")),
        }
    }
}

/// Starts logging. `level` is what is shown where `RUST_LOG` says nothing.
pub fn start(level: &str, format: Format) {
    let journal = is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), own_stderr());
    let write = move |out: &mut env_logger::fmt::Formatter, record: &Record| writeln!(out, "{}", line(record, format, journal));
    // Other crates' chatter only when asked for: it is not written with secrets in mind.
    let ours = format!("warn,bwvisu_runner={level},{ACCESS}={level},{SSH}={level}");
    let filter = std::env::var("RUST_LOG").unwrap_or(ours);
    // A second start, in tests, keeps the first.
    let _ = env_logger::Builder::new().parse_filters(&filter).format(write).try_init();
}

/// systemd names the device and the inode of the journal's socket; who is started by its child with a stderr of its own has the same
/// variable, and another stderr.
fn is_journal(variable: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    let named = variable.and_then(|text| text.split_once(':'));
    let named = named.and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    named.is_some() && named == stderr
}

fn own_stderr() -> Option<(u64, u64)> {
    rustix::fs::fstat(std::io::stderr()).ok().map(|found| (found.st_dev, found.st_ino))
}

/// The journal takes a priority from the beginning of a line, and adds the time itself.
fn line(record: &Record, format: Format, journal: bool) -> String {
    metrics().log_lines.with_label_values(&[level(record.level())]).inc();
    let priority = if journal { priority(record.level()) } else { "" };
    let id = id::current();
    if format == Format::Json {
        return format!("{priority}{}", json::object(record, id.as_deref(), Timestamp::now()));
    }
    let message = printable(&record.args().to_string());
    let id = id.map(|id| format!(" [{id}]")).unwrap_or_default();
    let (time, gap) = if journal { (String::new(), "") } else { (TIME.timestamp_to_string(&Timestamp::now()), " ") };
    format!("{priority}{time}{gap}{:<5} {message}{id}", record.level())
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(level: Level, words: &str, format: Format, journal: bool) -> String {
        line(&Record::builder().level(level).target("t").args(format_args!("{words}")).build(), format, journal)
    }

    #[test]
    fn lines_for_the_journal_begin_with_a_priority_and_have_no_time() {
        let cases = [
            (Level::Error, "<3>ERROR x"),
            (Level::Warn, "<4>WARN  x"),
            (Level::Info, "<6>INFO  x"),
            (Level::Debug, "<7>DEBUG x"),
        ];
        for (level, expected) in cases {
            assert_eq!(shown(level, "x", Format::People, true), expected);
        }
        let elsewhere = shown(Level::Warn, "x", Format::People, false);
        let (time, rest) = elsewhere.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok() && rest == "WARN  x", "{elsewhere}");
        assert!(shown(Level::Warn, "x", Format::Json, true).starts_with("<4>{"));
    }

    #[test]
    fn a_line_stays_one_line_and_ends_with_the_id_of_its_request() {
        let _id = id::within("r-17".into());
        assert_eq!(shown(Level::Info, "a\nb\u{1b}", Format::People, true), "<6>INFO  a\\nb\\u{1b} [r-17]");
    }

    #[test]
    fn the_journal_is_where_stderr_leads_and_not_where_a_variable_is_set() {
        let cases = [
            (Some("9:42"), Some((9, 42)), true),
            (Some("9:43"), Some((9, 42)), false),
            (Some("x"), Some((9, 42)), false),
            (Some("9:42"), None, false),
            (None, Some((9, 42)), false),
            (None, None, false),
        ];
        for (variable, stderr, expected) in cases {
            assert_eq!(is_journal(variable, stderr), expected, "{variable:?} {stderr:?}");
        }
    }

    #[test]
    fn a_format_is_one_of_two_words() {
        assert_eq!(("people".parse(), "json".parse()), (Ok(Format::People), Ok(Format::Json)));
        assert!("xml".parse::<Format>().unwrap_err().contains("people, json"));
    }
}
