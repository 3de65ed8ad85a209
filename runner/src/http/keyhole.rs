//! The API for running jobs: plain HTTP inside the cluster; the signatures carry the trust. See the crate `keyhole_protocol`.

use super::message::{Request, Response};
use super::problem;
use crate::error::{Error, Result};
use crate::keyhole::Keyhole;
use keyhole_protocol::{CONFIRM_PATH, PORTS_PATH, SIGNATURE_HEADER};

/// Answers one request.
pub fn handle(keyhole: &Keyhole, request: &Request) -> Response {
    route(keyhole, request).unwrap_or_else(|error| {
        log::warn!("keyhole: {} from {}: {error}", request.method, request.peer);
        problem(&error)
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
