//! The API for admins: gateways and audits.

use super::message::{Request, Response};
use crate::admin::Admin;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// Answers what lies below `/cluster/gateways` and `/cluster/audit`; `path` begins behind `cluster`.
pub fn handle(admin: &Admin, request: &Request, path: &[&str]) -> Result<Response> {
    match (request.method.as_str(), path) {
        ("GET", ["gateways"]) => Ok(Response::json(200, &json!({"gateways": value(&admin.gateways()?)?}))),
        ("DELETE", ["gateways", address]) => Ok(Response::json(200, &json!({"forgotten": admin.forget(address)?}))),
        ("PUT", ["gateways", address, "drain"]) => Ok(Response::json(200, &value(&admin.drain(address, true)?)?)),
        ("DELETE", ["gateways", address, "drain"]) => Ok(Response::json(200, &value(&admin.drain(address, false)?)?)),
        ("GET", ["audit"]) => Ok(Response::json(200, &value(&admin.audit(false)?)?)),
        ("POST", ["audit"]) => Ok(Response::json(200, &value(&admin.audit(true)?)?)),
        (_, ["gateways"]) => Ok(not_allowed("GET")),
        (_, ["gateways", _]) => Ok(not_allowed("DELETE")),
        (_, ["gateways", _, "drain"]) => Ok(not_allowed("PUT, DELETE")),
        (_, ["audit"]) => Ok(not_allowed("GET, POST")),
        _ => Err(Error::not_found(
            "no such page; there are /cluster/gateways, /cluster/gateways/<address>/drain and /cluster/audit",
        )),
    }
}

fn value(what: &impl Serialize) -> Result<Value> {
    serde_json::to_value(what).map_err(|e| Error::internal(format!("the answer cannot be written: {e}")))
}

fn not_allowed(allowed: &str) -> Response {
    Response::problem(405, &format!("the method is not one of {allowed}")).with_header("Allow", allowed)
}
