//! `config.json`.

use super::{Outcome, Target, text};
use crate::config::file::{ConfigFile, Settings, parse};
use crate::config::{Config, check as checked};
use crate::error::{Error, ErrorKind, Result};
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

const FILE: &str = "/etc/runner/config.json";

pub(super) const TARGET: Target = Target {
    name: "config",
    tokens: &[
        "\"bwvisu-home-prefix\":",
        "\"gateway-nodes\":",
        "\"command-nodes\":",
        "\"keyholed-servers\":",
        "\"keyholed-port-range\":",
        "\"keyholed-max-forwarders-per-job\":",
        "\"debug\":{\"keyholed-static-forwarding\":\"True\"},",
        "\"etcd-tls\":{},",
        "\"api-plain-http\":true,",
        "\"api-listen\":\"[::1]:0\",",
        "\"scheduler\":\"local\",",
        "\"gateway\":\"relay\",",
        "\"watch\":{\"jobs-seconds\":1e-9},",
        "\"keep-finished-jobs-days\":",
        "\"limits\":",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "true",
        "\"\"",
        "\"-x\"",
        "1e400",
    ],
    check,
};

/// The whole way of a configuration, but for names: this is no place to ask a name service.
fn load(text: &str) -> Result<Config> {
    let path = Path::new(FILE);
    let file: ConfigFile = parse(text, path)?;
    if file.keyholed_servers.iter().any(|server| server.ip.parse::<IpAddr>().is_err()) {
        return Err(Error::bad_input(format!("{FILE}: a name")));
    }
    checked(file, Settings::default(), path)
}

fn check(input: &[u8]) -> Outcome {
    let text = match text(input) {
        Ok(text) => text,
        Err(outcome) => return outcome,
    };
    match load(text) {
        Ok(config) => {
            assert_sound(&config);
            let cluster = &config.clusters[0];
            let figures =
                (cluster.gateways.len().min(4), cluster.command_nodes.len().min(4), config.keyhole.servers.len().min(4));
            Outcome::accepted(format_args!(
                "{figures:?} {:?} {:?} {:?}",
                cluster.scheduler, cluster.gateway, config.api.transport
            ))
        }
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::BadInput, "{error}");
            assert!(error.message.starts_with(&format!("{FILE}: ")), "the file is not named: {error}");
            Outcome::refused(error)
        }
    }
}

/// What the rest of the program relies on.
fn assert_sound(config: &Config) {
    let [cluster] = &config.clusters[..] else { panic!("one cluster") };
    assert!(cluster.ports.lo >= 1024 && cluster.ports.len() >= 2, "{:?}", cluster.ports);
    assert!((1..=cluster.ports.len()).contains(&(config.keyhole.max_ports as usize)), "{:?}", config.keyhole);
    assert!(!config.keyhole.servers.is_empty() && !cluster.gateways.is_empty());
    assert!(cluster.home_prefix.is_absolute() && !cluster.home_prefix.to_string_lossy().contains([' ', '\n', '$', ';']));
    let addresses: HashSet<&str> = cluster.gateways.iter().map(|gateway| gateway.login.address.as_str()).collect();
    assert_eq!(addresses.len(), cluster.gateways.len(), "a gateway is there twice");
    let logins = cluster.gateways.iter().map(|gateway| &gateway.login).chain(&cluster.command_nodes);
    // All of these become arguments of ssh.
    for login in logins {
        assert!(!login.address.starts_with('-') && !login.user.starts_with('-'), "{login:?}");
        assert!(!login.address.contains(|c: char| c.is_whitespace() || "'\"$;/\\".contains(c)), "{login:?}");
    }
    assert!(config.watch.jobs.as_secs_f64() >= 0.05 && config.watch.keyhole.as_secs_f64() >= 0.05);
}
