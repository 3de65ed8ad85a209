//! The keyhole-client: asks keyhole for ports from inside a batch job, and prints them for the shell.
//!
//! It travels inside every batch script, so it is small before it is anything else: no `std`, no formatting, no name
//! resolution, no JSON but the one member of an error that people should read. This library is all of its
//! logic, over the [`Transport`] that it is given; the program beside it is that transport, made of system calls.
//!
//! ```text
//! arguments + environment -> Errand -> ask (http, over Transport) -> exports
//! ```
//!
//! # Use
//!
#![doc = concat!("```text\n", include_str!("help.txt"), "```")]
//!
//! On success, and only then, standard output has lines for the shell:
//!
//! ```text
//! export KEYHOLE_PORT0=50000
//! export KEYHOLE_GATEWAY0=129.206.9.65
//! export KEYHOLE_EXTERNAL_PORT0=50000
//! export KEYHOLE_NUM_PORTS=1
//! ```
//!
//! Otherwise standard error has one line that says why, and the exit status is that of the [`Exit`].
//!
//! # When it tries again
//!
//! It tries all servers in turn, beginning with a random one, and after each round waits: 0.2 s, then twice as long
//! each time up to 5 s, less a random part. Statuses 400, 401, 403, 404, 409, 413 and 422 are refusals, which end it at once.
//! Everything else (other statuses, broken connections, answers that are not what the protocol has them) is tried
//! again, always with the very same body, until the time is up.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod arguments;
pub mod ask;
pub mod dice;
pub mod errand;
pub mod exports;
pub mod failure;
pub mod http;
pub mod problem;
pub mod transport;

pub use arguments::Invocation;
pub use errand::Variables;
pub use failure::{Exit, Failure};
pub use transport::{Fault, Transport};

use alloc::string::String;
use keyhole_protocol::{Nonce, Token};

/// What `--help` prints.
pub const HELP: &str = include_str!("help.txt");
/// What `--version` prints.
pub const VERSION: &str = concat!("keyhole-client ", env!("CARGO_PKG_VERSION"), "\n");

/// Fresh random bytes for one run of the program.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// Names this run to keyhole.
    pub nonce: [u8; 16],
    /// Seeds the choice of servers and pauses, where nothing depends on it being unknown.
    pub seed: u64,
}

/// Asks for ports, and returns what is to be printed.
///
/// # Errors
/// When the environment is not that of a job, when keyhole refuses, or when time is up.
pub fn client(
    transport: &mut impl Transport,
    arguments: arguments::Arguments,
    token: &Token,
    variables: &Variables<'_>,
    random: Random,
) -> Result<String, Failure> {
    let errand = errand::Errand::new(arguments, token, variables, Nonce(random.nonce))?;
    let grant = ask::ask(transport, &errand, &mut dice::Dice::new(random.seed))?;
    Ok(exports::exports(&grant))
}
