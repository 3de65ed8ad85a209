//! What will be broken, when and for how long: all of it follows from the seed.

use std::fmt;
use std::time::Duration;

/// How many runners and how many members of etcd there are.
pub const PEERS: usize = 3;

/// Numbers that look random and follow from a seed (SplitMix64).
pub struct Dice(u64);

impl Dice {
    /// Other numbers for each `stream` of the same seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `count - 1`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    /// A time between two.
    pub fn time(&mut self, (least, most): (u64, u64)) -> Duration {
        Duration::from_millis(least + self.next() % (most - least + 1))
    }
}

/// What a runner is cut off from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All members of etcd.
    Etcd,
    /// Both command nodes.
    Commands,
    /// Both gateways.
    Gateways,
    /// All compute nodes, and so the jobs.
    Jobs,
    /// The outside.
    FrontEnds,
}

/// Something that breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for a runner.
    KillRunner(usize),
    /// SIGTERM for a runner.
    StopRunner(usize),
    /// SIGSTOP for a runner.
    PauseRunner(usize),
    /// A runner is cut off from something, in silence.
    CutRunner(usize, Cut),
    /// SIGKILL for a member of etcd.
    KillMember(usize),
    /// SIGSTOP for a member of etcd.
    PauseMember(usize),
    /// SIGKILL for a member of etcd and SIGSTOP for another.
    LoseQuorum(usize, usize),
    /// The links of a host go down, and so a runner's and a member's.
    Isolate(usize),
    /// The links of a gateway go down for longer than a gateway may be silent.
    UnplugGateway(usize),
    /// The rules of ours are gone from a gateway.
    FlushGateway(usize),
    /// sshd of the first command node is gone, and all connections with it.
    LoseSshd,
    /// SIGSTOP for slurmctld.
    PauseSlurm,
}

impl Fault {
    /// The runner whose lead may have to be taken over.
    pub fn runner(self) -> Option<usize> {
        match self {
            Self::KillRunner(peer) | Self::StopRunner(peer) | Self::PauseRunner(peer) | Self::Isolate(peer) => Some(peer),
            Self::CutRunner(peer, Cut::Etcd) => Some(peer),
            _ => None,
        }
    }

    /// One word for it, to be counted by.
    pub fn word(self) -> &'static str {
        match self {
            Self::KillRunner(_) => "runners killed",
            Self::StopRunner(_) => "runners stopped",
            Self::PauseRunner(_) => "runners paused",
            Self::CutRunner(..) => "runners cut off",
            Self::KillMember(_) => "etcd members killed",
            Self::PauseMember(_) => "etcd members paused",
            Self::LoseQuorum(..) => "quorums lost",
            Self::Isolate(_) => "hosts isolated",
            Self::UnplugGateway(_) => "gateways unplugged",
            Self::FlushGateway(_) => "gateways flushed",
            Self::LoseSshd => "sshds killed",
            Self::PauseSlurm => "slurmctlds paused",
        }
    }
}

/// A fault, after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What passes before it.
    pub pause: Duration,
    /// What breaks.
    pub fault: Fault,
    /// For how long.
    pub time: Duration,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:.1} s {:?} for {:.1} s", self.pause.as_secs_f64(), self.fault, self.time.as_secs_f64())
    }
}

/// Three lanes of faults. In each lane there is one at a time, and what one lane breaks no other touches: so at most one runner is broken
/// by itself while another is isolated, and never two members of etcd but when the quorum is to be lost.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Runners' processes and what they reach.
    pub runners: Vec<Step>,
    /// Members of etcd, and whole hosts.
    pub members: Vec<Step>,
    /// Gateways, a command node and Slurm.
    pub others: Vec<Step>,
}

impl Plan {
    /// Enough faults for `time`.
    pub fn new(seed: u64, time: Duration, gateway_down: Duration) -> Self {
        // A connection that breaks in silence is noticed some 15 seconds later, only then does the gateway count as down, and every new
        // leader counts anew.
        let unplugged = (gateway_down.as_millis() as u64 + 32_000, gateway_down.as_millis() as u64 + 57_000);
        let others = move |kind: usize, dice: &mut Dice| match kind {
            0 | 1 => (Fault::UnplugGateway(dice.below(2)), dice.time(unplugged)),
            2 | 3 => (Fault::FlushGateway(dice.below(2)), Duration::ZERO),
            4 => (Fault::LoseSshd, dice.time((3000, 8000))),
            _ => (Fault::PauseSlurm, Duration::from_secs(10)),
        };
        Self {
            runners: lane(Dice::new(seed, 1), (time, (1500, 6000)), 9, runner_fault),
            // All stands still without etcd: there are times when it is whole.
            members: lane(Dice::new(seed, 2), (time, (4000, 14_000)), 6, member_fault),
            others: lane(Dice::new(seed, 3), (time, (1500, 6000)), 6, others),
        }
    }
}

/// Draws kinds of faults as from a bag: each comes once before any comes again.
fn lane(
    mut dice: Dice,
    (time, pauses): (Duration, (u64, u64)),
    kinds: usize,
    draw: impl Fn(usize, &mut Dice) -> (Fault, Duration),
) -> Vec<Step> {
    let (mut steps, mut bag, mut planned) = (Vec::new(), Vec::new(), Duration::ZERO);
    while planned < time {
        if bag.is_empty() {
            bag = (0..kinds).collect();
        }
        let kind = bag.swap_remove(dice.below(bag.len()));
        let pause = dice.time(pauses);
        let (fault, time) = draw(kind, &mut dice);
        planned += pause + time;
        steps.push(Step { pause, fault, time });
    }
    steps
}

fn runner_fault(kind: usize, dice: &mut Dice) -> (Fault, Duration) {
    let peer = dice.below(PEERS);
    let cuts = [Cut::Etcd, Cut::Commands, Cut::Gateways, Cut::Jobs, Cut::FrontEnds];
    match kind {
        0 | 1 => (Fault::KillRunner(peer), dice.time((500, 8000))),
        2 => (Fault::StopRunner(peer), dice.time((500, 5000))),
        3 => (Fault::PauseRunner(peer), dice.time((3000, 15_000))),
        _ => (Fault::CutRunner(peer, cuts[kind - 4]), dice.time((4000, 15_000))),
    }
}

fn member_fault(kind: usize, dice: &mut Dice) -> (Fault, Duration) {
    let peer = dice.below(PEERS);
    match kind {
        0 | 1 => (Fault::KillMember(peer), dice.time((1000, 8000))),
        2 => (Fault::PauseMember(peer), dice.time((2000, 8000))),
        3 => (Fault::LoseQuorum(peer, (peer + 1) % PEERS), dice.time((6000, 18_000))),
        _ => (Fault::Isolate(peer), dice.time((4000, 12_000))),
    }
}

#[test]
fn a_plan_follows_from_its_seed_and_holds_every_kind_of_fault() {
    let plan = |seed| Plan::new(seed, Duration::from_secs(600), Duration::from_secs(3));
    assert_eq!(plan(7), plan(7));
    assert_ne!(plan(7), plan(8));
    let whole = plan(7);
    let words = |lane: &[Step]| lane.iter().map(|step| step.fault.word()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!((words(&whole.runners).len(), words(&whole.members).len(), words(&whole.others).len()), (4, 4, 4));
    assert!(whole.members.iter().all(|step| step.fault.word() != "quorums lost" || step.time < Duration::from_secs(20)));
}
