//! Text → pieces → lines → tree. Lines matter because a tag alone in its line takes the whole line away with it.

use super::{Comment, MAX_SECTION_DEPTH, Mustache, Node, Position, TemplateError};

pub(super) fn parse(name: &str, source: &str) -> Result<Mustache, TemplateError> {
    let mut scanner = Scanner::new(name, source);
    let mut tree = Tree::new(name);
    while let Some(line) = scanner.next_line()? {
        tree.add_line(line)?;
    }
    tree.finish()
}

enum Piece {
    Text(String),
    Tag(Tag),
}

struct Tag {
    kind: Kind,
    /// The name, or a comment's text.
    content: String,
    at: Position,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Variable,
    Section,
    Inverted,
    Close,
    Comment,
    Partial,
    Delimiters,
}

struct Scanner<'a> {
    name: &'a str,
    rest: &'a str,
    at: Position,
    open: String,
    close: String,
}

impl<'a> Scanner<'a> {
    fn new(name: &'a str, source: &'a str) -> Self {
        Self { name, rest: source, at: Position { line: 1, column: 1 }, open: "{{".into(), close: "}}".into() }
    }

    /// All pieces up to the next newline in the text. A newline inside a tag ends no line.
    fn next_line(&mut self) -> Result<Option<Vec<Piece>>, TemplateError> {
        let mut pieces = Vec::new();
        while !self.rest.is_empty() {
            let piece = if self.rest.starts_with(&self.open) { Piece::Tag(self.tag()?) } else { Piece::Text(self.text()) };
            let ends = matches!(&piece, Piece::Text(text) if text.ends_with('\n'));
            pieces.push(piece);
            if ends {
                break;
            }
        }
        Ok((!pieces.is_empty()).then_some(pieces))
    }

    fn text(&mut self) -> String {
        let line = self.rest.split_inclusive('\n').next().unwrap_or(self.rest);
        let end = line.find(&self.open).unwrap_or(line.len());
        self.take(end).to_owned()
    }

    fn tag(&mut self) -> Result<Tag, TemplateError> {
        let at = self.at;
        self.take(self.open.len());
        let (kind, sigil, end) = self.kind();
        self.take(sigil);
        let Some(length) = self.rest.find(&end) else {
            return Err(self.error(at, format!("the tag that begins here is not closed: \"{end}\" is missing")));
        };
        let content = self.take(length).trim();
        self.take(end.len());
        match kind {
            Kind::Delimiters => self.set_delimiters(content, at)?,
            Kind::Comment => (),
            _ => self.check_name(kind, content, at)?,
        }
        Ok(Tag { kind, content: content.to_owned(), at })
    }

    /// The kind of the tag whose opening delimiter was just taken, the length of its sigil, and what closes it.
    fn kind(&self) -> (Kind, usize, String) {
        let plain = |kind| (kind, 1, self.close.clone());
        match self.rest.as_bytes().first() {
            Some(b'#') => plain(Kind::Section),
            Some(b'^') => plain(Kind::Inverted),
            Some(b'/') => plain(Kind::Close),
            Some(b'!') => plain(Kind::Comment),
            Some(b'>') => plain(Kind::Partial),
            Some(b'&') => plain(Kind::Variable),
            Some(b'{') => (Kind::Variable, 1, format!("}}{}", self.close)),
            Some(b'=') => (Kind::Delimiters, 1, format!("={}", self.close)),
            _ => (Kind::Variable, 0, self.close.clone()),
        }
    }

    fn set_delimiters(&mut self, content: &str, at: Position) -> Result<(), TemplateError> {
        let words: Vec<&str> = content.split_whitespace().collect();
        match words[..] {
            [open, close] if !content.contains('=') => (self.open, self.close) = (open.to_owned(), close.to_owned()),
            _ => return Err(self.error(at, "new delimiters are two words without \"=\", as in {{=<% %>=}}")),
        }
        Ok(())
    }

    fn check_name(&self, kind: Kind, name: &str, at: Position) -> Result<(), TemplateError> {
        let wrong = match kind {
            Kind::Partial => name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()),
            _ => name != "." && !name.split('.').all(is_word),
        };
        if !wrong {
            return Ok(());
        }
        let rule = if kind == Kind::Partial {
            "a file's name without blanks"
        } else {
            "letters, digits, \"_\" and \"-\", with dots between"
        };
        Err(self.error(at, format!("\"{}\" is no name: it is made of {rule}", name.escape_debug())))
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.at.line += taken.matches('\n').count();
        self.at.column = match taken.rsplit_once('\n') {
            Some((_, last)) => last.chars().count() + 1,
            None => self.at.column + taken.chars().count(),
        };
        taken
    }

    fn error(&self, at: Position, message: impl Into<String>) -> TemplateError {
        TemplateError::new(self.name, at, message)
    }
}

fn is_word(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

struct Tree<'a> {
    name: &'a str,
    comments: Vec<Comment>,
    /// What is outside of all sections.
    top: Vec<Node>,
    open: Vec<OpenSection>,
}

struct OpenSection {
    name: String,
    inverted: bool,
    at: Position,
    children: Vec<Node>,
}

impl<'a> Tree<'a> {
    fn new(name: &'a str) -> Self {
        Self { name, comments: Vec::new(), top: Vec::new(), open: Vec::new() }
    }

    fn add_line(&mut self, mut line: Vec<Piece>) -> Result<(), TemplateError> {
        if is_standalone(&line) {
            let indent = match line.first() {
                Some(Piece::Text(blanks)) => blanks.clone(),
                _ => String::new(),
            };
            line.retain(|piece| matches!(piece, Piece::Tag(_)));
            return line.into_iter().try_for_each(|piece| self.add(piece, Some(&indent)));
        }
        self.push(Node::LineStart);
        line.into_iter().try_for_each(|piece| self.add(piece, None))
    }

    fn add(&mut self, piece: Piece, indent: Option<&str>) -> Result<(), TemplateError> {
        let Tag { kind, content, at } = match piece {
            Piece::Tag(tag) => tag,
            Piece::Text(text) => {
                self.push(Node::Text(text));
                return Ok(());
            }
        };
        match kind {
            Kind::Variable => self.push(Node::Variable { name: content, at }),
            Kind::Partial => self.push(Node::Partial { name: content, at, indent: indent.map(str::to_owned) }),
            Kind::Section | Kind::Inverted => self.begin_section(content, kind == Kind::Inverted, at)?,
            Kind::Close => self.end_section(&content, at)?,
            Kind::Comment => self.comments.push(Comment { text: content, line: at.line }),
            Kind::Delimiters => (),
        }
        Ok(())
    }

    fn begin_section(&mut self, name: String, inverted: bool, at: Position) -> Result<(), TemplateError> {
        if self.open.len() == MAX_SECTION_DEPTH {
            return Err(self.error(at, format!("more than {MAX_SECTION_DEPTH} sections within each other")));
        }
        self.open.push(OpenSection { name, inverted, at, children: Vec::new() });
        Ok(())
    }

    fn end_section(&mut self, name: &str, at: Position) -> Result<(), TemplateError> {
        let Some(section) = self.open.pop() else {
            return Err(self.error(at, format!("this closes the section \"{name}\", but no section is open")));
        };
        let OpenSection { name: opened, inverted, at: since, children } = section;
        if opened != name {
            let message = format!("this closes the section \"{name}\", but \"{opened}\" is open, since line {}", since.line);
            return Err(self.error(at, message));
        }
        self.push(Node::Section { name: opened, inverted, children });
        Ok(())
    }

    fn push(&mut self, node: Node) {
        self.open.last_mut().map_or(&mut self.top, |section| &mut section.children).push(node);
    }

    fn finish(self) -> Result<Mustache, TemplateError> {
        if let Some(section) = self.open.last() {
            return Err(
                self.error(section.at, format!("the section \"{0}\" is never closed: {{{{/{0}}}}} is missing", section.name))
            );
        }
        Ok(Mustache { name: self.name.to_owned(), nodes: self.top, comments: self.comments })
    }

    fn error(&self, at: Position, message: impl Into<String>) -> TemplateError {
        TemplateError::new(self.name, at, message)
    }
}

/// Whether a line holds one tag, which shows nothing itself, and only blanks beside it.
fn is_standalone(line: &[Piece]) -> bool {
    let mut tags = 0;
    line.iter().all(|piece| match piece {
        Piece::Text(text) => text.trim().is_empty(),
        Piece::Tag(tag) => {
            tags += 1;
            tag.kind != Kind::Variable
        }
    }) && tags == 1
}
