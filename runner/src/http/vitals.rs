//! The pages that say how the program is: `/health` and `/ready`, for everybody, and `/metrics`, for those who showed a password.

use super::credentials::{Credentials, METRICS_USER};
use super::guard::{Asked, Denial, Handler, Limits, Screen, Service};
use super::message::{Request, Response};
use crate::metrics::{self, metrics};
use crate::vitals::Vitals;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// The page that needs a password.
const METRICS: &str = "/metrics";

/// The answer, if it is one of these pages. Nothing in it names an address, a user or a job.
pub fn answer(vitals: &Vitals, request: &Request) -> Option<Response> {
    let page = match request.path.as_str() {
        "/health" | "/ready" if request.method != "GET" => not_allowed(),
        "/health" if vitals.is_well() => Response::json(200, &json!({"healthy": true})),
        "/health" => Response::json(503, &json!({"healthy": false})),
        "/ready" => {
            let reasons = vitals.reasons();
            let status = if reasons.is_empty() { 200 } else { 503 };
            Response::json(status, &json!({"ready": reasons.is_empty(), "reasons": reasons}))
        }
        _ => return None,
    };
    Some(page)
}

/// The same where `/metrics` stands behind a [`screen`].
pub fn answer_with_metrics(vitals: &Vitals, request: &Request) -> Option<Response> {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", METRICS) => Some(Response::of_kind(metrics::TEXT, metrics().text())),
        (_, METRICS) => Some(not_allowed()),
        _ => answer(vitals, request),
    }
}

/// What these pages are counted by.
pub fn route(path: &str) -> Option<&'static str> {
    ["/health", "/ready", METRICS].into_iter().find(|known| *known == path)
}

/// A few programs ask, every few seconds.
pub fn limits() -> Limits {
    Limits { connections: 32, per_address: 16, workers: 4, body_bytes: 0, handle: Duration::from_secs(20), ..Limits::default() }
}

/// These pages alone, for programs without the API.
pub fn service(vitals: Arc<Vitals>, credentials: Arc<Credentials>) -> Service {
    let none = "no such page; there are /health, /ready and /metrics";
    let handler: Handler =
        Arc::new(move |request| answer_with_metrics(&vitals, request).unwrap_or_else(|| Response::problem(404, none)));
    Service { handler, screen: Some(screen(credentials)), routes: |_, path| route(path).unwrap_or("other") }
}

/// Lets everybody see `/health` and `/ready`, the user of the metrics those, and the user of the API everything.
pub fn screen(credentials: Arc<Credentials>) -> Screen {
    Arc::new(move |asked| judge(&credentials, asked))
}

fn judge(credentials: &Credentials, asked: &Asked<'_>) -> Result<Option<&'static str>, Denial> {
    if matches!(asked.path, "/health" | "/ready") {
        return Ok(None);
    }
    let user = credentials.check(asked.headers, asked.peer)?;
    if user == METRICS_USER && asked.path != METRICS {
        let response = Response::problem(403, "this user may read /metrics and nothing else");
        return Err(Denial { response, after: Duration::ZERO });
    }
    Ok(Some(user))
}

fn not_allowed() -> Response {
    Response::problem(405, "the method is not GET").with_header("Allow", "GET")
}
