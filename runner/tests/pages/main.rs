//! The pages that are installed are those of this program and these documents. `make pages` writes them anew.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod command;
mod roff;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(name: &str, page: &str, about: &str) -> String {
    let text = fs::read_to_string(root().join("docs").join(name)).unwrap();
    roff::page(page, "5", about, &text)
}

/// All pages that are made, by their places in the project.
fn pages() -> Vec<(&'static str, String)> {
    vec![
        ("packaging/man/bwvisu-runner.1", command::page()),
        (
            "packaging/man/bwvisu-runner-config.5",
            document("config.md", "bwvisu-runner-config", "configuration of the bwVisu runner"),
        ),
        (
            "packaging/man/bwvisu-runner-templates.5",
            document("templates.md", "bwvisu-runner-templates", "batch script templates"),
        ),
        ("packaging/completion/bwvisu-runner", command::completion()),
    ]
}

#[test]
fn the_pages_that_are_installed_are_up_to_date() {
    for (path, text) in pages() {
        let place = root().join(path);
        if std::env::var_os("WRITE_PAGES").is_some() {
            fs::write(&place, &text).unwrap();
        }
        let present = fs::read_to_string(&place).unwrap_or_default();
        assert!(present == text, "{path} is not what the program and docs/ say now: run `make pages`");
    }
}

#[test]
fn the_completion_knows_what_comes_after_each_command() {
    let text = command::completion();
    let named: BTreeSet<&str> = text.split("cmd=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let cases: BTreeSet<&str> = text.lines().filter_map(|line| line.trim().strip_suffix(')')).collect();
    assert!(named.len() > 15, "{named:?}");
    for command in named.iter().filter(|command| !command.is_empty()) {
        assert!(cases.contains(command), "{command}");
    }
}

#[test]
fn every_command_and_option_is_on_the_page() {
    let page = command::page();
    let mut count = 0;
    command::each(|path, command| {
        assert!(page.contains(&format!(".SS \"{path}\"\n")), "{path}");
        for option in command.get_arguments().filter_map(|argument| argument.get_long()) {
            assert!(page.contains(&format!("\\-\\-{}", option.replace('-', "\\-"))), "{path} --{option}");
        }
        count += 1;
    });
    assert!(count > 15, "only {count} commands were found");
}
