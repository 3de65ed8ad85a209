//! What the client sends: a request, and later its confirmation.

use crate::lines::{Lines, ParseError};
use crate::nonce::Nonce;
use crate::{MAX_NODES, MAX_PORTS, body, nodelist};
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

/// A job asks for ports that are free on all its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Keyhole's own number of the job, not the scheduler's.
    pub job: u64,
    /// How often the scheduler has started the job again.
    pub run: u32,
    /// The same in every attempt of one client.
    pub nonce: Nonce,
    /// How many ports are wanted.
    pub ports: u32,
    /// The nodes of the job; ports are forwarded to the first.
    pub nodes: Vec<String>,
}

impl Request {
    /// The body that [`Request::parse`] reads back. Values that break the rules of the format make a body
    /// that is refused.
    #[must_use]
    pub fn to_body(&self) -> String {
        let mut text = opening(self.job, self.run, self.nonce);
        body::number_line(&mut text, "ports", self.ports.into());
        for node in &self.nodes {
            text.push_str("node ");
            text.push_str(node);
            text.push('\n');
        }
        text
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is not exactly as the format has it; the error names the line.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut lines = Lines::open(text)?;
        Ok(Request {
            job: lines.job()?,
            run: lines.run()?,
            nonce: lines.nonce()?,
            ports: ports(&mut lines)?,
            nodes: nodes(&mut lines)?,
        })
    }
}

fn ports(lines: &mut Lines<'_>) -> Result<u32, ParseError> {
    const WHAT: &str = "expected `ports` and a decimal number from 1 to 1000";
    match lines.number("ports", MAX_PORTS.into(), WHAT)? {
        0 => Err(lines.error(WHAT)),
        ports => Ok(ports as u32),
    }
}

fn nodes(lines: &mut Lines<'_>) -> Result<Vec<String>, ParseError> {
    let mut seen = BTreeSet::new();
    let mut nodes = Vec::new();
    while nodes.is_empty() || !lines.at_end() {
        let node = lines.value("node", "expected `node` and a host name")?;
        if !nodelist::is_host_name(node) {
            return Err(lines.error("this node is no host name"));
        }
        if !seen.insert(node) {
            return Err(lines.error("this node comes twice"));
        }
        if nodes.len() == MAX_NODES {
            return Err(lines.error("too many nodes"));
        }
        nodes.push(String::from(node));
    }
    Ok(nodes)
}

/// The client has its grant: from now on keyhole refuses the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// As in the request.
    pub job: u64,
    /// As in the request.
    pub run: u32,
    /// As in the request.
    pub nonce: Nonce,
}

impl Confirm {
    /// The body that [`Confirm::parse`] reads back.
    #[must_use]
    pub fn to_body(&self) -> String {
        opening(self.job, self.run, self.nonce)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is not exactly as the format has it; the error names the line.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut lines = Lines::open(text)?;
        let confirm = Confirm { job: lines.job()?, run: lines.run()?, nonce: lines.nonce()? };
        lines.end()?;
        Ok(confirm)
    }
}

fn opening(job: u64, run: u32, nonce: Nonce) -> String {
    let mut text = body::open();
    body::number_line(&mut text, "job", job);
    body::number_line(&mut text, "run", run.into());
    body::nonce_line(&mut text, nonce);
    text
}
