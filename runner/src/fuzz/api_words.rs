//! What stands in the paths of the API and in short members of its bodies: job ids, users, templates.

use super::{Outcome, Target, text};
use crate::domain::job::parse_job_id;
use crate::domain::template::template_name;
use crate::domain::user::{UserPolicy, check_user_name};
use std::path::Path;

pub(super) const TARGET: Target = Target {
    name: "api-words",
    tokens: &["..", "/", "\\", "%2f", "-", "root", "0", "00", ".txt", "\0", "\n", "template_", "9223372036854775807"],
    check,
};

fn check(input: &[u8]) -> Outcome {
    let word = match text(input) {
        Ok(word) => word,
        Err(outcome) => return outcome,
    };
    let kinds = [job_id(word), user(word), template(word)];
    let accepted: Vec<&str> = kinds.iter().filter_map(|kind| kind.as_ref().ok().copied()).collect();
    match &kinds {
        [Err(_), Err(user), Err(template)] => Outcome::refused(format_args!("{user}; {template}")),
        _ => Outcome::accepted(accepted.join(" ")),
    }
}

/// Complaints go into answers and log lines.
fn one_line(message: String) -> String {
    assert!(!message.contains(char::is_control) && message.len() < 2000, "{message:?}");
    message
}

fn job_id(word: &str) -> Result<&'static str, String> {
    let id = parse_job_id(word).map_err(|error| one_line(error.message))?;
    assert_eq!(id.to_string(), word, "a job has one id");
    Ok("job")
}

fn user(word: &str) -> Result<&'static str, String> {
    check_user_name(word).map_err(|error| one_line(error.message))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    assert!(word.chars().all(plain) && !word.starts_with(['-', '.']) && word.len() <= 32, "{word:?}");
    let policy = UserPolicy { min_uid: 0, group: None }.check_name(word);
    assert!(policy.is_err() || (word != "root" && !word.bytes().all(|byte| byte == b'0')), "{word:?} is root");
    Ok("user")
}

fn template(word: &str) -> Result<&'static str, String> {
    let name = template_name(word).map_err(|error| one_line(error.message))?;
    assert_eq!(name.as_str(), word);
    let path = Path::new("/templates").join(word);
    assert_eq!(path.parent(), Some(Path::new("/templates")), "{word:?} leads out of the folder");
    assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(word));
    Ok("template")
}
