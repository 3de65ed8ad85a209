//! Writing bodies. Without `core::fmt`, which would be a tenth of the client's size.

use crate::hex;
use crate::nonce::Nonce;
use alloc::string::String;

/// The first line of every body.
pub(crate) const VERSION_LINE: &str = "keyhole 1";

/// Appends `number` in decimal.
pub fn push_decimal(text: &mut String, mut number: u64) {
    let mut digits = [0; 20];
    let mut length = 0;
    for slot in &mut digits {
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
        length += 1;
        if number == 0 {
            break;
        }
    }
    text.extend(digits.iter().take(length).rev().map(|digit| char::from(*digit)));
}

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
    push_decimal(body, number);
    body.push('\n');
}

/// Appends the line `nonce digits`.
pub(crate) fn nonce_line(body: &mut String, nonce: Nonce) {
    body.push_str("nonce ");
    hex::push(body, &nonce.0);
    body.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn decimals_are_written_as_everybody_writes_them() {
        for number in [0, 1, 9, 10, 99, 100, 65_535, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut text = String::from(">");
            push_decimal(&mut text, number);
            assert_eq!(text, [">", &number.to_string()].concat());
        }
    }
}
