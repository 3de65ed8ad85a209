//! Where in the range each search begins. Jobs on the same node get neighbouring ports, so that looking at all of them is looking at one range
//! of the node's; searches under way at the same time keep out of each other's way.

use crate::domain::ports::{BLOCK, PortRange, PortSet};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So long ports that were claimed are left alone by those who may have read the ledger before.
const FRESH: Duration = Duration::from_secs(2);
/// Nodes that are remembered at most.
const NODES: usize = 20_000;

/// The places of one gateway.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The block that was begun last.
    block: Option<u16>,
    /// Where a node's next ports are looked for.
    nodes: HashMap<String, u16>,
    reserved: Vec<Reserved>,
    tickets: u64,
}

struct Reserved {
    ticket: u64,
    ports: Vec<u16>,
    until: Option<Instant>,
}

/// Ports that nobody else of this program looks at; given back when it is dropped.
pub(super) struct Reservation {
    places: Places,
    ticket: u64,
    claimed: bool,
}

impl Places {
    /// Where to look for so many ports of `range` for a job on `node`: behind the node's last ones, in the same block if they fit there, or
    /// else in the next block that nobody has begun. The first of all lies anywhere (`chance`).
    pub(super) fn place(&self, node: &str, range: PortRange, ports: u16, chance: u64) -> u16 {
        let mut state = self.lock();
        let fits = |at: u16| u32::from(at % BLOCK) + u32::from(ports) <= u32::from(BLOCK) && range.contains(at);
        // A node's place at the border of two blocks belongs to the block before, which is full.
        let last = state.nodes.get(node).copied().filter(|&at| at % BLOCK != 0 && fits(at));
        let at = last.unwrap_or_else(|| state.next_block(range, ports.div_ceil(BLOCK).max(1), chance));
        if state.nodes.len() >= NODES {
            state.nodes.clear();
        }
        state.nodes.insert(node.to_owned(), at.saturating_add(ports));
        at
    }

    /// Chooses ports with the knowledge of what others have reserved, and reserves them.
    pub(super) fn reserve(&self, choose: impl FnOnce(&PortSet) -> Vec<u16>) -> (Vec<u16>, Reservation) {
        let mut state = self.lock();
        let now = Instant::now();
        state.reserved.retain(|reserved| reserved.until.is_none_or(|until| until > now));
        let mut taken = PortSet::default();
        state.reserved.iter().for_each(|reserved| taken.extend(reserved.ports.iter().copied()));
        let ports = choose(&taken);
        state.tickets += 1;
        let ticket = state.tickets;
        state.reserved.push(Reserved { ticket, ports: ports.clone(), until: None });
        (ports, Reservation { places: self.clone(), ticket, claimed: false })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The first port of the next block; so many of them are begun.
    fn next_block(&mut self, range: PortRange, blocks: u16, chance: u64) -> u16 {
        let (first, last) = (range.lo / BLOCK, range.hi / BLOCK);
        let count = u64::from(last - first) + 1;
        let anywhere = || first + u16::try_from(chance % count).unwrap_or_default();
        let block = match self.block {
            None => anywhere(),
            Some(begun) if begun < last && begun >= first => begun + 1,
            Some(_) => first,
        };
        self.block = Some(block.saturating_add(blocks - 1).min(last));
        block.saturating_mul(BLOCK).clamp(range.lo, range.hi)
    }
}

impl Reservation {
    /// The ports are claimed: whoever reads the ledger from now on sees that.
    pub(super) fn claimed(mut self) {
        self.claimed = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        let until = self.claimed.then(|| Instant::now() + FRESH);
        match state.reserved.iter().position(|reserved| reserved.ticket == self.ticket) {
            Some(at) if until.is_some() => state.reserved[at].until = until,
            Some(at) => drop(state.reserved.swap_remove(at)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: PortRange = PortRange { lo: 50000, hi: 50499 };

    #[test]
    fn jobs_on_one_node_get_neighbours_and_nodes_get_blocks_of_their_own() {
        let places = Places::default();
        let at = |node: &str, ports| places.place(node, RANGE, ports, 3);
        assert_eq!([at("a", 1), at("a", 1), at("b", 1), at("a", 5), at("b", 1)], [50300, 50301, 50400, 50302, 50401]);
        // The block has no room for so many in one run; and the range ends, so it begins anew.
        assert_eq!([at("a", 100), at("a", 1), at("a", 250), at("c", 1)], [50000, 50100, 50200, 50000]);
    }

    #[test]
    fn every_place_lies_in_the_range() {
        for range in [RANGE, PortRange { lo: 50050, hi: 50051 }, PortRange { lo: 1024, hi: 65535 }] {
            for chance in 0..700 {
                let places = Places::default();
                assert!((0..20).all(|i| range.contains(places.place("a", range, i * 7 + 1, chance))), "{range} {chance}");
            }
        }
    }

    #[test]
    fn what_is_reserved_is_left_alone_until_it_is_given_back_or_everybody_sees_the_claim() {
        let places = Places::default();
        let first = |taken: &PortSet| (1..9).filter(|port| !taken.contains(*port)).take(2).collect::<Vec<_>>();
        let (a, kept) = places.reserve(first);
        let (b, given_back) = places.reserve(first);
        drop(given_back);
        kept.claimed();
        let (c, _) = places.reserve(first);
        assert_eq!((a, b, c), (vec![1, 2], vec![3, 4], vec![3, 4]));
        places.lock().reserved.iter_mut().for_each(|reserved| reserved.until = Some(Instant::now()));
        assert_eq!(places.reserve(first).0, [1, 2], "the ledger shows it by now");
    }
}
