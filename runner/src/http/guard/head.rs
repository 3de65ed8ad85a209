//! The head of a request: bytes in, a checked value or a refusal out. Stricter than HTTP asks, because whatever two
//! readers could understand differently is a way to smuggle a request past one of them.

use std::net::IpAddr;

use super::answer::Refusal;
use crate::http::message::Request;

/// Headers beyond these are too many.
const MOST_HEADERS: usize = 64;

/// The headers that handlers have a use for, and those that begin with `OURS`; no other passes the guard, and
/// none that is about the connection.
const PASSED: [&str; 6] = ["accept", "authorization", "content-type", "host", "idempotency-key", "user-agent"];
const OURS: &str = "keyhole-";

/// What a client may call its request.
pub(crate) const REQUEST_ID: &str = "x-request-id";
/// What a valid head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) method: String,
    /// Path and query as they were sent.
    pub(crate) target: String,
    /// The headers that pass, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body_length: usize,
    pub(crate) keep_alive: bool,
    /// The client waits for our word before it sends the body.
    pub(crate) expects_continue: bool,
    /// What the client calls its request. It ends here: handlers find the id with their thread.
    pub(crate) request_id: Option<String>,
}

impl Head {
    /// Whether the answer's body is to be kept back.
    pub(crate) fn wants_head_only(&self) -> bool {
        self.method == "HEAD"
    }

    /// The whole request, as handlers know it.
    pub(crate) fn into_request(mut self, body: Vec<u8>, peer: IpAddr) -> Request {
        let method = if self.wants_head_only() { "GET".to_owned() } else { self.method };
        let query = self.target.find('?').map(|at| {
            let query = self.target.split_off(at + 1);
            self.target.truncate(at);
            query
        });
        Request { method, path: self.target, query, headers: self.headers, body, peer }
    }
}

/// Refuses at the first byte what cannot be a request, such as TLS on a plain port, instead of waiting for its end.
pub(crate) fn check_start(bytes: &[u8]) -> Result<(), Refusal> {
    match bytes.first() {
        Some(byte) if !byte.is_ascii_uppercase() => Err(Refusal::new(400, "this is not an HTTP request")),
        _ => Ok(()),
    }
}

/// Where the head ends, if it does; the first `scanned` bytes have been looked at before. An end with bare line feeds
/// counts too: it is refused then, instead of being waited for.
pub(crate) fn end(bytes: &[u8], scanned: usize) -> Option<usize> {
    let from = scanned.saturating_sub(2);
    let rest = bytes.get(from..)?;
    rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').find_map(|(at, _)| match rest.get(at + 1..) {
        Some([b'\n', ..]) => Some(from + at + 2),
        Some([b'\r', b'\n', ..]) => Some(from + at + 3),
        _ => None,
    })
}

/// Reads one whole head, with its empty line.
pub(crate) fn parse(bytes: &[u8], most_body: usize) -> Result<Head, Refusal> {
    check_bytes(bytes)?;
    let (method, target, version) = request_line(bytes)?;
    let mut space = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut space);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(Refusal::new(400, "the head of the request is malformed")),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::new(431, "there are more than 64 headers")),
        Err(error) => return Err(Refusal::new(400, format!("the head of the request is malformed: {error}"))),
    }
    let fields = Fields::read(request.headers)?;
    fields.check_host(version)?;
    let body_length = fields.body_length(most_body)?;
    Ok(Head {
        method: method.to_owned(),
        target: target.to_owned(),
        body_length,
        keep_alive: version == Version::V11 && !fields.says_close(),
        expects_continue: fields.expects_continue(version)?,
        request_id: fields.only(REQUEST_ID).map(str::to_owned),
        headers: fields.passed(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V10,
    V11,
}

/// Lines end with CR LF, none continues the one before, and all the rest is printable ASCII or a tab.
fn check_bytes(bytes: &[u8]) -> Result<(), Refusal> {
    for (at, byte) in bytes.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        let after = bytes.get(at + 1);
        let complaint = match byte {
            b'\n' if before != Some(&b'\r') => "a line ends with a bare line feed",
            b'\n' if matches!(after, Some(b' ' | b'\t')) => "a header is folded over two lines",
            b'\r' if after != Some(&b'\n') => "a bare carriage return",
            b'\n' | b'\r' | b'\t' | b' '..=b'~' => continue,
            _ => "a control character or a byte outside ASCII",
        };
        return Err(Refusal::new(400, format!("the head of the request is malformed: {complaint}, at byte {at}")));
    }
    Ok(())
}

fn request_line(bytes: &[u8]) -> Result<(&str, &str, Version), Refusal> {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default();
    let malformed = || Refusal::new(400, "the request line must be: METHOD /path HTTP/1.1");
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(malformed());
    };
    let version = match version {
        "HTTP/1.1" => Version::V11,
        "HTTP/1.0" => Version::V10,
        other if is_some_version(other) => return Err(Refusal::new(505, "use HTTP/1.1 or HTTP/1.0")),
        _ => return Err(malformed()),
    };
    // Upper case only: methods are told apart by the letter, and nobody shall take `head` for HEAD.
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
        return Err(malformed());
    }
    check_target(target)?;
    Ok((method, target, version))
}

fn is_some_version(text: &str) -> bool {
    text.strip_prefix("HTTP/").is_some_and(|number| {
        number.starts_with(|c: char| c.is_ascii_digit()) && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    })
}

/// The form that begins with a slash, in the characters of RFC 3986, percent-escapes complete.
fn check_target(target: &str) -> Result<(), Refusal> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(byte);
    let escaped = target.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit)
    });
    if target.starts_with('/') && target.as_bytes().iter().all(allowed) && escaped {
        return Ok(());
    }
    Err(Refusal::new(400, "the request's target must begin with / and hold only characters that a URL may have"))
}

/// All headers, names in lower case.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Self, Refusal> {
        let text = |value: &[u8]| String::from_utf8(value.to_vec());
        let field = |header: &httparse::Header<'_>| Ok((header.name.to_ascii_lowercase(), text(header.value)?));
        let fields = headers.iter().map(field).collect::<Result<Vec<_>, std::string::FromUtf8Error>>();
        let fields = Self(fields.map_err(|_| Refusal::new(400, "a header is not text"))?);
        fields.check_single()?;
        Ok(fields)
    }

    /// A header that two readers could take different copies of comes once; equal copies are no excuse.
    fn check_single(&self) -> Result<(), Refusal> {
        let matters = |name: &str| passes(name) && name != "accept" || name == "content-length" || name == "expect";
        for (at, (name, _)) in self.0.iter().enumerate() {
            if matters(name) && self.0[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(Refusal::new(400, format!("the header {name} comes more than once")));
            }
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of a header that comes once. Proxies may add their own to a client's: then it is nobody's.
    fn only(&self, name: &str) -> Option<&str> {
        let mut found = self.0.iter().filter(|(known, _)| known == name);
        found.next().filter(|_| found.next().is_none()).map(|(_, value)| value.as_str())
    }

    fn check_host(&self, version: Version) -> Result<(), Refusal> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(&byte);
        match self.get("host") {
            None if version == Version::V10 => Ok(()),
            None => Err(Refusal::new(400, "the header host is missing")),
            Some(host) if !host.is_empty() && host.bytes().all(allowed) => Ok(()),
            Some(_) => Err(Refusal::new(400, "the header host is neither a name nor an address")),
        }
    }

    fn body_length(&self, most: usize) -> Result<usize, Refusal> {
        if self.get("transfer-encoding").is_some() {
            return Err(Refusal::new(501, "send the body with content-length; transfer-encoding is not supported"));
        }
        let Some(value) = self.get("content-length") else { return Ok(0) };
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Refusal::new(400, "the header content-length is not a number"));
        }
        match value.parse::<usize>() {
            Ok(length) if length <= most => Ok(length),
            _ => Err(Refusal::new(413, format!("the body may have at most {most} bytes"))),
        }
    }

    fn expects_continue(&self, version: Version) -> Result<bool, Refusal> {
        match self.get("expect") {
            Some(value) if value.eq_ignore_ascii_case("100-continue") => Ok(version == Version::V11),
            Some(_) => Err(Refusal::new(417, "the only expectation that can be met is 100-continue")),
            None => Ok(false),
        }
    }

    fn says_close(&self) -> bool {
        let options = self.0.iter().filter(|(name, _)| name == "connection").flat_map(|(_, value)| value.split(','));
        options.into_iter().any(|option| option.trim().eq_ignore_ascii_case("close"))
    }

    fn passed(self) -> Vec<(String, String)> {
        self.0.into_iter().filter(|(name, _)| passes(name)).collect()
    }
}

fn passes(name: &str) -> bool {
    PASSED.contains(&name) || name.starts_with(OURS)
}

#[cfg(test)]
mod tests;
