//! The documents tell the truth about what can be looked up: keys, commands, files, examples, and what is absent where.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use bwvisu_runner::config::file::{ConfigFile, Settings, parse};
use bwvisu_runner::config::{Config, check};
use bwvisu_runner::doctor::report::Check;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below a folder, by paths from the root of the project.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// The documents of the project.
fn documents() -> Vec<String> {
    let mut found: Vec<String> = files("docs").into_iter().chain(files("rpm")).collect();
    found.extend(fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()));
    found.retain(|path| path.ends_with(".md"));
    assert!(found.len() > 6, "{found:?}");
    found
}

/// The fenced blocks of a document that are marked with `language`.
fn blocks(path: &str, language: &str) -> Vec<String> {
    let text = read(path);
    let begin = format!("\n```{language}\n");
    text.split(&begin).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

/// The fields of the structures of `config/file.rs`, as keys: structure → (key, type).
fn structures() -> BTreeMap<String, Vec<(String, String)>> {
    let mut structures: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut current = String::new();
    for line in read("runner/src/config/file.rs").lines() {
        if let Some(name) = line.strip_prefix("pub struct ") {
            current = name.trim_end_matches(" {").to_owned();
            structures.entry(current.clone()).or_default();
        } else if let Some((field, kind)) = line.strip_prefix("    pub ").and_then(|field| field.split_once(": ")) {
            let kind = kind.trim_end_matches(',').to_owned();
            structures.get_mut(&current).unwrap().push((field.replace('_', "-"), kind));
        }
    }
    structures
}

/// All keys that a file of this structure may have, with dots between, and `[]` behind what is a list.
fn keys(structures: &BTreeMap<String, Vec<(String, String)>>, structure: &str, prefix: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for (key, kind) in &structures[structure] {
        let path = format!("{prefix}{key}");
        let list = if kind.starts_with("Vec<") { "[]" } else { "" };
        let inner = kind.trim_start_matches("Vec<").trim_start_matches("Option<").trim_end_matches('>');
        if structures.contains_key(inner) {
            keys.extend(self::keys(structures, inner, &format!("{path}{list}.")));
        }
        keys.insert(path);
    }
    keys
}

#[test]
fn every_key_of_the_configuration_is_documented_and_no_other() {
    let structures = structures();
    let mut known = keys(&structures, "ConfigFile", "");
    known.extend(keys(&structures, "Settings", ""));
    let text = read("docs/config.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |").map(|(key, _)| key.to_owned()));
    let documented: BTreeSet<String> = rows.filter(|key| !key.starts_with(char::is_uppercase)).collect();
    assert!(known.len() > 40, "the keys were not found in the source: {known:?}");
    assert_eq!(documented, known);
}

fn load(text: &str, place: &str) -> Config {
    let file: ConfigFile = parse(text, Path::new(place)).unwrap_or_else(|error| panic!("{error}"));
    check(file, Settings::default(), Path::new(place)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_example_of_a_configuration_is_one() {
    for (path, expected) in [("README.md", 1), ("docs/install.md", 2), ("docs/config.md", 3)] {
        let blocks = blocks(path, "json");
        assert_eq!(blocks.len(), expected, "{path}");
        for block in blocks {
            if block.contains("api-password") {
                let settings: Settings = parse(&block, Path::new(path)).unwrap_or_else(|error| panic!("{error}"));
                assert!(settings.api_password.is_some_and(|password| !password.is_empty()), "{path}");
            } else {
                assert_eq!(load(&block, path).clusters.len(), 1, "{path}");
            }
        }
    }
}

#[test]
fn the_first_example_is_the_form_that_existing_installations_have() {
    let tests = read("runner/src/config/tests.rs");
    let seed = tests.split("r#\"").nth(1).unwrap().split("\"#;").next().unwrap();
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(value(&blocks("docs/config.md", "json")[0]), value(seed));
}

/// The sub-commands that `--help` lists.
fn commands(of: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_bwvisu-runner")).args(of).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let list = text.split("Commands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let names = list.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()));
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_is_in_the_readme() {
    let readme = read("README.md");
    let top = commands(&[]);
    assert!(top.len() > 8, "{top:?}");
    for name in &top {
        let below: Vec<String> = commands(&[name]).iter().map(|inner| format!("{name} {inner}")).collect();
        for command in if below.is_empty() { vec![name.clone()] } else { below } {
            assert!(readme.contains(&format!("| `bwvisu-runner {command}` |")), "{command} is not in the README's table");
        }
    }
}

#[test]
fn every_check_of_the_doctor_is_explained_and_no_other() {
    let text = read("docs/doctor.md");
    let sections = text.split("\n## ").skip(2);
    let rows = sections.flat_map(|section| section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()));
    let explained: Vec<&str> = rows.collect();
    let known: BTreeSet<&str> = Check::ALL.iter().map(|check| check.name()).collect();
    assert_eq!(explained.iter().copied().collect::<BTreeSet<_>>(), known);
    assert_eq!(explained.len(), known.len(), "each of them once");
}

#[test]
fn every_template_is_in_the_readme() {
    let (readme, templates) = (read("README.md"), files("templates"));
    assert!(!templates.is_empty());
    for template in templates {
        let name = template.trim_start_matches("templates/");
        assert!(readme.contains(&format!("`{name}`")), "{name}");
    }
}

/// The headings of a document as links name them.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| {
        let plain = heading.replace("&lt;", "").replace("&gt;", "").replace(' ', "-").to_lowercase();
        plain.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(|line| slug(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn every_link_within_the_project_leads_somewhere() {
    for path in documents() {
        let text = read(&path);
        let prose: String = text.split("```").step_by(2).collect();
        for link in prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = root().join(&path).parent().unwrap().join(file);
            let target = if file.is_empty() { root().join(&path) } else { target };
            assert!(target.exists(), "{path}: {link} is not there");
            let there = anchor.is_empty() || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor);
            assert!(there, "{path}: {link}: there is no such heading");
        }
    }
}

/// The code of a file without its comments, its tests, and what stands in quotes is left in.
fn code(path: &str) -> String {
    let text = read(path);
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn sources(folder: &str) -> Vec<String> {
    let mut found = files(folder);
    found.retain(|path| path.ends_with(".rs") && !path.ends_with("tests.rs"));
    assert!(!found.is_empty(), "{folder}");
    found
}

#[test]
fn what_the_architecture_says_is_absent_is_absent() {
    const WORLD: &[&str] = &[
        "std::process",
        "std::net::Tcp",
        "std::net::Udp",
        "std::fs",
        "std::env",
        "std::thread",
        "std::time",
        "log::",
        "getrandom",
        "Timestamp::now",
        "Instant",
    ];
    const TECHNOLOGIES: &[&str] = &["slurm", "iptables", "etcd", "redb", "ssh"];
    const DATABASES: &[&str] = &["etcd_client", "tokio"];
    const FILES: &[&str] = &["redb::", "use redb"];
    const STARTS: &[&str] = &[".spawn()", ".output()"];
    let all = "runner/src";
    // Where, but for these, none of these words stands.
    let rules: &[(&str, &[&str], &[&str])] = &[
        ("runner/src/domain", &[], WORLD),
        ("keyhole-client/protocol/src", &[], WORLD),
        ("runner/src/watch", &[], TECHNOLOGIES),
        ("runner/src/keyhole", &[], TECHNOLOGIES),
        (all, &["runner/src/store/etcd"], DATABASES),
        (all, &["runner/src/store/embedded"], FILES),
        (all, &["runner/src/command.rs", "runner/src/ssh/", "runner/src/scheduler/local/"], STARTS),
    ];
    for (folder, but, words) in rules {
        for path in sources(folder).iter().filter(|path| !but.iter().any(|prefix| path.starts_with(prefix))) {
            absent(path, words);
        }
    }
    ["runner/src/jobs.rs", "runner/src/keyhole.rs"].iter().for_each(|path| absent(path, TECHNOLOGIES));
}

fn absent(path: &str, words: &[&str]) {
    let code = code(path);
    for word in words {
        assert!(!code.contains(word), "{path} names {word}");
    }
}

#[test]
fn unsafe_code_is_forbidden_in_every_crate_but_the_clients_program() {
    for crate_root in
        ["runner/src/lib.rs", "runner/src/main.rs", "keyhole-client/src/lib.rs", "keyhole-client/protocol/src/lib.rs"]
    {
        assert!(read(crate_root).contains("#![forbid(unsafe_code)]"), "{crate_root}");
    }
    for crate_root in ["keyhole-client/src/lib.rs", "keyhole-client/protocol/src/lib.rs"] {
        assert!(read(crate_root).contains("#![no_std]"), "{crate_root}");
    }
}

#[test]
fn every_metric_is_explained_and_no_other() {
    let source = read("runner/src/metrics/mod.rs") + &read("runner/src/metrics/process.rs");
    let quoted = source.split('"').skip(1).step_by(2).filter(|word| word.starts_with("bwvisu_") || word.starts_with("process_"));
    let known: BTreeSet<&str> = quoted.collect();
    assert!(known.len() > 25, "{known:?}");
    let text = read("docs/operate.md");
    let rows = text.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once("` |")?.0));
    let explained: BTreeSet<&str> = rows.filter(|name| name.starts_with("bwvisu_") || name.starts_with("process_")).collect();
    let shortened: BTreeSet<&str> = explained.into_iter().filter(|name| !name.contains('…')).collect();
    assert_eq!(shortened, known);
}

/// The lines of WARN and ERROR that the program writes, with `…` for what differs.
fn complaints() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    // What stands in effect.rs is no part of an installed program.
    for path in sources("runner/src").iter().filter(|path| !path.starts_with("runner/src/fuzz") && !path.ends_with("/effect.rs"))
    {
        let code = code(path);
        for (call, level) in [("log::warn!(", "WARN"), ("log::error!(", "ERROR")] {
            for rest in code.split(call).skip(1) {
                let text = rest.split_once('"').unwrap().1;
                let end = text.char_indices().find(|(at, c)| *c == '"' && !text[..*at].ends_with('\\')).unwrap().0;
                found.insert((level.to_owned(), shown(&text[..end])));
            }
        }
    }
    found
}

/// A format without its arguments.
fn shown(format: &str) -> String {
    let mut shown = String::new();
    let mut parts = format.split('{');
    shown += parts.next().unwrap();
    for part in parts {
        let (argument, rest) = part.split_once('}').unwrap();
        // How many lines were left out is said of all of them.
        shown += if argument == "left_out" { "" } else { "…" };
        shown += rest;
    }
    shown
}

#[test]
fn every_warning_and_error_of_the_log_is_explained_and_no_other() {
    let written = complaints();
    assert!(written.len() > 50, "{written:?}");
    let text = read("docs/operate.md");
    let rows = text.lines().filter_map(|line| {
        let (level, rest) = line.strip_prefix("| ")?.split_once(" | `")?;
        let (line, rest) = rest.split_once("` | ")?;
        let explained = rest.split(" | ").count() == 2 && rest.ends_with(" |") && !rest.contains("|  |");
        ["WARN", "ERROR"].contains(&level).then(|| {
            assert!(explained, "{line}: no meaning, or nothing to do");
            (level.to_owned(), line.to_owned())
        })
    });
    let explained: BTreeSet<_> = rows.collect();
    let lines = |one: &BTreeSet<(String, String)>, other| one.difference(other).cloned().collect::<Vec<_>>();
    assert_eq!(
        (lines(&written, &explained), lines(&explained, &written)),
        (vec![], vec![]),
        "not explained; not written any more"
    );
}

#[test]
fn the_figures_of_what_it_costs_are_those_that_were_measured_last() {
    let recorded: Vec<Value> = serde_json::from_str(&read("tests/bench/recorded.json")).unwrap();
    let (page, picture, bench) = (read("docs/performance.md"), read("docs/images/performance.svg"), read("tests/bench/main.rs"));
    let shown = page.split("<!-- figures: begin -->\n").nth(1).unwrap().split("<!-- figures: end -->").next().unwrap();
    let lines: Vec<&str> = shown.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    let measured: Vec<&str> = recorded.iter().map(|figure| figure["line"].as_str().unwrap()).collect();
    assert_eq!(lines, measured, "`BENCH_WRITE=1 make bench` writes both");
    for row in bench.lines().filter_map(|line| Some(line.trim().strip_prefix("(\"")?.split('"').next().unwrap())) {
        let there = |figure: &&Value| figure["row"].as_str().unwrap().split(' ').next() == Some(row);
        let figure = recorded.iter().find(there).unwrap_or_else(|| panic!("{row} was not measured"));
        assert!(picture.contains(&format!(">{}<", figure["row"].as_str().unwrap())), "{row} is not in the picture");
        assert!(page.contains(&format!("\n| `{row}` | ")), "docs/performance.md does not say how {row} is measured");
    }
}

/// All text of the tests.
fn tests_text() -> String {
    let mut text = String::new();
    let mut folders = vec![root().join("runner"), root().join("tests"), root().join("keyhole-client")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                text += &fs::read_to_string(&entry).unwrap();
            }
        }
    }
    text
}

#[test]
fn every_test_that_a_promise_names_is_there() {
    let tests = tests_text();
    let page = read("docs/reliability.md");
    // A test's name is a sentence, so it has several words.
    let named = page.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 3 && !word.contains(['/', ' ']));
    let mut count = 0;
    for name in named {
        assert!(tests.contains(&format!("fn {name}(")), "docs/reliability.md names {name}, which is no test");
        count += 1;
    }
    assert!(count > 50, "only {count} names were found");
}

/// What a `match` on method and path knows: `("GET", ["jobs", id])` is `GET /jobs/<…>`, where `above` stands before it.
fn routes(source: &str, above: &str) -> BTreeSet<String> {
    let arms = code(source);
    let arms = arms.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split_once("\", ["));
    let path = |parts: &str| -> String {
        let parts = parts.split(']').next().unwrap_or_default().split(", ");
        parts.map(|part| if part.starts_with('"') { format!("/{}", part.trim_matches('"')) } else { "/<…>".into() }).collect()
    };
    arms.map(|(method, parts)| format!("{method} {above}{}", path(parts))).collect()
}

/// The calls that docs/api.md names, wherever it does: `GET /jobs/<id>`, and ``PUT`, `DELETE /x` with several methods.
fn documented_calls() -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    let text = read("docs/api.md");
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let words: Vec<&str> = line.split(['`', ' ', ',', '[', ']', '|']).filter(|word| !word.is_empty()).collect();
        let methods = || words.iter().filter(|word| ["GET", "POST", "PUT", "DELETE"].contains(word));
        for path in words.iter().filter(|word| word.starts_with('/')) {
            let parts =
                path.split('/').skip(1).map(|part| if part.starts_with('<') { "/<…>".into() } else { format!("/{part}") });
            let path: String = parts.collect();
            calls.extend(methods().map(|method| format!("{method} {path}")));
        }
    }
    calls
}

#[test]
fn every_call_of_the_api_is_documented() {
    let mut known = routes("runner/src/http/jobs.rs", "");
    known.extend(routes("runner/src/http/admin.rs", "/cluster"));
    assert!(known.len() > 10, "the calls were not found in the source: {known:?}");
    let documented = documented_calls();
    let missing: Vec<_> = known.iter().filter(|call| !documented.contains(*call)).collect();
    assert!(missing.is_empty(), "docs/api.md does not have {missing:?}, but {documented:?}");
}

#[test]
fn every_member_of_a_job_is_documented() {
    let source = code("runner/src/http/jobs.rs");
    let body = source.split("pub fn job_object").nth(1).unwrap().split("\n}").next().unwrap();
    let added = body.split("add(\"").skip(1).chain(body.split("        (\"").skip(1)).map(|rest| rest.split('"').next().unwrap());
    let members: BTreeSet<&str> = added.collect();
    assert!(members.len() > 12, "{members:?}");
    let text = read("docs/api.md");
    let page = text.split("## GET /jobs/&lt;id&gt;").nth(1).unwrap().split("\n## ").next().unwrap();
    for member in members {
        let in_table = page.contains(&format!("`{member}`")) || member.ends_with("-at") && page.contains("`…-at`");
        assert!(in_table && page.contains(&format!("\"{member}\": ")), "{member} is missing in docs/api.md");
    }
}

#[test]
fn the_rules_for_sudo_are_those_that_come_along() {
    let rules = |text: &str| -> BTreeSet<String> {
        text.lines().filter(|line| line.starts_with("bwvisurunner ALL=(")).map(str::to_owned).collect()
    };
    let mut packed = rules(&read("packaging/examples/sudoers.command-node"));
    packed.extend(rules(&read("packaging/examples/sudoers.gateway-node")));
    assert_eq!(packed.len(), 2);
    assert_eq!(blocks("docs/install.md", "sudoers").iter().flat_map(|block| rules(block)).collect::<BTreeSet<_>>(), packed);
}
