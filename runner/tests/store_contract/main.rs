//! One contract for both stores: the same checks run against the embedded one and against a real etcd; then what is particular
//! to each.

// A test that cannot go on ends; clippy knows its helpers only inside the tests themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

mod answers;
mod api;
#[path = "../support/caused.rs"]
mod caused;
mod certificates;
mod contract;
mod disk;
mod embedded;
mod etcd;
mod faults;
mod figures;
mod leads;
mod mirror;
mod power;
mod programs;
mod proxy;
mod security;
mod server;
mod space;
mod throng;
mod trail;
mod tries;
mod walk;
