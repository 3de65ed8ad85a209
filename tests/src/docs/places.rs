//! Where the documents' commands are typed on the bed, and what the documents' names and addresses are called there.

use crate::bed::Bed;

/// The machine that the tests run on, in the project's folder; every other place is a host of the bed.
pub const REPOSITORY: &str = "repository";

/// Places of the documents, and the bed's hosts.
const PLACES: [(&str, &[&str]); 13] = [
    (REPOSITORY, &[REPOSITORY]),
    ("runner", &["runner"]),
    ("second runner", &["run1"]),
    ("front end", &["outside"]),
    ("user", &["outside"]),
    ("command nodes", &["cmd0", "cmd1"]),
    ("first command node", &["cmd0"]),
    ("second command node", &["cmd1"]),
    ("gateways", &["gw0", "gw1"]),
    ("first gateway", &["gw0"]),
    ("second gateway", &["gw1"]),
    ("compute nodes", &["c0", "c1", "c2", "c3"]),
    ("first compute node", &["c0"]),
];

/// The hosts of `PLACE` or `PLACE as USER`, and the user.
pub fn hosts(at: &str) -> Result<(&'static [&'static str], &str), String> {
    let (place, user) = at.split_once(" as ").unwrap_or((at, "root"));
    let found = PLACES.iter().find(|(name, _)| *name == place);
    let (_, hosts) = found.ok_or_else(|| format!("there is no place {place:?}; there are {:?}", PLACES.map(|(name, _)| name)))?;
    Ok((hosts, user))
}

/// What stands in the documents for something of the bed's.
pub struct Words {
    /// What was printed where the documents show an example, or leave something open.
    remembered: Vec<(String, String)>,
    known: Vec<(&'static str, String)>,
}

impl Words {
    /// The words of this bed.
    pub fn of(bed: &Bed) -> Self {
        let (inside, outside) = (|host| bed.ip(host).to_string(), |host| bed.external(host).to_string());
        let known = vec![
            ("10.0.0.1", inside("gw0")),
            ("10.0.0.2", inside("gw1")),
            ("10.0.0.3", inside("cmd0")),
            ("10.0.0.4", inside("runner")),
            ("10.0.0.5", inside("cmd1")),
            ("10.0.0.6", inside("run1")),
            ("203.0.113.1", outside("gw0")),
            ("203.0.113.2", outside("gw1")),
            ("203.0.113.4", outside("runner")),
            ("203.0.113.6", bed.get("BED_RUN1_EXTERNAL").to_owned()),
            ("/shared/home", bed.get("BED_HOME_PREFIX").to_owned()),
        ];
        Self { remembered: Vec::new(), known }
    }

    /// `text` as it is typed on the bed.
    pub fn replace(&self, text: &str) -> String {
        self.remembered.iter().fold(self.with_known(text), |text, (word, by)| replace(&text, word, by))
    }

    /// `text` with the bed's names and addresses.
    pub fn with_known(&self, text: &str) -> String {
        self.known.iter().fold(text.to_owned(), |text, (word, by)| replace(&text, word, by))
    }

    /// Forgets numbers of jobs: each document has its own. Keys, passwords and addresses stay.
    pub fn forget_jobs(&mut self) {
        self.remembered.retain(|(word, _)| !word.bytes().all(|byte| byte.is_ascii_digit()));
    }

    /// From now on `word` stands for `by`.
    pub fn remember(&mut self, word: &str, by: &str) {
        let word = self.with_known(word);
        self.remembered.retain(|(known, _)| *known != word);
        self.remembered.push((word, by.to_owned()));
    }
}

/// Only whole words: 10.0.0.1 is no part of 10.0.0.17 or of 110.0.0.1.
fn replace(text: &str, word: &str, by: &str) -> String {
    // A job's number is no part of a time or an address.
    let number = word.bytes().all(|byte| byte.is_ascii_digit());
    let longer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || number && matches!(c, ':' | '.'));
    let (mut done, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let whole = !longer(before.chars().next_back()) && !longer(after.chars().next());
        done += before;
        done += if whole { by } else { word };
        rest = after;
    }
    done + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_replaced() {
        let replaced = replace("10.0.0.1,10.0.0.10 110.0.0.1 a@10.0.0.1:22 http://10.0.0.1/", "10.0.0.1", "X");
        assert_eq!(replaced, "X,10.0.0.10 110.0.0.1 a@X:22 http://X/");
        assert_eq!(replace("show 17; at 03:17, 1.17; /jobs/17", "17", "2"), "show 2; at 03:17, 1.17; /jobs/2");
    }

    #[test]
    fn a_place_is_one_of_those_that_are_known() {
        assert_eq!(hosts("gateways as bob"), Ok((&["gw0", "gw1"][..], "bob")));
        assert_eq!(hosts("runner"), Ok((&["runner"][..], "root")));
        hosts("somewhere").unwrap_err();
    }
}
