//! The guard against real clients on real sockets, plain and TLS: the ordinary ones, and every attack that is known to
//! end or to starve what stands behind it.
// All of this is test, also what stands outside test functions.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

#[path = "http_guard/attacks.rs"]
mod attacks;
#[path = "http_guard/exhaustion.rs"]
mod exhaustion;
#[path = "http_guard/figures.rs"]
mod figures;
#[path = "http_guard/guesses.rs"]
mod guesses;
#[path = "http_guard/ordinary.rs"]
mod ordinary;
#[path = "http_guard/world.rs"]
mod world;
