//! The proofs, one module per subject; each causes what it names. See `bwvisu_tests` for what they need.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

mod clocks;
mod crowd;
mod desktop;
mod docs;
mod doctor;
mod gateway_faults;
mod gateways;
mod http;
mod input;
mod kills;
mod kills_after;
mod kills_before;
mod main_path;
mod matrix;
mod nodes;
mod outages;
mod secrets;
mod slurm_faults;
mod soak;
mod ssh_faults;
mod templates;
mod tokens;
mod trail;
mod users;
