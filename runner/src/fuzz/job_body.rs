//! The body of `POST /jobs`.

use super::{Outcome, Target};
use crate::error::ErrorKind;
use crate::http::jobs::read_job;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub(super) const TARGET: Target = Target {
    name: "job-body",
    tokens: &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\u0000",
        "\\ud800",
        "\\u0078",
        "\"uid\":",
        "\"uid\":\"alice\",",
        "\"template-name\":",
        "\"template-name\":\"t\",",
        "\"variables\":",
        "\"variables\":{},",
        "\"x\":\"a\",",
        "\"job-id\":\"1\",",
        "null",
        "true",
        "1",
        "-0.0",
        " ",
        "\n",
    ],
    check,
};

/// JSON as another reader sees it, with every member in its place, also those that come twice.
enum Any {
    Object(Vec<(String, Any)>),
    Text(String),
    Other,
}

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Any;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Any, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Any::Object(members))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Any, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Any::Other)
            }
            fn visit_str<E>(self, text: &str) -> Result<Any, E> {
                Ok(Any::Text(text.to_owned()))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Any, E> {
                Ok(Any::Other)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Any, E> {
                Ok(Any::Other)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Any, E> {
                Ok(Any::Other)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Any, E> {
                Ok(Any::Other)
            }
            fn visit_unit<E>(self) -> Result<Any, E> {
                Ok(Any::Other)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// The members of an object, none of which comes twice.
fn members(value: Any) -> BTreeMap<String, Any> {
    let Any::Object(members) = value else { panic!("no object") };
    let names: BTreeSet<&String> = members.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), members.len(), "a member comes twice, and is accepted");
    members.into_iter().collect()
}

fn text(value: Option<Any>) -> String {
    let Some(Any::Text(text)) = value else { panic!("no text, and accepted") };
    text
}

fn check(input: &[u8]) -> Outcome {
    let job = match read_job(input) {
        Ok(job) => job,
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::BadInput);
            assert!(!error.message.contains(char::is_control), "{:?}", error.message);
            assert!(error.message.len() < 16 * 1024, "an answer of {} bytes", error.message.len());
            return Outcome::refused(error);
        }
    };
    let mut seen = members(serde_json::from_slice(input).expect("what is accepted is JSON"));
    assert_eq!((text(seen.remove("uid")), text(seen.remove("template-name"))), (job.uid.clone(), job.template_name.clone()));
    let variables: BTreeMap<String, String> = seen
        .remove("variables")
        .map_or_else(BTreeMap::new, |all| members(all).into_iter().map(|(name, value)| (name, text(Some(value)))).collect());
    assert_eq!(variables, job.variables);
    assert!(seen.is_empty(), "members that nobody knows are accepted: {:?}", seen.keys());
    let again = serde_json::json!({"uid": job.uid, "template-name": job.template_name, "variables": job.variables}).to_string();
    let again = read_job(again.as_bytes()).expect("what was read is written and read again");
    assert_eq!((again.uid, again.template_name, again.variables), (job.uid, job.template_name, variables));
    Outcome::accepted(job.variables.len().min(9))
}
