//! Mustache itself, with partials that the input brings along.

use super::{Outcome, Target, text};
use crate::domain::mustache::{MAX_OUTPUT_BYTES, Mustache, TemplateError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) const TARGET: Target = Target { name: "mustache", tokens: TOKENS, check };

/// Begins the source of a partial in an input.
const PARTIAL: &str = "%%% ";

pub(super) const TOKENS: &[&str] = &[
    "{{",
    "}}",
    "{{{",
    "}}}",
    "{{&",
    "{{x}}",
    "{{a.b}}",
    "{{.}}",
    "{{#x}}",
    "{{/x}}",
    "{{^x}}",
    "{{#list}}",
    "{{/list}}",
    "{{^none}}",
    "{{/none}}",
    "{{! ",
    "{{> p}}",
    "{{> q}}",
    "{{=<% %>=}}",
    "<%",
    "%>",
    "{{= | | =}}",
    "\n%%% p\n",
    "\n%%% q\n",
    "\n",
    " ",
    "=",
];

/// Values are set in characters that no template under test may hold, so that they are known again in what comes out.
const OPEN: char = '\u{e000}';
const CLOSE: char = '\u{e001}';
/// A variable whose value looks like a template.
const SLY: &str = "{{hidden}}{{#list}}{{> p}}";

/// The main template and its partials, as an input brings them.
pub(super) fn parts(text: &str) -> (String, BTreeMap<String, String>) {
    let mut partials: BTreeMap<String, String> = BTreeMap::new();
    let mut main = String::new();
    let mut current: Option<String> = None;
    for line in text.split_inclusive('\n') {
        if let Some(name) = line.strip_prefix(PARTIAL) {
            let name = name.trim().to_owned();
            partials.entry(name.clone()).or_default();
            current = Some(name);
        } else {
            current.as_ref().and_then(|name| partials.get_mut(name)).unwrap_or(&mut main).push_str(line);
        }
    }
    (main, partials)
}

fn marked(value: &str) -> Value {
    format!("{OPEN}{value}{CLOSE}").into()
}

fn data() -> Value {
    json!({
        "x": marked("value"), "sly": marked(SLY), "hidden": marked("never-asked-for"), "a": {"b": marked("inner")},
        "list": [marked("one"), marked("two"), {"x": marked("three")}], "empty": "", "none": null, "yes": true, "no": false, "n": 7,
    })
}

fn check(input: &[u8]) -> Outcome {
    let text = match text(input) {
        Ok(text) => text,
        Err(outcome) => return outcome,
    };
    if text.contains([OPEN, CLOSE]) {
        return Outcome::refused("the test's own characters");
    }
    let (main, sources) = parts(text);
    let template = match Mustache::parse("main", &main) {
        Ok(template) => template,
        Err(error) => return refused(&main, &error),
    };
    let partials: BTreeMap<&String, Result<Arc<Mustache>, String>> = sources
        .iter()
        .map(|(name, source)| (name, Mustache::parse(name, source).map(Arc::new).map_err(|error| error.to_string())))
        .collect();
    let find = |name: &str| partials.get(&name.to_owned()).cloned().unwrap_or_else(|| Err("there is no such file".into()));
    let data = data();
    let output = match template.render(&data, &find) {
        Ok(output) => output,
        Err(error) => return Outcome::refused(error),
    };
    assert_eq!(template.render(&data, &find).as_ref(), Ok(&output), "twice the same");
    assert!(output.len() <= MAX_OUTPUT_BYTES + text.len(), "{} bytes", output.len());
    if !main.contains("{{") {
        assert_eq!(output, main, "a text without tags stays as it is");
    }
    let values = assert_origin(text, &output);
    Outcome::accepted(format_args!("{} {} {}", values.min(9), output.len().checked_ilog2().unwrap_or(0), partials.len().min(4)))
}

fn refused(main: &str, error: &TemplateError) -> Outcome {
    assert!((1..=main.matches('\n').count() + 1).contains(&error.line) && error.column >= 1, "{error}");
    Outcome::refused(error)
}

/// All that comes out is a value, whole and as it was given, or was in a template.
fn assert_origin(text: &str, output: &str) -> usize {
    let known: std::collections::HashSet<char> = text.chars().collect();
    let values = ["value", SLY, "never-asked-for", "inner", "one", "two", "three"];
    let mut pieces = output.split(OPEN);
    let mut outside: Vec<&str> = pieces.next().into_iter().collect();
    let mut count = 0;
    for piece in pieces {
        let (value, after) = piece.split_once(CLOSE).expect("a value's end");
        assert!(values.contains(&value), "half a value: {value:?}");
        assert!(value != "never-asked-for" || text.contains("hidden"), "a value was read as a template");
        outside.push(after);
        count += 1;
    }
    // `true`, `false` and numbers are values without marks.
    let stranger = outside.iter().flat_map(|piece| piece.chars()).find(|c| !known.contains(c) && !"truefals7".contains(*c));
    assert_eq!(stranger, None, "it was in no template and in no value");
    count
}
