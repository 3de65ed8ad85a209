//! One line of the log, and one count, for each request that was answered, by whomever.
//!
//! Everybody who reaches the port can cause such lines. Those of users who showed a password are all written; of all others together,
//! [`STRANGERS_LINES`] for each of their networks in ten seconds, and how many were left out.

use std::net::IpAddr;
use std::time::Instant;

use super::Guard;
use super::seats::network;
use crate::logging::{ACCESS, id};
use crate::metrics::metrics;

/// A job asks twice in its life; a node that starts a few at once has all of theirs written.
pub(super) const STRANGERS_LINES: u32 = 16;
/// Of a longer target, the beginning.
const LONGEST_TARGET: usize = 200;

/// What will be written down about a request.
pub(super) struct Line {
    id: id::Id,
    peer: IpAddr,
    begun: Instant,
    /// Since when it was whole.
    complete: Option<Instant>,
    /// Empty as long as there is no valid head.
    method: String,
    target: String,
    user: Option<&'static str>,
}

impl Line {
    /// A request begins; this thread works on it from now on.
    pub(super) fn begin(peer: IpAddr) -> Self {
        let id = id::fresh();
        id::set(id.clone());
        let (method, target) = (String::new(), String::new());
        Self { id, peer: peer.to_canonical(), begun: Instant::now(), complete: None, method, target, user: None }
    }

    /// The next one on the same connection begins.
    pub(super) fn begin_next(&mut self) {
        self.id = id::fresh();
        id::set(self.id.clone());
        (self.begun, self.complete, self.user) = (Instant::now(), None, None);
        self.method.clear();
        self.target.clear();
    }

    /// Another thread works on it from now on: the one that calls this.
    pub(super) fn goes_on_here(&self) {
        id::set(self.id.clone());
    }

    /// Its head is valid.
    pub(super) fn asks(&mut self, method: &str, target: &str) {
        self.method.push_str(method);
        // It is ASCII.
        self.target.push_str(target.get(..LONGEST_TARGET).unwrap_or(target));
    }

    /// It may go on, in the name of this user, who may choose its id. Nobody else may: ids of strangers would mix with those of others.
    pub(super) fn is_of(&mut self, user: Option<&'static str>, chosen: Option<&str>) {
        self.user = user;
        if let Some(id) = user.and(chosen).and_then(id::chosen) {
            id::set(id.clone());
            self.id = id;
        }
    }

    /// Its body is there, too.
    pub(super) fn is_complete(&mut self) {
        self.complete = Some(Instant::now());
    }

    /// It was answered.
    pub(super) fn end(&self, guard: &Guard, status: u16, bytes: usize) {
        let (method, target) = (known(&self.method), known(&self.target));
        let path = target.split('?').next().unwrap_or_default();
        let route = (guard.routes)(method, path);
        metrics().request((&guard.name, method, route), status, self.complete.map(|at| at.elapsed()));
        let left_out = match self.user {
            Some(_) => String::new(),
            None => match guard.strangers.due(network(self.peer)) {
                Some(left_out) => left_out.to_string(),
                None => return,
            },
        };
        let (listener, peer) = (guard.name.as_str(), self.peer);
        let (user, ms) = (self.user.unwrap_or("-"), self.begun.elapsed().as_millis() as u64);
        log::info!(
            target: ACCESS, listener, method, path = target, route, status, ms, bytes, client:% = peer, user;
            "{listener}: {method} {target} {status}, {ms} ms, {bytes} bytes, {peer} {user}{left_out}"
        );
    }
}

/// What stands for what nobody said.
fn known(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}
