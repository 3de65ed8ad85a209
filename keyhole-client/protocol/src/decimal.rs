//! Decimal numbers without `core::fmt`, which would be a tenth of the client's size.

use alloc::string::String;

/// Appends `number` in decimal.
pub fn push(text: &mut String, mut number: u64) {
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

/// A decimal number without sign or leading zeros, at most `max`.
#[must_use]
pub fn parse(text: &str, max: u64) -> Option<u64> {
    if text.is_empty() || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    let mut number: u64 = 0;
    for letter in text.bytes() {
        let digit = letter.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(digit.into())?;
    }
    (number <= max).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn decimals_are_written_as_everybody_writes_them() {
        for number in [0, 1, 9, 10, 99, 100, 65_535, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut text = String::from(">");
            push(&mut text, number);
            assert_eq!(text, [">", &number.to_string()].concat());
        }
    }

    #[test]
    fn a_decimal_has_one_spelling() {
        for (text, number) in [("0", 0), ("7", 7), ("10", 10), ("18446744073709551615", u64::MAX)] {
            assert_eq!(parse(text, u64::MAX), Some(number), "{text:?}");
        }
        for text in ["", "00", "01", "+1", "-1", " 1", "1 ", "1\r", "1_0", "0x1", "٣", "18446744073709551616"] {
            assert_eq!(parse(text, u64::MAX), None, "{text:?}");
        }
    }

    #[test]
    fn a_decimal_above_the_bound_is_refused() {
        assert_eq!(parse("1000", 1000), Some(1000));
        assert_eq!(parse("1001", 1000), None);
    }
}
