//! The keyhole-client as a program: the library's logic over system calls.
//!
//! It has no standard library, and of musl's only what must be there. This file and its modules are the only ones with
//! unsafe code; each block is a call of C, or what C left us.
//!
//! For musl and `panic = "abort"` only. Elsewhere (a check of the whole workspace with all features, say) it is a
//! program that says so.

#![cfg_attr(all(target_env = "musl", panic = "abort"), no_std, no_main)]

#[cfg(all(target_env = "musl", panic = "abort"))]
mod program;

#[cfg(not(all(target_env = "musl", panic = "abort")))]
fn main() {
    eprintln!("keyhole-client: not built as a program; packaging/build-clients builds it");
    std::process::exit(7);
}
