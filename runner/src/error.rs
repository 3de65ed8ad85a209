//! One error for every floor: a code for programs, a sentence for the caller, a detail for the operator's log.

use std::fmt;

/// What went wrong, as far as a program needs to know. The HTTP status follows from it in one place (`http`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's input is wrong; the message says what to mend.
    BadInput,
    /// The caller did not say who it is, or not convincingly.
    Unauthorized,
    /// The caller is known, or claims to be, and may not do this.
    Refused,
    /// There is no such thing.
    NotFound,
    /// The thing changed meanwhile, or exists already.
    Conflict,
    /// A limit is reached; later it may work.
    Busy,
    /// Something that we need is out of reach; later it may work.
    Unavailable,
    /// Something that we asked answered, and said no.
    BadGateway,
    /// It may or may not have happened: the connection or the deadline ended before the answer.
    Unknown,
    /// Our own fault.
    Internal,
}

/// An error with a message that may be shown to the caller and a detail that only the log sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The code for programs.
    pub kind: ErrorKind,
    /// One sentence for the caller: what was wrong, and what to mend. Never holds a secret.
    pub message: String,
    /// More for the operator's log, such as a command and the end of its stderr. Never holds a secret.
    pub detail: Option<String>,
}

/// What functions that can fail return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with a `message` for the caller.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None }
    }

    /// The same error with a detail for the log.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same error, its message preceded by where it happened.
    #[must_use]
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),* $(,)?) => {
        impl Error {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self { Self::new(ErrorKind::$kind, message) })*
        }
    };
}

constructors! {
    /// Wrong input of the caller's.
    bad_input => BadInput,
    /// Not authenticated.
    unauthorized => Unauthorized,
    /// Not allowed.
    refused => Refused,
    /// No such thing.
    not_found => NotFound,
    /// Changed meanwhile, or there already.
    conflict => Conflict,
    /// A limit is reached.
    busy => Busy,
    /// Out of reach for now.
    unavailable => Unavailable,
    /// Somebody we asked said no.
    bad_gateway => BadGateway,
    /// It may have happened.
    unknown => Unknown,
    /// Our own fault.
    internal => Internal,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{} ({detail})", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_comes_first_and_the_detail_last() {
        let error = Error::unavailable("no answer").with_detail("exit 255").within("cmd0");
        assert_eq!(error.to_string(), "cmd0: no answer (exit 255)");
    }
}
