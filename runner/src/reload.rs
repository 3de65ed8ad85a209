//! What a changed configuration means for a program that runs: most of it counts at once; the rest stays as it was until a restart.

use crate::config::file::GatewayKind;
use crate::config::{Api, Cluster, Config, StoreConfig, Transport};
use crate::store::etcd::EtcdConfig;

/// The names of keys that were changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What counts from now on.
    pub taken: Vec<&'static str>,
    /// What stays as it was.
    pub kept: Vec<&'static str>,
}

impl Changes {
    /// Gives `new` the value of `old` back, if it was changed.
    fn keep<T: Clone + PartialEq>(&mut self, key: &'static str, old: &T, new: &mut T) -> bool {
        let changed = old != new;
        if changed {
            self.kept.push(key);
            *new = old.clone();
        }
        changed
    }

    fn take<T: PartialEq>(&mut self, key: &'static str, old: &T, new: &T) {
        if old != new {
            self.taken.push(key);
        }
    }
}

/// Compares two configurations, and puts back into the new one what cannot change in a running program: what is listened on, where records
/// are, and what kind of machinery jobs and ports are in.
pub fn settle(old: &Config, new: &mut Config) -> Changes {
    let mut changes = Changes::default();
    places(&mut changes, old, new);
    transport(&mut changes, &old.api, &mut new.api);
    store(&mut changes, &old.store, &mut new.store);
    for (old, new) in old.clusters.iter().zip(&mut new.clusters) {
        machinery(&mut changes, old, new);
    }
    compare(&mut changes, old, new);
    changes
}

fn places(changes: &mut Changes, old: &Config, new: &mut Config) {
    changes.keep("api-listen", &old.api.listen, &mut new.api.listen);
    changes.keep("keyhole-listen", &old.keyhole.listen, &mut new.keyhole.listen);
    changes.keep("metrics-listen", &old.metrics.listen, &mut new.metrics.listen);
    // What lies in the state folder by default stays with it.
    if new.ssh.known_hosts == new.state_dir.join("ssh/known_hosts") && old.state_dir != new.state_dir {
        new.ssh.known_hosts = old.state_dir.join("ssh/known_hosts");
    }
    changes.keep("state-dir", &old.state_dir, &mut new.state_dir);
    new.ssh.sockets = old.ssh.sockets.clone();
    new.clients = old.clients.clone();
}

/// Certificates come and go, but a port either speaks TLS or does not.
fn transport(changes: &mut Changes, old: &Api, new: &mut Api) {
    if (old.transport == Transport::Plain) != (new.transport == Transport::Plain) {
        changes.keep("api-plain-http", &old.transport, &mut new.transport);
    }
}

fn store(changes: &mut Changes, old: &StoreConfig, new: &mut StoreConfig) {
    match (old, &mut *new) {
        (StoreConfig::Etcd(old), StoreConfig::Etcd(new)) => etcd(changes, old, new),
        // Its file is in the state folder.
        (StoreConfig::Embedded(_), StoreConfig::Embedded(_)) => {}
        _ => changes.kept.push("etcd-servers"),
    }
    *new = old.clone();
}

fn etcd(changes: &mut Changes, old: &EtcdConfig, new: &mut EtcdConfig) {
    let files = |config: &EtcdConfig| config.tls.as_ref().map(|tls| (tls.ca.clone(), tls.certificate.clone()));
    let name = |config: &EtcdConfig| config.user.as_ref().map(|(user, _)| user.clone());
    let password = |config: &EtcdConfig| config.user.as_ref().map(|(_, password)| password.clone());
    let without_scheme = |config: &EtcdConfig| -> Vec<String> {
        config.endpoints.iter().map(|it| it.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    };
    changes.keep("etcd-servers", &without_scheme(old), &mut without_scheme(new));
    changes.keep("etcd-tls", &files(old), &mut files(new));
    changes.keep("etcd-user", &name(old), &mut name(new));
    changes.keep("etcd-password", &password(old), &mut password(new));
}

/// Running jobs are in the hands of one scheduler, and their ports in those of one kind of gateway.
fn machinery(changes: &mut Changes, old: &Cluster, new: &mut Cluster) {
    if changes.keep("scheduler", &old.scheduler, &mut new.scheduler) {
        new.command_nodes = old.command_nodes.clone();
    }
    changes.keep("local-job-slots", &old.local_slots, &mut new.local_slots);
    changes.keep("iptables-chain-prefix", &old.chain_prefix, &mut new.chain_prefix);
    if changes.keep("gateway", &old.gateway, &mut new.gateway) {
        new.gateways = old.gateways.clone();
    }
    if old.gateway != GatewayKind::Relay {
        return;
    }
    // The relay is this program's own: its ports and sessions are those of one address.
    let addresses = |cluster: &Cluster| {
        cluster.gateways.iter().map(|gateway| (gateway.login.address.clone(), gateway.external_ip.clone())).collect::<Vec<_>>()
    };
    if changes.keep("gateway-nodes", &addresses(old), &mut addresses(new)) {
        new.gateways = old.gateways.clone();
    }
}

fn compare(changes: &mut Changes, old: &Config, new: &Config) {
    let password = |config: &Config| config.api.password.as_ref().map(|password| password.expose().to_owned());
    changes.take("api-password", &password(old), &password(new));
    let metrics = |config: &Config| config.metrics.password.as_ref().map(|password| password.expose().to_owned());
    changes.take("metrics-password", &metrics(old), &metrics(new));
    changes.take("api-tls", &old.api.transport, &new.api.transport);
    changes.take("templates", &old.templates, &new.templates);
    changes.take("limits", &old.limits, &new.limits);
    changes.take("watch", &old.watch, &new.watch);
    changes.take("keep-finished-jobs-days", &old.keep_finished, &new.keep_finished);
    changes.take("keep-trail-days", &old.keep_trail, &new.keep_trail);
    changes.take("ssh", &old.ssh, &new.ssh);
    changes.take("keyholed-servers", &old.keyhole.servers, &new.keyhole.servers);
    changes.take("keyholed-max-forwarders-per-job", &old.keyhole.max_ports, &new.keyhole.max_ports);
    changes.take("debug", &old.keyhole.static_forwarding, &new.keyhole.static_forwarding);
    for (old, new) in old.clusters.iter().zip(&new.clusters) {
        changes.take("bwvisu-home-prefix", &old.home_prefix, &new.home_prefix);
        changes.take("users", &old.users, &new.users);
        changes.take("command-nodes", &old.command_nodes, &new.command_nodes);
        changes.take("gateway-nodes", &old.gateways, &new.gateways);
        changes.take("gateway-down-seconds", &old.gateway_down, &new.gateway_down);
        changes.take("forwarding-hostname-suffix", &old.hostname_suffix, &new.hostname_suffix);
        changes.take("keyholed-port-range", &old.ports, &new.ports);
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
