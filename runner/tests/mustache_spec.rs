//! The cases of the Mustache specification, where they lie: in `MUSTACHE_SPEC_DIR`, or else in `../shared/mustache-spec` beside
//! the repository. They are not part of the project. `REQUIRE_MUSTACHE_SPEC=1` makes their absence a failure.
//!
//! Two rules of ours differ. The cases that they touch are listed here by name, each with what must happen instead.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use bwvisu_runner::domain::mustache::Mustache;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs, io};

/// What our renderer does where it keeps a rule of its own.
enum Instead {
    /// Nothing is HTML-escaped: this is the text.
    Unescaped(&'static str),
    /// A missing variable is an error, which names it.
    Missing(&'static str),
}
use Instead::{Missing, Unescaped};

/// File, case, what happens instead.
const DIFFERENT: &[(&str, &str, Instead)] = &[
    ("interpolation", "HTML Escaping", Unescaped("These characters should be HTML escaped: & \" < >\n")),
    ("interpolation", "Implicit Iterators - HTML Escaping", Unescaped("These characters should be HTML escaped: & \" < >\n")),
    ("sections", "Implicit Iterator - HTML Escaping", Unescaped("\"(&)(\")(<)(>)\"")),
    ("interpolation", "Basic Context Miss Interpolation", Missing("cannot")),
    ("interpolation", "Triple Mustache Context Miss Interpolation", Missing("cannot")),
    ("interpolation", "Ampersand Context Miss Interpolation", Missing("cannot")),
    ("interpolation", "Dotted Names - Broken Chains", Missing("a.b.c")),
    ("interpolation", "Dotted Names - Broken Chain Resolution", Missing("a.b.c.name")),
    ("interpolation", "Dotted Names - Context Precedence", Missing("b.c")),
    ("interpolation", "Dotted Names are never single keys", Missing("a.b")),
];

fn folder() -> PathBuf {
    env::var_os("MUSTACHE_SPEC_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/mustache-spec"), PathBuf::from)
}

/// All (file, case) of the folder, or none if it is not there.
fn cases(folder: &Path) -> Vec<(String, Value)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.iter().flat_map(|path| cases_of(path)).collect()
}

fn cases_of(path: &Path) -> Vec<(String, Value)> {
    let file: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let name = path.file_stem().unwrap().to_str().unwrap();
    file["tests"].as_array().unwrap().iter().map(|case| (name.to_owned(), case.clone())).collect()
}

/// Renders a case: the text, or the name of the missing variable. An unknown partial is empty there; whoever gives partials
/// decides that, and our templates do not allow it.
fn render(case: &Value) -> Result<String, String> {
    let partial = |name: &str| {
        let source = case["partials"][name].as_str().unwrap_or_default();
        Mustache::parse(name, source).map(Arc::new).map_err(|error| error.to_string())
    };
    let template = Mustache::parse("case", text(case, "template")).map_err(|error| error.to_string())?;
    template.render(&case["data"], &partial).map_err(|error| error.missing.clone().unwrap_or_else(|| error.to_string()))
}

fn text<'a>(case: &'a Value, member: &str) -> &'a str {
    case[member].as_str().unwrap()
}

fn expected(file: &str, case: &Value) -> Result<String, String> {
    match DIFFERENT.iter().find(|(in_file, name, _)| *in_file == file && *name == text(case, "name")) {
        None => Ok(text(case, "expected").to_owned()),
        Some((_, _, Unescaped(text))) => Ok((*text).to_owned()),
        Some((_, _, Missing(name))) => Err((*name).to_owned()),
    }
}

#[test]
fn every_case_of_the_specification_holds_but_for_our_two_rules() {
    let folder = folder();
    let cases = cases(&folder);
    if cases.is_empty() {
        say(&format!("*** NOT RUN: the cases of the Mustache specification; there are none in {} ***", folder.display()));
        assert!(
            env::var_os("REQUIRE_MUSTACHE_SPEC").is_none(),
            "REQUIRE_MUSTACHE_SPEC is set: set MUSTACHE_SPEC_DIR to their folder"
        );
        return;
    }
    let wrong = cases.iter().filter_map(|(file, case)| {
        let (got, expected) = (render(case), expected(file, case));
        (got != expected).then(|| format!("{file}: {}\n  got      {got:?}\n  expected {expected:?}\n", text(case, "name")))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{} of {} cases fail:\n{}", wrong.len(), cases.len(), wrong.concat());
    let known = |(file, name, _): &&(&str, &str, Instead)| cases.iter().any(|(f, case)| f == file && text(case, "name") == *name);
    assert_eq!(DIFFERENT.iter().filter(known).count(), DIFFERENT.len(), "a case that we treat apart is not there");
    say(&format!("{} cases of the Mustache specification hold, {} of them by our own two rules", cases.len(), DIFFERENT.len()));
}

/// Past the test harness, which would keep it to itself.
fn say(message: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("\n{message}\n").as_bytes());
}
