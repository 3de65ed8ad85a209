//! What a gateway reports of the ports that it looked at, over ssh.

use super::{Outcome, Target, text};
use crate::domain::ports::PortRange;
use crate::gateway::Target as Host;
use crate::gateway::iptables::probe::{by_host, read};

pub(super) const TARGET: Target = Target {
    name: "nc-report",
    tokens: &[
        "0 ",
        "1 ",
        "2 ",
        "0 exit 0\n",
        "1 exit 1\n",
        "2 exit 124\n",
        " port [tcp/*] succeeded!",
        "Connection to c0 50001 port [tcp/*] succeeded!\n",
        "Connection to c2 (10.0.0.12) ",
        "(UNKNOWN) [10.0.0.10] 50002 (?) open\n",
        ") open\n",
        "port 50003 open\n",
        "port 50003 silent\n",
        "listens C352\n",
        "cannot resolve c1\n",
        "nc: getaddrinfo for host \"c3\" port 50000: Name or service not known\n",
        "bwvisu-end\n",
        "\n",
        " ",
    ],
    check,
};

fn check(input: &[u8]) -> Outcome {
    let report = match text(input) {
        Ok(report) => report,
        Err(outcome) => return outcome,
    };
    let host = |name: &str| Host { host: name.into(), ports: PortRange { lo: 50000, hi: 50003 } };
    let targets = [host("c0"), host("c1"), host("c2")];
    let probe = read(&by_host(&targets), report);
    for (name, port) in &probe.open {
        let asked = targets.iter().find(|target| target.host == *name);
        assert!(asked.is_some_and(|target| target.ports.contains(*port)), "{name}:{port} was not asked for");
        let hexadecimal = report.to_uppercase().contains(&format!("{port:X}"));
        assert!(hexadecimal || report.contains(&port.to_string()), "{name}:{port} is not in the report");
    }
    assert!(probe.unreachable.iter().all(|name| targets.iter().any(|target| target.host == *name)));
    match (probe.open.len(), probe.unreachable.len()) {
        (0, 0) => Outcome::refused(format_args!("nothing in {} lines", report.lines().count().min(9))),
        (open, unreachable) => Outcome::accepted(format_args!("{open} {unreachable}")),
    }
}
