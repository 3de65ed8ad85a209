//! The real program, started as it is installed, on loopback: its API, its command line, its restarts, its secrets; and Slurm
//! behind an `ssh` that plays a cluster. No test needs root, and none leaves a process or a folder behind.

// All of this is test, also what stands outside of test functions.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is not as it should be")]

mod admin;
mod api;
mod backup;
mod backup_files;
#[path = "../support/caused.rs"]
mod caused;
mod cluster;
mod commands;
mod descriptors;
mod disk;
mod doctor;
mod inputs;
mod malformed;
mod metrics;
mod old;
mod once;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/promtool.rs"]
mod promtool;
mod reload;
mod restart;
mod secrets;
mod served;
mod slurm;
mod slurm_watch;
mod starting;
mod stopping;
mod systemd;
mod traces;
mod world;
