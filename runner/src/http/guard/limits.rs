//! How much of everything strangers may have.

use std::time::Duration;

/// The limits of one listener. All times are absolute: a client that sends a byte now and then gains nothing by it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections open at once; each has a thread.
    pub connections: usize,
    /// Connections open at once from one address (from one /64 network with IPv6); a quarter of it when more than half of
    /// all seats are taken. Up to as many again may be there of clients that have closed theirs, until that is noticed.
    pub per_address: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// For the whole body.
    pub body: Duration,
    /// How long a connection may wait between two requests.
    pub idle: Duration,
    /// For writing one answer.
    pub write: Duration,
    /// Answers that take longer become 503; the handler ends by itself.
    pub handle: Duration,
    /// The longest head.
    pub head_bytes: usize,
    /// The longest body. `connections` times this is the most memory that bodies can take.
    pub body_bytes: usize,
    /// Requests handled at once.
    pub workers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            per_address: 64,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            write: Duration::from_secs(30),
            handle: Duration::from_secs(90),
            head_bytes: 16 * 1024,
            body_bytes: 1024 * 1024,
            workers: 32,
        }
    }
}
