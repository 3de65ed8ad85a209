//! The API for admins: gateways and audits.

use super::message::{Request, Response};
use crate::admin::Admin;
use crate::domain::trail::Trace;
use crate::error::{Error, Result};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

/// Answers what lies below `/cluster/gateways`, `/cluster/who` and `/cluster/audit`; `path` begins behind `cluster`.
pub fn handle(admin: &Admin, request: &Request, path: &[&str]) -> Result<Response> {
    match (request.method.as_str(), path) {
        ("GET", ["gateways"]) => Ok(Response::json(200, &json!({"gateways": value(&admin.gateways()?)?}))),
        ("DELETE", ["gateways", address]) => Ok(Response::json(200, &json!({"forgotten": admin.forget(address)?}))),
        ("PUT", ["gateways", address, "drain"]) => Ok(Response::json(200, &value(&admin.drain(address, true)?)?)),
        ("DELETE", ["gateways", address, "drain"]) => Ok(Response::json(200, &value(&admin.drain(address, false)?)?)),
        ("GET", ["audit"]) => Ok(Response::json(200, &value(&admin.audit(false)?)?)),
        ("POST", ["audit"]) => Ok(Response::json(200, &value(&admin.audit(true)?)?)),
        ("GET", ["who"]) => who(admin, request),
        (_, ["who"]) => Ok(not_allowed("GET")),
        (_, ["gateways"]) => Ok(not_allowed("GET")),
        (_, ["gateways", _]) => Ok(not_allowed("DELETE")),
        (_, ["gateways", _, "drain"]) => Ok(not_allowed("PUT, DELETE")),
        (_, ["audit"]) => Ok(not_allowed("GET, POST")),
        _ => Err(Error::not_found(
            "no such page; there are /cluster/gateways, /cluster/gateways/<address>/drain, /cluster/who and /cluster/audit",
        )),
    }
}

/// `?gateway=A&port=N`, and `&at=T` for another time than now.
fn who(admin: &Admin, request: &Request) -> Result<Response> {
    let query = Query::read(request.query.as_deref().unwrap_or_default())?;
    let gateway =
        query.get("gateway")?.ok_or_else(|| Error::bad_input("gateway: it is missing; the query is ?gateway=A&port=N&at=T"))?;
    let port = query.get("port")?.ok_or_else(|| Error::bad_input("port: it is missing; the query is ?gateway=A&port=N&at=T"))?;
    let port: u16 = port.parse().map_err(|_| Error::bad_input("port: it is not a number from 0 to 65535"))?;
    let at = match query.get("at")? {
        Some(text) => text.parse().map_err(|_| Error::bad_input("at: it is not a time such as 2026-11-22T08:30:00Z"))?,
        None => Timestamp::now(),
    };
    let answer = admin.who(&gateway, port, at)?;
    let jobs: Vec<Value> = answer.traces.iter().map(|trace| had(trace, &gateway, port, at)).collect();
    let since = answer.known_since.map(shown);
    Ok(Response::json(200, &json!({"gateway": gateway, "port": port, "at": shown(at), "jobs": jobs, "known-since": since})))
}

fn had(trace: &Trace, gateway: &str, port: u16, at: Timestamp) -> Value {
    json!({
        "job-id": trace.job.to_string(), "user": trace.user, "run": trace.run, "gateway": trace.gateway,
        "external-ip": trace.external_ip, "target": trace.target, "internal-port": trace.led_to(gateway, port, at),
        "from": trace.from.map(shown), "given-up": trace.given_up.map(shown), "until": trace.until.map(shown),
    })
}

fn shown(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// The names and values of a query.
struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    fn read(text: &'a str) -> Result<Self> {
        let pairs: Vec<_> =
            text.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
        for (at, (name, _)) in pairs.iter().enumerate() {
            if !["gateway", "port", "at"].contains(name) || pairs[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(Error::bad_input("the query: it has gateway, port and at, each once, and nothing else"));
            }
        }
        Ok(Self(pairs))
    }

    /// The value, with its percent escapes undone.
    fn get(&self, name: &str) -> Result<Option<String>> {
        let Some((_, value)) = self.0.iter().find(|(known, _)| *known == name) else { return Ok(None) };
        let mut bytes = Vec::new();
        let mut parts = value.split('%');
        bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
        for part in parts {
            // The guard lets only whole escapes pass.
            let digits = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
            bytes.push(digits.ok_or_else(|| Error::bad_input(format!("{name}: an escape is broken")))?);
            bytes.extend_from_slice(part.get(2..).unwrap_or_default().as_bytes());
        }
        String::from_utf8(bytes).map(Some).map_err(|_| Error::bad_input(format!("{name}: it is not text")))
    }
}

fn value(what: &impl Serialize) -> Result<Value> {
    serde_json::to_value(what).map_err(|e| Error::internal(format!("the answer cannot be written: {e}")))
}

fn not_allowed(allowed: &str) -> Response {
    Response::problem(405, &format!("the method is not one of {allowed}")).with_header("Allow", allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_with_its_escapes_and_nothing_in_it_is_ignored() {
        let get = |text: &str, name: &str| Query::read(text).and_then(|query| query.get(name));
        assert_eq!(get("gateway=10.0.0.1&port=5", "gateway").unwrap().as_deref(), Some("10.0.0.1"));
        assert_eq!(get("at=2026-11-22T09:00:00%2B01:00", "at").unwrap().as_deref(), Some("2026-11-22T09:00:00+01:00"));
        assert_eq!(get("", "at").unwrap(), None);
        assert_eq!(get("at", "at").unwrap().as_deref(), Some(""));
        for bad in ["at=1&at=2", "time=1", "at=%ff", "at=%4", "at=%"] {
            assert!(get(bad, "at").is_err(), "{bad}");
        }
    }
}
