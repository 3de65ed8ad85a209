use super::*;
use crate::config::Login;
use serde_json::Value;

const SAVED: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:SITE - [0:0]\n:BWVISU - [0:0]\n:BWVISU-500 - [0:0]\n-A PREROUTING -j SITE\n\
                     -A SITE -p tcp -m tcp --dport 8022 -j DNAT --to-destination 10.0.0.2:22\n\
                     -A BWVISU-500 -p tcp -m tcp --dport 50003 -j DNAT --to-destination 10.0.1.9\nCOMMIT";
const TWO_NODES: &str = "c0-ib0 10.0.1.1\nc1-ib0 10.0.1.2\nc0 10.0.0.10\nc1 10.0.0.11";
const PROBED: &str = "0 exit 1\n1 exit 1\nbwvisu-end";

fn gateway(address: &str, external: &str) -> GatewayNode {
    let login = Login { address: address.into(), user: "svc".into(), port: 22 };
    GatewayNode { login, external_ip: external.into(), drain: false }
}

/// What a gateway says where all is well.
const GOOD: [(&str, i32, &str); 23] = [
    ("path-iptables", 0, "/usr/sbin/iptables"),
    ("path-iptables-save", 0, "/usr/sbin/iptables-save"),
    ("path-iptables-restore", 0, "/usr/sbin/iptables-restore"),
    ("path-sudo", 0, "/usr/bin/sudo"),
    ("path-getent", 0, "/usr/bin/getent"),
    ("path-timeout", 0, "/usr/bin/timeout"),
    ("sudo-list", 0, "User svc may run the following commands on gw0:\n    (root) NOPASSWD: /usr/sbin/iptables"),
    ("sudo-iptables", 0, "-P PREROUTING ACCEPT"),
    ("sudo-iptables-save", 0, SAVED),
    ("sudo-iptables-restore", 0, ""),
    ("version", 0, "iptables v1.8.9 (nf_tables)"),
    ("ip-forward", 0, "1"),
    ("ephemeral", 0, "32768\t49999"),
    ("reserved", 0, ""),
    ("routes", 0, "Iface Destination Gateway\npub0 00000000 0101A8C0\neth0 0000000A 00000000"),
    (
        "addresses",
        0,
        "1: lo    inet 127.0.0.1/8 scope host lo\n2: pub0    inet 192.0.2.5/24 scope global pub0\n3: eth0    inet 10.0.0.5/24 scope global eth0",
    ),
    ("listening", 0, "00000000:0016 0\n0100007F:C351 0"),
    ("rp-filter", 0, "all 0\npub0 1\neth0 1"),
    ("nc", 0, "openbsd openbsd"),
    ("names", 0, TWO_NODES),
    ("probe", 0, PROBED),
    ("clock-begin", 0, "0"),
    ("clock-end", 0, "0"),
];

/// Other answers, what they make bad, and words that are then to be read.
type Case = (&'static [(&'static str, i32, &'static str)], &'static [&'static str], &'static str);

fn good_but(changes: &[(&'static str, i32, &'static str)]) -> Answers {
    let unchanged = GOOD.into_iter().filter(|(name, ..)| changes.iter().all(|(other, ..)| other != name));
    Answers::of(&unchanged.chain(changes.iter().copied()).collect::<Vec<_>>())
}

fn judged(answers: &Answers) -> Vec<Value> {
    let nodes = ["c0".to_owned(), "c1".to_owned()];
    let range = PortRange { lo: 50000, hi: 50999 };
    let wanted = Wanted { range, prefix: "BWVISU", suffix: "-ib0", nodes: &nodes, of: 2 };
    let gateway = gateway("gw0", "192.0.2.5");
    let mut findings = judge(&gateway, &wanted, answers, &BY_SUDO, &[sudo_rule("svc", Some(answers))]);
    findings.push(external(&gateway, &[(&gateway, Some(answers))]));
    findings.iter().map(|finding| serde_json::to_value(finding).unwrap()).collect()
}

#[test]
fn each_answer_that_is_not_as_it_should_be_makes_its_own_line_bad() {
    const NO: &str = "sudo: a password is required";
    let cases: &[Case] = &[
        (&[], &[], ""),
        (
            &[("sudo-iptables", 1, NO)],
            &["sudo failed"],
            "svc ALL=(root) NOPASSWD: /usr/sbin/iptables, /usr/sbin/iptables-save, /usr/sbin/iptables-restore",
        ),
        (&[("sudo-iptables-save", 1, NO)], &["sudo failed", "port-range not-checked"], "iptables-save"),
        (
            &[("path-iptables", 1, ""), ("sudo-iptables", 1, "sudo: iptables: command not found"), ("version", 127, "")],
            &["programs failed", "iptables not-checked"],
            "missing: iptables",
        ),
        (&[("sudo-iptables-restore", 1, "iptables-restore: line 2 failed")], &["iptables failed"], "line 2 failed"),
        (&[("ip-forward", 0, "0")], &["ip-forward failed"], "sysctl -p /etc/sysctl.d/60-bwvisu-forward.conf"),
        (&[("nc", 0, "none bash")], &["nc warning"], "bash looks in its place"),
        (&[("nc", 0, "ncat bash")], &["nc warning"], "nc is ncat"),
        (&[("nc", 0, "traditional traditional")], &[], ""),
        (&[("nc", 1, "neither nc (OpenBSD or traditional) nor bash is installed")], &["nc failed"], "netcat-openbsd"),
        (&[("listening", 0, "00000000:C352 1000")], &["port-range failed"], "sport = :50002"),
        (&[("listening", 0, "00000000000000000000000001000000:C352 0\n0000000000000000FFFF00000100007F:C353 0")], &[], ""),
        (&[("ephemeral", 0, "32768\t60999")], &["ephemeral-ports failed"], "ip_local_reserved_ports=50000-50999"),
        (&[("ephemeral", 0, "32768\t60999"), ("reserved", 0, "8080,50000-50500,50501-51000")], &[], ""),
        (&[("ephemeral", 0, "32768\t50100"), ("reserved", 0, "8080")], &["ephemeral-ports failed"], "ports=8080,50000-50999"),
        (
            &[("names", 0, "c0-ib0 \nc1-ib0 \nc0 10.0.0.10\nc1 10.0.0.11")],
            &["node-names failed", "node-reach not-checked"],
            "forwarding-hostname-suffix",
        ),
        (&[("names", 0, "c0-ib0 10.0.1.1\nc1-ib0 \nc0 \nc1 ")], &["node-names failed"], "put c1-ib0"),
        (&[("names", 124, "")], &["node-names not-checked", "node-reach not-checked"], "name service"),
        (&[("probe", 0, "0 exit 1\n1 exit 124\nbwvisu-end")], &["node-reach failed"], "c1-ib0 (10.0.1.2)"),
        (&[("probe", 1, "nc is not installed")], &["node-reach not-checked"], "nc is not installed"),
        (
            &[("addresses", 0, "3: eth0    inet 10.0.0.5/24 scope global eth0")],
            &["return-path not-checked", "external-address warning"],
            "192.0.2.5 is on none",
        ),
        (&[("routes", 0, "eth0 00000000 0101A8C0")], &["return-path warning"], "net.ipv4.conf.pub0.rp_filter=2"),
        (&[("routes", 0, "eth0 00000000 0101A8C0"), ("rp-filter", 0, "all 2\npub0 1\neth0 1")], &[], ""),
    ];
    for (changes, expected, words) in cases {
        let lines = judged(&good_but(changes));
        let bad: Vec<&Value> = lines.iter().filter(|line| line["result"] != "ok").collect();
        let faults: Vec<String> =
            bad.iter().map(|line| format!("{} {}", line["check"].as_str().unwrap(), line["result"].as_str().unwrap())).collect();
        assert_eq!(faults, *expected, "{changes:?}: {bad:#?}");
        let text = bad.iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains(words), "{changes:?}: {text}");
    }
}

#[test]
fn rules_of_others_that_take_ports_of_ours_are_found_with_the_command_that_removes_them() {
    let cases = [
        ("-A SITE -p tcp -m tcp --dport 50010 -j DNAT --to-destination 10.0.0.9:22", true),
        ("-A SITE -p tcp -m multiport --dports 80,50990:51200 -j REDIRECT --to-ports 80", true),
        ("-A SITE -d 192.0.2.5/32 -p tcp -m tcp --dport 50999 -j DNAT --to-destination 10.0.0.9", true),
        ("-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.9", true),
        ("-A SITE -p tcp -j DNAT --to-destination 10.0.0.9", false),
        ("-A SITE -d 192.0.2.77/32 -p tcp -m tcp --dport 50999 -j DNAT --to-destination 10.0.0.9", false),
        ("-A SITE -p udp -m udp --dport 50010 -j DNAT --to-destination 10.0.0.9", false),
        ("-A SITE -p tcp -m tcp --dport 51000 -j DNAT --to-destination 10.0.0.9", false),
        ("-A SITE -p tcp -m tcp --dport 50010 -j ACCEPT", false),
        ("-A BWVISU-500 -p tcp -m tcp --dport 50010 -j DNAT --to-destination 10.0.0.9", false),
    ];
    for (rule, found) in cases {
        let saved: &'static str = Box::leak(SAVED.replace("COMMIT", &format!("{rule}\nCOMMIT")).into_boxed_str());
        let lines = judged(&good_but(&[("sudo-iptables-save", 0, saved)]));
        let line = lines.iter().find(|line| line["check"] == "port-range").unwrap();
        let expected = if found { "failed" } else { "ok" };
        assert_eq!(line["result"], expected, "{rule}: {line}");
        if found {
            assert_eq!(line["command"], format!("iptables -t nat -D {}", &rule[3..]), "{rule}");
        }
    }
}

#[test]
fn words_of_sudo_between_the_rules_do_no_harm() {
    let saved: &'static str = Box::leak(format!("sudo: unable to resolve host gw0\n{SAVED}").into_boxed_str());
    assert!(judged(&good_but(&[("sudo-iptables-save", 0, saved)])).iter().all(|line| line["result"] == "ok"));
}

#[test]
fn legacy_rules_beside_the_others_are_a_warning() {
    let saved: &'static str = Box::leak(
        format!("{SAVED}\n# Warning: iptables-legacy tables present, use iptables-legacy-save to see them").into_boxed_str(),
    );
    let lines = judged(&good_but(&[("sudo-iptables-save", 0, saved)]));
    let line = lines.iter().find(|line| line["check"] == "iptables").unwrap();
    assert_eq!(line["result"], "warning", "{line}");
    assert!(line["found"].as_str().unwrap().contains("nft backend"));
}

#[test]
fn addresses_that_were_exchanged_are_named() {
    let (one, two) = (gateway("gw0", "192.0.2.6"), gateway("gw1", "192.0.2.5"));
    let (first, second) = (good_but(&[]), good_but(&[("addresses", 0, "2: pub0    inet 192.0.2.6/24 scope global pub0")]));
    let all = [(&one, Some(&first)), (&two, Some(&second))];
    let finding = serde_json::to_value(external(&one, &all)).unwrap();
    assert_eq!(finding["result"], "failed");
    assert_eq!(finding["found"], "192.0.2.6 is an address of gateway gw1");
    assert_eq!(serde_json::to_value(external(&two, &[(&two, None)])).unwrap()["result"], "not-checked");
}
