//! HMAC-SHA256 over a purpose and a body.

use crate::hex;
use crate::token::Token;
use alloc::string::String;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What a signed body is. It is part of what is signed, so that a grant cannot be passed off as a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The client asks for ports.
    Request,
    /// Keyhole grants them.
    Grant,
    /// The client has them.
    Confirm,
}

impl Purpose {
    const fn prefix(self) -> &'static [u8] {
        match self {
            Purpose::Request => b"keyhole-request\n",
            Purpose::Grant => b"keyhole-grant\n",
            Purpose::Confirm => b"keyhole-confirm\n",
        }
    }
}

/// The signature of `body`: 64 lowercase hexadecimal digits.
#[must_use]
pub fn sign(token: &Token, purpose: Purpose, body: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    hex::push(&mut text, &mac(token, purpose, body).finalize().into_bytes());
    text
}

/// Whether `signature` is what [`sign`] gives. Takes the same time wherever the two differ.
#[must_use]
pub fn verify(token: &Token, purpose: Purpose, body: &[u8], signature: &str) -> bool {
    match hex::decode::<32>(signature) {
        Some(bytes) => mac(token, purpose, body).verify_slice(&bytes).is_ok(),
        None => false,
    }
}

fn mac(token: &Token, purpose: Purpose, body: &[u8]) -> Hmac<Sha256> {
    // HMAC fills a short key up with zeros itself; done here, there is no error to pass on.
    let mut key = [0; 64];
    key[..32].copy_from_slice(token.bytes());
    let mut mac = Hmac::<Sha256>::new(&key.into());
    mac.update(purpose.prefix());
    mac.update(body);
    mac
}
