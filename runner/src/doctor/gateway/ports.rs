//! The ports that were set aside: whether anybody else uses them on a gateway, and whether the kernel gives them away.

use super::{Wanted, sysctl};
use crate::config::GatewayNode;
use crate::doctor::node::Answers;
use crate::doctor::report::{Advice, Check, Finding};
use crate::domain::ports::PortRange;
use crate::domain::shell;
use crate::gateway::iptables::{Saved, read_listing};
use std::collections::BTreeSet;

/// Ports of our range that somebody else uses on the gateway.
pub(super) fn in_use(gateway: &GatewayNode, wanted: &Wanted, answers: &Answers) -> Finding {
    let (place, range) = (gateway.login.address.as_str(), wanted.range);
    if !answers.get("listening").is_good() {
        return Finding::not_checked(Check::PortRange, place, answers.get("listening").words());
    }
    let other = "or give us other ports (keyholed-port-range in config.json)";
    let listening = listeners(&answers.get("listening").text, range);
    if let Some((port, uid)) = listening.first() {
        let found = format!("user id {uid} listens on port {port}{}", and_more(listening.len()));
        let advice =
            Advice::new(format!("users of a job that gets this port would cut that off: find who it is, and end it, {other}"));
        return Finding::failed(Check::PortRange, place, found, advice.run(format!("ss -Hltnp 'sport = :{port}'")));
    }
    let saved = answers.get("sudo-iptables-save");
    let Some(rules) = read_rules(&saved.text).filter(|_| saved.is_good()) else {
        return Finding::not_checked(
            Check::PortRange,
            place,
            format!("nobody listens on {range}; the rules there cannot be read"),
        );
    };
    let foreign = foreign_rules(&rules, wanted.prefix, range, &gateway.external_ip);
    if let Some((chain, rule)) = foreign.first() {
        let rule = shell::join(rule.iter().map(String::as_str));
        let found = format!("another rule forwards ports of ours{}: {chain} {rule}", and_more(foreign.len()));
        let advice = Advice::new(format!("ours comes first, and would cut that off: remove it if nobody needs it, {other}"));
        return Finding::failed(
            Check::PortRange,
            place,
            found,
            advice.run(format!("iptables -t nat -D {} {rule}", shell::quote(chain))),
        );
    }
    Finding::ok(Check::PortRange, place, format!("nobody else has ports of {range}"))
}

fn and_more(count: usize) -> String {
    if count > 1 { format!(" (and {} more like it)", count - 1) } else { String::new() }
}

/// Who listens where others can connect: port and user id. The lines are those of `/proc/net/tcp`, address and owner alone.
fn listeners(text: &str, range: PortRange) -> BTreeSet<(u16, u32)> {
    let one = |line: &str| {
        let (local, uid) = line.split_once(' ')?;
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok().filter(|port| range.contains(*port))?;
        // 127.0.0.0/8, ::1, and the former as the latter writes it; each word as the processor has it.
        let loopback = address.len() == 8 && address.ends_with("7F")
            || address == "00000000000000000000000001000000"
            || address.starts_with("0000000000000000FFFF0000") && address.ends_with("7F");
        let uid = uid.trim().parse().ok()?;
        (!loopback).then_some((port, uid))
    };
    text.lines().filter_map(one).collect()
}

fn read_rules(text: &str) -> Option<Saved> {
    // sudo may mutter something between.
    let is_rule = |line: &&str| line.starts_with(['*', ':', '-', '#']) || *line == "COMMIT";
    let listing: String = text.lines().filter(is_rule).map(|line| format!("{line}\n")).collect();
    read_listing(&format!("bwvisu-begin\n{listing}bwvisu-end\n"))
}

/// Rules of others that send ports of ours elsewhere.
fn foreign_rules(saved: &Saved, prefix: &str, range: PortRange, external_ip: &str) -> Vec<(String, Vec<String>)> {
    let ours = |chain: &str| chain == prefix || chain.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-'));
    let mut found = Vec::new();
    for ((table, chain), rules) in &saved.chains {
        if table == "nat" && !ours(chain) {
            let taking = rules.iter().filter(|rule| takes(rule, chain, range, external_ip));
            found.extend(taking.map(|rule| (chain.clone(), rule.clone())));
        }
    }
    found
}

fn takes(rule: &[String], chain: &str, range: PortRange, external_ip: &str) -> bool {
    let after = |option: &[&str]| {
        rule.iter().position(|word| option.contains(&word.as_str())).and_then(|at| rule.get(at + 1)).map(String::as_str)
    };
    if !matches!(after(&["-j"]), Some("DNAT" | "REDIRECT")) || after(&["-p"]).is_some_and(|protocol| protocol != "tcp") {
        return false;
    }
    let to_us = |address: &str| address.trim_end_matches("/32") == external_ip;
    if after(&["-d"]).is_some_and(|address| !to_us(address)) {
        return false;
    }
    let overlaps = |part: &str| {
        let (lo, hi) = part.split_once(':').unwrap_or((part, part));
        matches!((lo.parse::<u16>(), hi.parse::<u16>()), (Ok(lo), Ok(hi)) if lo <= range.hi && hi >= range.lo)
    };
    match after(&["--dport", "--dports"]) {
        Some(ports) => ports.split(',').any(overlaps),
        // Which packets come to another chain is said elsewhere.
        None => chain == "PREROUTING",
    }
}

/// Whether the kernel gives ports of ours to outgoing connections.
pub(super) fn ephemeral(place: &str, range: PortRange, answers: &Answers) -> Finding {
    let numbers = |text: String| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u16>>();
    let Some([lo, hi]) = answers.line("ephemeral").map(numbers).and_then(|both| <[u16; 2]>::try_from(both).ok()) else {
        return Finding::not_checked(Check::EphemeralPorts, place, answers.get("ephemeral").words());
    };
    let reserved = answers.line("reserved").unwrap_or_default();
    let (first, last) = (range.lo.max(lo), range.hi.min(hi));
    if (first..=last).all(|port| is_reserved(&reserved, port)) {
        return Finding::ok(Check::EphemeralPorts, place, format!("{range} is not among {lo}-{hi}, or reserved"));
    }
    let all = if reserved.is_empty() { range.to_string() } else { format!("{reserved},{range}") };
    let advice = Advice::new("reserve ours, now and for the next boot; and do the same on the compute nodes")
        .run(sysctl("ports", &format!("net.ipv4.ip_local_reserved_ports={all}")));
    let found = format!("the kernel gives {first}-{last} of ours to outgoing connections (ip_local_port_range is {lo}-{hi})");
    Finding::failed(Check::EphemeralPorts, place, found, advice)
}

fn is_reserved(list: &str, port: u16) -> bool {
    list.split(',').any(|part| {
        let (lo, hi) = part.split_once('-').unwrap_or((part, part));
        matches!((lo.parse::<u16>(), hi.parse::<u16>()), (Ok(lo), Ok(hi)) if (lo..=hi).contains(&port))
    })
}
