//! The words of the command line.

use crate::failure::{Exit, Failure};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use keyhole_protocol::{MAX_PORTS, decimal};

const DEFAULT_SECONDS: u64 = 120;
const MAX_SECONDS: u64 = 3600;

/// What the program is called for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Print [`HELP`](crate::HELP).
    Help,
    /// Print [`VERSION`](crate::VERSION).
    Version,
    /// Ask for ports.
    Ask(Arguments),
}

/// What is to be asked, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Keyhole's number of the job.
    pub job: u64,
    /// How many ports.
    pub ports: u32,
    /// One or more.
    pub servers: Vec<Server>,
    /// Seconds after which to give up.
    pub give_up_after: u64,
}

/// A keyhole server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// As it was given; stands in messages and in `Host`.
    pub text: String,
    /// The same for the system.
    pub address: SocketAddr,
}

/// Reads the words behind the program's name.
///
/// # Errors
/// When a word is unknown, given twice, missing or not what it should be.
pub fn parse(words: &[&str]) -> Result<Invocation, Failure> {
    let (mut job, mut ports, mut give_up_after) = (None, None, None);
    let mut servers = Vec::new();
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "--help" => return Ok(Invocation::Help),
            "--version" => return Ok(Invocation::Version),
            "--job" => set(&mut job, word, words.next(), u64::MAX)?,
            "--ports" => set(&mut ports, word, words.next(), MAX_PORTS.into())?,
            "--give-up-after" => set(&mut give_up_after, word, words.next(), MAX_SECONDS)?,
            "--server" => servers.push(server(words.next().unwrap_or_default())?),
            _ => return Err(usage(&["unknown argument \"", word, "\", see --help"])),
        }
    }
    if servers.is_empty() {
        return Err(usage(&["--server is missing"]));
    }
    Ok(Invocation::Ask(Arguments {
        job: job.ok_or_else(|| usage(&["--job is missing"]))?,
        ports: ports.ok_or_else(|| usage(&["--ports is missing"]))? as u32,
        servers,
        give_up_after: give_up_after.unwrap_or(DEFAULT_SECONDS),
    }))
}

/// Fills `slot` with a number from 1 to `max`.
fn set(slot: &mut Option<u64>, name: &str, word: Option<&str>, max: u64) -> Result<(), Failure> {
    if slot.is_some() {
        return Err(usage(&[name, " is given twice"]));
    }
    let word = word.unwrap_or_default();
    *slot = decimal::parse(word, max).filter(|number| *number > 0);
    if slot.is_none() {
        let mut bound = String::new();
        decimal::push(&mut bound, max);
        return Err(usage(&[name, ": \"", word, "\" is no number from 1 to ", &bound]));
    }
    Ok(())
}

fn server(word: &str) -> Result<Server, Failure> {
    match word.parse::<SocketAddr>() {
        // A zone would not be legal in `Host`, and means something on one machine only.
        Ok(address) if address.port() != 0 && !word.contains('%') => Ok(Server { text: String::from(word), address }),
        _ => Err(usage(&["--server: \"", word, "\" is neither ADDRESS:PORT nor [IPV6-ADDRESS]:PORT"])),
    }
}

fn usage(parts: &[&str]) -> Failure {
    Failure::new(Exit::Usage, parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn split(line: &str) -> Result<Invocation, Failure> {
        parse(&line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>())
    }

    #[test]
    fn all_arguments_are_read_in_any_order() {
        let server = |text: &str| Server { text: text.into(), address: text.parse().unwrap() };
        for (line, give_up_after) in [
            ("--job 17 --ports 5 --server 10.0.0.1:80 --server [fd00::1]:8080", 120),
            ("--server 10.0.0.1:80 --give-up-after 3600 --ports 5 --server [fd00::1]:8080 --job 17", 3600),
        ] {
            let servers = vec![server("10.0.0.1:80"), server("[fd00::1]:8080")];
            let expected = Arguments { job: 17, ports: 5, servers, give_up_after };
            assert_eq!(split(line), Ok(Invocation::Ask(expected)), "{line}");
        }
    }

    #[test]
    fn help_and_version_need_nothing_else() {
        assert_eq!(split("--help"), Ok(Invocation::Help));
        assert_eq!(split("--job 1 --version"), Ok(Invocation::Version));
    }

    #[test]
    fn wrong_arguments_are_named() {
        let number = "--job: \"x\" is no number from 1 to 18446744073709551615";
        for (line, message) in [
            ("", "--server is missing"),
            ("--job 1 --ports 1", "--server is missing"),
            ("--server 10.0.0.1:80 --ports 1", "--job is missing"),
            ("--server 10.0.0.1:80 --job 1", "--ports is missing"),
            ("--job x", number),
            ("--job", "--job: \"\" is no number from 1 to 18446744073709551615"),
            ("--job 0", "--job: \"0\" is no number from 1 to 18446744073709551615"),
            ("--ports 1001", "--ports: \"1001\" is no number from 1 to 1000"),
            ("--ports -1", "--ports: \"-1\" is no number from 1 to 1000"),
            ("--give-up-after 3601", "--give-up-after: \"3601\" is no number from 1 to 3600"),
            ("--job 1 --job 1", "--job is given twice"),
            ("-h", "unknown argument \"-h\", see --help"),
            ("--jöb\u{7} 1", "unknown argument \"--j?b?\", see --help"),
        ] {
            assert_eq!(split(line), Err(Failure { exit: Exit::Usage, message: message.into() }), "{line}");
        }
    }

    #[test]
    fn a_server_is_a_literal_address_with_a_port() {
        for word in ["", "host:80", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "fd00::1:80", "[fe80::1%1]:80", ":80"] {
            assert!(server(word).is_err(), "{word:?}");
        }
    }
}
