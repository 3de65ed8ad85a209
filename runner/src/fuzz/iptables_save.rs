//! What `iptables-save` says about a gateway's rules, over ssh.

use super::{Outcome, Target, cuts, text};
use crate::domain::ports::PortRange;
use crate::gateway::iptables::{Chains, read_listing};

pub(super) const TARGET: Target = Target {
    name: "iptables-save",
    tokens: &[
        "bwvisu-begin\n",
        "bwvisu-end\n",
        "*nat\n",
        "*filter\n",
        "COMMIT\n",
        ":BWVISU-500 - [0:0]\n",
        ":BWVISU - [0:0]\n",
        "-A BWVISU-500 ",
        "-A PREROUTING ",
        "-A ",
        "-p tcp -m tcp --dport ",
        "--dport 65535 ",
        "--dport 0:65535 ",
        ":",
        "-m comment --comment ",
        "\"bwvisu:default:17:c0-ib0\"",
        "bwvisu:default:18:c1",
        "\"",
        "\\",
        " -j DNAT --to-destination 10.0.0.10",
        ":65535",
        "-j BWVISU",
        "\n",
        "# ",
    ],
    check,
};

fn chains() -> Chains {
    Chains { prefix: "BWVISU".into(), range: PortRange { lo: 50000, hi: 50199 } }
}

fn check(input: &[u8]) -> Outcome {
    let text = match text(input) {
        Ok(text) => text,
        Err(outcome) => return outcome,
    };
    let Some(mut saved) = read_listing(text) else {
        let marks = ["bwvisu-begin\n", "\nbwvisu-end\n", "*nat\n", "COMMIT\n"].map(|mark| text.matches(mark).count().min(3));
        return Outcome::refused(format_args!("{marks:?} {:?}", text.matches('"').count() % 2));
    };
    let installed = chains().installed(&saved);
    // Half a listing would show rules as missing that are there, and none is taken for whole.
    for at in cuts(text) {
        assert!(read_listing(&text[..at]).is_none(), "cut at {at}");
    }
    let lines = text.lines().count();
    let rules: Vec<_> = installed.blocks.values().flatten().collect();
    assert!(rules.len() <= lines && installed.blocks.len() <= lines);
    let plain = text.replace('\\', "");
    for rule in &rules {
        let ours = rule.cluster.is_empty() || plain.contains(&rule.cluster.replace('\\', ""));
        assert!(ours && rule.span.count > 0, "{rule:?}");
        assert!(u32::from(rule.span.external) + u32::from(rule.span.count) <= 0x1_0000, "{rule:?}");
    }
    // What others have in their chains changes nothing.
    saved.chains.retain(|(_, chain), _| {
        chain.starts_with("BWVISU") || ["PREROUTING", "POSTROUTING", "FORWARD"].contains(&chain.as_str())
    });
    assert_eq!(chains().installed(&saved), installed);
    let strays = rules.iter().filter(|rule| rule.cluster.is_empty()).count();
    Outcome::accepted(format_args!(
        "{} {} {} {}",
        installed.ready,
        installed.blocks.len().min(8),
        rules.len().min(8),
        strays.min(8)
    ))
}
