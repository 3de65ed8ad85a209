//! What keyhole answers.

use crate::lines::{Lines, ParseError};
use crate::nonce::Nonce;
use crate::{MAX_PORTS, body, decimal};
use alloc::string::String;
use alloc::vec::Vec;

/// The longest name of a gateway.
const MAX_GATEWAY: usize = 255;

/// The ports that a job was given, in the order in which it counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The request's.
    pub nonce: Nonce,
    /// As many as were asked for.
    pub ports: Vec<GrantedPort>,
}

/// One port that the world can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedPort {
    /// Where the job listens; free on every node of the job.
    pub internal: u16,
    /// The public address or name of the gateway.
    pub gateway: String,
    /// Where the world connects to, on the gateway.
    pub external: u16,
}

impl Grant {
    /// The body that [`Grant::parse`] reads back. Values that break the rules of the format make a body that
    /// is refused.
    #[must_use]
    pub fn to_body(&self) -> String {
        let mut text = body::open();
        body::nonce_line(&mut text, self.nonce);
        for port in &self.ports {
            text.push_str("port ");
            decimal::push(&mut text, port.internal.into());
            text.push(' ');
            body::number_line(&mut text, &port.gateway, port.external.into());
        }
        text
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is not exactly as the format has it; the error names the line.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut lines = Lines::open(text)?;
        Ok(Grant { nonce: lines.nonce()?, ports: ports(&mut lines)? })
    }
}

fn ports(lines: &mut Lines<'_>) -> Result<Vec<GrantedPort>, ParseError> {
    const WHAT: &str = "expected `port`, a port, a gateway and a port";
    let mut ports: Vec<GrantedPort> = Vec::new();
    while ports.is_empty() || !lines.at_end() {
        let value = lines.value("port", WHAT)?;
        let port = GrantedPort::parse(value).ok_or_else(|| lines.error(WHAT))?;
        if ports.iter().any(|other| other.collides(&port)) {
            return Err(lines.error("this port comes twice"));
        }
        if ports.len() == MAX_PORTS as usize {
            return Err(lines.error("too many ports"));
        }
        ports.push(port);
    }
    Ok(ports)
}

impl GrantedPort {
    fn parse(text: &str) -> Option<Self> {
        let (internal, rest) = text.split_once(' ')?;
        let (gateway, external) = rest.split_once(' ')?;
        is_gateway(gateway).then_some(())?;
        Some(GrantedPort { internal: port_number(internal)?, gateway: String::from(gateway), external: port_number(external)? })
    }

    fn collides(&self, other: &Self) -> bool {
        self.internal == other.internal || (self.external == other.external && self.gateway == other.gateway)
    }
}

fn port_number(text: &str) -> Option<u16> {
    let number = decimal::parse(text, u16::MAX.into())?;
    (number > 0).then_some(number as u16)
}

/// Letters, digits, dots, colons and hyphens: names and addresses of both families, and nothing that means
/// anything to a shell.
fn is_gateway(text: &str) -> bool {
    (1..=MAX_GATEWAY).contains(&text.len())
        && text.bytes().all(|letter| letter.is_ascii_alphanumeric() || b".:-".contains(&letter))
}
