//! Reading bodies: strictly, line by line, remembering where we are.

use crate::body::VERSION_LINE;
use crate::nonce::Nonce;
use crate::{MAX_BODY, decimal, hex};
use core::fmt;

/// Why a body was refused: the line (counted from 1) and what should have been there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseError {
    line: usize,
    what: &'static str,
}

impl ParseError {
    /// The line that is wrong, counted from 1.
    #[must_use]
    pub const fn line(&self) -> usize {
        self.line
    }

    /// What is wrong with it.
    #[must_use]
    pub const fn what(&self) -> &'static str {
        self.what
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}", self.line, self.what)
    }
}

impl core::error::Error for ParseError {}

/// A body being read.
pub(crate) struct Lines<'a> {
    rest: &'a str,
    /// The line read last.
    line: usize,
}

impl<'a> Lines<'a> {
    /// Starts behind the version line.
    pub(crate) fn open(body: &'a str) -> Result<Self, ParseError> {
        let mut lines = Lines { rest: body, line: 0 };
        if body.len() > MAX_BODY {
            return Err(lines.error("the body is too long"));
        }
        if lines.next()? != VERSION_LINE {
            return Err(lines.error("expected `keyhole 1`"));
        }
        Ok(lines)
    }

    /// An error about the line read last.
    pub(crate) fn error(&self, what: &'static str) -> ParseError {
        ParseError { line: self.line.max(1), what }
    }

    pub(crate) fn at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn next(&mut self) -> Result<&'a str, ParseError> {
        self.line += 1;
        let (line, rest) = self.rest.split_once('\n').ok_or_else(|| self.error("missing, or not ended by a line feed"))?;
        self.rest = rest;
        Ok(line)
    }

    /// What stands behind `word` and a space on the next line; `what` is the complaint if that is not there.
    pub(crate) fn value(&mut self, word: &str, what: &'static str) -> Result<&'a str, ParseError> {
        let line = self.next()?;
        line.strip_prefix(word).and_then(|rest| rest.strip_prefix(' ')).ok_or_else(|| self.error(what))
    }

    /// The number behind `word`, at most `max`.
    pub(crate) fn number(&mut self, word: &str, max: u64, what: &'static str) -> Result<u64, ParseError> {
        let value = self.value(word, what)?;
        decimal::parse(value, max).ok_or_else(|| self.error(what))
    }

    pub(crate) fn job(&mut self) -> Result<u64, ParseError> {
        self.number("job", u64::MAX, "expected `job` and a decimal number below 2^64")
    }

    pub(crate) fn run(&mut self) -> Result<u32, ParseError> {
        let run = self.number("run", u32::MAX.into(), "expected `run` and a decimal number below 2^32")?;
        Ok(run as u32)
    }

    pub(crate) fn nonce(&mut self) -> Result<Nonce, ParseError> {
        const WHAT: &str = "expected `nonce` and 32 lowercase hexadecimal digits";
        let value = self.value("nonce", WHAT)?;
        hex::decode(value).map(Nonce).ok_or_else(|| self.error(WHAT))
    }

    pub(crate) fn end(&self) -> Result<(), ParseError> {
        if self.at_end() {
            return Ok(());
        }
        Err(ParseError { line: self.line + 1, what: "expected the end" })
    }
}
