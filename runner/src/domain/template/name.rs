//! Names of templates: files in one folder, and never anything else.

use crate::error::{Error, Result};
use std::fmt;

/// The longest name, in bytes.
const MAX_BYTES: usize = 128;

/// The name of a file in the templates folder. It cannot lead anywhere else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TemplateName(String);

impl TemplateName {
    /// The file's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a template's name. The message of the error says what is wrong with it.
pub fn template_name(name: &str) -> Result<TemplateName> {
    match fault(name) {
        None => Ok(TemplateName(name.to_owned())),
        Some(fault) => {
            let shown: String = name.chars().take(MAX_BYTES).collect();
            Err(Error::bad_input(format!("the template name \"{}\" {fault}", shown.escape_debug())))
        }
    }
}

fn fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("is empty".into());
    }
    if name.len() > MAX_BYTES {
        return Some(format!("is longer than {MAX_BYTES} bytes"));
    }
    if let Some(found) = name.chars().find(|c| c.is_control() || matches!(c, '/' | '\\')) {
        return Some(format!("holds the character '{}'; it is the name of a file in the templates folder", found.escape_debug()));
    }
    if name.starts_with(['.', '-']) || name.starts_with(char::is_whitespace) {
        return Some("must not begin with a dot, a dash or a blank".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_pass() {
        for name in ["template_demo.txt", "a", "x-2.sh", "my template.txt", "vorlage_ä.txt", "a..b", &"x".repeat(128)] {
            assert_eq!(template_name(name).map(|name| name.to_string()).as_deref(), Ok(name));
        }
    }

    #[test]
    fn whatever_could_leave_the_folder_is_refused_and_the_reason_named() {
        let cases = [
            ("", "is empty"),
            (&"x".repeat(129), "is longer than 128 bytes"),
            ("../etc/passwd", "holds the character '/'"),
            ("/etc/passwd", "holds the character '/'"),
            ("a/b", "holds the character '/'"),
            ("a\\b", "holds the character '\\\\'"),
            ("a\nb", "holds the character '\\n'"),
            ("a\0", "holds the character '\\0'"),
            ("a\u{7f}", "holds the character '\\u{7f}'"),
            ("a\u{85}", "holds the character '\\u{85}'"),
            (".", "must not begin with a dot"),
            ("..", "must not begin with a dot"),
            (".hidden", "must not begin with a dot"),
            ("-rf", "must not begin with a dot, a dash"),
            (" a", "or a blank"),
        ];
        for (name, reason) in cases {
            let error = template_name(name).expect_err(name);
            assert!(error.message.contains(reason), "{name:?}: {}", error.message);
            assert!(!error.message.contains(char::is_control), "{:?}", error.message);
        }
    }
}
