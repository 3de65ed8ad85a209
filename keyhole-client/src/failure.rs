//! How the program ends when it does not succeed.

use alloc::string::String;

/// Exit statuses, one per kind of failure, so that a batch script can tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Bad arguments.
    Usage = 2,
    /// No token, or a bad one, or a bad restart count.
    Environment = 3,
    /// No node list, or a bad one.
    NodeList = 4,
    /// No server granted the ports before time was up.
    TimeUp = 5,
    /// Keyhole refused.
    Refused = 6,
    /// No memory, no randomness, or nowhere to print to.
    Internal = 7,
}

/// Why there are no ports, in one line, and the exit status for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the program exits with.
    pub exit: Exit,
    /// What it prints before: one line of printable ASCII, without its end.
    pub message: String,
}

impl Failure {
    /// A failure with a message of these parts, of which nothing but printable ASCII is kept.
    #[must_use]
    pub fn new(exit: Exit, parts: &[&str]) -> Self {
        let parts = parts.iter().flat_map(|part| part.chars());
        Failure { exit, message: parts.map(printable).collect() }
    }
}

/// The letter itself if it is printable ASCII; a space for blanks and a question mark for the rest.
#[must_use]
pub fn printable(letter: char) -> char {
    match letter {
        ' '..='~' => letter,
        '\t' | '\n' | '\r' => ' ',
        _ => '?',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_printable_letters() {
        let failure = Failure::new(Exit::Usage, &["a\nb", "\u{1b}[31m", "ü\r\t\u{0}~"]);
        assert_eq!(failure.message, "a b?[31m?  ?~");
    }
}
