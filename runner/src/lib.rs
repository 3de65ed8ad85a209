//! The bwVisu runner.
#![forbid(unsafe_code)]

pub mod error;
