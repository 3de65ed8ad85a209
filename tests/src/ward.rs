//! `bwvisu-runner doctor` on the bed: what it says when all is well, and what of that changes when something is broken.

use crate::bed::Bed;
use crate::runner::{Runner, Setup, dist};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Check and place → the finding.
type Lines = BTreeMap<(String, String), Value>;

/// What is said of a healthy bed, by what follows `doctor`: looked at once.
static HEALTHY: Mutex<BTreeMap<String, Lines>> = Mutex::new(BTreeMap::new());

/// A configuration whose every fault is looked for.
pub struct Ward<'b> {
    bed: &'b Bed,
    /// The configuration, and the service if it was started.
    pub runner: Runner<'b>,
    /// What follows `doctor` on the command line.
    pub words: String,
    /// More of its environment.
    pub env: Vec<(String, String)>,
    healthy: Lines,
    /// The lines of the last look.
    seen: Lines,
}

impl<'b> Ward<'b> {
    /// A configuration of its own, about which `doctor` with these words has nothing to say. `serves`: the service runs.
    pub fn new(bed: &'b Bed, words: &str, serves: bool) -> Self {
        let runner = Runner::prepare(bed, &Setup::default());
        let mut ward = Self { bed, runner, words: words.to_owned(), env: Vec::new(), healthy: Lines::new(), seen: Lines::new() };
        ward.settle();
        if serves {
            ward.runner.start_again();
        }
        ward.healthy =
            HEALTHY.lock().unwrap_or_else(PoisonError::into_inner).entry(words.to_owned()).or_insert_with(|| ward.well()).clone();
        ward
    }

    fn well(&self) -> Lines {
        let (lines, code) = self.look();
        let bad: Vec<&Value> = lines.values().filter(|line| line["result"] != "ok").collect();
        assert!(bad.is_empty() && code == 0, "a healthy bed: exit code {code}, {bad:#?}");
        lines
    }

    /// Known hosts of its own, and a state folder as an installation makes it.
    fn settle(&mut self) {
        let folder = self.runner.folder().to_owned();
        let state = folder.join("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        let known = fs::read_to_string(self.bed.get("BED_SSH_KNOWN_HOSTS")).unwrap();
        let own: String = known.lines().map(|line| line.split_once(',').unwrap().1.to_owned() + "\n").collect();
        fs::write(folder.join("known_hosts"), own).unwrap();
        self.edit("config.json", |config| config["ssh"]["known-hosts"] = folder.join("known_hosts").display().to_string().into());
    }

    /// Changes one of the JSON files.
    pub fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.runner.folder().join(file);
        let mut value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(&path, format!("{value:#}")).unwrap();
    }

    /// Runs `doctor` with these words behind.
    pub fn run(&self, words: &str) -> Output {
        let mut all = vec!["env".to_owned(), format!("BWVISU_INSTALL_DIR={}", dist().display())];
        all.extend(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        all.extend(self.runner.program("doctor"));
        all.extend(words.split_whitespace().map(str::to_owned));
        self.bed.exec("runner", &all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn look(&self) -> (Lines, i32) {
        let output = self.run(&format!("{} --json", self.words));
        let text = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{complaint}"));
        let lines = report["checks"].as_array().unwrap().iter().map(|line| (self.name(line), line.clone())).collect();
        (lines, output.status.code().unwrap())
    }

    fn name(&self, line: &Value) -> (String, String) {
        let (check, place) = (line["check"].as_str().unwrap(), line["where"].as_str().unwrap());
        // On which node a job runs, and at which port it is, is nobody's choice.
        let place = if check.starts_with("job") { "job".to_owned() } else { self.host(place) };
        (check.to_owned(), place)
    }

    /// The bed's name of a place.
    fn host(&self, place: &str) -> String {
        let of = |host: &&str| self.bed.ip(host).to_string() == place;
        match ["cmd0", "cmd1", "gw0", "gw1"].iter().find(|host| of(host)) {
            Some(host) => (*host).to_owned(),
            None if place == "this machine" => "runner".to_owned(),
            None => place.to_owned(),
        }
    }

    /// `doctor` finds exactly these lines, written as `CHECK PLACE RESULT`, with advice in such words; all others are as they were. Of a
    /// node that was not entered, those that are left out say nothing. Returns how long it took.
    pub fn finds(&mut self, what: &str, expected: &[(&str, &str)]) -> Duration {
        let begun = Instant::now();
        let (lines, code) = self.look();
        let took = begun.elapsed();
        println!("{what}: {:.1} s", took.as_secs_f32());
        self.assert_none_is_missing(what, &lines);
        let word = |line: &Value| line["result"].as_str().unwrap().to_owned();
        let bad = lines.iter().filter(|(_, line)| line["result"] != "ok");
        let bad: BTreeMap<String, &Value> =
            bad.map(|((check, place), line)| (format!("{check} {place} {}", word(line)), line)).collect();
        let names: BTreeSet<&str> = bad.keys().map(String::as_str).collect();
        assert_eq!(names, expected.iter().map(|(line, _)| *line).collect(), "{what}: {bad:#?}");
        assert_eq!(code, i32::from(names.iter().any(|line| line.ends_with(" failed"))), "{what}: the exit code");
        for (name, words) in expected {
            let line = bad[*name];
            assert!(line.to_string().replace("\\\"", "\"").contains(words), "{what}: {words:?} is not in {line:#}");
            assert!(line["advice"].is_string() || name.ends_with(" not-checked"), "{what}: what is to be done? {line:#}");
        }
        self.seen = lines;
        took
    }

    fn assert_none_is_missing(&self, what: &str, lines: &Lines) {
        let contact = |check: &str| ["reachable", "host-key", "login"].contains(&check);
        let closed = lines.iter().filter(|((check, _), line)| contact(check) && line["result"] != "ok");
        let closed: BTreeSet<&str> = closed.map(|((_, place), _)| &**place).collect();
        let missing = self.healthy.keys().filter(|name| !lines.contains_key(*name) && !closed.contains(&*name.1));
        assert_eq!(missing.collect::<Vec<_>>(), Vec::<&(String, String)>::new(), "{what}: lines are missing");
    }

    /// The command that a line of the last look (`CHECK PLACE`) names, and the host that it is to be run on.
    pub fn command(&self, name: &str) -> (String, String) {
        let (check, place) = name.split_once(' ').unwrap();
        let line = &self.seen[&(check.to_owned(), place.to_owned())];
        let word = |member: &str| line[member].as_str().unwrap_or_else(|| panic!("no {member} in {line:#}")).to_owned();
        (word("command"), self.host(&word("command-on")))
    }

    /// Runs that command there, as root, to the letter. Returns what it printed.
    pub fn follow(&self, name: &str) -> String {
        let (command, host) = self.command(name);
        self.bed.sh(&host, &command)
    }

    /// The same for several lines.
    pub fn follow_all(&self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.follow(name)));
    }

    /// Nothing is found any more.
    pub fn is_healthy(&mut self) {
        self.finds("all mended", &[]);
    }
}
