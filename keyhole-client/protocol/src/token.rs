//! The secret between one job and keyhole.

use crate::hex;
use alloc::string::String;
use core::fmt;
use core::hint::black_box;

/// 256 random bits. It signs, it never travels, and it is never shown: `Debug` prints `Token(…)`.
#[derive(Clone, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// The token that consists of these bytes, which must come from a source fit for keys.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Token(bytes)
    }

    /// Reads 64 lowercase hexadecimal digits.
    ///
    /// # Errors
    /// When the text is anything else. The error does not repeat the text.
    pub fn from_hex(text: &str) -> Result<Self, TokenError> {
        hex::decode(text).map(Token).ok_or(TokenError)
    }

    /// The 64 digits that [`Token::from_hex`] reads.
    #[must_use]
    pub fn to_hex(&self) -> String {
        let mut text = String::with_capacity(64);
        hex::push(&mut text, &self.0);
        text
    }

    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Takes the same time wherever the tokens differ.
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        black_box(pairs.fold(0, |differences, (a, b)| black_box(differences | (a ^ b)))) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// A text is no token. It does not say which text: that might be nearly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenError;

impl fmt::Display for TokenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a token is 64 lowercase hexadecimal digits")
    }
}

impl core::error::Error for TokenError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn a_token_is_written_as_it_is_read() {
        let token = Token::from_bytes([0xa5; 32]);
        assert_eq!(token.to_hex(), "a5".repeat(32));
        assert_eq!(Token::from_hex(&token.to_hex()), Ok(token));
    }

    #[test]
    fn other_texts_are_no_tokens() {
        for text in ["", "a5", &"A5".repeat(32), &"a5".repeat(31), &"a5".repeat(33), &"g5".repeat(32)] {
            assert_eq!(Token::from_hex(text), Err(TokenError), "{text:?}");
        }
    }

    #[test]
    fn one_bit_makes_another_token() {
        let token = Token::from_bytes([7; 32]);
        for bit in 0..256 {
            let mut bytes = [7; 32];
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Token::from_bytes(bytes), token, "bit {bit}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        assert_eq!(format!("{:?}", Token::from_bytes([1; 32])), "Token(…)");
    }
}
