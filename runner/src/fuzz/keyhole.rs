//! What keyhole and its clients send each other.

use super::{Outcome, Target, text};
use keyhole_protocol::{Confirm, Grant, MAX_NODES, MAX_PORTS, Request, nodelist};
use std::collections::HashSet;

pub(super) const TARGET: Target = Target {
    name: "keyhole",
    tokens: &[
        "keyhole 1\n",
        "keyhole 2\n",
        "job 17\n",
        "run 0\n",
        "nonce 00112233445566778899aabbccddeeff\n",
        "ports 2\n",
        "node c0\n",
        "node c1.hpc.example\n",
        "node ",
        "port 50000 129.206.9.65 50000\n",
        "port ",
        "\n",
        "\r\n",
        " ",
        "0",
        "\u{feff}",
    ],
    check,
};

fn check(input: &[u8]) -> Outcome {
    let text = match text(input) {
        Ok(text) => text,
        Err(outcome) => return outcome,
    };
    let kinds = (Request::parse(text), Grant::parse(text), Confirm::parse(text));
    let accepted = [kinds.0.is_ok(), kinds.1.is_ok(), kinds.2.is_ok()].iter().filter(|ok| **ok).count();
    assert!(accepted <= 1, "two readings of one body");
    match kinds {
        (Ok(request), ..) => {
            assert_eq!(request.to_body(), text, "a value has one body");
            let nodes: HashSet<&String> = request.nodes.iter().collect();
            assert!(nodes.len() == request.nodes.len() && (1..=MAX_NODES).contains(&nodes.len()));
            assert!(nodes.iter().all(|node| nodelist::is_host_name(node)) && (1..=MAX_PORTS).contains(&request.ports));
            Outcome::accepted(format_args!("request {}", request.nodes.len().min(9)))
        }
        (_, Ok(grant), _) => {
            assert_eq!(grant.to_body(), text, "a value has one body");
            let internal: HashSet<u16> = grant.ports.iter().map(|port| port.internal).collect();
            assert!(internal.len() == grant.ports.len() && !internal.contains(&0), "{grant:?}");
            // These become shell variables in a batch script.
            let plain = |gateway: &str| gateway.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-".contains(&byte));
            assert!(grant.ports.iter().all(|port| plain(&port.gateway)), "{grant:?}");
            Outcome::accepted(format_args!("grant {}", grant.ports.len().min(9)))
        }
        (.., Ok(confirm)) => {
            assert_eq!(confirm.to_body(), text, "a value has one body");
            Outcome::accepted("confirm")
        }
        (Err(request), Err(grant), Err(confirm)) => {
            let lines = text.lines().count() + 1;
            assert!(
                [request, grant, confirm].iter().all(|error| (1..=lines).contains(&error.line())),
                "{request} {grant} {confirm}"
            );
            Outcome::refused(format_args!("{request}; {grant}; {confirm}"))
        }
    }
}
