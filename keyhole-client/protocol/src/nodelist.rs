//! Slurm's node lists, read as `scontrol show hostnames` reads them.
//!
//! ```text
//! list  = name *("," name)
//! name  = 1*(text / set)             r[1-2]n[01-03]-ib
//! set   = "[" range *("," range) "]"
//! range = number / number "-" number
//! ```
//!
//! Numbers keep the width of the first number of their range (`[008-011]` is 008, 009, 010, 011; `[9-10]` is 9, 10).
//! With several sets in a name the last one counts fastest. Names come in Slurm's order, also where that
//! surprises, because a job's first node is the one that ports are forwarded to; a name that is listed twice comes
//! twice.
//!
//! Slurm itself shrugs at empty names, lost brackets and spaces. Here these are errors, because they mean that the list
//! was cut or garbled on its way.

use crate::{MAX_BODY, MAX_NODES};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The longest host name, and so the most sets and digits that can stand in one.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Why a node list was refused, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeListError {
    position: usize,
    what: &'static str,
}

impl NodeListError {
    /// Where the list is wrong: bytes from its beginning.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }

    /// What is wrong there.
    #[must_use]
    pub const fn what(&self) -> &'static str {
        self.what
    }
}

impl fmt::Display for NodeListError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "at byte {}: {}", self.position, self.what)
    }
}

impl core::error::Error for NodeListError {}

/// The names that a node list stands for.
///
/// # Errors
/// When the list is empty, broken, reversed, stands for more than [`MAX_NODES`] names, or for something that is no
/// host name. Memory is spent only for names that will be returned.
pub fn expand(list: &str) -> Result<Vec<String>, NodeListError> {
    if list.len() > MAX_BODY {
        return Err(NodeListError { position: MAX_BODY, what: "the list is too long" });
    }
    let mut reader = Reader { list, position: 0 };
    let mut names = Vec::new();
    loop {
        let start = reader.position;
        let pattern = reader.pattern()?;
        pattern.append_names(&mut names).map_err(|what| NodeListError { position: start, what })?;
        if !reader.skip(b',') {
            break;
        }
    }
    match reader.peek() {
        None => Ok(names),
        Some(_) => Err(reader.error("this cannot stand in a node list")),
    }
}

/// Whether this is a host name: labels of letters, digits, `-` and `_`, parted by dots, that neither begin nor end
/// with a hyphen.
///
/// A name that consists of numbers alone is not, since programs take it for an address.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    name.len() <= MAX_NAME && name.split('.').all(is_label) && !name.split('.').all(is_number)
}

fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(is_name_letter)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A number as the old readers of addresses take it: decimal, octal or hexadecimal.
fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x").or_else(|| label.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|letter| letter.is_ascii_hexdigit()),
        None => label.bytes().all(|letter| letter.is_ascii_digit()),
    }
}

fn is_name_letter(letter: u8) -> bool {
    letter.is_ascii_alphanumeric() || letter == b'-' || letter == b'_'
}

/// One name of the list with its sets, not yet expanded.
struct Pattern<'a> {
    parts: Vec<Part<'a>>,
}

enum Part<'a> {
    Text(&'a str),
    Set(Vec<Range>),
}

struct Range {
    first: u64,
    last: u64,
    width: usize,
}

impl Range {
    fn count(&self) -> usize {
        usize::try_from(self.last - self.first).unwrap_or(usize::MAX).saturating_add(1)
    }
}

impl Pattern<'_> {
    fn append_names(&self, names: &mut Vec<String>) -> Result<(), &'static str> {
        let count = self.count();
        if count > MAX_NODES - names.len() {
            return Err("too many nodes, at most 4096 are allowed");
        }
        // No set has more members than there are names, so this is no more memory than they will take.
        let sets: Vec<Vec<(u64, usize)>> = self.sets().map(members).collect();
        for index in 0..count {
            let name = self.name(index, &sets);
            if !is_host_name(&name) {
                return Err("this gives no host name");
            }
            names.push(name);
        }
        Ok(())
    }

    fn count(&self) -> usize {
        let sizes = self.sets().map(set_size);
        sizes.fold(1, usize::saturating_mul)
    }

    fn sets(&self) -> impl DoubleEndedIterator<Item = &[Range]> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Set(ranges) => Some(ranges.as_slice()),
        })
    }

    /// The name with this number. Of the sets the last one counts fastest, then, as Slurm has it, the first, the
    /// second, and so on.
    fn name(&self, index: usize, sets: &[Vec<(u64, usize)>]) -> String {
        let last_size = sets.last().map_or(1, Vec::len).max(1);
        let (mut slow, fast) = (index / last_size, index % last_size);
        let mut sets = sets.iter();
        let mut name = String::new();
        for part in &self.parts {
            let members = match part {
                Part::Text(text) => {
                    name.push_str(text);
                    continue;
                }
                Part::Set(_) => sets.next().map_or(&[][..], Vec::as_slice),
            };
            let size = members.len().max(1);
            let member = members.get(if sets.len() == 0 { fast } else { slow % size });
            member.iter().for_each(|(number, width)| push_padded(&mut name, *number, *width));
            slow /= size;
        }
        name
    }
}

/// How many numbers a set has; never 0.
fn set_size(ranges: &[Range]) -> usize {
    ranges.iter().map(Range::count).fold(0, usize::saturating_add).max(1)
}

/// The numbers of a set, each with its width.
fn members(ranges: &[Range]) -> Vec<(u64, usize)> {
    ranges.iter().flat_map(|range| (range.first..=range.last).map(|number| (number, range.width))).collect()
}

fn push_padded(name: &mut String, number: u64, width: usize) {
    let mut digits = String::new();
    crate::decimal::push(&mut digits, number);
    for _ in digits.len()..width {
        name.push('0');
    }
    name.push_str(&digits);
}

struct Reader<'a> {
    list: &'a str,
    position: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, what: &'static str) -> NodeListError {
        NodeListError { position: self.position, what }
    }

    fn peek(&self) -> Option<u8> {
        self.list.as_bytes().get(self.position).copied()
    }

    fn skip(&mut self, letter: u8) -> bool {
        let found = self.peek() == Some(letter);
        self.position += usize::from(found);
        found
    }

    /// The longest run of letters that `belongs` accepts.
    fn run(&mut self, belongs: fn(u8) -> bool) -> &'a str {
        let rest = self.list.get(self.position..).unwrap_or_default();
        let length = rest.bytes().take_while(|letter| belongs(*letter)).count();
        self.position += length;
        rest.get(..length).unwrap_or_default()
    }

    fn pattern(&mut self) -> Result<Pattern<'a>, NodeListError> {
        let mut parts = Vec::new();
        loop {
            if parts.len() > MAX_NAME {
                return Err(self.error("this name has too many parts"));
            }
            let text = self.run(|letter| is_name_letter(letter) || letter == b'.');
            if !text.is_empty() {
                parts.push(Part::Text(text));
            } else if self.skip(b'[') {
                parts.push(Part::Set(self.set()?));
            } else if parts.is_empty() {
                return Err(self.error("a node name is missing"));
            } else {
                return Ok(Pattern { parts });
            }
        }
    }

    /// A set, behind its opening bracket.
    fn set(&mut self) -> Result<Vec<Range>, NodeListError> {
        let mut ranges = Vec::new();
        loop {
            ranges.push(self.range()?);
            if ranges.len() > MAX_NODES {
                return Err(self.error("too many nodes, at most 4096 are allowed"));
            }
            if self.skip(b']') {
                return Ok(ranges);
            }
            if !self.skip(b',') {
                return Err(self.error("expected `,` or `]`"));
            }
        }
    }

    fn range(&mut self) -> Result<Range, NodeListError> {
        let start = self.position;
        let (first, width) = self.number()?;
        let last = if self.skip(b'-') { self.number()?.0 } else { first };
        if last < first {
            return Err(NodeListError { position: start, what: "this range is reversed" });
        }
        Ok(Range { first, last, width })
    }

    /// A number, and how many digits it has.
    fn number(&mut self) -> Result<(u64, usize), NodeListError> {
        let start = self.position;
        let digits = self.run(|letter| letter.is_ascii_digit());
        let what = match digits.len() {
            0 => "expected a number",
            1..=MAX_NAME => match digits.parse() {
                Ok(number) => return Ok((number, digits.len())),
                Err(_) => "this number is too large",
            },
            _ => "this number has too many digits",
        };
        Err(NodeListError { position: start, what })
    }
}

#[cfg(test)]
mod tests;
