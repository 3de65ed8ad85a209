//! The number that ties the attempts of one client together.

use crate::hex;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

/// 16 random bytes, drawn once by each client. Shown as 32 lowercase hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub [u8; 16]);

impl fmt::Display for Nonce {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        hex::push(&mut text, &self.0);
        formatter.write_str(&text)
    }
}

impl FromStr for Nonce {
    type Err = NonceError;

    fn from_str(text: &str) -> Result<Self, NonceError> {
        hex::decode(text).map(Nonce).ok_or(NonceError)
    }
}

/// A text is no nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonceError;

impl fmt::Display for NonceError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a nonce is 32 lowercase hexadecimal digits")
    }
}

impl core::error::Error for NonceError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_nonce_is_shown_as_it_is_read() {
        let text = "00112233445566778899aabbccddeeff";
        assert_eq!(text.parse::<Nonce>().map(|nonce| nonce.to_string()), Ok(text.to_string()));
    }

    #[test]
    fn other_texts_are_no_nonces() {
        for text in ["", "00", "00112233445566778899AABBCCDDEEFF", "00112233445566778899aabbccddeef "] {
            assert_eq!(text.parse::<Nonce>(), Err(NonceError), "{text:?}");
        }
    }
}
