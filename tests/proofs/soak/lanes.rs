//! The faults of a plan, caused and mended.

use super::plan::{Cut, Fault, Step};
use super::tally::{Tally, lock};
use bwvisu_tests::gateway::GATEWAYS;
use bwvisu_tests::member::{CLIENT_PORT, Member};
use bwvisu_tests::{Bed, Broken, Runner};
use rustix::process::Signal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A fault that was caused.
#[derive(Debug, Clone)]
pub struct Caused {
    /// Which.
    pub fault: Fault,
    /// When it began.
    pub begun: Instant,
    /// When it was mended.
    pub mended: Instant,
}

impl Fault {
    /// Whether etcd suffers from it.
    pub fn member(self) -> bool {
        matches!(self, Self::KillMember(_) | Self::PauseMember(_) | Self::LoseQuorum(..) | Self::Isolate(_))
    }
}

impl Caused {
    /// Whether it happened at the same time as `other`, or within `margin` of it.
    pub fn overlaps(&self, other: &Self, margin: Duration) -> bool {
        self.fault != other.fault && self.begun <= other.mended + margin && other.begun <= self.mended + margin
    }
}

/// What all lanes share.
pub struct Lanes<'b> {
    /// The bed.
    pub bed: &'b Bed,
    /// Where faults are counted.
    pub tally: &'b Tally,
    /// The hosts of the runners.
    pub hosts: &'static [&'static str],
    /// All faults so far.
    pub caused: Mutex<Vec<Caused>>,
}

impl<'b> Lanes<'b> {
    /// Waits as long as the step says and causes it; nothing after the end.
    fn each(&self, steps: &[Step], mut cause: impl FnMut(&Step)) {
        for step in steps {
            if self.tally.sleep(step.pause) {
                return;
            }
            self.tally.say(&format!("{:?} for {:.1} s", step.fault, step.time.as_secs_f64()));
            let begun = Instant::now();
            cause(step);
            self.tally.count(step.fault.word());
            lock(&self.caused).push(Caused { fault: step.fault, begun, mended: Instant::now() });
        }
    }

    /// The runners' lane.
    pub fn runners(&self, steps: &[Step], runners: &mut [Runner<'b>]) {
        self.each(steps, |step| match step.fault {
            Fault::KillRunner(peer) => {
                runners[peer].kill();
                self.tally.sleep(step.time);
                runners[peer].start_again();
            }
            Fault::StopRunner(peer) => {
                let begun = Instant::now();
                let status = runners[peer].terminate();
                self.tally.took("stop of a runner", begun.elapsed());
                if !status.success() {
                    self.tally.wrong(format!("SIGTERM: {} ended with {status}", self.hosts[peer]));
                }
                self.tally.sleep(step.time);
                runners[peer].start_again();
            }
            Fault::PauseRunner(peer) => {
                runners[peer].signal(Signal::STOP);
                self.tally.sleep(step.time);
                runners[peer].signal(Signal::CONT);
            }
            Fault::CutRunner(peer, cut) => {
                let broken = Broken::by(self.bed, self.hosts[peer], &self.cut(cut), "iptables -F");
                self.tally.sleep(step.time);
                broken.mend();
            }
            _ => unreachable!("a fault of another lane"),
        });
    }

    /// Rules that drop what would pass between a runner's host and others: nobody is told.
    fn cut(&self, cut: Cut) -> String {
        let from = |hosts: &[&str]| -> String {
            let rule = |host: &&str| {
                let address = self.bed.ip(host);
                format!("iptables -A INPUT -s {address} -j DROP; iptables -A OUTPUT -d {address} -j DROP;")
            };
            hosts.iter().map(rule).collect()
        };
        match cut {
            Cut::Etcd => format!("iptables -A OUTPUT -p tcp --dport {CLIENT_PORT} -j DROP"),
            Cut::Commands => from(&["cmd0", "cmd1"]),
            Cut::Gateways => from(&GATEWAYS),
            Cut::Jobs => from(&["c0", "c1", "c2", "c3"]),
            Cut::FrontEnds => "iptables -A INPUT -i pub0 -j DROP".to_owned(),
        }
    }

    /// The lane of etcd's members and of whole hosts.
    pub fn members(&self, steps: &[Step], members: &mut [Member<'b>]) {
        self.each(steps, |step| {
            match step.fault {
                Fault::KillMember(peer) => {
                    members[peer].kill();
                    self.tally.sleep(step.time);
                    members[peer].start();
                }
                Fault::PauseMember(peer) => {
                    members[peer].pause();
                    self.tally.sleep(step.time);
                    members[peer].resume();
                }
                Fault::LoseQuorum(first, second) => {
                    members[first].kill();
                    members[second].pause();
                    self.tally.sleep(step.time);
                    members[second].resume();
                    members[first].start();
                }
                Fault::Isolate(peer) => {
                    let fault = self.bed.fault("unplug", self.hosts[peer], None);
                    self.tally.sleep(step.time);
                    fault.mend();
                }
                _ => unreachable!("a fault of another lane"),
            }
            // Only a member that is back makes the next fault one of a single member.
            members.iter().for_each(Member::wait_until_healthy);
        });
    }

    /// The lane of everything else.
    pub fn others(&self, steps: &[Step]) {
        self.each(steps, |step| match step.fault {
            Fault::UnplugGateway(gateway) => {
                let fault = self.bed.fault("unplug", GATEWAYS[gateway], None);
                self.tally.sleep(step.time);
                fault.mend();
            }
            Fault::FlushGateway(gateway) => {
                self.bed.sh(GATEWAYS[gateway], "iptables-save | grep -v BWVISU | iptables-restore");
            }
            Fault::LoseSshd => {
                let fault = self.bed.fault("stop-daemon", "cmd0", Some("sshd"));
                self.bed.exec("cmd0", &["pkill", "-KILL", "-f", "sshd: bwvisurunner"]);
                self.tally.sleep(step.time);
                fault.mend();
            }
            Fault::PauseSlurm => {
                let fault = self.bed.fault("pause-daemon", "ctl", Some("slurmctld"));
                self.tally.sleep(step.time);
                fault.mend();
            }
            _ => unreachable!("a fault of another lane"),
        });
    }
}
