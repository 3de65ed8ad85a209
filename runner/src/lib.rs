//! The bwVisu runner: puts a person in front of an application that runs on a supercomputer.
//!
//! Two words run through every floor: **jobs**, what front ends speak of, and **keyhole**, what running jobs speak to.
//!
//! ```text
//! cli ─► app ─► http, watch ─► jobs, keyhole ─► scheduler, gateway, store ─► ssh ─► command
//!                                     └──────────────► domain ◄──────────────────┘
//! ```
//!
//! What holds everywhere, by absence: `domain` knows no process, socket, file, clock or log; programs are started in `command` (and
//! by the two places that keep one running: `ssh` and the local scheduler); etcd-client and tokio are named in `store::etcd` alone; the verbs in `jobs` and `keyhole` never name Slurm, iptables or etcd. Secrets go by standard input, never
//! by argument. `ARCHITECTURE.md` has the map.
#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod audit;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod config;
pub mod descriptors;
pub mod doctor;
pub mod domain;
pub mod effect;
pub mod error;
pub mod folder;
#[cfg(test)]
mod fuzz;
pub mod gateway;
pub mod http;
pub mod jobs;
pub mod keyhole;
pub mod live;
pub mod logging;
pub mod metrics;
pub mod reload;
pub mod scheduler;
mod seldom;
mod side_by_side;
pub mod ssh;
pub mod store;
pub mod systemd;
pub mod templates;
pub mod together;
pub mod vitals;
pub mod watch;
