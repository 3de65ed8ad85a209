//! `settings.json`, which holds the secrets.

use super::{Outcome, Target, text};
use crate::config::file::parse_settings;
use crate::error::ErrorKind;
use serde_json::Value;
use std::path::Path;

pub(super) const TARGET: Target = Target {
    name: "settings",
    tokens: &[
        "\"api-password\":",
        "\"metrics-password\":",
        "\"etcd-user\":",
        "\"etcd-password\":",
        "\"geheim-4711\"",
        "4711471147",
        "[\"geheim-4711\"]",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "true",
        "\\u0000",
    ],
    check,
};

const NAMES: [&str; 4] = ["api-password", "metrics-password", "etcd-user", "etcd-password"];

fn check(input: &[u8]) -> Outcome {
    let text = match text(input) {
        Ok(text) => text,
        Err(outcome) => return outcome,
    };
    match parse_settings(text, Path::new("/etc/runner/settings.json")) {
        Ok(settings) => {
            let given = [settings.api_password, settings.metrics_password, settings.etcd_user, settings.etcd_password];
            let value: Value = serde_json::from_str(text).expect("JSON");
            for (name, given) in NAMES.iter().zip(&given) {
                let there = value.get(name).and_then(Value::as_str);
                assert!(given.as_deref() == there || value.is_array(), "{name}");
            }
            Outcome::accepted(format_args!("{:?}", given.map(|secret| secret.is_some())))
        }
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::BadInput);
            assert!(error.message.starts_with("/etc/runner/settings.json: "), "the file is not named: {error}");
            assert_silent(text, &error.message);
            Outcome::refused(error)
        }
    }
}

/// Whatever is wrong with the file, its secrets are not in the message, which ends up in logs.
fn assert_silent(text: &str, message: &str) {
    let Ok(value) = serde_json::from_str(text) else { return };
    let mut values = vec![value];
    while let Some(value) = values.pop() {
        let secret = match value {
            Value::String(secret) => secret,
            Value::Number(secret) => secret.to_string(),
            Value::Array(list) => {
                values.extend(list);
                continue;
            }
            Value::Object(members) => {
                // The name of an unknown key is told.
                values.extend(members.into_iter().filter(|(name, _)| NAMES.contains(&name.as_str())).map(|(_, value)| value));
                continue;
            }
            _ => continue,
        };
        let by_chance = secret.len() < 8 || NAMES.iter().any(|name| name.contains(&secret));
        assert!(by_chance || !message.contains(&secret), "a value is in the message: {message}");
    }
}
