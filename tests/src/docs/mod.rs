//! The documents, read as a person reads them, and followed: every command in them is typed where they say, and what they show is what
//! must come.
//!
//! The documents stay plain Markdown. What this needs beyond it stands in HTML comments, which nobody sees who reads them rendered:
//!
//! * `<!-- on: PLACE -->` or `<!-- on: PLACE as USER -->` before a block: where it is typed, and by whom (root without it). Between
//!   paragraphs it counts from there on. The places are those of [`places`].
//! * `<!-- typed: y y -->`: the block's commands ask questions, and this is answered, one word a line, on a terminal.
//! * `<!-- write: FILE -->`: the block is what goes into this file, at the same place.
//! * `<!-- prints -->`: the block is what the block of commands before it prints, on standard output and standard error;
//!   `<!-- prints e.g. -->`: but for its digits.
//! * `<!-- mistake -->`: the block is a template that `template check` finds fault with; the block after it is what it says.
//! * `<!-- not run: REASON -->`: nobody types this here. The reasons are listed at the end of the test.
//!
//! Any other block of commands is an error: none can be overlooked. Within a block, `# prints TEXT` behind a command, or in lines of its
//! own after it, is all that it prints, and `# exits 1` is how it ends where that is not 0. In what is shown, `…` stands for anything
//! within a line, and a line `…` for any lines; blanks count as one. After `# prints e.g.` the digits may be others.
//!
//! A line with `…`, and an example, stand for what was really printed wherever the same text is typed later: a key that is copied from one
//! machine to another, an address that is opened.
//!
//! Names and addresses of the documents are replaced by those of the bed ([`places`]).

pub mod machines;
pub mod markdown;
pub mod pattern;
pub mod places;
pub mod reader;
pub mod session;
