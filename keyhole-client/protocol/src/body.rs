//! Writing bodies. Without `core::fmt`, which would be a tenth of the client's size.

use crate::decimal;
use crate::hex;
use crate::nonce::Nonce;
use alloc::string::String;

/// The first line of every body.
pub(crate) const VERSION_LINE: &str = "keyhole 1";

/// A body that has its first line.
pub(crate) fn open() -> String {
    let mut body = String::from(VERSION_LINE);
    body.push('\n');
    body
}

/// Appends the line `word number`.
pub(crate) fn number_line(body: &mut String, word: &str, number: u64) {
    body.push_str(word);
    body.push(' ');
    decimal::push(body, number);
    body.push('\n');
}

/// Appends the line `nonce digits`.
pub(crate) fn nonce_line(body: &mut String, nonce: Nonce) {
    body.push_str("nonce ");
    hex::push(body, &nonce.0);
    body.push('\n');
}
