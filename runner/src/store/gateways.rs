//! What is known about gateways beside their forwardings: how busy, silent or drained they are.

use super::claims::read_one;
use super::{Change, Store, Versioned, keys, put};
use crate::domain::grant::{Drain, GRANT_VERSION, GatewayLoad, Silence};
use crate::error::{Error, Result};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A gateway as the store knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// How many external ports are taken on it.
    pub ports: u32,
    /// Since when, and why, it does not answer.
    pub silence: Option<Silence>,
    /// Since when an admin keeps it free of new forwardings.
    pub drained: Option<Timestamp>,
}

impl Store {
    /// The condition of each of these gateways, in their order.
    pub fn conditions(&self, cluster: &str, gateways: &[&str]) -> Result<Vec<Condition>> {
        let of_one =
            |gateway: &&str| [keys::load(cluster, gateway), keys::silent(cluster, gateway), keys::drain(cluster, gateway)];
        let keys: Vec<[String; 3]> = gateways.iter().map(of_one).collect();
        let found = self.recent_all(&keys.concat())?;
        let condition = |(keys, found): (&[String; 3], &[Option<Versioned>])| {
            let [load, silence, drain] = found else { return Err(Error::internal("the database answered with too few values")) };
            Ok(Condition {
                ports: read_one::<GatewayLoad>(&keys[0], load.as_ref())?.0.map_or(0, |load| load.ports),
                silence: read_one(&keys[1], silence.as_ref())?.0,
                drained: read_one::<Drain>(&keys[2], drain.as_ref())?.0.map(|drain| drain.since),
            })
        };
        keys.iter().zip(found.chunks(3)).map(condition).collect()
    }

    /// The watcher had no answer from a gateway, or had one again (`None`). The first silence's time stays; nothing is written when nothing
    /// changes.
    pub fn set_silence(&self, cluster: &str, gateway: &str, reason: Option<&str>) -> Result<()> {
        let silence = reason.map(|reason| Silence {
            version: GRANT_VERSION,
            cluster: cluster.into(),
            gateway: gateway.into(),
            since: Timestamp::now(),
            reason: reason.into(),
        });
        self.set("silence", &keys::silent(cluster, gateway), silence.as_ref())
    }

    /// Keeps a gateway free of new forwardings, or no longer.
    pub fn set_drain(&self, cluster: &str, gateway: &str, drained: bool) -> Result<()> {
        let (cluster_name, since) = (cluster.to_owned(), Timestamp::now());
        let drain = drained.then(|| Drain { version: GRANT_VERSION, cluster: cluster_name, gateway: gateway.into(), since });
        self.set("drain", &keys::drain(cluster, gateway), drain.as_ref())
    }

    /// The gateways that records of a cluster speak of, configured or not.
    pub fn known_gateways(&self, cluster: &str) -> Result<Vec<String>> {
        let prefix = keys::gateways(cluster);
        let found = self.backend.scan(&prefix)?;
        let mut names: Vec<String> =
            found.iter().filter_map(|(key, _)| Some(key.strip_prefix(&prefix)?.split('/').next()?.to_owned())).collect();
        names.dedup();
        Ok(names)
    }

    /// Writes a record that is absent, or deletes one that is there.
    fn set<T: Serialize + DeserializeOwned>(&self, effect: &'static str, key: &str, value: Option<&T>) -> Result<()> {
        self.repeat(|| {
            let (before, version) = self.read::<T>(key)?;
            let mut change = Change { expect: vec![(key.to_owned(), version)], ..Change::default() };
            match (before, value) {
                (Some(_), Some(_)) | (None, None) => return Ok(Some(())),
                (None, Some(value)) => put(&mut change, key, value)?,
                (Some(_), None) => change.delete.push(key.to_owned()),
            }
            Ok(self.commit(effect, &change)?.then_some(()))
        })
    }
}
