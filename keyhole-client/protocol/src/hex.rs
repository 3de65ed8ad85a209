//! Lowercase hexadecimal digits, the only spelling of bytes in this protocol.

use alloc::string::String;

/// Reads exactly `2 * N` lowercase digits.
pub(crate) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    let (pairs, _) = text.as_bytes().as_chunks();
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Appends two digits per byte.
pub(crate) fn push(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push(letter(byte >> 4));
        text.push(letter(byte & 15));
    }
}

fn digit(letter: u8) -> Option<u8> {
    match letter {
        b'0'..=b'9' => Some(letter - b'0'),
        b'a'..=b'f' => Some(letter - b'a' + 10),
        _ => None,
    }
}

fn letter(digit: u8) -> char {
    char::from(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_and_written_alike() {
        let mut text = String::new();
        push(&mut text, &[0x00, 0x9a, 0xff]);
        assert_eq!(text, "009aff");
        assert_eq!(decode::<3>(&text), Some([0x00, 0x9a, 0xff]));
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", "0", "009a", "009aff0", "009aff00", "009AFF", "009af ", "+09aff", "äaff"] {
            assert_eq!(decode::<3>(text), None, "{text:?}");
        }
    }
}
