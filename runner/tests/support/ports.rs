//! Ports for what a test starts.

use std::net::TcpListener;
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

/// How many ports are tried by one process of tests.
const SHARE: u16 = 100;

/// A port that nobody listens on just now; below those that the system gives to outgoing connections, so that none of these takes it while a
/// program restarts, and above those that the benches of process/ forward. Two processes of tests seldom have the same share.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 28_000 + (process::id() % 40) as u16 * SHARE;
    let mut tried = (0..SHARE).map(|_| first + NEXT.fetch_add(1, Ordering::Relaxed) % SHARE);
    tried.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}
