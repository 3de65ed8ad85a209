//! The program `bwvisu-runner`; all of it is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    bwvisu_runner::cli::main()
}
