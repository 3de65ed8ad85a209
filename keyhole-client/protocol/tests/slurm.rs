//! Node lists, compared with what Slurm itself makes of them.
//!
//! Runs where `scontrol` is installed; it needs no controller. Elsewhere it says so, and fails if `REQUIRE_SLURM=1`.

#![allow(clippy::expect_used, reason = "helpers of tests, too, end the test when they fail")]

use keyhole_protocol::nodelist;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::{env, fs, io};

const LISTS: usize = 3000;
const BROKEN_LISTS: usize = 1000;

/// Says it on standard error itself, because `eprintln!` is not shown for tests that pass.
fn say(message: &str) {
    writeln!(io::stderr(), "{message}").expect("standard error");
}

struct Slurm {
    configuration: PathBuf,
    /// Whether this Slurm takes text behind the last bracket, as in `n[1-2]-ib`. Not all do (22.05 does not).
    takes_suffixes: bool,
}

impl Slurm {
    /// The Slurm of this machine; `None`, after saying so, where there is none.
    fn find() -> Option<Slurm> {
        if let Err(error) = Command::new("scontrol").arg("--version").output() {
            assert_ne!(env::var("REQUIRE_SLURM").as_deref(), Ok("1"), "REQUIRE_SLURM=1, but scontrol: {error}");
            say(&format!("NOT RUN: the comparison of node lists with Slurm, because scontrol is not here ({error})"));
            return None;
        }
        let configuration = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("slurm.conf");
        fs::write(&configuration, "ClusterName=test\nSlurmctldHost=localhost\n").expect("slurm.conf is written");
        let mut slurm = Slurm { configuration, takes_suffixes: false };
        slurm.takes_suffixes = slurm.expand("n[1-2]x").is_some();
        Some(slurm)
    }

    fn run(&self, list: &str) -> Output {
        let mut command = Command::new("scontrol");
        command.args(["show", "hostnames", list]).env("SLURM_CONF", &self.configuration);
        command.output().expect("scontrol runs")
    }

    /// What `scontrol show hostnames` prints; `None` if it complains.
    fn expand(&self, list: &str) -> Option<Vec<String>> {
        let output = self.run(list);
        let names = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && output.stderr.is_empty()).then(|| names.lines().map(String::from).collect())
    }
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[0-9]{1,2}", 2 => "0{0,3}[0-9]{1,3}", 1 => "[1-9][0-9]{3,8}"]
}

/// A single number, or a range of up to twelve.
fn range() -> impl Strategy<Value = String> {
    (number(), 0..12_u64, any::<bool>(), 0..3_usize).prop_map(|(first, more, single, padding)| {
        let last = first.parse::<u64>().expect("a number") + more;
        match single {
            true => first,
            false => format!("{first}-{last:0width$}", width = first.len() * (padding % 2)),
        }
    })
}

fn set() -> impl Strategy<Value = String> {
    vec(range(), 1..4).prop_map(|ranges| format!("[{}]", ranges.join(",")))
}

fn name() -> impl Strategy<Value = String> {
    const TEXT: &str = "[a-z]{1,3}(-?[a-z0-9]{1,2})?";
    let suffix = prop_oneof![3 => Just(String::new()), 1 => "(-ib|x|[0-9]|\\.hpc)"];
    prop_oneof![
        2 => "[a-z]{1,4}[0-9]{0,4}(-ib[0-9])?",
        3 => (TEXT, set()).prop_map(|(text, set)| text + &set),
        2 => (TEXT, set(), "[a-z.]?[a-z]{0,2}", set()).prop_map(|(a, b, c, d)| [a, b, c, d].concat()),
        1 => (TEXT, vec(set(), 3)).prop_map(|(text, sets)| text + &sets.concat()),
        1 => (TEXT, set(), suffix).prop_map(|(a, b, c)| [a, b, c].concat()),
    ]
}

fn lists() -> impl Strategy<Value = String> {
    vec(name(), 1..6).prop_map(|names| names.join(","))
}

fn samples(strategy: &impl Strategy<Value = String>, count: usize) -> Vec<String> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).expect("a list").current()).collect()
}

/// Whether a name has text behind its last bracket.
fn has_suffix(list: &str) -> bool {
    list.split(']').skip(1).any(|rest| {
        let end = rest.find([',', '[']).unwrap_or(rest.len());
        end > 0 && !rest[end..].starts_with('[')
    })
}

#[test]
fn node_lists_are_expanded_exactly_as_slurm_expands_them() {
    let Some(slurm) = Slurm::find() else { return };
    let mut compared = 0;
    for list in samples(&lists(), LISTS) {
        let ours = nodelist::expand(&list);
        let theirs = slurm.expand(&list);
        match ours {
            // More than the limit of nodes is the one thing that these lists may have wrong.
            Err(error) => assert!(error.to_string().contains("too many nodes"), "{list}: {error}"),
            Ok(_) if theirs.is_none() && has_suffix(&list) && !slurm.takes_suffixes => {}
            Ok(names) => {
                assert_eq!(Some(names), theirs, "{list}");
                compared += 1;
            }
        }
    }
    say(&format!("{compared} of {LISTS} node lists compared with Slurm"));
    if !slurm.takes_suffixes {
        say("NOT COMPARED: names with text behind the last bracket, because this Slurm does not know them");
    }
    assert!(compared > LISTS / 2, "only {compared} lists were compared");
}

#[test]
fn what_is_accepted_of_broken_node_lists_is_what_slurm_makes_of_them() {
    let Some(slurm) = Slurm::find() else { return };
    let mut accepted = 0;
    for list in samples(&"[ab][ab0-2\\[\\],-]{1,9}".prop_map(String::from), BROKEN_LISTS) {
        let Ok(names) = nodelist::expand(&list) else { continue };
        let theirs = slurm.expand(&list);
        if theirs.is_none() && has_suffix(&list) && !slurm.takes_suffixes {
            continue;
        }
        assert_eq!(Some(names), theirs, "{list}");
        accepted += 1;
    }
    assert!(accepted > 10, "only {accepted} of {BROKEN_LISTS} lists were accepted by both");
}
