//! HTTP: the guard that faces the network, and the two route tables behind it.
//!
//! [`jobs`] is what front ends speak to, [`keyhole`] what running jobs speak to; each is one `match`. [`guard`] lets nothing but whole,
//! valid requests through, within limits.

pub mod admin;
pub mod credentials;
pub mod guard;
pub mod jobs;
pub mod keyhole;
pub mod message;
pub mod self_signed;
mod slots;
pub mod tls;
pub mod vitals;

pub use slots::MOST_SUBMISSIONS;

use crate::error::{Error, ErrorKind};
use message::Response;

/// The answer to a request that failed: the one place that turns errors into words for outsiders.
pub fn problem(error: &Error) -> Response {
    let response = Response::problem(status(error.kind), &error.message);
    match error.kind {
        ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Unknown => response.with_header("Retry-After", "5"),
        ErrorKind::Unauthorized => response.with_header("WWW-Authenticate", "Basic realm=\"bwvisu-runner\", charset=\"UTF-8\""),
        _ => response,
    }
}

fn status(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::BadInput => 400,
        ErrorKind::Unauthorized => 401,
        ErrorKind::Refused => 403,
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::Busy => 429,
        ErrorKind::Internal => 500,
        ErrorKind::BadGateway => 502,
        ErrorKind::Unavailable | ErrorKind::Unknown => 503,
    }
}
