//! What an installed configuration leaves to its admin: values that begin with a mark, and go on with what belongs there.

use super::file::{self, Settings};
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// What every value begins with that somebody has to replace.
pub const MARK: &str = "EDIT-ME";

/// An error that names all places in the two files that nobody has edited yet. `settings` is what is in force, so that a credential makes up for
/// a place in its file.
pub fn check(path: &Path, settings: &Settings) -> Result<()> {
    let mut places = Vec::new();
    // What cannot be read at all is told by those who need it.
    if let Ok(value) = file::read(path) {
        walk(&value, "", &mut places);
    }
    let mut lines: Vec<String> = places.iter().map(|place| format!("{}: {place}", path.display())).collect();
    let secrets = path.with_file_name("settings.json");
    lines.extend(marked(settings).into_iter().map(|key| format!("{}: {key}", secrets.display())));
    if lines.is_empty() {
        return Ok(());
    }
    Err(Error::bad_input(format!(
        "the configuration is not edited yet; replace what begins with {MARK} in\n  {}",
        lines.join("\n  ")
    )))
}

fn walk(value: &Value, key: &str, places: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            let hint = text.strip_prefix(MARK).map(|hint| hint.trim_start_matches([':', ' ']));
            places.extend(hint.map(|hint| if hint.is_empty() { key.to_owned() } else { format!("{key} ({hint})") }));
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(i, item)| walk(item, &format!("{key}[{i}]"), places)),
        Value::Object(members) => {
            let dot = if key.is_empty() { "" } else { "." };
            members.iter().for_each(|(name, member)| walk(member, &format!("{key}{dot}{name}"), places));
        }
        _ => {}
    }
}

/// Their values are not shown: errors end up in logs.
fn marked(settings: &Settings) -> Vec<&'static str> {
    let secrets = [
        ("api-password", &settings.api_password),
        ("metrics-password", &settings.metrics_password),
        ("etcd-user", &settings.etcd_user),
        ("etcd-password", &settings.etcd_password),
    ];
    let unedited = |value: &Option<String>| value.as_deref().is_some_and(|value| value.starts_with(MARK));
    secrets.into_iter().filter(|(_, value)| unedited(value)).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str, password: Option<&str>) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        let settings = Settings { api_password: password.map(str::to_owned), ..Settings::default() };
        let place = format!("{}/", folder.path().display());
        check(&path, &settings).err().map(|error| error.message.replace(&place, ""))
    }

    #[test]
    fn every_marked_place_is_named_with_what_belongs_there() {
        let text = r#"{"a": "EDIT-ME: a folder", "nodes": [{"ip": "10.0.0.1"}, {"ip": "EDIT-ME", "port": 22}], "say": "do not EDIT-ME"}"#;
        let expected = "the configuration is not edited yet; replace what begins with EDIT-ME in\n  config.json: a (a folder)\n  \
                        config.json: nodes[1].ip\n  settings.json: api-password";
        assert_eq!(faults(text, Some("EDIT-ME: secret")).unwrap(), expected);
        assert!(!expected.contains("secret"));
    }

    #[test]
    fn an_edited_configuration_and_one_that_cannot_be_read_pass_here() {
        for (text, password) in [(r#"{"a": "b"}"#, Some("x")), ("{", None), ("", None)] {
            assert_eq!(faults(text, password), None, "{text}");
        }
    }
}
