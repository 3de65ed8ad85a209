//! The world as the client needs it: one connection at a time, and a clock.

use alloc::string::String;
use core::net::SocketAddr;
use keyhole_protocol::decimal;

/// Connections and time. Moments are milliseconds on a clock that never goes back; each call returns at its
/// deadline at the latest.
pub trait Transport {
    /// This moment.
    fn now(&self) -> u64;

    /// Does nothing for so many milliseconds.
    fn pause(&mut self, milliseconds: u64);

    /// Opens a connection in place of the one before.
    ///
    /// # Errors
    /// When there is none at the deadline, or it fails earlier.
    fn connect(&mut self, address: SocketAddr, deadline: u64) -> Result<(), Fault>;

    /// Sends some of the bytes, and says how many.
    ///
    /// # Errors
    /// When the connection breaks or nothing could be sent until the deadline.
    fn send(&mut self, bytes: &[u8], deadline: u64) -> Result<usize, Fault>;

    /// Waits for bytes, and says how many came; 0 when the other side has ended.
    ///
    /// # Errors
    /// When the connection breaks or nothing came until the deadline.
    fn receive(&mut self, buffer: &mut [u8], deadline: u64) -> Result<usize, Fault>;

    /// Closes the connection if there is one.
    fn disconnect(&mut self);
}

/// Why a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The deadline passed.
    TimedOut,
    /// Linux's number for it.
    System(i32),
}

impl Fault {
    /// Appends it in words.
    pub fn describe(self, text: &mut String) {
        match self {
            Fault::TimedOut => text.push_str("timed out"),
            Fault::System(number) => match words(number) {
                Some(words) => text.push_str(words),
                None => {
                    text.push_str("system error ");
                    decimal::push(text, number.unsigned_abs().into());
                }
            },
        }
    }
}

/// The errors that are ordinary for networks. These numbers are the same on all processors that we build for.
const fn words(number: i32) -> Option<&'static str> {
    Some(match number {
        32 => "broken pipe",
        97 => "address family not supported",
        101 => "network is unreachable",
        104 => "connection reset",
        110 => "timed out",
        111 => "connection refused",
        113 => "no route to host",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_put_in_words() {
        for (fault, words) in [
            (Fault::TimedOut, "timed out"),
            (Fault::System(111), "connection refused"),
            (Fault::System(113), "no route to host"),
            (Fault::System(24), "system error 24"),
            (Fault::System(i32::MIN), "system error 2147483648"),
        ] {
            let mut text = String::new();
            fault.describe(&mut text);
            assert_eq!(text, words);
        }
    }
}
