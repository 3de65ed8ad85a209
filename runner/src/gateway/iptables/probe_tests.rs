//! What each flavour of `nc` said, and bash in its place, of the same host: 9000 and 9002 are open, 9001, 9004 and 9006 closed, 9003 is
//! silent, and at 9005 a firewall says that there is no route. Recorded from `probe.sh`. The real ones look on the bed.

use super::*;
use std::collections::BTreeSet;

/// nc of OpenBSD (Debian's 1.219): it names what is closed, which `probe.sh` leaves out.
const OPENBSD: &str = "0 Connection to localhost (127.0.0.1) 9000 port [tcp/*] succeeded!
0 Connection to localhost (127.0.0.1) 9002 port [tcp/*] succeeded!
2 nc: connect to 10.77.0.1 port 9000 (tcp) failed: Network is unreachable
2 exit 1
3 Connection to 127.0.0.1 9000 port [tcp/*] succeeded!
3 exit 0
1 nc: getaddrinfo for host \"nosuch.host\" port 9000: Temporary failure in name resolution
4 exit 1
1 exit 1
0 nc: connect to localhost (127.0.0.1) port 9003 (tcp) timed out: Operation now in progress
0 nc: connect to localhost (127.0.0.1) port 9005 (tcp) failed: No route to host
0 exit 0
bwvisu-end
";

/// The traditional one (v1.10-47).
const TRADITIONAL: &str = "1 cannot resolve nosuch.host
1 exit 3
3 (UNKNOWN) [127.0.0.1] 9000 (?) open
3 exit 0
2 (UNKNOWN) [10.77.0.1] 9000 (?) : Network is unreachable
2 exit 0
4 exit 1
0 (UNKNOWN) [127.0.0.1] 9005 (?) : No route to host
0 (UNKNOWN) [127.0.0.1] 9003 (?) : Connection timed out
0 (UNKNOWN) [127.0.0.1] 9002 (?) open
0 (UNKNOWN) [127.0.0.1] 9000 (?) open
0 exit 0
bwvisu-end
";

/// bash 5.2, where nc is ncat, busybox's or missing.
const BASH: &str = "1 cannot resolve nosuch.host
1 exit 3
2 environment: connect: Network is unreachable
2 environment: line 3: /dev/tcp/10.77.0.1/9000: Network is unreachable
2 exit 0
0 port 9000 open
0 port 9002 open
3 port 9000 open
4 exit 0
3 exit 0
0 port 9003 silent
0 environment: connect: No route to host
0 environment: line 3: /dev/tcp/127.0.0.1/9005: No route to host
0 exit 0
bwvisu-end
";

fn target(host: &str, lo: u16, hi: u16) -> Target {
    Target { host: host.into(), ports: PortRange { lo, hi } }
}

/// Each host once, in this order.
fn looks(targets: &[Target]) -> Vec<Look> {
    apart(targets)
}

#[test]
fn every_flavour_tells_open_closed_silent_and_unresolvable_apart() {
    let targets = [("localhost", 9006), ("nosuch.host", 9000), ("10.77.0.1", 9000), ("c3", 9000), ("c4", 9000)]
        .map(|(h, hi)| target(h, 9000, hi));
    for (who, report) in [("openbsd", OPENBSD), ("traditional", TRADITIONAL), ("bash", BASH)] {
        let probe = read(&looks(&targets), report);
        let open = [("localhost", 9000), ("localhost", 9002), ("c3", 9000)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(probe.open, BTreeSet::from(open), "{who}");
        assert_eq!(probe.unreachable, BTreeSet::from(["localhost", "nosuch.host", "10.77.0.1"].map(str::to_owned)), "{who}");
    }
}

#[test]
fn a_service_that_has_a_name_is_open_by_its_number() {
    let cases = [
        "Connection to c0 (10.0.0.10) 8080 port [tcp/http-alt] succeeded!",
        "Connection to c0 (10.0.0.10) 8080 port [tcp/*] succeeded!",
        "(UNKNOWN) [10.0.0.10] 8080 (http-alt) open",
        "c0.cluster [10.0.0.10] 8080 (?) open",
        "port 8080 open",
    ];
    cases.iter().for_each(|words| assert_eq!(open_port(words), Some(8080), "{words}"));
}

#[test]
fn who_was_cut_off_is_unknown_and_a_port_that_nobody_asked_for_is_not_open() {
    let probe = read(&looks(&[target("c0", 50000, 50002)]), "0 port 50007 open\n0 exit 124\n9 port 50001 open\nx\n");
    assert_eq!((probe.open.len(), probe.unreachable.len()), (0, 1));
}

#[test]
fn hostile_host_names_stay_one_word() {
    let script = script(&looks(&[target("a';reboot", 1, 1)]), "", None);
    assert!(script.contains(r"probe 0 'a'\'';reboot' 1 &") && script.contains(r"resolve 'a'\'';reboot' ||"), "{script}");
}

#[test]
fn ports_of_one_host_are_looked_at_by_one_process_in_as_few_ranges_as_possible() {
    let targets =
        [target("b", 7, 9), target("a", 1, 2), target("b", 1, 3), target("b", 4, 5), target("b", 2, 3), target("b", 12, 12)];
    let range = |lo, hi| PortRange { lo, hi };
    let expected = [("a", vec![range(1, 2)]), ("b", vec![range(1, 5), range(7, 9), range(12, 12)])]
        .map(|(host, ports)| Look { host: host.into(), ports });
    assert_eq!(by_host(&targets), expected);
    let script = script(&by_host(&targets), "a", Some("openbsd"));
    assert!(script.contains("\nprobe 1 b 1-5 7-9 12 &\n") && script.contains("\nlistening 0 &\n"), "{script}");
    assert!(script.contains("\nlook=openbsd\n") && !script.contains("\nchoose\n"), "who looks is known: {script}");
}

#[test]
fn what_the_gateway_itself_listens_on_is_open_and_who_says_nothing_is_unknown() {
    let looks = by_host(&[target("c0", 50000, 50002), target("c1", 50000, 50002), target("gw", 50000, 50002)]);
    let probes = read_each(&looks, "0 port 50001 open\n2 listens 0016\n2 listens C351\n2 exit 0\n0 exit 143\nbwvisu-end\n");
    assert_eq!(probes[0].open, BTreeSet::from([("c0".to_owned(), 50001)]), "what was said before the time was over counts");
    assert_eq!(probes[2].open, BTreeSet::from([("gw".to_owned(), 50001)]));
    assert_eq!(probes.iter().map(|probe| probe.unreachable.len()).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(["looks bash\n", "0 exit 0\n", "looks rm\n"].map(flavour), [Some("bash"), None, None]);
}
