//! A line of the log as an object in JSON.

use crate::domain::text::printable;
use jiff::Timestamp;
use log::Record;
use log::kv::{Error, Key, Value, VisitSource};
use serde_json::{Map, json};

/// The members that every line has come first; its own values follow by their names.
pub(super) fn object(record: &Record, id: Option<&str>, now: Timestamp) -> String {
    let mut members = Map::new();
    let mut add = |name: &str, value: serde_json::Value| drop(members.insert(name.to_owned(), value));
    add("time", super::TIME.timestamp_to_string(&now).into());
    add("level", super::level(record.level()).into());
    add("target", record.target().into());
    add("message", printable(&record.args().to_string()).into());
    if let Some(id) = id {
        add("request-id", id.into());
    }
    // What cannot be written by its name is in the message all the same.
    let _ = record.key_values().visit(&mut Members(&mut members));
    serde_json::Value::Object(members).to_string()
}

struct Members<'a>(&'a mut Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Members<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = value.to_u64().map_or_else(|| json!(printable(&value.to_string())), |number| json!(number));
        self.0.insert(key.as_str().to_owned(), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;

    #[test]
    fn an_object_has_its_message_its_id_and_its_values() {
        let pairs = [("status", Value::from(404)), ("path", Value::from("/a\"b"))];
        let record =
            Record::builder().level(Level::Warn).target("access").args(format_args!("two\nlines")).key_values(&pairs).build();
        let text = object(&record, Some("r-1"), Timestamp::UNIX_EPOCH);
        assert!(!text.contains('\n'), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = json!({"time": "1970-01-01T00:00:00.000Z", "level": "warn", "target": "access", "message": "two\\nlines",
            "request-id": "r-1", "status": 404, "path": "/a\"b"});
        assert_eq!(value, expected);
        let plain = Record::builder().args(format_args!("x")).build();
        assert!(!object(&plain, None, Timestamp::UNIX_EPOCH).contains("request-id"));
    }
}
