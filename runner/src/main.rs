//! The program `bwvisu-runner`; all of it is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// One for which threads do not wait for each other.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    bwvisu_runner::cli::main()
}
