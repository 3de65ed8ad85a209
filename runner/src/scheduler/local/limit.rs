//! The wall time that a batch script asks for: `#SBATCH --time`, by `sbatch`'s rules. Other `#SBATCH` lines mean nothing here.

use crate::error::{Error, Result};
use std::time::Duration;

/// The wall time that the script asks for; none if it asks for none.
///
/// As `sbatch` does, this reads the comments at the head of the script only, and the last request counts.
pub(super) fn wall_time(script: &str) -> Result<Option<Duration>> {
    let head = script.lines().take_while(|line| line.trim().is_empty() || line.starts_with('#'));
    let mut limit = None;
    for line in head.filter_map(|line| line.strip_prefix("#SBATCH")) {
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        if let Some(value) = requested(&words) {
            limit = parse(value.trim_matches(['"', '\''])).ok_or_else(|| refusal(value))?;
        }
    }
    Ok(limit)
}

fn refusal(value: &str) -> Error {
    let forms = "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or days-hours:minutes:seconds";
    Error::bad_gateway(format!("the local scheduler cannot read the wall time {value:?} in the batch script; write {forms}"))
}

fn requested<'a>(words: &[&'a str]) -> Option<&'a str> {
    let mut found = None;
    for (index, word) in words.iter().enumerate() {
        let next = words.get(index + 1).copied().unwrap_or_default();
        found = match *word {
            "--time" | "-t" => Some(next),
            word => word.strip_prefix("--time=").or_else(|| word.strip_prefix("-t")).or(found),
        };
    }
    found
}

/// `Some(None)` is "without limit".
fn parse(value: &str) -> Option<Option<Duration>> {
    if ["UNLIMITED", "INFINITE", "-1", "0"].iter().any(|word| value.eq_ignore_ascii_case(word)) {
        return Some(None);
    }
    let (days, clock) = match value.split_once('-') {
        Some((days, clock)) => (Some(number(days)?), clock),
        None => (None, value),
    };
    let parts = clock.split(':').map(number).collect::<Option<Vec<u64>>>()?;
    let (hours, minutes, seconds) = match (days, parts.as_slice()) {
        (None, &[minutes]) => (0, minutes, 0),
        (None, &[minutes, seconds]) => (0, minutes, seconds),
        (Some(_), &[hours]) => (hours, 0, 0),
        (Some(_), &[hours, minutes]) => (hours, minutes, 0),
        (_, &[hours, minutes, seconds]) => (hours, minutes, seconds),
        _ => return None,
    };
    let total = days.unwrap_or(0) * 86_400 + hours * 3600 + minutes * 60 + seconds;
    Some((total > 0).then(|| Duration::from_secs(total)))
}

/// A number small enough that sums and products of a few cannot overflow.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_wall_time_is_read() {
        let cases = [
            ("10", 600),
            ("10:30", 630),
            ("1:00:00", 3600),
            ("2-3", 183_600),
            ("1-0:5", 86_700),
            ("1-02:03:04", 93_784),
            ("0:05", 5),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse(text), Some(Some(Duration::from_secs(seconds))), "{text}");
        }
        for unlimited in ["UNLIMITED", "infinite", "0", "-1", "00:00"] {
            assert_eq!(parse(unlimited), Some(None), "{unlimited}");
        }
        for bad in ["", "x", "1:2:3:4", "1-", "-5", "1:-2", "1-1:1:1:1", "9999999999", "1 2", "+1"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_head_of_the_script_is_searched_as_sbatch_does() {
        let cases = [
            ("#!/bin/bash\n#SBATCH --time=10\necho", Some(600)),
            ("#!/bin/bash\n#SBATCH --time 10\n", Some(600)),
            ("#!/bin/bash\n#SBATCH -N 1 -t 0:07 # short\n", Some(7)),
            ("#!/bin/bash\n#SBATCH -t5\n#SBATCH --time=\"6\"\n", Some(360)),
            ("#!/bin/bash\n\n# words\n#SBATCH --time=1\n", Some(60)),
            ("#!/bin/bash\necho\n#SBATCH --time=1\n", None),
            ("#!/bin/bash\n#SBATCH --nodes=2 # --time=3\n", None),
            ("#!/bin/bash\n##SBATCH --time=3\n", None),
            ("", None),
        ];
        for (script, seconds) in cases {
            assert_eq!(wall_time(script).unwrap(), seconds.map(Duration::from_secs), "{script:?}");
        }
    }

    #[test]
    fn an_unreadable_wall_time_is_refused_and_named() {
        for script in ["#SBATCH --time=soon\n", "#SBATCH -t\n", "#SBATCH --time\n"] {
            assert!(wall_time(script).unwrap_err().message.contains("wall time"), "{script:?}");
        }
    }
}
