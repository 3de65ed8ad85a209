//! From a rendered template to the script that the scheduler gets: the ports line becomes bash.
//!
//! That bash is `batch_script/ports.sh`, itself a Mustache template. What it promises to the rest of the script stands at its
//! head; `runner/tests/batch_script.rs` runs it by real bash under all that a script or a node may come with. What it cannot do:
//! under `set -v`, bash shows a block (`if`, a function) as a whole before running any of it, so a ports line inside of a
//! block would show the token in the job's log. It belongs on the outermost level.

use super::mustache::Mustache;
use super::template::find_ports_line;
use crate::error::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;

const PORTS: &str = include_str!("batch_script/ports.sh");

/// As base64 tools make them.
const LINE_BYTES: usize = 76;
/// More than this is no keyhole-client: schedulers keep every script, and refuse those above a few MB.
const MAX_BASE64_BYTES: usize = 256 * 1024;

/// The keyhole-client's programs, packed: what every batch script with a ports line carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clients(Vec<Client>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Client {
    /// As `uname -m` says it.
    architecture: String,
    base64: String,
}

impl Clients {
    /// Packs programs, each with its architecture as `uname -m` says it (`x86_64`, `aarch64`). The same programs always give
    /// the same text.
    pub fn new(programs: Vec<(String, Vec<u8>)>) -> Result<Self> {
        if programs.is_empty() {
            return Err(Error::internal("there is no keyhole-client for any architecture"));
        }
        programs.into_iter().map(|(architecture, program)| Client::new(architecture, &program)).collect::<Result<_>>().map(Self)
    }

    /// The bytes of base64 text that each architecture adds to a script.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|client| (client.architecture.as_str(), client.base64.len()))
    }
}

impl Client {
    fn new(architecture: String, program: &[u8]) -> Result<Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if architecture.is_empty() || !architecture.bytes().all(plain) {
            return Err(Error::internal(format!("\"{}\" is no architecture, as x86_64 is", architecture.escape_debug())));
        }
        let base64 = pack(program).map_err(|error| Error::internal(format!("keyhole-client.{architecture}: {error}")))?;
        match base64.len() {
            0..=MAX_BASE64_BYTES => Ok(Self { architecture, base64 }),
            length => Err(Error::internal(format!(
                "keyhole-client.{architecture} takes {length} bytes in a batch script, which is above {MAX_BASE64_BYTES}; is it the right file?"
            ))),
        }
    }
}

/// gzip, without name and time, then base64 in lines, the last one without its newline.
fn pack(program: &[u8]) -> std::io::Result<String> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    packer.write_all(program)?;
    let packed = packer.finish()?;
    let lines: Vec<String> = packed.chunks(LINE_BYTES / 4 * 3).map(|line| STANDARD.encode(line)).collect();
    Ok(lines.join("\n"))
}

/// What one job's ports line needs to become bash. It holds a secret, so it cannot be shown.
#[expect(missing_debug_implementations, reason = "it holds the token")]
#[derive(Clone, Copy)]
pub struct KeyholeSetup<'a> {
    /// Our id of the job.
    pub job_id: u64,
    /// The job's own token, in hexadecimal.
    pub token_hex: &'a str,
    /// Where keyhole listens; the client tries all.
    pub servers: &'a [SocketAddr],
    /// After how long the client gives up.
    pub give_up_after_seconds: u64,
    /// The programs to carry.
    pub clients: &'a Clients,
}

/// Replaces the ports line of a rendered script by bash that gets the ports. A script without one stays as it is.
pub fn batch_script(rendered: &str, setup: &KeyholeSetup, max_ports: u32) -> Result<String> {
    let Some(line) = find_ports_line(rendered, max_ports).map_err(Error::bad_input)? else { return Ok(rendered.to_owned()) };
    let ports = line.ports.number().ok_or_else(|| Error::internal("the script with the ports line is not rendered"))?;
    let bash = ports_bash(ports, setup)?;
    let (before, after) = (&rendered[..line.range.start], &rendered[line.range.end..]);
    Ok(format!("{before}{}{after}", bash.trim_end()))
}

fn ports_bash(ports: u32, setup: &KeyholeSetup) -> Result<String> {
    if setup.token_hex.is_empty() || !setup.token_hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::internal("the job's token is not hexadecimal"));
    }
    if setup.servers.is_empty() {
        return Err(Error::internal("there is no keyhole server that the job could ask for ports"));
    }
    let no_partials = |_: &str| Err("the bash for ports has no partials".to_owned());
    let template = Mustache::parse("ports.sh", PORTS);
    template
        .and_then(|template| template.render(&data(ports, setup), &no_partials))
        .map_err(|error| Error::internal(error.to_string()))
}

fn data(ports: u32, setup: &KeyholeSetup) -> Value {
    let clients = setup.clients.0.iter().enumerate();
    let clients = clients.map(|(i, client)| json!({"arch": client.architecture, "base64": client.base64, "first": i == 0}));
    json!({
        "job_id": setup.job_id,
        "token": setup.token_hex,
        "ports": ports,
        "servers": setup.servers.iter().map(SocketAddr::to_string).collect::<Vec<_>>(),
        "give_up_after": setup.give_up_after_seconds,
        "clients": clients.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn clients() -> Clients {
        Clients::new(vec![("x86_64".into(), b"program".to_vec()), ("aarch64".into(), vec![7; 100])]).expect("packs")
    }

    fn setup(clients: &Clients) -> KeyholeSetup<'_> {
        const SERVERS: &[SocketAddr] = &[SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 80)];
        KeyholeSetup { job_id: 17, token_hex: "0af1", servers: SERVERS, give_up_after_seconds: 60, clients }
    }

    #[test]
    fn only_the_ports_line_changes() {
        let clients = clients();
        let made = batch_script("#!/bin/bash\na\n  #KEYHOLE-REQUEST-PORTS 2\nb", &setup(&clients), 9).expect("valid");
        assert!(made.starts_with("#!/bin/bash\na\n# --- bwVisu keyhole: begin"), "{made}");
        assert!(made.ends_with("# --- bwVisu keyhole: end ---\nb"), "{made}");
        assert_eq!(made.lines().filter(|line| line.starts_with('#') && line.contains("bwVisu keyhole:")).count(), 2);
        assert_eq!(batch_script("#!/bin/bash\nb\n", &setup(&clients), 9).as_deref(), Ok("#!/bin/bash\nb\n"));
    }

    #[test]
    fn what_cannot_work_is_refused_before_it_reaches_the_scheduler() {
        let clients = clients();
        let setup = setup(&clients);
        let script = "#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 10\n";
        let cases = [
            (setup, 9, "a job may ask for 1 to 9 ports"),
            (KeyholeSetup { token_hex: "", ..setup }, 10, "not hexadecimal"),
            (KeyholeSetup { token_hex: "a;b", ..setup }, 10, "not hexadecimal"),
            (KeyholeSetup { servers: &[], ..setup }, 10, "no keyhole server"),
        ];
        for (setup, max_ports, message) in cases {
            let error = batch_script(script, &setup, max_ports).expect_err(message);
            assert!(error.message.contains(message), "{error}");
        }
    }

    #[test]
    fn packing_is_repeatable_and_loses_nothing() {
        let program: Vec<u8> = (0..50_000u32).map(|i| ((i * i) >> 7) as u8).collect();
        let packed = pack(&program).expect("packs");
        assert_eq!(packed, pack(&program).expect("packs"));
        assert!(packed.lines().all(|line| line.len() <= LINE_BYTES));
        let bytes = STANDARD.decode(packed.replace('\n', "")).expect("is base64");
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).expect("is gzip");
        assert_eq!(unpacked, program);
    }

    #[test]
    fn clients_that_are_none_are_refused() {
        let cases = [
            (vec![], "no keyhole-client for any architecture"),
            (vec![("x86;64".to_owned(), vec![1])], "is no architecture"),
            (vec![(String::new(), vec![1])], "is no architecture"),
        ];
        for (programs, message) in cases {
            let error = Clients::new(programs).expect_err(message);
            assert!(error.message.contains(message), "{error}");
        }
    }
}
