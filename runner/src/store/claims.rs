//! Grants and the ledgers of ports: every verb is one transaction over a grant and all the ledgers that it touches, so that a port is
//! taken by one job or by none.

use super::{Change, Store, decode, keys, put};
use crate::domain::grant::{GRANT_VERSION, GatewayBlock, GatewayLoad, Grant, GrantState, NodeBucket, buckets};
use crate::domain::ports::PortSet;
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};

/// The ledgers that one grant touches, with the versions that they were read at.
pub struct Ledger {
    load: (GatewayLoad, u64),
    blocks: Vec<(GatewayBlock, u64)>,
    buckets: Vec<(NodeBucket, u64)>,
}

/// What is taken, as far as one [`Ledger`] shows.
#[derive(Default)]
pub struct Taken {
    /// External ports of the gateway, in the blocks that were read.
    pub external: PortSet,
    /// Internal ports on any of the nodes.
    pub internal: PortSet,
}

impl Ledger {
    /// What is taken on the gateway and on any of `nodes`.
    pub fn taken(&self, nodes: &[String]) -> Taken {
        let mut taken = Taken::default();
        self.blocks.iter().for_each(|(block, _)| taken.external.extend(block.taken()));
        self.buckets.iter().for_each(|(bucket, _)| bucket.taken(nodes, &mut taken.internal));
        taken
    }

    fn add(&mut self, grant: &Grant) {
        self.load.0.ports += grant.ports();
        self.blocks.iter_mut().for_each(|(block, _)| block.add(grant));
        self.buckets.iter_mut().for_each(|(bucket, _)| bucket.add(grant));
    }

    fn close(&mut self, job: u64) {
        self.blocks.iter_mut().for_each(|(block, _)| block.close(job));
    }

    fn remove(&mut self, grant: &Grant) {
        self.load.0.ports = self.load.0.ports.saturating_sub(grant.ports());
        self.blocks.iter_mut().for_each(|(block, _)| block.remove(grant.job));
        self.buckets.iter_mut().for_each(|(bucket, _)| bucket.remove(grant.job));
    }

    /// A change that writes all of it back, if nobody else has changed any of it. Empty ledgers are deleted.
    fn change(&self, cluster: &str) -> Result<Change> {
        let mut change = Change::default();
        let gateway = &self.load.0.gateway;
        write(&mut change, keys::load(cluster, gateway), self.load.1, &self.load.0, self.load.0.ports == 0)?;
        for (block, version) in &self.blocks {
            write(&mut change, keys::block(cluster, gateway, block.block), *version, block, block.forwardings.is_empty())?;
        }
        for (bucket, version) in &self.buckets {
            write(&mut change, keys::bucket(cluster, bucket.bucket), *version, bucket, bucket.nodes.is_empty())?;
        }
        Ok(change)
    }
}

fn write<T: serde::Serialize>(change: &mut Change, key: String, version: u64, value: &T, empty: bool) -> Result<()> {
    if empty {
        change.delete.push(key.clone());
    } else {
        put(change, &key, value)?;
    }
    change.expect.push((key, version));
    Ok(())
}

impl Store {
    /// How many ports each gateway forwards, in the order of `gateways`.
    pub fn loads(&self, cluster: &str, gateways: &[&str]) -> Result<Vec<u32>> {
        let keys: Vec<String> = gateways.iter().map(|gateway| keys::load(cluster, gateway)).collect();
        let loads = self.read_all::<GatewayLoad>(&keys)?;
        Ok(loads.into_iter().map(|(load, _)| load.map_or(0, |load| load.ports)).collect())
    }

    /// The ledgers of these blocks of a gateway, and of these nodes.
    pub fn ledger(&self, cluster: &str, gateway: &str, blocks: &BTreeSet<u16>, nodes: &[String]) -> Result<Ledger> {
        let buckets = buckets(nodes);
        let mut wanted = vec![keys::load(cluster, gateway)];
        wanted.extend(blocks.iter().map(|&block| keys::block(cluster, gateway, block)));
        wanted.extend(buckets.iter().map(|&bucket| keys::bucket(cluster, bucket)));
        let mut found = self.backend.get(&wanted)?.into_iter().zip(&wanted).map(|(value, key)| (key, value));
        let mut next = || found.next().ok_or_else(|| Error::internal("the database answered with too few values"));
        let load = or_else(next()?, || GatewayLoad {
            version: GRANT_VERSION,
            cluster: cluster.into(),
            gateway: gateway.into(),
            ports: 0,
        })?;
        let blocks =
            blocks.iter().map(|&block| or_else(next()?, || GatewayBlock::new(cluster, gateway, block))).collect::<Result<_>>()?;
        let buckets =
            buckets.iter().map(|&bucket| or_else(next()?, || NodeBucket::new(cluster, bucket))).collect::<Result<_>>()?;
        Ok(Ledger { load, blocks, buckets })
    }

    /// Takes all ports of `grant` or none: `false` when one of them is taken meanwhile, or the job has a grant already.
    pub fn claim(&self, grant: &Grant) -> Result<bool> {
        let _turn = self.turn()?;
        let key = keys::grant(&grant.cluster, grant.job);
        self.repeat(|| {
            let mut ledger = self.ledger(&grant.cluster, &grant.gateway, &grant.blocks(), &grant.nodes)?;
            let taken = ledger.taken(&grant.nodes);
            let mut pairs = grant.spans.iter().flat_map(|span| span.pairs());
            if pairs.any(|(internal, external)| taken.internal.contains(internal) || taken.external.contains(external)) {
                return Ok(Some(false));
            }
            ledger.add(grant);
            let mut change = ledger.change(&grant.cluster)?;
            change.expect.push((key.clone(), 0));
            put(&mut change, &key, grant)?;
            if self.backend.commit(&change)? {
                return Ok(Some(true));
            }
            Ok(self.grant(&grant.cluster, grant.job)?.map(|_| false))
        })
    }

    /// The grant of a job.
    pub fn grant(&self, cluster: &str, job: u64) -> Result<Option<Grant>> {
        Ok(self.read(&keys::grant(cluster, job))?.0)
    }

    /// All grants of a cluster.
    pub fn grants(&self, cluster: &str) -> Result<Vec<Grant>> {
        self.scan(&keys::grants(cluster))
    }

    /// Changes a grant without touching its ports. Returns it as it is now, if it is still there.
    pub fn update_grant(&self, cluster: &str, job: u64, change: impl Fn(&mut Grant)) -> Result<Option<Grant>> {
        let key = keys::grant(cluster, job);
        self.repeat(|| {
            let (Some(before), version) = self.read::<Grant>(&key)? else { return Ok(Some(None)) };
            let mut grant = before.clone();
            change(&mut grant);
            let mut write = Change { expect: vec![(key.clone(), version)], ..Change::default() };
            put(&mut write, &key, &grant)?;
            if grant == before || self.backend.commit(&write)? { Ok(Some(Some(grant))) } else { Ok(None) }
        })
    }

    /// First half of the end of a grant: from now on its rules are to go; its ports stay taken. Fine if that is so already, or the grant is
    /// another run's by now.
    pub fn close_grant(&self, grant: &Grant) -> Result<()> {
        self.end_grant(
            grant,
            |current| current.state != GrantState::Closing,
            |ledger, change, key, current| {
                ledger.close(current.job);
                *change = ledger.change(&current.cluster)?;
                put(change, key, &Grant { state: GrantState::Closing, ..current.clone() })
            },
        )
    }

    /// Second half: the rules are gone, the ports are free. Fine if that is so already.
    pub fn release_grant(&self, grant: &Grant) -> Result<()> {
        self.end_grant(
            grant,
            |_| true,
            |ledger, change, key, current| {
                ledger.remove(current);
                *change = ledger.change(&current.cluster)?;
                change.delete.push(key.to_owned());
                Ok(())
            },
        )
    }

    /// Does `step` to the grant as it is now, if it is still the one that the caller means, and `due` says that there is anything to do.
    fn end_grant(
        &self,
        grant: &Grant,
        due: impl Fn(&Grant) -> bool,
        step: impl Fn(&mut Ledger, &mut Change, &str, &Grant) -> Result<()>,
    ) -> Result<()> {
        let _turn = self.turn()?;
        let key = keys::grant(&grant.cluster, grant.job);
        self.repeat(|| {
            let (current, version) = self.read::<Grant>(&key)?;
            let Some(current) = current.filter(|current| same_claim(current, grant) && due(current)) else { return Ok(Some(())) };
            let mut ledger = self.ledger(&current.cluster, &current.gateway, &current.blocks(), &current.nodes)?;
            let mut change = Change::default();
            step(&mut ledger, &mut change, &key, &current)?;
            change.expect.push((key.clone(), version));
            Ok(self.backend.commit(&change)?.then_some(()))
        })
    }

    /// All blocks of a gateway that hold anything.
    pub fn gateway_blocks(&self, cluster: &str, gateway: &str) -> Result<BTreeMap<u16, GatewayBlock>> {
        let blocks: Vec<GatewayBlock> = self.scan(&keys::blocks(cluster, gateway))?;
        Ok(blocks.into_iter().map(|block| (block.block, block)).collect())
    }

    /// Some blocks of a gateway with their versions; empty ones too.
    pub fn blocks(&self, cluster: &str, gateway: &str, blocks: &BTreeSet<u16>) -> Result<Vec<(GatewayBlock, u64)>> {
        let keys: Vec<String> = blocks.iter().map(|&block| keys::block(cluster, gateway, block)).collect();
        let found = self.read_all::<GatewayBlock>(&keys)?;
        let or_empty = |((found, version), &block): ((Option<_>, u64), &u16)| {
            (found.unwrap_or_else(|| GatewayBlock::new(cluster, gateway, block)), version)
        };
        Ok(found.into_iter().zip(blocks).map(or_empty).collect())
    }

    fn read_all<T: DeserializeOwned>(&self, wanted: &[String]) -> Result<Vec<(Option<T>, u64)>> {
        let mut all = Vec::with_capacity(wanted.len());
        for chunk in wanted.chunks(100) {
            for (found, key) in self.backend.get(chunk)?.into_iter().zip(chunk) {
                all.push(match found {
                    Some(found) => (Some(decode(key, &found.value)?), found.version),
                    None => (None, 0),
                });
            }
        }
        Ok(all)
    }
}

/// The same request may have been given other ports elsewhere meanwhile.
fn same_claim(one: &Grant, other: &Grant) -> bool {
    (one.run, &one.nonce, &one.gateway, &one.spans) == (other.run, &other.nonce, &other.gateway, &other.spans)
}

fn or_else<T: DeserializeOwned>(
    (key, found): (&String, Option<super::Versioned>),
    empty: impl FnOnce() -> T,
) -> Result<(T, u64)> {
    match found {
        Some(found) => Ok((decode(key, &found.value)?, found.version)),
        None => Ok((empty(), 0)),
    }
}
