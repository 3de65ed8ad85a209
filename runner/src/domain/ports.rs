//! Ports: sets, ranges, and the choice of ports for a job. Pure; what is taken and what listens is told by the caller.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Forwardings are kept and installed in blocks of this many external ports: a gateway's rules are two levels of
/// chains, one chain per block, so that a change rewrites one short chain and a new connection passes few rules.
pub const BLOCK: u16 = 100;

/// Ports `lo..=hi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// The first port.
    pub lo: u16,
    /// The last port.
    pub hi: u16,
}

impl PortRange {
    /// All ports of the range.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.lo..=self.hi
    }

    /// How many ports it holds.
    pub fn len(self) -> usize {
        usize::from(self.hi.saturating_sub(self.lo)) + usize::from(self.lo <= self.hi)
    }

    /// Whether it holds none.
    pub fn is_empty(self) -> bool {
        self.lo > self.hi
    }

    /// Whether `port` is in it.
    pub fn contains(self, port: u16) -> bool {
        (self.lo..=self.hi).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lo == self.hi { write!(f, "{}", self.lo) } else { write!(f, "{}-{}", self.lo, self.hi) }
    }
}

/// `count` neighbouring external ports forwarded to as many neighbouring internal ones; never across a block's border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "WrittenSpan")]
pub struct Span {
    /// The first external port.
    pub external: u16,
    /// The first internal port.
    pub internal: u16,
    /// How many.
    pub count: u16,
}

/// A span as a record has it; a damaged record may hold any numbers.
#[derive(Deserialize)]
struct WrittenSpan {
    external: u16,
    internal: u16,
    count: u16,
}

impl TryFrom<WrittenSpan> for Span {
    type Error = String;

    fn try_from(WrittenSpan { external, internal, count }: WrittenSpan) -> Result<Self, String> {
        let fits = |first: u16| count.checked_sub(1).and_then(|more| first.checked_add(more)).is_some();
        if fits(external) && fits(internal) {
            return Ok(Self { external, internal, count });
        }
        Err(format!("{count} ports from {external} and {internal} on are no ports"))
    }
}

impl Span {
    /// The block of external ports that it lies in.
    pub fn block(self) -> u16 {
        self.external / BLOCK
    }

    /// The external ports.
    pub fn external_range(self) -> PortRange {
        PortRange { lo: self.external, hi: self.external + (self.count.saturating_sub(1)) }
    }

    /// The internal ports.
    pub fn internal_range(self) -> PortRange {
        PortRange { lo: self.internal, hi: self.internal + (self.count.saturating_sub(1)) }
    }

    /// `(internal, external)`, one by one.
    pub fn pairs(self) -> impl Iterator<Item = (u16, u16)> {
        self.internal_range().ports().zip(self.external_range().ports())
    }
}

/// A set of port numbers, as a bit for each.
#[derive(Clone)]
pub struct PortSet(Box<[u64; 1024]>);

impl Default for PortSet {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({:?})", (0..=u16::MAX).filter(|&p| self.contains(p)).collect::<Vec<_>>())
    }
}

impl PortSet {
    /// Adds a port.
    pub fn insert(&mut self, port: u16) {
        self.0[usize::from(port / 64)] |= 1 << (port % 64);
    }

    /// Adds a range.
    pub fn insert_range(&mut self, range: PortRange) {
        range.ports().for_each(|port| self.insert(port));
    }

    /// Whether the port is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port / 64)] & (1 << (port % 64)) != 0
    }
}

impl Extend<u16> for PortSet {
    fn extend<T: IntoIterator<Item = u16>>(&mut self, ports: T) {
        ports.into_iter().for_each(|port| self.insert(port));
    }
}

/// How external ports follow from internal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// The same number on both sides: a whole range is one rule.
    Same,
    /// The gateway listens on the very machine that the application listens on, so that both sides need ports of their
    /// own: the lower half of the range for applications, the upper half for the gateway.
    Halves,
}

/// The range that ports are chosen from, and how the two sides' numbers go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Ports that were set aside for us, on gateways and nodes alike.
    pub range: PortRange,
    /// How external ports follow from internal ones.
    pub numbering: Numbering,
}

impl Plan {
    /// The ports that applications listen on.
    pub fn internal(self) -> PortRange {
        match self.numbering {
            Numbering::Same => self.range,
            Numbering::Halves => PortRange { lo: self.range.lo, hi: self.range.lo + self.offset() - 1 },
        }
    }

    fn offset(self) -> u16 {
        match self.numbering {
            Numbering::Same => 0,
            Numbering::Halves => u16::try_from(self.range.len() / 2).unwrap_or(u16::MAX / 2).max(1),
        }
    }

    /// The external port that goes with an internal one.
    pub fn external(self, internal: u16) -> u16 {
        internal.saturating_add(self.offset())
    }

    /// The internal port that goes with an external one, if that is one of the plan's.
    pub fn internal_of(self, external: u16) -> Option<u16> {
        external.checked_sub(self.offset()).filter(|&port| self.internal().contains(port))
    }

    /// The blocks of external ports that internal ports `window` need.
    pub fn blocks(self, window: PortRange) -> std::ops::RangeInclusive<u16> {
        self.external(window.lo) / BLOCK..=self.external(window.hi) / BLOCK
    }
}

/// `range` in windows of `step` ports, beginning at `start` and going round; `overlap` ports before the start are looked at twice, so that
/// a run of neighbours across it is found too.
pub fn windows(range: PortRange, step: u16, start: u16, overlap: u16) -> Vec<PortRange> {
    let cut = |lo: u16, hi: u16| {
        let window = move |lo: u16| PortRange { lo, hi: lo.saturating_add(step.max(1) - 1).min(hi) };
        (lo..=hi).step_by(usize::from(step.max(1))).map(window)
    };
    let before = start.saturating_add(overlap).min(range.hi);
    let rest = (start > range.lo).then(|| cut(range.lo, before));
    cut(start, range.hi).chain(rest.into_iter().flatten()).collect()
}

/// Up to `want` internal ports of `window` that are not taken: the first run of neighbours that is long enough, else
/// as many single ones as there are.
pub fn candidates(window: PortRange, want: usize, taken: impl Fn(u16) -> bool) -> Vec<u16> {
    let mut run = Vec::new();
    for port in window.ports() {
        if taken(port) {
            run.clear();
            continue;
        }
        run.push(port);
        if run.len() == want {
            return run;
        }
    }
    window.ports().filter(|&port| !taken(port)).take(want).collect()
}

/// `count` of `free` (ascending), as few runs of neighbours as a simple look finds: the first run that is long enough, else
/// the first ports.
pub fn choose(free: &[u16], count: usize) -> Option<Vec<u16>> {
    let whole = |run: &&[u16]| usize::from(run[count - 1] - run[0]) == count - 1;
    if count == 0 || free.len() < count {
        return None;
    }
    Some(free.windows(count).find(whole).unwrap_or(&free[..count]).to_vec())
}

/// Internal ports (ascending) as spans; a span never leaves its block of external ports.
pub fn spans(internal: &[u16], plan: Plan) -> Vec<Span> {
    spans_of(internal.iter().map(|&port| (port, plan.external(port))))
}

/// Pairs of internal and external ports (both ascending) as spans; a span never leaves its block of external ports.
pub fn spans_of(pairs: impl IntoIterator<Item = (u16, u16)>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (internal, external) in pairs {
        match spans.last_mut() {
            Some(last) if continues(last, internal, external) => last.count += 1,
            _ => spans.push(Span { external, internal, count: 1 }),
        }
    }
    spans
}

fn continues(last: &Span, internal: u16, external: u16) -> bool {
    let next = |first: u16| u32::from(first) + u32::from(last.count);
    next(last.internal) == u32::from(internal) && next(last.external) == u32::from(external) && external / BLOCK == last.block()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAN: Plan = Plan { range: PortRange { lo: 50000, hi: 60000 }, numbering: Numbering::Same };

    #[test]
    fn a_run_of_neighbours_is_preferred_and_single_ports_are_better_than_none() {
        let window = PortRange { lo: 10, hi: 19 };
        assert_eq!(candidates(window, 3, |_| false), [10, 11, 12]);
        assert_eq!(candidates(window, 3, |p| p == 11), [12, 13, 14]);
        assert_eq!(candidates(window, 3, |p| p % 2 == 0), [11, 13, 15]);
        assert_eq!(candidates(window, 3, |p| p != 19), [19]);
    }

    #[test]
    fn what_is_free_is_chosen_in_one_run_where_possible() {
        assert_eq!(choose(&[1, 3, 4, 5, 9], 3).unwrap(), [3, 4, 5]);
        assert_eq!(choose(&[1, 3, 5], 2).unwrap(), [1, 3]);
        assert_eq!(choose(&[1], 2), None);
    }

    #[test]
    fn spans_break_at_gaps_and_at_block_borders() {
        let span = |external, count| Span { external, internal: external, count };
        assert_eq!(spans(&[50098, 50099, 50100, 50103], PLAN), [span(50098, 2), span(50100, 1), span(50103, 1)]);
    }

    #[test]
    fn pairs_that_do_not_go_together_are_spans_of_their_own() {
        let pairs = [(50000, 50010), (50001, 50011), (50002, 50050), (50004, 50051)];
        let span = |external, internal, count| Span { external, internal, count };
        assert_eq!(spans_of(pairs), [span(50010, 50000, 2), span(50050, 50002, 1), span(50051, 50004, 1)]);
    }

    #[test]
    fn halves_never_overlap() {
        for hi in 1..40u16 {
            let plan = Plan { range: PortRange { lo: 100, hi: 100 + hi }, numbering: Numbering::Halves };
            let last = plan.internal().hi;
            assert!(last < plan.external(plan.internal().lo), "{plan:?}");
            assert!(plan.external(last) <= plan.range.hi, "{plan:?}");
        }
    }

    proptest! {
        #[test]
        fn windows_reach_every_port_of_the_range_and_no_other(lo in 1024u16..60000, len in 0u16..3000, step in 1u16..900, at in 0u16..3000, overlap in 0u16..200) {
            let range = PortRange { lo, hi: lo + len };
            let windows = windows(range, step, lo + at.min(len), overlap);
            let mut seen = PortSet::default();
            for window in &windows {
                prop_assert!(!window.is_empty() && window.len() <= usize::from(step));
                seen.insert_range(*window);
            }
            prop_assert!((0..=u16::MAX).all(|port| seen.contains(port) == range.contains(port)));
        }

        #[test]
        fn spans_hold_exactly_the_ports_they_were_made_of(mut ports in proptest::collection::btree_set(50000u16..=60000, 1..200), halves: bool) {
            let plan = Plan { numbering: if halves { Numbering::Halves } else { Numbering::Same }, ..PLAN };
            ports.retain(|&p| plan.internal().contains(p));
            let ports: Vec<u16> = ports.into_iter().collect();
            let spans = spans(&ports, plan);
            let back: Vec<u16> = spans.iter().flat_map(|s| s.pairs().map(|(i, _)| i)).collect();
            prop_assert_eq!(back, ports);
            for span in spans {
                prop_assert_eq!(span.external_range().hi / BLOCK, span.block());
                prop_assert!(span.pairs().all(|(i, e)| e == plan.external(i) && plan.internal_of(e) == Some(i)));
            }
        }
    }
}
