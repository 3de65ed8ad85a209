//! What keyhole and the keyhole-client must agree on, and nothing else.
//!
//! A running job asks keyhole for ports. The way between them is plain HTTP inside the cluster, so trust rests on
//! a secret **token** of 256 random bits that only the job and keyhole know. The token itself never travels.
//!
//! # The exchange
//!
//! ```text
//! client                                            keyhole
//!   | POST /v1/ports          signed Request           |
//!   | -----------------------------------------------> |  checks, finds ports, opens them
//!   | <----------------------------------------------- |
//!   |   200                   signed Grant             |
//!   | POST /v1/ports/confirm  signed Confirm           |
//!   | -----------------------------------------------> |  the request is used up from here on
//! ```
//!
//! * A client that got no answer sends **the very same body** again and gets the very same answer. The nonce, which
//!   the client draws once, ties the attempts together.
//! * Once it holds the grant the client sends a confirmation, once, best effort. After that keyhole refuses the
//!   request, whoever repeats it.
//! * Refusals are answers with a 4xx status and a JSON problem body (RFC 9457), whose `detail` says why. They are
//!   not signed: who can forge one could as well cut the wire.
//!
//! # HTTP
//!
//! HTTP/1.1, `Content-Type: text/plain`, one `Content-Length` and no `Transfer-Encoding` both ways,
//! `Connection: close`. Bodies are at most [`MAX_BODY`] bytes. Requests, confirmations and answers with status 200
//! to [`PORTS_PATH`] carry
//!
//! ```text
//! Keyhole-Signature: hex(HMAC-SHA256(token, prefix || body))
//! ```
//!
//! in 64 lowercase digits, where `prefix` is one line that names the [`Purpose`], so that no signed text can be passed
//! off as another kind:
//!
//! | purpose | prefix |
//! | --- | --- |
//! | request | `keyhole-request\n` |
//! | grant | `keyhole-grant\n` |
//! | confirm | `keyhole-confirm\n` |
//!
//! The client refuses a grant whose signature, nonce or number of ports is wrong. The answer to a confirmation is
//! of no consequence.
//!
//! # Bodies
//!
//! Lines of ASCII, each ended by one LF, words parted by one space, in exactly this order:
//!
//! ```text
//! Request                  Grant                           Confirm
//! keyhole 1                keyhole 1                       keyhole 1
//! job 17                   nonce 00112233…                 job 17
//! run 0                    port 50000 129.206.9.65 50000   run 0
//! nonce 00112233…          port 50001 129.206.9.65 50001   nonce 00112233…
//! ports 2
//! node c0
//! node c1
//! ```
//!
//! * `keyhole 1` is the version of this format.
//! * `job` is keyhole's own number of the job (64 bits), `run` counts how often the scheduler started it again.
//! * `nonce` is 16 random bytes as 32 lowercase hexadecimal digits.
//! * `ports` is how many are wanted, from 1 to [`MAX_PORTS`].
//! * `node`, from 1 to [`MAX_NODES`] lines: the nodes of the job, each a host name as
//!   [`nodelist::is_host_name`] has it, none twice.
//! * `port INTERNAL GATEWAY EXTERNAL`, from 1 to [`MAX_PORTS`] lines: the job listens on `INTERNAL`, the
//!   world connects to `GATEWAY:EXTERNAL`. No internal port comes twice, nor does any `GATEWAY:EXTERNAL`.
//!
//! Numbers are decimal without sign or leading zeros. Anything else is an error that names the line, so that
//! each value has exactly one body and each body means exactly one value.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod body;
pub mod decimal;
mod grant;
mod hex;
mod lines;
pub mod nodelist;
mod nonce;
mod request;
mod signature;
mod token;

pub use grant::{Grant, GrantedPort};
pub use lines::ParseError;
pub use nonce::{Nonce, NonceError};
pub use request::{Confirm, Request};
pub use signature::{Purpose, sign, verify};
pub use token::{Token, TokenError};

/// The most nodes one request may name.
pub const MAX_NODES: usize = 4096;
/// The most ports one request may ask for, whatever a server's own limit is.
pub const MAX_PORTS: u32 = 1000;
/// The longest body in bytes, either way.
pub const MAX_BODY: usize = 1024 * 1024;
/// Where ports are asked for.
pub const PORTS_PATH: &str = "/v1/ports";
/// Where a grant is confirmed.
pub const CONFIRM_PATH: &str = "/v1/ports/confirm";
/// The header that carries the signature.
pub const SIGNATURE_HEADER: &str = "Keyhole-Signature";
