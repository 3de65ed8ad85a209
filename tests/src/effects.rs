//! The names of all acts that leave something behind (`runner/src/effect.rs`), as they stand in the source.

use crate::bed::repository;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What takes the name of an act as an argument.
const CALLS: [&str; 6] = ["around(", ".commit(", ".update_job(", ".update_grant(", ".install(", ".set("];

/// All names in `runner/src`, tests left out.
pub fn in_source() -> BTreeSet<String> {
    let sources = sources(&repository().join("runner/src"));
    let names: BTreeSet<String> = sources.iter().flat_map(|path| in_text(&fs::read_to_string(path).unwrap())).collect();
    assert!(names.len() > 25, "the names are no longer found: {names:?}");
    names
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    let is_test = |path: &PathBuf| path.to_string_lossy().ends_with("tests.rs");
    entries.flat_map(below).filter(|path| path.extension().is_some_and(|end| end == "rs") && !is_test(path)).collect()
}

fn in_text(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let calls = CALLS.iter().flat_map(|call| text.match_indices(call).map(|(at, call)| &text[at + call.len()..]));
    calls.filter_map(name).collect()
}

/// The first text among the arguments, if it looks like a name.
fn name(call: &str) -> Option<String> {
    let mut depth = 0;
    let mut begin = None;
    for (at, letter) in call.char_indices() {
        match (letter, begin) {
            ('"', Some(begin)) => return Some(call[begin..at].to_owned()).filter(|text| is_name(text)),
            ('"', None) => begin = Some(at + 1),
            (_, Some(_)) => {}
            ('(' | '{', None) => depth += 1,
            (')' | '}' | ';', None) if depth == 0 => return None,
            (')' | '}', None) => depth -= 1,
            _ => {}
        }
    }
    None
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_wherever_they_stand_among_the_arguments() {
        let cases: [(&str, Option<&str>); 6] = [
            ("store.commit(\"claim\", &change)", Some("claim")),
            ("store.update_job(&(a, b).0, id, \"tell-end\", |job| job.end(\"words\"))", Some("tell-end")),
            ("effect::around(\n    \"submit\",\n    act)", Some("submit")),
            ("store.commit(effect, &change)?; say(\"nothing\")", None),
            ("backend.commit(change) }); say(\"nothing\")", None),
            ("settings.set(\"A Title\", 1)", None),
        ];
        for (text, expected) in cases {
            assert_eq!(in_text(text).first().map(String::as_str), expected, "{text}");
        }
    }

    #[test]
    fn the_source_names_what_a_submission_and_a_grant_leave_behind() {
        let names = in_source();
        for known in ["create-job", "submit", "accept", "claim", "install", "release", "move", "set-up-gateway", "cancel-job"] {
            assert!(names.contains(known), "{known} is not among {names:?}");
        }
    }
}
