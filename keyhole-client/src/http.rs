//! One request and its answer, in as much HTTP/1.1 as two sides need that know each other.

use crate::transport::{Fault, Transport};
use alloc::string::String;
use alloc::vec::Vec;
use core::str;
use keyhole_protocol::{MAX_BODY, ParseError, SIGNATURE_HEADER, decimal};

/// The longest head of an answer.
const MAX_HEAD: usize = 16 * 1024;

/// Why an exchange came to nothing, so that it may be tried again. Small and plain: many may pass before time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The connection failed.
    Fault(Fault),
    /// The answer is not what the protocol has it.
    BadAnswer(&'static str),
    /// The body of the answer is not.
    BadBody(ParseError),
    /// The server said that it cannot, now.
    Status(u16),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Trouble::Fault(fault)
    }
}

impl Trouble {
    /// It in words.
    #[must_use]
    pub fn describe(self) -> String {
        let mut text = String::new();
        match self {
            Trouble::Fault(fault) => fault.describe(&mut text),
            Trouble::BadAnswer(what) => text.push_str(what),
            Trouble::BadBody(error) => {
                text.push_str("bad answer, line ");
                decimal::push(&mut text, error.line() as u64);
                text.push_str(": ");
                text.push_str(error.what());
            }
            Trouble::Status(status) => {
                text.push_str("status ");
                decimal::push(&mut text, status.into());
            }
        }
        text
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The server as it was named.
    pub host: &'a str,
    /// Where on the server.
    pub path: &'a str,
    /// Of the body.
    pub signature: &'a str,
    /// In plain text.
    pub body: &'a str,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// From 100 to 999.
    pub status: u16,
    /// The header's value, if there is one.
    pub signature: Option<&'a str>,
    /// As long as announced.
    pub body: &'a str,
}

/// Sends the message over the open connection and waits for its answer, which is then in the buffer.
///
/// # Errors
/// When the connection fails, or time is up, or the answer breaks the rules.
pub fn exchange<'a>(
    transport: &mut impl Transport,
    message: &Message<'_>,
    buffer: &'a mut Vec<u8>,
    deadline: u64,
) -> Result<Answer<'a>, Trouble> {
    buffer.clear();
    message.push_to(buffer);
    send_all(transport, buffer, deadline)?;
    buffer.clear();
    let mut incoming = Incoming { transport, deadline, bytes: buffer };
    let head_length = incoming.head()?;
    incoming.body(head_length)
}

fn send_all(transport: &mut impl Transport, mut bytes: &[u8], deadline: u64) -> Result<(), Trouble> {
    while !bytes.is_empty() {
        let sent = transport.send(bytes, deadline)?;
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    Ok(())
}

impl Message<'_> {
    fn push_to(&self, bytes: &mut Vec<u8>) {
        let mut length = String::new();
        decimal::push(&mut length, self.body.len() as u64);
        for part in [
            "POST ",
            self.path,
            " HTTP/1.1\r\nHost: ",
            self.host,
            "\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: ",
            &length,
            "\r\n",
            SIGNATURE_HEADER,
            ": ",
            self.signature,
            "\r\n\r\n",
            self.body,
        ] {
            bytes.extend_from_slice(part.as_bytes());
        }
    }
}

/// An answer on its way, of which any part may be missing yet.
struct Incoming<'a, 'b, T> {
    transport: &'b mut T,
    deadline: u64,
    bytes: &'a mut Vec<u8>,
}

impl<'a, T: Transport> Incoming<'a, '_, T> {
    /// Waits for the empty line, and says where it ends.
    fn head(&mut self) -> Result<usize, Trouble> {
        const END: &[u8] = b"\r\n\r\n";
        let mut searched = 0;
        loop {
            let rest = self.bytes.get(searched..).unwrap_or_default();
            if let Some(position) = rest.windows(END.len()).position(|window| window == END) {
                return Ok(searched + position + END.len());
            }
            if self.bytes.len() > MAX_HEAD {
                return Err(Trouble::BadAnswer("the head of the answer is too long"));
            }
            searched = self.bytes.len().saturating_sub(END.len() - 1);
            self.receive()?;
        }
    }

    /// Waits for as many bytes as the head announces.
    fn body(mut self, head_length: usize) -> Result<Answer<'a>, Trouble> {
        let end = head_length + Head::parse(self.bytes, head_length)?.body_length;
        while self.bytes.len() < end {
            self.receive()?;
        }
        if self.bytes.len() > end {
            return Err(Trouble::BadAnswer("the answer is longer than announced"));
        }
        let Head { status, signature, .. } = Head::parse(self.bytes, head_length)?;
        let body = text(self.bytes.get(head_length..))?;
        Ok(Answer { status, signature, body })
    }

    fn receive(&mut self) -> Result<(), Trouble> {
        let mut buffer = [0; 4096];
        let count = self.transport.receive(&mut buffer, self.deadline)?;
        if count == 0 {
            return Err(Trouble::BadAnswer("the connection ended before the answer did"));
        }
        self.bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        Ok(())
    }
}

fn text(bytes: Option<&[u8]>) -> Result<&str, Trouble> {
    str::from_utf8(bytes.unwrap_or_default()).map_err(|_| Trouble::BadAnswer("the answer is no text"))
}

struct Head<'a> {
    status: u16,
    signature: Option<&'a str>,
    body_length: usize,
}

impl<'a> Head<'a> {
    fn parse(bytes: &'a [u8], length: usize) -> Result<Self, Trouble> {
        let head = text(bytes.get(..length))?;
        Head::parse_lines(head.trim_ascii_end().split("\r\n")).map_err(Trouble::BadAnswer)
    }

    fn parse_lines(mut lines: impl Iterator<Item = &'a str>) -> Result<Self, &'static str> {
        let status = lines.next().and_then(status).ok_or("this is no HTTP/1.1 answer")?;
        let (mut length, mut signature) = (None, None);
        for line in lines {
            let (name, value) = header(line).ok_or("a header of the answer is malformed")?;
            let slot = match name {
                _ if name.eq_ignore_ascii_case("content-length") => &mut length,
                _ if name.eq_ignore_ascii_case(SIGNATURE_HEADER) => &mut signature,
                _ if name.eq_ignore_ascii_case("transfer-encoding") => return Err("the answer has a Transfer-Encoding"),
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err("a header of the answer comes twice");
            }
        }
        let length = length.and_then(|value| decimal::parse(value, MAX_BODY as u64));
        let body_length = length.ok_or("the answer has no good Content-Length")? as usize;
        Ok(Head { status, signature, body_length })
    }
}

/// The number in `HTTP/1.1 200 OK`.
fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    let number = rest.split(' ').next()?;
    (number.len() == 3).then_some(())?;
    decimal::parse(number, 999).map(|number| number as u16)
}

fn header(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(':')?;
    let good = !name.is_empty() && name.bytes().all(|letter| letter.is_ascii_graphic());
    good.then_some((name, value.trim_matches([' ', '\t'])))
}
