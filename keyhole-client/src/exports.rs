//! What the shell is to know.

use alloc::string::String;
use keyhole_protocol::{Grant, decimal};

/// The lines that a shell evaluates. The values are numbers and names of gateways, in which nothing means anything to a
/// shell: the protocol's reader has seen to that.
#[must_use]
pub fn exports(grant: &Grant) -> String {
    let mut text = String::new();
    for (index, port) in grant.ports.iter().enumerate() {
        open_line(&mut text, "PORT", index);
        decimal::push(&mut text, port.internal.into());
        open_line(&mut text, "GATEWAY", index);
        text.push_str(&port.gateway);
        open_line(&mut text, "EXTERNAL_PORT", index);
        decimal::push(&mut text, port.external.into());
    }
    text.push_str("\nexport KEYHOLE_NUM_PORTS=");
    decimal::push(&mut text, grant.ports.len() as u64);
    text.push('\n');
    text
}

/// Ends the line before, and writes this one up to its value.
fn open_line(text: &mut String, name: &str, index: usize) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str("export KEYHOLE_");
    text.push_str(name);
    decimal::push(text, index as u64);
    text.push('=');
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use keyhole_protocol::{GrantedPort, Nonce};

    #[test]
    fn every_port_has_three_lines_and_the_number_comes_last() {
        let port = |internal, gateway: &str, external| GrantedPort { internal, gateway: gateway.into(), external };
        let ports = vec![port(50000, "129.206.9.65", 50010), port(50001, "2001:db8::1", 1)];
        let lines = "\
export KEYHOLE_PORT0=50000
export KEYHOLE_GATEWAY0=129.206.9.65
export KEYHOLE_EXTERNAL_PORT0=50010
export KEYHOLE_PORT1=50001
export KEYHOLE_GATEWAY1=2001:db8::1
export KEYHOLE_EXTERNAL_PORT1=1
export KEYHOLE_NUM_PORTS=2
";
        assert_eq!(exports(&Grant { nonce: Nonce([0; 16]), ports }), lines);
    }
}
