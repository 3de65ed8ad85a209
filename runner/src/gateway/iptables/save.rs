//! What `iptables-save` tells.

use std::collections::BTreeMap;

/// The last line of a complete answer.
const END_LINE: &str = "bwvisu-end\n";

/// What `SAVE_SCRIPT` printed. Nothing without its last line: half a listing would show rules as missing that are there.
pub(crate) fn read_listing(answer: &str) -> Option<Saved> {
    // A login shell may have had something to say before.
    let (_, listing) = answer.split_once("bwvisu-begin\n")?;
    let listing = listing.strip_suffix(END_LINE).filter(|listing| listing.is_empty() || listing.ends_with('\n'))?;
    Saved::parse(listing)
}

/// What `iptables-save` printed: table and chain → the words of its rules.
#[derive(Default)]
pub(crate) struct Saved {
    pub(crate) chains: BTreeMap<(String, String), Vec<Vec<String>>>,
}

impl Saved {
    /// Nothing, when a line is not as `iptables-save` writes it, or when the text ends within a table.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut saved = Self::default();
        let mut table: Option<String> = None;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('*') {
                table = Some(name.to_owned());
            } else if line == "COMMIT" {
                table.take()?;
            } else if let Some(chain) = line.strip_prefix(':') {
                saved.chains.entry((table.clone()?, chain.split(' ').next()?.to_owned())).or_default();
            } else {
                let mut words = words(line)?.into_iter();
                let chain = words.next().filter(|word| word == "-A").and_then(|_| words.next())?;
                saved.chains.entry((table.clone()?, chain)).or_default().push(words.collect());
            }
        }
        table.is_none().then_some(saved)
    }

    pub(super) fn rules(&self, table: &str, chain: &str) -> &[Vec<String>] {
        self.chains.get(&(table.to_owned(), chain.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// How many rules of a chain jump to `target`.
    pub(super) fn jumps(&self, table: &str, chain: &str, target: &str) -> usize {
        let jumps = |rule: &&Vec<String>| rule.windows(2).any(|pair| pair[0] == "-j" && pair[1] == target);
        self.rules(table, chain).iter().filter(jumps).count()
    }
}

/// The words of a line of `iptables-save`: separated by blanks, in double quotes with backslashes where needed.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(&first) = chars.peek() {
        match first {
            ' ' => drop(chars.next()),
            '"' => words.push(quoted_word(&mut chars)?),
            _ => words.push(std::iter::from_fn(|| chars.next_if(|&c| c != ' ')).collect()),
        }
    }
    Some(words)
}

fn quoted_word(chars: &mut impl Iterator<Item = char>) -> Option<String> {
    let mut word = String::new();
    chars.next();
    loop {
        match chars.next()? {
            '"' => return Some(word),
            '\\' => word.push(chars.next()?),
            c => word.push(c),
        }
    }
}
