//! The trail: which job's external ports led where, from when to when. It answers who had a port at a time, long after the job is forgotten.

use super::grant::{Closing, Grant};
use super::ports::Span;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of the records in this module that this program writes.
pub const TRAIL_VERSION: u32 = 2;

/// What one job had on one gateway. Written in the transaction that takes the ports, ended in the one that frees them: in between the gateway may
/// have forwarded them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trace {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The gateway's internal address.
    pub gateway: String,
    /// The address that users connected to; nothing where only the end was written down.
    pub external_ip: Option<String>,
    /// The job.
    pub job: u64,
    /// The run of the job; nothing where only the end was written down.
    pub run: Option<u32>,
    /// The job's owner by login name; nothing if the job was gone already.
    pub user: Option<String>,
    /// The host that was forwarded to; nothing where only the end was written down.
    pub target: Option<String>,
    /// The ports.
    pub spans: Vec<Span>,
    /// When the ports were taken; nothing if that was before there was a trail.
    pub from: Option<Timestamp>,
    /// When the job gave them up; the rules may have been there for a while yet.
    pub given_up: Option<Timestamp>,
    /// When the rules were gone for certain; nothing while they may be there.
    pub until: Option<Timestamp>,
}

impl Trace {
    /// The ports of a grant, from this time on.
    pub fn begin(grant: &Grant, user: Option<String>, from: Timestamp) -> Self {
        Self {
            version: TRAIL_VERSION,
            cluster: grant.cluster.clone(),
            gateway: grant.gateway.clone(),
            external_ip: Some(grant.external_ip.clone()),
            job: grant.job,
            run: Some(grant.run),
            user,
            target: Some(grant.target.clone()),
            spans: grant.spans.clone(),
            from: Some(from),
            given_up: None,
            until: None,
        }
    }

    /// What is left to be said where the beginning was never written down.
    pub fn without_beginning(closing: &Closing) -> Self {
        Self {
            version: TRAIL_VERSION,
            cluster: closing.cluster.clone(),
            gateway: closing.gateway.clone(),
            external_ip: None,
            job: closing.job,
            run: None,
            user: None,
            target: None,
            spans: closing.spans.clone(),
            from: None,
            given_up: None,
            until: None,
        }
    }

    /// The ports are free. A clock that was set back makes no time end before it began.
    #[must_use]
    pub fn end(mut self, given_up: Option<Timestamp>, now: Timestamp) -> Self {
        self.given_up = given_up;
        self.until = Some(self.from.map_or(now, |from| now.max(from)));
        self
    }

    /// The first external port, which names it on its gateway.
    pub fn first_port(&self) -> u16 {
        self.spans.first().map_or(0, |span| span.external)
    }

    /// The internal port that this external one of this gateway (by either address) led to at this time, if it is the trace's.
    pub fn led_to(&self, gateway: &str, port: u16, at: Timestamp) -> Option<u16> {
        let here = self.gateway == gateway || self.external_ip.as_deref() == Some(gateway);
        let then = self.from.is_none_or(|from| from <= at) && self.until.is_none_or(|until| at <= until);
        let mut pairs = self.spans.iter().flat_map(|span| span.pairs());
        (here && then).then(|| pairs.find(|(_, external)| *external == port).map(|(internal, _)| internal))?
    }
}

/// Since when the trail is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TrailBegin {
    /// The version of this record's form.
    pub version: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// What ended before this time is not known (any more).
    pub since: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_port_leads_to_its_job_within_its_time_and_by_either_address_of_the_gateway() {
        let open = Trace {
            version: TRAIL_VERSION,
            cluster: "default".into(),
            gateway: "10.0.0.1".into(),
            external_ip: Some("203.0.113.1".into()),
            job: 17,
            run: Some(0),
            user: Some("alice".into()),
            target: Some("c0".into()),
            spans: vec![Span { external: 50010, internal: 40010, count: 3 }],
            from: Some(at(100)),
            given_up: None,
            until: None,
        };
        let ended = open.clone().end(Some(at(150)), at(200));
        let cases = [
            (&open, "10.0.0.1", 50011, 100, Some(40011)),
            (&open, "203.0.113.1", 50012, 9999, Some(40012)),
            (&open, "10.0.0.1", 50011, 99, None),
            (&open, "10.0.0.1", 50013, 100, None),
            (&open, "10.0.0.1", 40011, 100, None),
            (&open, "10.0.0.2", 50011, 100, None),
            (&ended, "10.0.0.1", 50010, 200, Some(40010)),
            (&ended, "10.0.0.1", 50010, 201, None),
        ];
        for (trace, gateway, port, second, expected) in cases {
            assert_eq!(trace.led_to(gateway, port, at(second)), expected, "{gateway}:{port} at {second}");
        }
        assert_eq!(open.end(None, at(50)).until, Some(at(100)), "the clock was set back");
    }
}
