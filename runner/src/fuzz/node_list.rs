//! Slurm's node lists, from `squeue` and from jobs' environments.
//!
//! Memory stays bounded because names are counted before any is made: at most 4096 names of at most 253 bytes come out.

use super::{Outcome, Target, text};
use keyhole_protocol::nodelist::{expand, is_host_name};
use keyhole_protocol::{MAX_BODY, MAX_NODES};

pub(super) const TARGET: Target = Target {
    name: "node-list",
    tokens: &[
        "[",
        "]",
        ",",
        "-",
        "[0-9]",
        "[1-4096]",
        "[001-100]",
        "c[0-1]",
        "n",
        ".",
        "-ib0",
        "_",
        "[1,2,3]",
        "18446744073709551615",
    ],
    check,
};

fn check(input: &[u8]) -> Outcome {
    let list = match text(input) {
        Ok(list) => list,
        Err(outcome) => return outcome,
    };
    let names = match expand(list) {
        Ok(names) => names,
        Err(error) => {
            assert!(error.position() <= list.len(), "{error}");
            return Outcome::refused(error);
        }
    };
    assert!((1..=MAX_NODES).contains(&names.len()), "{} names", names.len());
    assert!(names.iter().all(|name| is_host_name(name)), "{names:?}");
    let plain = names.join(",");
    if plain.len() <= MAX_BODY {
        assert_eq!(expand(&plain).as_ref(), Ok(&names), "names stand for themselves");
    }
    if let Some(expected) = simply(list) {
        assert_eq!(names, expected, "a simple reader of simple lists sees others");
    }
    let sets = list.matches('[').count().min(5);
    Outcome::accepted(format_args!("{sets} {} {}", names.len().ilog2(), list.matches(',').count().min(5)))
}

/// Lists whose names have one set at most, read in the simplest way.
fn simply(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let inside = rest.find('[').filter(|open| !rest[..*open].contains(','));
        let end = match inside {
            Some(open) => {
                let close = open + rest[open..].find(']')?;
                close + rest[close..].find(',').unwrap_or(rest.len() - close)
            }
            None => rest.find(',').unwrap_or(rest.len()),
        };
        one(&rest[..end], &mut names)?;
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Some(names)
}

fn one(pattern: &str, names: &mut Vec<String>) -> Option<()> {
    let Some((before, rest)) = pattern.split_once('[') else {
        names.push(pattern.to_owned());
        return Some(());
    };
    let (set, after) = rest.split_once(']')?;
    if after.contains('[') {
        return None;
    }
    for range in set.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let width = first.len();
        for number in first.parse::<u64>().ok()?..=last.parse::<u64>().ok()? {
            names.push(format!("{before}{number:0width$}{after}"));
        }
    }
    Some(())
}
