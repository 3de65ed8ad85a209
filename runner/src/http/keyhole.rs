//! The API for running jobs: plain HTTP inside the cluster; the signatures carry the trust. See the crate `keyhole_protocol`.

use super::message::{Request, Response};
use super::{problem, vitals};
use crate::error::{Error, ErrorKind, Result};
use crate::keyhole::Keyhole;
use crate::seldom::Seldom;
use crate::vitals::Vitals;
use keyhole_protocol::{CONFIRM_PATH, PORTS_PATH, SIGNATURE_HEADER};
use std::net::IpAddr;
use std::sync::LazyLock;

/// Everybody inside the cluster can cause these lines.
static LINES: LazyLock<Seldom<(u16, IpAddr)>> = LazyLock::new(|| Seldom::bursts_of(8));

/// What requests are counted by.
pub fn count_by(_: &str, path: &str) -> &'static str {
    [PORTS_PATH, CONFIRM_PATH].into_iter().find(|known| *known == path).or_else(|| vitals::route(path)).unwrap_or("other")
}

/// Answers one request.
pub fn handle(keyhole: &Keyhole, vitals: &Vitals, request: &Request) -> Response {
    if let Some(page) = vitals::answer(vitals, request) {
        return page;
    }
    route(keyhole, request).unwrap_or_else(|error| {
        let response = problem(&error);
        // What is refused has its line already.
        if error.kind != ErrorKind::Refused
            && let Some(left_out) = LINES.due((response.status, request.peer))
        {
            log::warn!("keyhole: {} from {}: {error}{left_out}", request.method, request.peer);
        }
        response
    })
}

fn route(keyhole: &Keyhole, request: &Request) -> Result<Response> {
    let signature = request.header(SIGNATURE_HEADER).unwrap_or_default();
    match (request.method.as_str(), request.path.as_str()) {
        ("POST", PORTS_PATH) => {
            let answer = keyhole.grant(&request.body, signature, request.peer)?;
            Ok(Response::text(200, answer.body).with_header(SIGNATURE_HEADER, answer.signature))
        }
        ("POST", CONFIRM_PATH) => keyhole.confirm(&request.body, signature, request.peer).map(|()| Response::text(200, "")),
        (_, PORTS_PATH | CONFIRM_PATH) => Ok(Response::problem(405, "the method is not POST").with_header("Allow", "POST")),
        _ => Err(Error::not_found("no such page; this is the keyhole service for running jobs")),
    }
}
