//! A gateway: what forwarding needs there, and who else has a part in it.

mod ports;

use super::node::{self, Answers, ask, paths};
use super::report::{Advice, Check, Finding};
use crate::config::GatewayNode;
use crate::domain::ports::PortRange;
use crate::domain::shell;
use crate::gateway::Target;
use crate::gateway::iptables::probe;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{Ipv4Addr, ToSocketAddrs};

/// What is called there by sudo.
pub(super) const BY_SUDO: [&str; 3] = ["iptables", "iptables-save", "iptables-restore"];
const PROGRAMS: [&str; 6] = ["iptables", "iptables-save", "iptables-restore", "sudo", "getent", "timeout"];

/// What a gateway is asked about.
pub(super) struct Wanted<'a> {
    /// The ports that were set aside.
    pub(super) range: PortRange,
    /// What the names of our chains begin with.
    pub(super) prefix: &'a str,
    /// Appended to the names of compute nodes.
    pub(super) suffix: &'a str,
    /// Compute nodes to look at.
    pub(super) nodes: &'a [String],
    /// How many there are.
    pub(super) of: usize,
}

impl Wanted<'_> {
    fn targets(&self) -> Vec<Target> {
        // Whether anything listens there does not matter: a refusal comes from the node, too.
        let ports = PortRange { lo: self.range.lo, hi: self.range.lo };
        self.nodes.iter().map(|node| Target { host: format!("{node}{}", self.suffix), ports }).collect()
    }

    fn count(&self) -> String {
        match self.of {
            of if of == self.nodes.len() => format!("all {of}"),
            of => format!("{} of {of}, as a sample", self.nodes.len()),
        }
    }
}

/// The script's questions.
pub(super) fn questions(wanted: &Wanted) -> String {
    let mut script = paths(&PROGRAMS);
    script += "ask sudo-list soon 10 sudo -n -l\n\
               ask sudo-iptables soon 12 sudo -n iptables -w 5 -t nat -S PREROUTING\n\
               ask sudo-iptables-save soon 12 sudo -n iptables-save -t nat\n";
    script +=
        &ask("sudo-iptables-restore", 12, "printf '*filter\\nCOMMIT\\n' | sudo -n iptables-restore --noflush --test --wait 5");
    script += "ask version iptables --version\n\
               ask ip-forward cat /proc/sys/net/ipv4/ip_forward\n\
               ask ephemeral cat /proc/sys/net/ipv4/ip_local_port_range\n\
               ask reserved cat /proc/sys/net/ipv4/ip_local_reserved_ports\n\
               ask routes cat /proc/net/route\n\
               ask addresses ip -o -4 addr show\n";
    script += &ask("listening", 10, "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\" { print $2, $8 }'");
    script +=
        &ask("rp-filter", 10, "cd /proc/sys/net/ipv4/conf && for f in */rp_filter; do echo \"${f%/*} $(cat \"$f\")\"; done");
    script += &ask("nc", 10, &format!("{}choose\necho \"$(flavour) $look\"", probe::FUNCTIONS));
    if !wanted.nodes.is_empty() {
        script += &ask("names", 20, &names_script(wanted));
        script += &ask("probe", 25, &probe::script(&probe::by_host(&wanted.targets()), "", None));
    }
    script
}

/// Side by side: a name service that does not answer is waited for once. With the suffix, and without.
fn names_script(wanted: &Wanted) -> String {
    let mut script = "look() { echo \"$1 $(timeout 8 getent ahostsv4 \"$1\" | head -n 1 | cut -d' ' -f1)\"; }\n".to_owned();
    let plain = wanted.nodes.iter().filter(|_| !wanted.suffix.is_empty()).cloned();
    for name in wanted.targets().into_iter().map(|target| target.host).chain(plain) {
        let _ = writeln!(script, "look {} &", shell::quote(&name));
    }
    script + "wait"
}

/// What the answers mean. `lines`: the rules of sudo that are right for this node.
pub(super) fn judge(
    gateway: &GatewayNode,
    wanted: &Wanted,
    answers: &Answers,
    needed: &[&str],
    lines: &[String],
) -> Vec<Finding> {
    let (place, login) = (gateway.login.address.as_str(), gateway.login.user.as_str());
    vec![
        programs(place, answers),
        sudo(place, login, answers, lines),
        node::needless(place, login, answers, needed, lines),
        iptables(place, answers),
        nc(place, answers),
        ip_forward(place, answers),
        ports::in_use(gateway, wanted, answers),
        ports::ephemeral(place, wanted.range, answers),
        names(place, wanted, answers),
        reach(place, wanted, answers),
        return_path(gateway, answers),
    ]
}

/// The rule that lets our account do what it must, and nothing else.
pub(super) fn sudo_rule(login: &str, answers: Option<&Answers>) -> String {
    node::sudo_rule(login, "root", &BY_SUDO, "/usr/sbin", answers)
}

fn programs(place: &str, answers: &Answers) -> Finding {
    match answers.paths(&PROGRAMS) {
        Ok(paths) => Finding::ok(Check::Programs, place, paths.join(" ")),
        Err(missing) => Finding::failed(
            Check::Programs,
            place,
            format!("missing: {}", missing.join(", ")),
            Advice::new("install it there (Debian: iptables, sudo; EL: iptables-nft, sudo; timeout is in coreutils)")
                .run("apt-get install iptables sudo || dnf install iptables-nft sudo"),
        ),
    }
}

/// The refusals of sudo itself, not those of the programs.
fn refused(answers: &Answers, program: &str) -> bool {
    let answer = answers.get(&format!("sudo-{program}"));
    !answer.is_good()
        && answers.line(&format!("path-{program}")).is_some()
        && (answer.text.contains("sudo:") || answer.status == 124)
}

fn sudo(place: &str, login: &str, answers: &Answers, lines: &[String]) -> Finding {
    if answers.line("path-sudo").is_none() {
        return Finding::not_checked(Check::Sudo, place, "sudo is missing");
    }
    let there: Vec<&str> = BY_SUDO.into_iter().filter(|program| answers.line(&format!("path-{program}")).is_some()).collect();
    if there.is_empty() {
        return Finding::not_checked(Check::Sudo, place, "iptables is missing");
    }
    let bad: Vec<&str> = there.iter().copied().filter(|program| refused(answers, program)).collect();
    let Some(first) = bad.first() else {
        return Finding::ok(Check::Sudo, place, format!("{} without a password", there.join(", ")));
    };
    let words = answers.get(&format!("sudo-{first}")).words();
    let advice =
        Advice::new(format!("allow it, without a password, by this line in /etc/sudoers.d/{login}: {}", lines.join(" / ")));
    let found = format!("{login} cannot run {}: {words}", bad.join(", "));
    Finding::failed(Check::Sudo, place, found, advice.run(node::write_sudoers(login, lines)))
}

fn iptables(place: &str, answers: &Answers) -> Finding {
    let Some(version) = answers.line("version") else {
        return Finding::not_checked(Check::Iptables, place, "iptables is missing");
    };
    let kind = match version.split_once('(').map(|(_, kind)| kind.trim_end_matches(')')) {
        Some("nf_tables") => "nft",
        Some(other) => other,
        None => "legacy",
    };
    let found = format!("{version}: the {kind} backend");
    let broken = BY_SUDO.iter().map(|program| (program, answers.get(&format!("sudo-{program}")))).find(|(program, answer)| {
        !answer.is_good() && !refused(answers, program) && answers.line(&format!("path-{program}")).is_some()
    });
    if let Some((program, answer)) = broken {
        let advice = Advice::new(
            "see on the gateway, as root, why it does not work: the kernel's modules (nf_tables, nft_compat, ip_tables) may be missing",
        );
        return Finding::failed(Check::Iptables, place, format!("{version}: {program}: {}", answer.words()), advice);
    }
    if answers.get("sudo-iptables-save").text.contains("iptables-legacy tables present") {
        let advice = Advice::new(
            "both kinds filter every packet: move the rules of iptables-legacy to iptables, then flush the old tables \
             (`iptables-legacy-save` shows them), or let `update-alternatives --config iptables` choose the one that is in use",
        );
        return Finding::warning(Check::Iptables, place, format!("{found}, but there are legacy tables, too"), advice);
    }
    Finding::ok(Check::Iptables, place, found)
}

/// Without an `nc` that takes ranges, bash looks in its place: it works, and costs more.
fn nc(place: &str, answers: &Answers) -> Finding {
    let install = || {
        Advice::new("install OpenBSD's nc (Debian: netcat-openbsd)").run("apt-get install netcat-openbsd || dnf install netcat")
    };
    let Some(line) = answers.line("nc") else {
        return Finding::failed(Check::Nc, place, format!("no port can be looked at: {}", answers.get("nc").words()), install());
    };
    match line.split_once(' ').unwrap_or((&line, "")) {
        ("openbsd", _) => Finding::ok(Check::Nc, place, "OpenBSD's"),
        ("traditional", _) => Finding::ok(Check::Nc, place, "the traditional one"),
        (kind, looks) => {
            let kind = if kind == "none" {
                "nc is not installed".to_owned()
            } else {
                format!("nc is {kind}, which takes no ranges of ports")
            };
            Finding::warning(Check::Nc, place, format!("{kind}; {looks} looks in its place, which costs more"), install())
        }
    }
}

fn ip_forward(place: &str, answers: &Answers) -> Finding {
    match answers.line("ip-forward").as_deref() {
        Some("1") => Finding::ok(Check::IpForward, place, "on"),
        Some(_) => {
            let advice = Advice::new("switch it on, now and for the next boot").run(sysctl("forward", "net.ipv4.ip_forward=1"));
            Finding::failed(Check::IpForward, place, "net.ipv4.ip_forward is off: nothing is forwarded", advice)
        }
        None => Finding::not_checked(Check::IpForward, place, answers.get("ip-forward").words()),
    }
}

fn sysctl(name: &str, line: &str) -> String {
    let file = format!("/etc/sysctl.d/60-bwvisu-{name}.conf");
    format!("echo '{line}' >{file} && sysctl -p {file}")
}

/// Name → address, of those that have one.
fn addresses_of_names(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.trim().split_once(' ')).filter(|(_, address)| !address.is_empty()).collect()
}

fn names(place: &str, wanted: &Wanted, answers: &Answers) -> Finding {
    if wanted.nodes.is_empty() {
        return Finding::not_checked(Check::NodeNames, place, "no command node told which compute nodes there are");
    }
    let answer = answers.get("names");
    let known = addresses_of_names(&answer.text);
    let (good, bad): (Vec<_>, Vec<_>) =
        wanted.targets().into_iter().map(|target| target.host).partition(|host| known.contains_key(host.as_str()));
    let (Some(missing), false) = (bad.first(), answer.status == 124) else {
        let example =
            good.first().and_then(|name| known.get(name.as_str()).map(|address| format!(", such as {name}: {address}")));
        return match answer.status {
            124 => Finding::not_checked(Check::NodeNames, place, "the name service did not answer in time"),
            _ => Finding::ok(Check::NodeNames, place, format!("{}{}", wanted.count(), example.unwrap_or_default())),
        };
    };
    let found = format!("{} of {} names have no address, such as {missing}", bad.len(), wanted.nodes.len());
    let plain = wanted.nodes.iter().filter(|node| known.contains_key(node.as_str())).count();
    let advice = if plain == wanted.nodes.len() && !wanted.suffix.is_empty() {
        format!(
            "the plain names have one: write \"forwarding-hostname-suffix\": \"\" into config.json, or the suffix that the names of the \
             network between gateways and compute nodes really have, instead of \"{}\"",
            wanted.suffix
        )
    } else {
        format!(
            "put {missing} and the others into the gateway's /etc/hosts or its name service, or mend forwarding-hostname-suffix in config.json"
        )
    };
    Finding::failed(Check::NodeNames, place, found, Advice::new(advice))
}

fn reach(place: &str, wanted: &Wanted, answers: &Answers) -> Finding {
    let names_of = answers.get("names");
    let known = addresses_of_names(&names_of.text);
    let targets: Vec<Target> = wanted.targets();
    let named: Vec<&Target> = targets.iter().filter(|target| known.contains_key(target.host.as_str())).collect();
    if named.is_empty() {
        return Finding::not_checked(Check::NodeReach, place, "no compute node is known by name here");
    }
    let answer = answers.get("probe");
    if !answer.is_good() {
        return Finding::not_checked(Check::NodeReach, place, format!("ports cannot be probed: {}", answer.words()));
    }
    let unreachable = probe::read(&probe::by_host(&targets), &answer.text).unreachable;
    let bad: Vec<&str> = named.iter().map(|target| target.host.as_str()).filter(|host| unreachable.contains(*host)).collect();
    let Some(first) = bad.first() else {
        return Finding::ok(Check::NodeReach, place, wanted.count());
    };
    let found = format!("{} of {} do not answer on port {}: {}", bad.len(), named.len(), wanted.range.lo, bad.join(" "));
    let advice = Advice::new(format!(
        "the gateway must reach {} of the compute nodes: see routes and firewalls between it and {first} ({}), on the node itself too; a node that is off \
         is Slurm's to drain",
        wanted.range,
        known.get(first).unwrap_or(&"no address")
    ));
    Finding::failed(Check::NodeReach, place, found, advice)
}

/// Interface and address, of `ip -o -4 addr show`.
fn interfaces(text: &str) -> Vec<(String, Ipv4Addr)> {
    let one = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let interface = words.next()?.to_owned();
        let address = words.nth(1)?.split('/').next()?.parse().ok()?;
        Some((interface, address))
    };
    text.lines().filter_map(one).collect()
}

fn interface_of(gateway: &GatewayNode, answers: &Answers) -> Option<String> {
    let external = external_address(gateway)?;
    interfaces(&answers.get("addresses").text).into_iter().find(|(_, address)| *address == external).map(|(name, _)| name)
}

fn external_address(gateway: &GatewayNode) -> Option<Ipv4Addr> {
    let found = (gateway.external_ip.as_str(), 0u16).to_socket_addrs().ok()?;
    found.into_iter().find_map(|address| match address.ip() {
        std::net::IpAddr::V4(address) => Some(address),
        std::net::IpAddr::V6(_) => None,
    })
}

/// Whether the address that users are told is one of the gateway's own. `all`: what the gateways answered.
pub(super) fn external(gateway: &GatewayNode, all: &[(&GatewayNode, Option<&Answers>)]) -> Finding {
    let (place, external) = (gateway.login.address.as_str(), gateway.external_ip.as_str());
    let Some(address) = external_address(gateway) else {
        let advice =
            Advice::new("write an address, or a name that resolves, as its external-ip into config.json; forwarding is for IPv4");
        return Finding::failed(Check::ExternalAddress, place, format!("{external} has no IPv4 address"), advice);
    };
    let own = |answers: &Answers| interfaces(&answers.get("addresses").text);
    let has = |answers: &Answers| own(answers).into_iter().find(|(_, known)| *known == address);
    let answers_of = |gateway: &GatewayNode| {
        all.iter().find(|(other, _)| other.login.address == gateway.login.address).and_then(|(_, answers)| *answers)
    };
    let Some(answers) = answers_of(gateway).filter(|answers| !own(answers).is_empty()) else {
        return Finding::not_checked(Check::ExternalAddress, place, "the gateway did not tell its addresses");
    };
    if let Some((interface, _)) = has(answers) {
        return Finding::ok(Check::ExternalAddress, place, format!("{external} on {interface}"));
    }
    let seen = own(answers)
        .iter()
        .filter(|(_, address)| !address.is_loopback())
        .map(|(_, a)| a.to_string())
        .collect::<Vec<_>>()
        .join(", ");
    if let Some((other, _)) = all.iter().find(|(_, answers)| answers.is_some_and(|answers| has(answers).is_some())) {
        let advice = Advice::new(format!("exchange the external-ip of the two in config.json; this one has {seen}"));
        let found = format!("{external} is an address of gateway {}", other.login.address);
        return Finding::failed(Check::ExternalAddress, place, found, advice);
    }
    let advice = Advice::new(format!(
        "if a router in front translates {external} to this gateway, it must do so for our ports, unchanged, and all is well; if not, write one of \
         its own addresses as external-ip into config.json"
    ));
    Finding::warning(Check::ExternalAddress, place, format!("{external} is on none of its interfaces ({seen})"), advice)
}

/// Strict filtering drops users' packets where the way back to them is another interface.
fn return_path(gateway: &GatewayNode, answers: &Answers) -> Finding {
    let place = gateway.login.address.as_str();
    let Some(interface) = interface_of(gateway, answers) else {
        return Finding::not_checked(Check::ReturnPath, place, "the external address is on no interface");
    };
    let routes = answers.get("routes").text;
    let default = routes.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|_| words.next() == Some("00000000")).map(str::to_owned)
    });
    let defaults: BTreeSet<String> = default.collect();
    let filters = answers.get("rp-filter").text;
    let filter = |name: &str| {
        let value = filters.lines().filter_map(|line| line.split_once(' ')).find(|(known, _)| *known == name);
        value.and_then(|(_, value)| value.trim().parse::<u8>().ok()).unwrap_or(0)
    };
    let strict = filter("all").max(filter(&interface)) == 1;
    if !strict || defaults.is_empty() || defaults.contains(&interface) {
        return Finding::ok(Check::ReturnPath, place, format!("by {interface}"));
    }
    let by = defaults.into_iter().collect::<Vec<_>>().join(", ");
    let found = format!("users come in by {interface}, the way back to them is {by}, and rp_filter is strict: they are dropped");
    let advice = Advice::new("let the default route lead out by the interface of the external address, or filter loosely")
        .run(sysctl("return", &format!("net.ipv4.conf.{}.rp_filter=2", interface.replace('.', "/"))));
    Finding::warning(Check::ReturnPath, place, found, advice)
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
