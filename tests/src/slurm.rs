//! What Slurm has, asked without the runner.

use crate::bed::Bed;
use std::collections::BTreeMap;

/// The jobs that Slurm has taken since some moment.
pub struct Queue<'b> {
    bed: &'b Bed,
    first: u64,
}

/// One job of ours as Slurm knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Slurm's id.
    pub id: String,
    /// Slurm's word for its state.
    pub state: String,
}

impl<'b> Queue<'b> {
    /// All jobs that come from now on.
    pub fn from_now(bed: &'b Bed) -> Self {
        let config = bed.sh("ctl", "scontrol show config");
        let next = config.lines().find(|line| line.starts_with("NEXT_JOB_ID")).expect("Slurm says which id is next");
        Self { bed, first: next.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number") }
    }

    /// The first id that Slurm had not yet given.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Ours among them by name, those that ended a moment ago too. Fails if two have one name.
    pub fn jobs(&self) -> BTreeMap<String, Entry> {
        let text = self.bed.sh("ctl", "squeue --noheader --states=all --format='%A %T %j'");
        let mut jobs = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            let (id, name) = (words[0], words[2].trim());
            if id.parse::<u64>().is_ok_and(|id| id >= self.first) && name.starts_with("bwvisu-") {
                let entry = Entry { id: id.to_owned(), state: words[1].to_owned() };
                let twice = jobs.insert(name.to_owned(), entry);
                assert_eq!(twice, None, "two jobs in Slurm are called {name}:\n{text}");
            }
        }
        jobs
    }

    /// Slurm's ids of ours that wait or run, in order.
    pub fn alive(&self) -> Vec<String> {
        let jobs =
            self.jobs().into_values().filter(|entry| ["PENDING", "RUNNING", "CONFIGURING"].contains(&entry.state.as_str()));
        let mut ids: Vec<String> = jobs.map(|entry| entry.id).collect();
        ids.sort();
        ids
    }
}
