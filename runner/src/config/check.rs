//! What stands in the file, key by key, made into a [`Config`], or what is wrong with it.

use super::file::{self, ConfigFile, GatewayKind, SchedulerKind, Server, Settings, Tls};
use super::{
    Api, Cluster, Config, DEFAULT_CLUSTER, GatewayNode, Keyhole, Limits, Login, Metrics, Secret, StoreConfig, Transport, Watch,
    install_dir,
};
use crate::domain::ports::PortRange;
use crate::domain::user::UserPolicy;
use crate::error::{Error, Result};
use crate::ssh::SshOptions;
use crate::store::etcd::{EtcdConfig, EtcdTls};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

/// Makes checked values of what was read from `path`.
pub fn check(file: ConfigFile, settings: Settings, path: &Path) -> Result<Config> {
    let within = |error: Error| error.within(path.display());
    let state_dir = file.state_dir.clone().unwrap_or_else(|| "/var/lib/runner".into());
    let install = install_dir();
    let ssh = SshOptions {
        identity_file: file.ssh.identity_file.clone(),
        known_hosts: file.ssh.known_hosts.clone().unwrap_or_else(|| state_dir.join("ssh/known_hosts")),
        sockets: state_dir.join("ssh/sockets"),
    };
    Ok(Config {
        api: api(&file, settings.api_password.clone()).map_err(within)?,
        keyhole: keyhole(&file).map_err(within)?,
        metrics: metrics(&file, &settings).map_err(within)?,
        templates: file.templates.clone().unwrap_or_else(|| install.join("templates")),
        clients: install.join("share"),
        store: store(&file, &settings, &state_dir).map_err(within)?,
        ssh,
        watch: Watch {
            jobs: seconds("watch.jobs-seconds", file.watch.jobs_seconds).map_err(within)?,
            keyhole: seconds("watch.keyhole-seconds", file.watch.keyhole_seconds).map_err(within)?,
            probe: seconds("watch.probe-seconds", file.watch.probe_seconds).map_err(within)?,
        },
        limits: limits(&file.limits).map_err(within)?,
        keep_finished: seconds("keep-finished-jobs-days", file.keep_finished_jobs_days * 86400.0).map_err(within)?,
        keep_trail: seconds("keep-trail-days", file.keep_trail_days * 86400.0).map_err(within)?,
        clusters: vec![cluster(file).map_err(within)?],
        state_dir,
        file: path.to_owned(),
    })
}

fn api(file: &ConfigFile, password: Option<String>) -> Result<Api> {
    let listen = listen_address("api-listen", &file.api_listen)?;
    let transport = match &file.api_tls {
        Some(_) if file.api_plain_http => {
            return Err(Error::bad_input("api-plain-http: true contradicts api-tls; remove one of them"));
        }
        Some(Tls { certificate, key }) => Transport::Tls { certificate: certificate.clone(), key: key.clone() },
        None if file.api_plain_http => Transport::Plain,
        None => Transport::SelfSigned,
    };
    if password.as_deref() == Some("") {
        return Err(Error::bad_input("settings.json: api-password is empty"));
    }
    Ok(Api { listen, transport, password: password.map(Secret::new) })
}

fn metrics(file: &ConfigFile, settings: &Settings) -> Result<Metrics> {
    let password = settings.metrics_password.clone();
    match &password {
        Some(password) if password.is_empty() => return Err(Error::bad_input("settings.json: metrics-password is empty")),
        Some(_) if password == settings.api_password => {
            return Err(Error::bad_input(
                "settings.json: metrics-password is the api-password; who may read metrics could submit jobs",
            ));
        }
        _ => {}
    }
    let listen = file.metrics_listen.as_deref().map(|text| listen_address("metrics-listen", text)).transpose()?;
    if let Some(address) = listen {
        if !address.ip().is_loopback() && !file.metrics_plain_http {
            return Err(Error::bad_input(format!(
                "metrics-listen: {address} is reached over a network, where others may read the password: listen on 127.0.0.1, \
                 or say \"metrics-plain-http\": true"
            )));
        }
        if password.is_none() && settings.api_password.is_none() {
            return Err(Error::bad_input(
                "metrics-listen: write a metrics-password into settings.json; without it nobody may read",
            ));
        }
    }
    Ok(Metrics { listen, password: password.map(Secret::new) })
}

fn keyhole(file: &ConfigFile) -> Result<Keyhole> {
    let range = &file.keyholed_port_range;
    let max_ports = file.keyholed_max_forwarders_per_job;
    let ports = u32::from(range.max).saturating_sub(u32::from(range.min)) + 1;
    // A relay needs the other half of the range for itself.
    let available = if file.gateway == GatewayKind::Relay { ports / 2 } else { ports };
    if max_ports < 1 || max_ports > available.min(keyhole_protocol::MAX_PORTS) {
        return Err(Error::bad_input(format!(
            "keyholed-max-forwarders-per-job: {max_ports} is not between 1 and {}",
            available.min(keyhole_protocol::MAX_PORTS)
        )));
    }
    if file.keyholed_servers.is_empty() {
        return Err(Error::bad_input("keyholed-servers: empty; jobs need at least one server to ask for ports"));
    }
    Ok(Keyhole {
        listen: listen_address("keyhole-listen", &file.keyhole_listen)?,
        servers: file.keyholed_servers.iter().map(resolve).collect::<Result<_>>()?,
        max_ports,
        static_forwarding: file.debug.keyholed_static_forwarding,
    })
}

/// Jobs get literal addresses: a compute node may have no name service that a static program could ask.
fn resolve(server: &Server) -> Result<SocketAddr> {
    let found = (server.ip.as_str(), server.port).to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    found.ok_or_else(|| {
        Error::bad_input(format!("keyholed-servers: {:?} is neither an address nor a name that resolves", server.ip))
    })
}

fn listen_address(key: &str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| Error::bad_input(format!("{key}: {text:?} is not ADDRESS:PORT, such as \"0.0.0.0:4242\"")))
}

fn seconds(key: &str, seconds: f64) -> Result<Duration> {
    let bounded = Some(seconds).filter(|seconds| (0.05..=3.2e9).contains(seconds));
    bounded.map(Duration::from_secs_f64).ok_or_else(|| Error::bad_input(format!("{key}: is not a sensible time")))
}

fn limits(limits: &file::Limits) -> Result<Limits> {
    let most = crate::http::MOST_SUBMISSIONS;
    if !(1..=most).contains(&limits.submissions_in_flight) {
        return Err(Error::bad_input(format!(
            "limits.submissions-in-flight: {} is not between 1 and {most}",
            limits.submissions_in_flight
        )));
    }
    let jobs_per_user = Some(limits.jobs_per_user).filter(|most| *most > 0);
    Ok(Limits { submissions_in_flight: limits.submissions_in_flight, jobs_per_user })
}

/// One lost look is no death: at least three cycles of the watcher must pass.
fn gateway_down(file: &ConfigFile) -> Result<Duration> {
    let (key, least) = ("gateway-down-seconds", 3.0 * file.watch.keyhole_seconds);
    if file.gateway_down_seconds < least {
        return Err(Error::bad_input(format!(
            "{key}: {} is less than three times watch.keyhole-seconds ({least}); a gateway is given up only after several looks",
            file.gateway_down_seconds
        )));
    }
    seconds(key, file.gateway_down_seconds)
}

fn store(file: &ConfigFile, settings: &Settings, state_dir: &Path) -> Result<StoreConfig> {
    if file.etcd_servers.is_empty() {
        return Ok(StoreConfig::Embedded(state_dir.join("store.redb")));
    }
    let scheme = if file.etcd_tls.is_some() { "https" } else { "http" };
    let user = match (&settings.etcd_user, &settings.etcd_password) {
        (Some(user), Some(password)) => Some((user.clone(), password.clone())),
        (None, None) => None,
        _ => return Err(Error::bad_input("settings.json: etcd-user and etcd-password go together; one of them is missing")),
    };
    Ok(StoreConfig::Etcd(EtcdConfig {
        endpoints: file.etcd_servers.iter().map(|server| format!("{scheme}://{}:{}", server.ip, server.port)).collect(),
        user,
        tls: file.etcd_tls.as_ref().map(etcd_tls).transpose()?,
        timeout: Duration::from_secs(5),
    }))
}

fn etcd_tls(tls: &file::EtcdTls) -> Result<EtcdTls> {
    let certificate = match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        (None, None) => None,
        _ => return Err(Error::bad_input("etcd-tls: certificate and key go together; one of them is missing")),
    };
    Ok(EtcdTls { ca: tls.ca.clone(), certificate })
}

fn cluster(file: ConfigFile) -> Result<Cluster> {
    let range = PortRange { lo: file.keyholed_port_range.min, hi: file.keyholed_port_range.max };
    if range.lo < 1024 || range.is_empty() || range.len() < 2 {
        let (min, max) = (range.lo, range.hi);
        return Err(Error::bad_input(format!(
            "keyholed-port-range: {min} to {max} is not a range of at least two ports above 1023"
        )));
    }
    check_home_prefix(&file.bwvisu_home_prefix)?;
    let prefix = &file.iptables_chain_prefix;
    if prefix.is_empty() || prefix.len() > 16 || !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(Error::bad_input("iptables-chain-prefix: 1 to 16 letters, digits and underscores"));
    }
    let gateway_down = gateway_down(&file)?;
    let suffix = &file.forwarding_hostname_suffix;
    if !suffix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        return Err(Error::bad_input("forwarding-hostname-suffix: only letters, digits, - . _"));
    }
    Ok(Cluster {
        name: DEFAULT_CLUSTER.into(),
        scheduler: file.scheduler,
        command_nodes: command_nodes(&file)?,
        gateway: file.gateway,
        gateways: gateways(&file)?,
        ports: range,
        users: UserPolicy { min_uid: file.users.min_uid, group: file.users.group },
        local_slots: file.local_job_slots,
        gateway_down,
        home_prefix: file.bwvisu_home_prefix,
        hostname_suffix: file.forwarding_hostname_suffix,
        chain_prefix: file.iptables_chain_prefix,
    })
}

/// Templates have it in `{{bwvisu_home}}`, where it stands unquoted in a shell script.
fn check_home_prefix(prefix: &Path) -> Result<()> {
    if !prefix.is_absolute() {
        return Err(Error::bad_input("bwvisu-home-prefix: is not an absolute path"));
    }
    let safe = |byte: &u8| byte.is_ascii_alphanumeric() || b"./-_".contains(byte);
    if prefix.as_os_str().as_encoded_bytes().iter().all(safe) {
        return Ok(());
    }
    Err(Error::bad_input("bwvisu-home-prefix: only ASCII letters and digits, . / - _ may be in it, because templates use it"))
}

fn command_nodes(file: &ConfigFile) -> Result<Vec<Login>> {
    let nodes: Vec<_> =
        file.command_nodes.iter().map(|n| Login { address: n.ip.clone(), user: n.user.clone(), port: n.port }).collect();
    if nodes.is_empty() && file.scheduler == SchedulerKind::Slurm {
        return Err(Error::bad_input("command-nodes: empty; Slurm is reached through at least one"));
    }
    nodes.iter().try_for_each(|login| check_login("command-nodes", login))?;
    Ok(nodes)
}

fn gateways(file: &ConfigFile) -> Result<Vec<GatewayNode>> {
    if file.gateway_nodes.is_empty() {
        return Err(Error::bad_input("gateway-nodes: empty; ports are forwarded by at least one"));
    }
    if file.gateway == GatewayKind::Relay && file.gateway_nodes.len() > 1 {
        return Err(Error::bad_input("gateway-nodes: a relay is this machine alone, so there is exactly one"));
    }
    let node = |n: &file::GatewayNode| GatewayNode {
        login: Login { address: n.internal_ip.clone(), user: n.user.clone(), port: n.port },
        external_ip: n.external_ip.clone(),
        drain: n.drain,
    };
    let nodes: Vec<_> = file.gateway_nodes.iter().map(node).collect();
    for (at, gateway) in nodes.iter().enumerate() {
        if file.gateway == GatewayKind::Iptables {
            check_login("gateway-nodes", &gateway.login)?;
        }
        check_address("gateway-nodes: external-ip", &gateway.external_ip)?;
        check_address("gateway-nodes: internal-ip", &gateway.login.address)?;
        if nodes[..at].iter().any(|other| other.login.address == gateway.login.address) {
            return Err(Error::bad_input(format!("gateway-nodes: {} is there twice", gateway.login.address)));
        }
    }
    Ok(nodes)
}

fn check_login(key: &str, login: &Login) -> Result<()> {
    check_address(key, &login.address)?;
    crate::domain::user::check_user_name(&login.user)
        .map_err(|_| Error::bad_input(format!("{key}: {}: {:?} is not an account's name", login.address, login.user)))
}

/// An address or a name, and nothing that ssh or a key in the store could take for something else.
fn check_address(key: &str, address: &str) -> Result<()> {
    let good = !address.is_empty()
        && !address.starts_with('-')
        && address.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b));
    if good { Ok(()) } else { Err(Error::bad_input(format!("{key}: {address:?} is not an address or a host name"))) }
}
