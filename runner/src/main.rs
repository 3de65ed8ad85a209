//! The program `bwvisu-runner`; all of it is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// musl's own has one slow lock for all threads: requests took three times the time.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    bwvisu_runner::cli::main()
}
