//! A gateway node: `iptables` and `nc` (or what stands in for it) over ssh.
//!
//! All that we install lies in chains of our own, named after a prefix (here `BWVISU`):
//!
//! ```text
//! nat     PREROUTING (to an address of the gateway) ─► BWVISU ─► BWVISU-500 (ports 50000-50099) ─► DNAT, one rule per span
//!         POSTROUTING ─► BWVISU-POST: what was forwarded by a port of ours leaves with the gateway's address
//! filter  FORWARD     ─► BWVISU-FWD: what was forwarded by a port of ours may pass
//! ```
//!
//! A change rewrites whole chains with one `iptables-restore --noflush`, which the kernel takes all at once. Each rule's comment is
//! `bwvisu:CLUSTER:JOB:TARGET`, so that a listing tells everything. Names are resolved on the gateway.

pub(crate) mod probe;
mod save;

pub(crate) use save::{Saved, read_listing};

use self::probe::Look;
use super::{Gateway, Installed, Probe, Rule, Target};
use crate::command::Output;
use crate::domain::ports::{BLOCK, Numbering, PortRange, Span};
use crate::domain::shell;
use crate::error::{Error, Result};
use crate::ssh::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A listing that takes longer is none: all other gateways wait for it.
const SAVE_LIMIT: Duration = Duration::from_secs(15);
const APPLY_LIMIT: Duration = Duration::from_secs(40);
const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// One gateway node.
pub struct Iptables {
    node: Node,
    external_ip: String,
    names: Chains,
    /// Who looks at ports there, and since when that is known.
    looks: Mutex<Option<(&'static str, Instant)>>,
}

impl Iptables {
    /// The gateway behind `node`, which users reach as `external_ip`, forwarding ports of `range` by chains whose names begin with
    /// `prefix`.
    pub fn new(node: Node, external_ip: &str, prefix: &str, range: PortRange) -> Self {
        Self { node, external_ip: external_ip.into(), names: Chains { prefix: prefix.into(), range }, looks: Mutex::default() }
    }

    fn script(&self, script: &str, limit: Duration) -> Result<Output> {
        self.script_for("exec sh", script, limit)
    }

    fn script_for(&self, shell: &str, script: &str, limit: Duration) -> Result<Output> {
        let output = self.node.run(shell, script.as_bytes(), limit);
        output.map_err(|error| error.within(format!("gateway {}", self.node.address())))
    }

    /// What the looks saw, each by itself.
    fn look(&self, looks: &[Look]) -> Result<Vec<Probe>> {
        if looks.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.looks().filter(|(_, since)| since.elapsed() < FLAVOUR_HOLDS).map(|(flavour, _)| flavour);
        let output = self.script_for(probe::SHELL, &probe::script(looks, self.address(), known), PROBE_LIMIT)?;
        // 124: the time was over, and some have not answered.
        if !matches!(output.status.code(), Some(0 | 124)) || output.stdout.lines().last() != Some(END) {
            *self.looks() = None;
            return Err(self.failed("looking at ports", &output));
        }
        let probes = probe::read_each(looks, &output.stdout);
        if let Some(found) = probe::flavour(&output.stdout) {
            *self.looks() = Some((found, Instant::now()));
        }
        // Perhaps it is not there any more.
        if probes.iter().any(|probe| !probe.unreachable.is_empty()) {
            *self.looks() = None;
        }
        Ok(probes)
    }

    fn looks(&self) -> MutexGuard<'_, Option<(&'static str, Instant)>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, what: &str, output: &Output) -> Error {
        Error::unavailable(format!("gateway {}: {what} failed", self.node.address())).with_detail(output.complaint())
    }

    /// One round trip; nothing when the chains around the rules are not there.
    fn rewrite(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<Option<BTreeSet<String>>> {
        let output = self.script(&self.names.rewrite_script(blocks), APPLY_LIMIT)?;
        match output.status.code() {
            Some(0) => Ok(Some(self.unresolved(&output))),
            Some(NOT_READY) => Ok(None),
            _ => Err(self.failed("iptables-restore", &output)),
        }
    }

    /// A name that the gateway cannot resolve costs only its own rule; the others are in.
    fn unresolved(&self, output: &Output) -> BTreeSet<String> {
        let hosts: BTreeSet<String> =
            output.stdout.lines().filter_map(|line| line.strip_prefix("unresolved ")).map(str::to_owned).collect();
        if !hosts.is_empty() {
            log::warn!("gateway {}: cannot resolve {hosts:?}", self.node.address());
        }
        hosts
    }

    fn save(&self) -> Result<Saved> {
        let output = self.script(SAVE_SCRIPT, SAVE_LIMIT)?;
        if !output.status.success() {
            return Err(self.failed("iptables-save", &output));
        }
        read_listing(&output.stdout).ok_or_else(|| self.failed("reading iptables-save", &output))
    }
}

impl Gateway for Iptables {
    fn address(&self) -> &str {
        self.node.address()
    }

    fn external_ip(&self) -> &str {
        &self.external_ip
    }

    fn numbering(&self) -> Numbering {
        Numbering::Same
    }

    fn probe(&self, targets: &[Target]) -> Result<Probe> {
        Ok(self.look(&probe::by_host(targets))?.into_iter().collect())
    }

    fn probe_apart(&self, targets: &[Target]) -> Result<Vec<Probe>> {
        self.look(&probe::apart(targets))
    }

    fn apply(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>> {
        match self.rewrite(blocks)? {
            Some(unresolved) => Ok(unresolved),
            None => self.set_up(blocks),
        }
    }

    fn set_up(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> Result<BTreeSet<String>> {
        let saved = self.save()?;
        let output = self.script(&self.names.set_up_script(&saved, blocks), APPLY_LIMIT)?;
        if !output.status.success() {
            return Err(self.failed("iptables-restore", &output));
        }
        log::info!("gateway {}: chains {} set up", self.node.address(), self.names.prefix);
        Ok(self.unresolved(&output))
    }

    fn installed(&self) -> Result<Installed> {
        self.save().map(|saved| self.names.installed(&saved))
    }
}

/// The last line of a complete answer.
const END: &str = "bwvisu-end";
/// The exit code of a script that found our chains missing.
const NOT_READY: i32 = 77;
/// Without a program sudo only asks for a password, so what is missing is named. All tables at once: each call of sudo takes its time.
const SAVE_SCRIPT: &str = "export LC_ALL=C\necho bwvisu-begin\nsudo -n iptables-save </dev/null || {\n    \
    (PATH=$PATH:/usr/sbin:/sbin; command -v iptables-save >/dev/null) || echo 'iptables-save is not installed' >&2\n    exit 1\n}\n\
    echo bwvisu-end\n";

/// The functions of a script that writes rules.
const FUNCTIONS: &str = include_str!("iptables/write.sh");
/// How long we rely on who looks at ports on a gateway.
const FLAVOUR_HOLDS: Duration = Duration::from_secs(300);

/// The names of our chains, and what stands in them.
pub(crate) struct Chains {
    pub(crate) prefix: String,
    pub(crate) range: PortRange,
}

impl Chains {
    fn block(&self, block: u16) -> String {
        format!("{}-{block}", self.prefix)
    }

    fn blocks(&self) -> std::ops::RangeInclusive<u16> {
        self.range.lo / BLOCK..=self.range.hi / BLOCK
    }

    /// The rule that sends the ports of a block into its chain.
    fn jump(&self, block: u16) -> String {
        let lo = (block * BLOCK).max(self.range.lo);
        let hi = (block * BLOCK).saturating_add(BLOCK - 1).min(self.range.hi);
        format!("-p tcp -m tcp --dport {lo}:{hi} -j {}", self.block(block))
    }

    /// Hooks in the chains of the system: table, chain, rule.
    fn hooks(&self) -> [(&'static str, &'static str, String, String); 3] {
        let p = &self.prefix;
        [
            ("nat", "PREROUTING", p.clone(), format!("-m addrtype --dst-type LOCAL -m comment --comment bwvisu -j {p}")),
            ("nat", "POSTROUTING", format!("{p}-POST"), format!("-m comment --comment bwvisu -j {p}-POST")),
            ("filter", "FORWARD", format!("{p}-FWD"), format!("-m comment --comment bwvisu -j {p}-FWD")),
        ]
    }

    /// Only connections that came in by a port of ours: what others forward on this gateway is none of our business.
    fn forwarded(&self) -> String {
        format!("-p tcp -m conntrack --ctstate DNAT --ctorigdstport {}:{}", self.range.lo, self.range.hi)
    }

    /// What sets `rules` in a script, and resolves the names in them.
    fn rules_script(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> String {
        let hosts: BTreeSet<&str> = blocks.values().flatten().map(|rule| rule.target.as_str()).collect();
        if hosts.is_empty() {
            return "rules=\n".to_owned();
        }
        let numbers: BTreeMap<&str, usize> = hosts.iter().enumerate().map(|(number, host)| (*host, number)).collect();
        let mut lines = String::new();
        for (&block, rules) in blocks {
            for rule in rules {
                self.rule_lines(&mut lines, block, rule, numbers.get(rule.target.as_str()).copied().unwrap_or_default());
            }
        }
        format!("resolve {}\nrules=\"{lines}\"\nsettle\n", shell::join(hosts))
    }

    /// The lines of one rule, within double quotes of a shell that knows the address of its target by this number.
    fn rule_lines(&self, lines: &mut String, block: u16, rule: &Rule, number: usize) {
        let chain = self.block(block);
        let comment = shell::within_double_quotes(&format!("bwvisu:{}:{}:{}", rule.cluster, rule.job, rule.target));
        let mut line = |ports: String, internal: String| {
            let to = format!("-j DNAT --to-destination $at_{number}{internal}");
            let _ = writeln!(lines, "-A {chain} -p tcp -m tcp --dport {ports} -m comment --comment {comment} {to}");
        };
        let Span { external, internal, count } = rule.span;
        if external == internal {
            // The port is kept, so one rule does for all.
            line(format!("{external}:{}", external + (count - 1)), String::new());
        } else {
            rule.span.pairs().for_each(|(internal, external)| line(external.to_string(), format!(":{internal}")));
        }
    }

    /// Rewrites the chains of some blocks, if the way to them is there: what is written asks for that itself, so that all of it costs one
    /// call. Only where it was refused it is found out why. An iptables-restore that knows no such question is asked before.
    fn rewrite_script(&self, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> String {
        let jumps = blocks.keys().map(|&block| ("nat", self.prefix.clone(), self.jump(block)));
        let way: Vec<(&str, String, String)> =
            self.hooks().into_iter().map(|(table, chain, _, rule)| (table, chain.to_owned(), rule)).chain(jumps).collect();
        let asked = |wanted: &str| {
            let lines = way.iter().filter(|(table, ..)| *table == wanted).map(|(_, chain, rule)| format!("-C {chain} {rule}\n"));
            lines.collect::<String>()
        };
        let declared: String = blocks.keys().map(|&block| format!(":{} - [0:0]\n", self.block(block))).collect();
        let checks: String = way.iter().map(|(table, chain, rule)| format!("check {table} -C {chain} {rule}\n")).collect();
        let (filter, nat) = (asked("filter"), asked("nat"));
        format!(
            "{FUNCTIONS}{}restore <<TEXT && exit\n*filter\n{filter}COMMIT\n*nat\n{nat}{declared}$rules\nCOMMIT\nTEXT\nstatus=$?\n\
             # Others hold the lock.\n[ \"$status\" != 4 ] || exit \"$status\"\n\
             check() {{ sudo -n iptables -w 10 -t \"$@\" </dev/null >/dev/null 2>&1 || exit {NOT_READY}; }}\n{checks}\
             restore <<TEXT\n*nat\n{declared}$rules\nCOMMIT\nTEXT\n",
            self.rules_script(blocks)
        )
    }

    /// Makes the way to all blocks, and rewrites the given ones; blocks that are there and not given keep their rules.
    fn set_up_script(&self, saved: &Saved, blocks: &BTreeMap<u16, BTreeSet<Rule>>) -> String {
        let prefix = &self.prefix;
        let mut nat = format!("*nat\n:{prefix} - [0:0]\n:{prefix}-POST - [0:0]\n");
        let to_declare =
            |block: &u16| blocks.contains_key(block) || !saved.chains.contains_key(&("nat".into(), self.block(*block)));
        self.blocks().filter(to_declare).for_each(|block| nat += &format!(":{} - [0:0]\n", self.block(block)));
        self.blocks().for_each(|block| nat += &format!("-A {prefix} {}\n", self.jump(block)));
        nat += &format!("-A {prefix}-POST {} -j MASQUERADE\n", self.forwarded());
        let mut filter = format!("*filter\n:{prefix}-FWD - [0:0]\n-A {prefix}-FWD {} -j ACCEPT\n", self.forwarded());
        for (table, chain, target, rule) in self.hooks() {
            let text = if table == "nat" { &mut nat } else { &mut filter };
            *text += &hook_lines(saved.jumps(table, chain, &target), chain, &rule);
        }
        format!("{FUNCTIONS}{}restore <<TEXT\n{nat}$rules\nCOMMIT\n{filter}COMMIT\nTEXT\n", self.rules_script(blocks))
    }

    pub(crate) fn installed(&self, saved: &Saved) -> Installed {
        let hooked = self.hooks().iter().all(|(table, chain, target, _)| saved.jumps(table, chain, target) == 1);
        let range = format!("{}:{}", self.range.lo, self.range.hi);
        let one = |rules: &[Vec<String>]| matches!(rules, [rule] if rule.contains(&range));
        let filled = one(saved.rules("nat", &format!("{}-POST", self.prefix)))
            && one(saved.rules("filter", &format!("{}-FWD", self.prefix)));
        let reachable = self.blocks().all(|block| saved.jumps("nat", &self.prefix, &self.block(block)) == 1);
        Installed { blocks: self.read_blocks(saved), ready: hooked && filled && reachable }
    }

    fn read_blocks(&self, saved: &Saved) -> BTreeMap<u16, BTreeSet<Rule>> {
        let mut blocks = BTreeMap::new();
        for ((table, chain), rules) in &saved.chains {
            let number =
                chain.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('-')).and_then(|n| n.parse::<u16>().ok());
            if let (Some(block), "nat") = (number, table.as_str()) {
                blocks.insert(block, merge(rules.iter().map(|rule| read_rule(rule))));
            }
        }
        blocks
    }
}

/// A system's chain should lead into ours exactly once.
fn hook_lines(there: usize, chain: &str, rule: &str) -> String {
    match there {
        0 => format!("-I {chain} 1 {rule}\n"),
        n => format!("-D {chain} {rule}\n").repeat(n - 1),
    }
}

/// One of our rules as `iptables-save` shows it. What cannot be read becomes a rule that nobody wants, so that it goes.
fn read_rule(words: &[String]) -> Rule {
    let after = |option: &str| words.iter().position(|word| word == option).and_then(|at| words.get(at + 1)).map(String::as_str);
    let stray =
        Rule { cluster: String::new(), job: 0, span: Span { external: 0, internal: 0, count: 1 }, target: words.join(" ") };
    let read = || -> Option<Rule> {
        let mut owner = after("--comment")?.strip_prefix("bwvisu:")?.splitn(3, ':');
        let (cluster, job, target) = (owner.next()?, owner.next()?.parse().ok()?, owner.next()?);
        let (lo, hi) = after("--dport").map(|ports| ports.split_once(':').unwrap_or((ports, ports)))?;
        let (lo, hi): (u16, u16) = (lo.parse().ok()?, hi.parse().ok()?);
        let internal = match after("--to-destination")?.split_once(':') {
            Some((_, port)) => port.parse().ok()?,
            None => lo,
        };
        let span = Span { external: lo, internal, count: hi.checked_sub(lo)?.checked_add(1)? };
        Some(Rule { cluster: cluster.into(), job, span, target: target.into() })
    };
    read().unwrap_or(stray)
}

/// Rules of single ports become the span that they were made of.
fn merge(rules: impl Iterator<Item = Rule>) -> BTreeSet<Rule> {
    let mut merged: Vec<Rule> = Vec::new();
    for rule in rules {
        match merged.last_mut() {
            Some(last) if continues(last, &rule) => last.span.count += rule.span.count,
            _ => merged.push(rule),
        }
    }
    merged.into_iter().collect()
}

fn continues(last: &Rule, next: &Rule) -> bool {
    let differs = next.span.external != next.span.internal;
    // The last of all ports has none behind it.
    let behind = |first: u16| first.checked_add(last.span.count);
    let (external, internal) = (behind(last.span.external), behind(last.span.internal));
    let follows = external == Some(next.span.external) && internal == Some(next.span.internal);
    differs && follows && (&last.cluster, last.job, &last.target) == (&next.cluster, next.job, &next.target)
}

#[cfg(test)]
#[path = "iptables_tests.rs"]
mod tests;
