//! Mustache for batch scripts: the specification's variables, sections, inverted sections, comments, partials and set
//! delimiters, with two rules of our own, because the text becomes a shell script and no web page:
//!
//! - nothing is HTML-escaped: `{{x}}`, `{{{x}}}` and `{{&x}}` are the same;
//! - a variable that is not there is an error that names it, instead of a hole in the script. A *section* over a name that is
//!   not there counts as false, or else `{{^x}}` (a default) could never be written.
//!
//! False are: nothing, null, `false`, the empty list and the empty text. Null may be shown, as nothing. Lambdas, blocks and
//! dynamic names are not known. Whatever could run away is bounded: nesting, partials that include themselves, output, work.

mod parse;
mod render;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

/// Sections within sections, in one template.
pub const MAX_SECTION_DEPTH: usize = 32;
/// Partials within partials: what ends a partial that includes itself.
pub const MAX_PARTIAL_DEPTH: usize = 32;
/// The longest text that a template may grow to.
pub const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// What gives a partial by its name, or says in a sentence why it cannot.
pub type Partials<'a> = &'a dyn Fn(&str) -> Result<Arc<Mustache>, String>;

/// A parsed template. Parsing finds every mistake that does not depend on the data.
#[derive(Debug, Clone, PartialEq)]
pub struct Mustache {
    name: String,
    nodes: Vec<Node>,
    comments: Vec<Comment>,
}

/// The text of a comment, for those who read instructions from comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comment {
    /// Without the delimiters, the `!` and outer blanks.
    pub text: String,
    /// The line in which it begins, from 1.
    pub line: usize,
}

/// What is wrong with a template, or with the data for it, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    /// The template's name, or the partial's if the mistake is there.
    pub template: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The variable that was not there, if that is what is wrong: the data's fault, not the template's.
    pub missing: Option<String>,
}

/// Where a tag stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// What a template is made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// Here a line of the template begins, and here goes the indentation of the partial that it belongs to.
    LineStart,
    Text(String),
    Variable {
        name: String,
        at: Position,
    },
    Section {
        name: String,
        inverted: bool,
        children: Vec<Node>,
    },
    /// A partial alone in its line hands its indentation down to all its lines; another one has none.
    Partial {
        name: String,
        at: Position,
        indent: Option<String>,
    },
}

impl Mustache {
    /// Reads a template. `name` appears in errors.
    pub fn parse(name: &str, source: &str) -> Result<Self, TemplateError> {
        parse::parse(name, source)
    }

    /// Fills the template in. `partials` is asked for each partial when it is met.
    pub fn render(&self, data: &serde_json::Value, partials: Partials) -> Result<String, TemplateError> {
        render::render(self, data, partials)
    }

    /// The name that it was parsed with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All comments, in order.
    pub fn comments(&self) -> &[Comment] {
        &self.comments
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn error(&self, at: Position, message: impl Into<String>) -> TemplateError {
        TemplateError::new(&self.name, at, message)
    }
}

impl TemplateError {
    fn new(template: &str, at: Position, message: impl Into<String>) -> Self {
        let Position { line, column } = at;
        Self { template: template.to_owned(), line, column, message: message.into(), missing: None }
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.template, self.line, self.column, self.message)
    }
}

impl std::error::Error for TemplateError {}
