//! What may be filled in. Whatever passes here stands unquoted in a shell script.

use super::Template;
use crate::domain::mustache::Mustache;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The variables that are always there; none of these names may be supplied.
pub(super) const BUILT_INS: [&str; 4] = ["bwvisu_job_id", "bwvisu_user", "bwvisu_home", "bwvisu_log"];

const MAX_NAME_BYTES: usize = 64;
const MAX_VALUE_BYTES: usize = 1024;

/// What we ourselves know of a job and its template may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltIns<'a> {
    /// `{{bwvisu_job_id}}`: our id, not the scheduler's.
    pub job_id: u64,
    /// `{{bwvisu_user}}`: whom the job runs as.
    pub user: &'a str,
    /// `{{bwvisu_home}}`: the folder that it runs in.
    pub home: &'a str,
    /// `{{bwvisu_log}}`: the file that its output goes to.
    pub log: &'a str,
}

/// What a template allows for some of its variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Permissions {
    leading_dash: BTreeSet<String>,
    parent: BTreeSet<String>,
}

impl Permissions {
    /// Reads the `bwvisu:` comments of templates. An instruction that nobody knows is an error: it would be a rule not kept.
    pub(super) fn read<'a>(templates: impl Iterator<Item = &'a Mustache>) -> Result<Self> {
        let mut permissions = Self::default();
        for template in templates {
            for comment in template.comments() {
                let Some(instruction) = comment.text.strip_prefix("bwvisu:") else { continue };
                permissions
                    .add(instruction)
                    .map_err(|message| Error::internal(format!("template {}:{}: {message}", template.name(), comment.line)))?;
            }
        }
        Ok(permissions)
    }

    fn add(&mut self, instruction: &str) -> Result<(), String> {
        let mut words = instruction.split_whitespace();
        let set = match words.next() {
            Some("allow-leading-dash") => &mut self.leading_dash,
            Some("allow-parent") => &mut self.parent,
            _ => return Err("after \"bwvisu:\" comes \"allow-leading-dash\" or \"allow-parent\"".into()),
        };
        let names: Vec<String> = words.map(str::to_owned).collect();
        match names.iter().find(|name| name_fault(name).is_some()) {
            Some(name) => Err(format!("\"{}\" is no name of a variable", name.escape_debug())),
            None if names.is_empty() => Err("the name of a variable is missing".into()),
            None => {
                set.extend(names);
                Ok(())
            }
        }
    }
}

/// Checks supplied variables: names, and values as safe as the template wants them. Ones that it does not use are welcome,
/// because front ends send the same set to every template.
pub fn check_variables(variables: &BTreeMap<String, String>, template: &Template) -> Result<()> {
    for (name, value) in variables {
        if let Some(fault) = name_fault(name) {
            let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
            return Err(Error::bad_input(format!("the name of the variable \"{}\" {fault}", shown.escape_debug())));
        }
        if let Some(fault) = value_fault(value).or_else(|| forbidden(name, value, &template.permissions)) {
            return Err(Error::bad_input(format!("the variable {name} {fault}")));
        }
    }
    Ok(())
}

fn name_fault(name: &str) -> Option<String> {
    let fits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if name.len() > MAX_NAME_BYTES {
        Some(format!("is longer than {MAX_NAME_BYTES} bytes"))
    } else if !name.split('.').all(fits) {
        Some("must be of letters, digits, \"_\" and \"-\", with dots between".into())
    } else if BUILT_INS.contains(&name) {
        Some("is built in: the service itself fills it in".into())
    } else {
        None
    }
}

fn value_fault(value: &str) -> Option<String> {
    let safe = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '-' | '_');
    if value.is_empty() {
        Some("is empty; leave it out if it is not wanted".into())
    } else if value.len() > MAX_VALUE_BYTES {
        Some(format!("is longer than {MAX_VALUE_BYTES} bytes"))
    } else {
        let found = value.chars().find(|c| !safe(c))?;
        let shown = if found.is_ascii() { found.escape_debug().to_string() } else { found.escape_unicode().to_string() };
        Some(format!("holds the character '{shown}'; only ASCII letters and digits, \".\", \"/\", \"-\" and \"_\" may be in it"))
    }
}

fn forbidden(name: &str, value: &str, permissions: &Permissions) -> Option<String> {
    if value.starts_with('-') && !permissions.leading_dash.contains(name) {
        Some("begins with '-', so it would be read as an option".into())
    } else if value.split('/').any(|part| part == "..") && !permissions.parent.contains(name) {
        Some("holds \"..\", which would lead out of the folder".into())
    } else {
        None
    }
}

/// Supplied and built-in variables as what a template is filled in from. `a.b` becomes `b` within `a`, as Mustache reads it.
pub(super) fn data(variables: &BTreeMap<String, String>, built_ins: &BuiltIns) -> Result<Value> {
    let mut data = Map::new();
    for (name, value) in variables {
        insert(&mut data, name, value).ok_or_else(|| {
            Error::bad_input(format!("the variable {name} cannot be both a value and the beginning of other names"))
        })?;
    }
    for (name, value) in built_in_values(built_ins) {
        if let Some(fault) = value_fault(&value) {
            return Err(Error::internal(format!("the built-in variable {name} {fault}")));
        }
        data.insert(name.to_owned(), Value::String(value));
    }
    Ok(Value::Object(data))
}

fn built_in_values(built_ins: &BuiltIns) -> [(&'static str, String); 4] {
    let BuiltIns { job_id, user, home, log } = built_ins;
    let [id_name, user_name, home_name, log_name] = BUILT_INS;
    [
        (id_name, job_id.to_string()),
        (user_name, (*user).to_owned()),
        (home_name, (*home).to_owned()),
        (log_name, (*log).to_owned()),
    ]
}

fn insert(data: &mut Map<String, Value>, name: &str, value: &str) -> Option<()> {
    match name.split_once('.') {
        None if data.contains_key(name) => None,
        None => {
            data.insert(name.to_owned(), Value::String(value.to_owned()));
            Some(())
        }
        Some((first, rest)) => {
            let inner = data.entry(first).or_insert_with(|| Value::Object(Map::new()));
            insert(inner.as_object_mut()?, rest, value)
        }
    }
}
