//! `main`, from top to bottom.

extern crate alloc;

mod memory;
mod network;
mod process;

use alloc::vec::Vec;
use core::ffi::{c_char, c_int};
use keyhole_client::{Exit, Failure, HELP, Invocation, Random, VERSION, Variables, arguments, client, errand};
use network::Network;

#[link(name = "c")]
unsafe extern "C" {}

/// Where musl's start-up code arrives.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    process::ignore_closed_pipes();
    // SAFETY: these are what the start-up code was given by the system.
    let words = unsafe { process::words(count, words) };
    match run(&words) {
        Ok(()) => 0,
        Err(failure) => {
            process::complain(&failure.message);
            failure.exit as c_int
        }
    }
}

fn run(words: &[&str]) -> Result<(), Failure> {
    let arguments = match arguments::parse(words)? {
        Invocation::Help => return print(HELP),
        Invocation::Version => return print(VERSION),
        Invocation::Ask(arguments) => arguments,
    };
    let token = errand::token(process::variable(c"KEYHOLE_TOKEN"))?;
    process::wipe_variable(c"KEYHOLE_TOKEN");
    let variables = Variables {
        job_node_list: process::variable(c"SLURM_JOB_NODELIST"),
        node_list: process::variable(c"SLURM_NODELIST"),
        restart_count: process::variable(c"SLURM_RESTART_COUNT"),
    };
    let random = random().ok_or_else(|| internal("no random numbers can be had"))?;
    print(&client(&mut Network::default(), arguments, &token, &variables, random)?)
}

fn print(text: &str) -> Result<(), Failure> {
    if process::write_all(libc::STDOUT_FILENO, text.as_bytes()) {
        return Ok(());
    }
    Err(internal("standard output cannot be written"))
}

fn random() -> Option<Random> {
    let (mut nonce, mut seed) = ([0; 16], [0; 8]);
    (process::fill_randomly(&mut nonce) && process::fill_randomly(&mut seed))
        .then(|| Random { nonce, seed: u64::from_ne_bytes(seed) })
}

fn internal(message: &str) -> Failure {
    Failure::new(Exit::Internal, &[message])
}

/// Memory ran out, or the program is wrong. There is nothing to clean up.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    process::complain("out of memory, or an internal error");
    process::exit(Exit::Internal as c_int)
}

/// The words behind the program's name.
type Words = Vec<&'static str>;
