//! A database whose calls are measured.

use super::{Backend, Change, Versioned};
use crate::error::Result;
use crate::metrics::metrics;
use std::path::Path;
use std::time::Instant;

pub(super) struct Measured(pub(super) Box<dyn Backend>);

fn measured<T>(verb: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let result = call();
    metrics().store(verb, begun.elapsed(), result.is_err());
    result
}

impl Backend for Measured {
    fn get(&self, keys: &[String]) -> Result<Vec<Option<Versioned>>> {
        measured("get", || self.0.get(keys))
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Versioned)>> {
        measured("scan", || self.0.scan(prefix))
    }

    fn page(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<(String, Versioned)>> {
        measured("scan", || self.0.page(prefix, after, most))
    }

    fn recent(&self, keys: &[String]) -> Option<Vec<Option<Versioned>>> {
        self.0.recent(keys)
    }

    fn commit(&self, change: &Change) -> Result<bool> {
        measured("commit", || self.0.commit(change))
    }

    fn lead(&self, role: &str) -> Result<bool> {
        measured("lead", || self.0.lead(role))
    }

    fn resign(&self) {
        self.0.resign();
    }

    fn file(&self) -> Option<&Path> {
        self.0.file()
    }
}
