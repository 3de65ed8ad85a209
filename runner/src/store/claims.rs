//! Grants and the ledgers of ports: every verb is one transaction over a grant and all the ledgers that it touches, so that a port is
//! taken by one job or by none.

use super::trail::{begin_trace, open_key, owner, owner_keys};
use super::{Change, Store, Turn, Versioned, decode, keys, put};
use crate::domain::grant::{Closing, GRANT_VERSION, GatewayBlock, GatewayLoad, Grant, GrantState, NodeBucket, bucket, buckets};
use crate::domain::ports::PortSet;
use crate::error::{Error, Result};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The most keys of one read, and of one change.
const KEYS_AT_ONCE: usize = 100;
const MOST_KEYS: usize = 118;

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
    fn keys(cluster: &str, gateway: &str, blocks: &BTreeSet<u16>, buckets: &BTreeSet<u16>) -> Vec<String> {
        let mut keys = vec![keys::load(cluster, gateway)];
        keys.extend(blocks.iter().map(|&block| keys::block(cluster, gateway, block)));
        keys.extend(buckets.iter().map(|&bucket| keys::bucket(cluster, bucket)));
        keys
    }

    /// What was found at these keys, in their order.
    fn read(
        cluster: &str,
        gateway: &str,
        blocks: &BTreeSet<u16>,
        buckets: &BTreeSet<u16>,
        found: &mut impl Iterator<Item = Option<Versioned>>,
    ) -> Result<Self> {
        let wanted = Self::keys(cluster, gateway, blocks, buckets);
        let mut wanted = wanted.iter();
        let mut next = || match (wanted.next(), found.next()) {
            (Some(key), Some(value)) => Ok((key, value)),
            _ => Err(too_few()),
        };
        let (name, gateway_name) = (cluster.to_owned(), gateway.to_owned());
        let load = or_else(next()?, || GatewayLoad { version: GRANT_VERSION, cluster: name, gateway: gateway_name, ports: 0 })?;
        let blocks =
            blocks.iter().map(|&block| or_else(next()?, || GatewayBlock::new(cluster, gateway, block))).collect::<Result<_>>()?;
        let buckets =
            buckets.iter().map(|&bucket| or_else(next()?, || NodeBucket::new(cluster, bucket))).collect::<Result<_>>()?;
        Ok(Self { load, blocks, buckets })
    }

    fn has_room_for(&self, grant: &Grant) -> bool {
        let taken = self.taken(&grant.nodes);
        let mut pairs = grant.spans.iter().flat_map(|span| span.pairs());
        !pairs.any(|(internal, external)| taken.internal.contains(internal) || taken.external.contains(external))
    }

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

    fn close(&mut self, closing: &Closing) {
        self.blocks.iter_mut().for_each(|(block, _)| block.close(closing.job, &closing.spans));
    }

    fn remove(&mut self, closing: &Closing) {
        self.load.0.ports = self.load.0.ports.saturating_sub(closing.ports());
        self.blocks.iter_mut().for_each(|(block, _)| block.remove(closing.job, &closing.spans));
        self.buckets.iter_mut().for_each(|(bucket, _)| bucket.remove(closing.job, &closing.nodes, &closing.spans));
    }

    /// Adds to `change` that all of it is written back, if nobody else has changed any of it. Empty ledgers are deleted.
    fn write(&self, cluster: &str, change: &mut Change) -> Result<()> {
        let gateway = &self.load.0.gateway;
        write(change, keys::load(cluster, gateway), self.load.1, &self.load.0, self.load.0.ports == 0)?;
        for (block, version) in &self.blocks {
            write(change, keys::block(cluster, gateway, block.block), *version, block, block.forwardings.is_empty())?;
        }
        for (bucket, version) in &self.buckets {
            write(change, keys::bucket(cluster, bucket.bucket), *version, bucket, bucket.nodes.is_empty())?;
        }
        Ok(())
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
    /// The ledgers of these blocks of a gateway, and of these nodes.
    pub fn ledger(&self, cluster: &str, gateway: &str, blocks: &BTreeSet<u16>, nodes: &[String]) -> Result<Ledger> {
        let buckets = buckets(nodes);
        let wanted = Ledger::keys(cluster, gateway, blocks, &buckets);
        let mut found = self.recent_all(&wanted)?.into_iter();
        Ledger::read(cluster, gateway, blocks, &buckets, &mut found)
    }

    /// Takes all ports of `grant` or none: `false` when one of them is taken meanwhile, or the job has a grant already.
    pub fn claim(&self, grant: &Grant) -> Result<bool> {
        Ok(self.claim_all(std::slice::from_ref(grant))?.contains(&true))
    }

    /// The same for several on one gateway, in as few changes as they fit into; what one of them does not get is none of the others' business.
    pub fn claim_all(&self, grants: &[Grant]) -> Result<Vec<bool>> {
        let mut claimed = Vec::with_capacity(grants.len());
        while let left @ [Grant { cluster, gateway, .. }, ..] = &grants[claimed.len()..] {
            let fitting = &left[..fitting(left, |grant| (grant.blocks(), &grant.nodes))];
            let _turns = self.turns_at(cluster, gateway, fitting.iter().flat_map(|grant| &grant.nodes))?;
            claimed.extend(self.repeat(|| self.try_to_claim(fitting))?);
        }
        Ok(claimed)
    }

    /// Turns at what all claims and releases on a gateway change, and at the buckets of these nodes, which those on other gateways change as well.
    fn turns_at<'a>(&self, cluster: &str, gateway: &str, nodes: impl IntoIterator<Item = &'a String>) -> Result<Vec<Turn<'_>>> {
        let buckets: BTreeSet<u16> = nodes.into_iter().map(|node| bucket(node)).collect();
        self.turns(buckets.into_iter().map(|number| keys::bucket(cluster, number)).chain([gateway.to_owned()]))
    }

    /// One attempt at one change; nothing if somebody else was faster with any of it.
    fn try_to_claim(&self, grants: &[Grant]) -> Result<Option<Vec<bool>>> {
        let Some(Grant { cluster, gateway, .. }) = grants.first() else { return Ok(Some(Vec::new())) };
        let blocks = grants.iter().flat_map(Grant::blocks).collect();
        let buckets = grants.iter().flat_map(|grant| buckets(&grant.nodes)).collect();
        let mut wanted = Ledger::keys(cluster, gateway, &blocks, &buckets);
        wanted.push(keys::drain(cluster, gateway));
        wanted.extend(grants.iter().flat_map(|grant| [keys::grant(cluster, grant.job), open_key(grant)]));
        wanted.extend(grants.iter().flat_map(|grant| owner_keys(cluster, grant.job)));
        let mut found = self.recent_all(&wanted)?.into_iter();
        let mut ledger = Ledger::read(cluster, gateway, &blocks, &buckets, &mut found)?;
        let mut next = || found.next().ok_or_else(too_few);
        let mut change = Change::default();
        expect_open(cluster, gateway, next()?.as_ref(), &mut change)?;
        let before = grants.iter().map(|_| Ok((next()?, next()?))).collect::<Result<Vec<_>>>()?;
        let owners = grants.iter().map(|grant| owner(cluster, grant.job, [next()?, next()?])).collect::<Result<Vec<_>>>()?;
        let mut claimed = Vec::with_capacity(grants.len());
        for ((grant, (earlier, trace)), owner) in grants.iter().zip(before).zip(owners) {
            let free = earlier.is_none() && ledger.has_room_for(grant);
            if free {
                ledger.add(grant);
                let key = keys::grant(cluster, grant.job);
                put(&mut change, &key, grant)?;
                change.expect.push((key, 0));
                begin_trace(grant, owner, trace, &mut change)?;
            }
            claimed.push(free);
        }
        ledger.write(cluster, &mut change)?;
        let done = !claimed.contains(&true) || self.commit("claim", &change)?;
        Ok(done.then_some(claimed))
    }

    /// The grant of a job.
    pub fn grant(&self, cluster: &str, job: u64) -> Result<Option<Grant>> {
        Ok(self.read(&keys::grant(cluster, job))?.0)
    }

    /// All grants of a cluster.
    pub fn grants(&self, cluster: &str) -> Result<Vec<Grant>> {
        self.scan(&keys::grants(cluster))
    }

    /// The same for whoever asks again and again.
    pub fn kept_grants(&self, cluster: &str) -> Result<Vec<Arc<Grant>>> {
        let prefix = keys::grants(cluster);
        self.grants.read(&prefix, &self.backend.scan(&prefix)?)
    }

    /// Changes a grant without touching its ports. Returns it as it is now, if it is still there.
    pub fn update_grant(
        &self,
        cluster: &str,
        job: u64,
        effect: &'static str,
        change: impl Fn(&mut Grant),
    ) -> Result<Option<Grant>> {
        let key = keys::grant(cluster, job);
        self.repeat(|| {
            let (Some(before), version) = self.read::<Grant>(&key)? else { return Ok(Some(None)) };
            let mut grant = before.clone();
            change(&mut grant);
            let mut write = Change { expect: vec![(key.clone(), version)], ..Change::default() };
            if grant != before {
                grant.version = GRANT_VERSION;
            }
            put(&mut write, &key, &grant)?;
            if grant == before || self.commit(effect, &write)? { Ok(Some(Some(grant))) } else { Ok(None) }
        })
    }

    /// Ends a claim that could not be installed, as [`close_grant`](Self::close_grant) does, unless another try has gone on with it.
    pub fn close_claim(&self, claim: &Grant) -> Result<Option<Closing>> {
        let open = |now: &Grant| now.state == GrantState::Claimed && !now.confirmed && now.attempt == claim.attempt;
        self.close_if(claim, open)
    }

    /// Ends a grant: its rules are to go, and its ports stay taken until they are gone, which the closing that is returned stands for. Nothing
    /// if the grant has ended already, or is another one by now.
    pub fn close_grant(&self, grant: &Grant) -> Result<Option<Closing>> {
        self.close_if(grant, |_| true)
    }

    fn close_if(&self, grant: &Grant, may_close: impl Fn(&Grant) -> bool) -> Result<Option<Closing>> {
        let _turn = self.turn(&grant.gateway)?;
        let key = keys::grant(&grant.cluster, grant.job);
        self.repeat(|| {
            let (current, version) = self.read::<Grant>(&key)?;
            let Some(current) = current.filter(|current| same_claim(current, grant) && may_close(current)) else {
                return Ok(Some(None));
            };
            let mut change = Change { expect: vec![(key.clone(), version)], delete: vec![key.clone()], ..Change::default() };
            let closing = current.closing(Timestamp::now());
            self.put_closing(&closing, &mut change)?;
            self.adopt_trace(&current, &mut change)?;
            Ok(self.commit("close", &change)?.then_some(Some(closing)))
        })
    }

    /// Adds to `change` that these forwardings are to go.
    fn put_closing(&self, closing: &Closing, change: &mut Change) -> Result<()> {
        // The nodes' ports stay as they are.
        let mut ledger = self.ledger(&closing.cluster, &closing.gateway, &closing.blocks(), &[])?;
        ledger.close(closing);
        ledger.write(&closing.cluster, change)?;
        put(change, &keys::closing(&closing.cluster, &closing.gateway, closing.first_port()), closing)
    }

    /// The rules are gone from the gateway: the ports are free. Fine if that is so already.
    pub fn release(&self, closing: &Closing) -> Result<()> {
        self.release_all(std::slice::from_ref(closing))
    }

    /// The same for several on one gateway, in as few changes as they fit into.
    pub fn release_all(&self, closings: &[Closing]) -> Result<()> {
        let mut left = closings;
        while let Some(Closing { cluster, gateway, .. }) = left.first() {
            let (fitting, rest) = left.split_at(fitting(left, |closing| (closing.blocks(), &closing.nodes)));
            // Those who claim get theirs in between.
            let _turns = self.turns_at(cluster, gateway, fitting.iter().flat_map(|closing| &closing.nodes))?;
            self.repeat(|| self.try_to_release(fitting))?;
            left = rest;
        }
        Ok(())
    }

    fn try_to_release(&self, closings: &[Closing]) -> Result<Option<()>> {
        let key = |closing: &Closing| keys::closing(&closing.cluster, &closing.gateway, closing.first_port());
        let wanted: Vec<String> = closings.iter().map(key).collect();
        let found = self.recent_all(&wanted)?;
        let (mut change, mut open) = (Change::default(), Vec::new());
        for ((closing, key), found) in closings.iter().zip(wanted).zip(&found) {
            let (current, version) = read_one::<Closing>(&key, found.as_ref())?;
            if current.as_ref() == Some(closing) {
                change.expect.push((key.clone(), version));
                change.delete.push(key);
                self.end_trace(closing, &mut change)?;
                open.push(closing);
            }
        }
        let Some(Closing { cluster, gateway, .. }) = open.first() else { return Ok(Some(())) };
        let blocks = open.iter().flat_map(|closing| closing.blocks()).collect();
        let nodes: Vec<String> = open.iter().flat_map(|closing| closing.nodes.iter().cloned()).collect();
        let mut ledger = self.ledger(cluster, gateway, &blocks, &nodes)?;
        open.iter().for_each(|closing| ledger.remove(closing));
        ledger.write(cluster, &mut change)?;
        Ok(self.commit("release", &change)?.then_some(()))
    }

    /// Moves a grant to another gateway in one step: `to` holds the ports there, and what `from` had on its gateway is closing. `false`
    /// when the grant has changed or ended meanwhile, or an external port is taken there.
    pub fn move_grant(&self, from: &Grant, to: &Grant) -> Result<bool> {
        let _turns = self.turns_at(&to.cluster, &to.gateway, &to.nodes)?;
        let key = keys::grant(&from.cluster, from.job);
        self.repeat(|| {
            let (current, version) = self.read::<Grant>(&key)?;
            let Some(current) = current.filter(|current| same_claim(current, from)) else { return Ok(Some(false)) };
            // The job's internal ports are its own already, and now held for both gateways.
            let mut ledger = self.ledger(&to.cluster, &to.gateway, &to.blocks(), &to.nodes)?;
            let taken = ledger.taken(&[]);
            if to.spans.iter().flat_map(|span| span.external_range().ports()).any(|port| taken.external.contains(port)) {
                return Ok(Some(false));
            }
            ledger.add(to);
            let mut change = Change { expect: vec![(key.clone(), version)], ..Change::default() };
            let drained = self.recent_all(&[keys::drain(&to.cluster, &to.gateway)])?.pop().flatten();
            expect_open(&to.cluster, &to.gateway, drained.as_ref(), &mut change)?;
            put(&mut change, &key, &Grant { version: GRANT_VERSION, ..to.clone() })?;
            ledger.write(&to.cluster, &mut change)?;
            self.put_closing(&current.closing(Timestamp::now()), &mut change)?;
            self.adopt_trace(&current, &mut change)?;
            self.begin_trace_of(to, &mut change)?;
            Ok(self.commit("move", &change)?.then_some(true))
        })
    }

    /// What has to be removed from a gateway.
    pub fn closings(&self, cluster: &str, gateway: &str) -> Result<Vec<Closing>> {
        self.scan(&keys::closings(cluster, gateway))
    }

    /// All that is taken on the nodes of a cluster.
    pub fn node_buckets(&self, cluster: &str) -> Result<Vec<NodeBucket>> {
        self.scan(&keys::buckets(cluster))
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

    pub(super) fn read_all<T: DeserializeOwned>(&self, wanted: &[String]) -> Result<Vec<(Option<T>, u64)>> {
        self.get_all(wanted)?.into_iter().zip(wanted).map(|(found, key)| read_one(key, found.as_ref())).collect()
    }

    /// Any number of keys; not all at one moment if they are many.
    fn get_all(&self, wanted: &[String]) -> Result<Vec<Option<Versioned>>> {
        in_chunks(wanted, |chunk| self.backend.get(chunk))
    }

    /// The same, in the way of [`recent`](Self::recent).
    pub(super) fn recent_all(&self, wanted: &[String]) -> Result<Vec<Option<Versioned>>> {
        in_chunks(wanted, |chunk| self.recent(chunk))
    }
}

/// How many grants or closings fit into one change: each has a key of its own, an open trace, and perhaps one that ends; the ledgers of their
/// blocks and nodes are shared.
fn fitting<'a, T>(items: &'a [T], touches: impl Fn(&'a T) -> (BTreeSet<u16>, &'a [String])) -> usize {
    let mut ledgers = (BTreeSet::new(), BTreeSet::new());
    let fits = |(count, item): &(usize, &'a T)| {
        let (blocks, nodes) = touches(item);
        ledgers.0.extend(blocks);
        ledgers.1.extend(buckets(nodes));
        *count == 0 || 3 * (count + 1) + ledgers.0.len() + ledgers.1.len() + 2 <= MOST_KEYS
    };
    items.iter().enumerate().take_while(fits).count()
}

/// Adds to `change` that nobody drains a gateway meanwhile.
fn expect_open(cluster: &str, gateway: &str, drain: Option<&Versioned>, change: &mut Change) -> Result<()> {
    if drain.is_some() {
        return Err(Error::unavailable(format!("gateway {gateway} is drained")));
    }
    change.expect.push((keys::drain(cluster, gateway), 0));
    Ok(())
}

fn in_chunks(wanted: &[String], get: impl Fn(&[String]) -> Result<Vec<Option<Versioned>>>) -> Result<Vec<Option<Versioned>>> {
    let chunks = wanted.chunks(KEYS_AT_ONCE).map(get).collect::<Result<Vec<_>>>()?;
    Ok(chunks.into_iter().flatten().collect())
}

fn too_few() -> Error {
    Error::internal("the database answered with too few values")
}

pub(super) fn read_one<T: DeserializeOwned>(key: &str, found: Option<&Versioned>) -> Result<(Option<T>, u64)> {
    match found {
        Some(found) => Ok((Some(decode(key, &found.value)?), found.version)),
        None => Ok((None, 0)),
    }
}

/// The same request may have been given other ports elsewhere meanwhile.
fn same_claim(one: &Grant, other: &Grant) -> bool {
    (one.run, &one.nonce, &one.gateway, &one.spans) == (other.run, &other.nonce, &other.gateway, &other.spans)
}

fn or_else<T: DeserializeOwned>((key, found): (&String, Option<Versioned>), empty: impl FnOnce() -> T) -> Result<(T, u64)> {
    match found {
        Some(found) => Ok((decode(key, &found.value)?, found.version)),
        None => Ok((empty(), 0)),
    }
}
