//! The header `Authorization`.

use super::{Outcome, Target, text};
use crate::http::credentials::basic_credentials;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub(super) const TARGET: Target = Target {
    name: "credentials",
    tokens: &["Basic ", "basic", "BASIC", " ", "=", "==", "Bearer ", "YTpi", "\t", "-_", "+/"],
    check,
};

fn check(input: &[u8]) -> Outcome {
    let header = match text(input) {
        Ok(header) => header,
        Err(outcome) => return outcome,
    };
    let Some(bytes) = basic_credentials(header) else { return Outcome::refused(format_args!("none {}", header.len().min(40))) };
    let (scheme, rest) = header.split_once(' ').expect("two words");
    assert!(scheme.eq_ignore_ascii_case("basic"));
    // The same bytes in another spelling would be a second password.
    assert_eq!(STANDARD.encode(&bytes), rest.trim(), "not the one spelling of its bytes");
    Outcome::accepted(format_args!("{} {}", bytes.contains(&b':'), bytes.is_ascii()))
}
