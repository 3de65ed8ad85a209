//! Files → one checked [`Config`], when the program starts and when it is told to look again. Nobody else looks at the files.
//!
//! Inside, a configuration is a list of clusters; the file describes one, called [`DEFAULT_CLUSTER`].

#[allow(missing_docs, reason = "the keys are documented in docs/config.md, name by name")]
pub mod file;
pub mod unedited;

use crate::domain::ports::PortRange;
use crate::domain::user::UserPolicy;
use crate::error::{Error, Result};
use crate::ssh::SshOptions;
use crate::store::etcd::{EtcdConfig, EtcdTls};
use file::{ConfigFile, GatewayKind, SchedulerKind, Server, Settings, Tls};
use std::env;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the one cluster that a configuration file describes.
pub const DEFAULT_CLUSTER: &str = "default";

/// Everything that the program was told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// The front ends' side.
    pub api: Api,
    /// The jobs' side.
    pub keyhole: Keyhole,
    /// The admins' side.
    pub metrics: Metrics,
    /// Batch script templates.
    pub templates: PathBuf,
    /// The folder of the `keyhole-client.<arch>` programs.
    pub clients: PathBuf,
    /// What this machine must keep: the embedded store, sockets, host keys.
    pub state_dir: PathBuf,
    /// Where records are kept.
    pub store: StoreConfig,
    /// How other machines are reached.
    pub ssh: SshOptions,
    /// How often the watchers look.
    pub watch: Watch,
    /// How long finished jobs are kept.
    pub keep_finished: Duration,
    /// How long it is known who had which ports.
    pub keep_trail: Duration,
    /// What may be asked of us at once.
    pub limits: Limits,
    /// The clusters.
    pub clusters: Vec<Cluster>,
}

/// What may be asked of us at once. Beyond, the answer is that it is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Submissions that are under way at the same time.
    pub submissions_in_flight: usize,
    /// Unfinished jobs of one user; `None` for any number.
    pub jobs_per_user: Option<u32>,
}

/// The front ends' side.
#[derive(Debug, Clone)]
pub struct Api {
    /// Where it listens.
    pub listen: SocketAddr,
    /// How connections are protected.
    pub transport: Transport,
    /// The password of the user `bwvisu-web`.
    pub password: Option<Secret>,
}

/// How the API's connections are protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// TLS with these files.
    Tls {
        /// Certificates, the server's own first (PEM).
        certificate: PathBuf,
        /// Its private key (PEM).
        key: PathBuf,
    },
    /// TLS with a certificate of our own making, kept in the state folder.
    SelfSigned,
    /// None.
    Plain,
}

/// The jobs' side.
#[derive(Debug, Clone)]
pub struct Keyhole {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where jobs find it, as literal addresses.
    pub servers: Vec<SocketAddr>,
    /// How many ports a job may have.
    pub max_ports: u32,
    /// Debugging aid: always the same ports.
    pub static_forwarding: bool,
}

/// The admins' side.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Where metrics are shown beside the API, in plain HTTP.
    pub listen: Option<SocketAddr>,
    /// The password of the user `bwvisu-metrics`.
    pub password: Option<Secret>,
}

/// Where records are kept.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// etcd.
    Etcd(EtcdConfig),
    /// A file on this machine.
    Embedded(PathBuf),
}

/// How often the watchers look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// At the scheduler.
    pub jobs: Duration,
    /// At the gateways.
    pub keyhole: Duration,
    /// At the ports of applications that have not begun to listen.
    pub probe: Duration,
}

impl Watch {
    /// How often the watcher of the gateways has something to do.
    pub fn step(self) -> Duration {
        self.keyhole.min(self.probe)
    }
}

/// One cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name, in every record and key.
    pub name: String,
    /// Users' private folders lie here.
    pub home_prefix: PathBuf,
    /// Where batch jobs go.
    pub scheduler: SchedulerKind,
    /// `user@address:port` of the command nodes.
    pub command_nodes: Vec<Login>,
    /// How ports are forwarded.
    pub gateway: GatewayKind,
    /// The gateways.
    pub gateways: Vec<GatewayNode>,
    /// Appended to a node's name for the address to forward to.
    pub hostname_suffix: String,
    /// The ports that were set aside for us.
    pub ports: PortRange,
    /// Who may use the service.
    pub users: UserPolicy,
    /// What the names of our iptables chains begin with.
    pub chain_prefix: String,
    /// How many jobs the local scheduler runs at once.
    pub local_slots: Option<usize>,
    /// A gateway that was silent for longer is taken for dead: its forwardings are moved.
    pub gateway_down: Duration,
}

/// How to log in on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Name or address.
    pub address: String,
    /// The account there.
    pub user: String,
    /// sshd's port.
    pub port: u16,
}

/// A gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayNode {
    /// How we reach it.
    pub login: Login,
    /// How users reach it.
    pub external_ip: String,
    /// Nothing new goes there.
    pub drain: bool,
}

/// A secret that does not show in logs.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The secret itself, for the one place that compares or sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The folder that the program is installed in: `BWVISU_INSTALL_DIR`, else the parent of the `bin/` that it lies in.
pub fn install_dir() -> PathBuf {
    if let Some(folder) = env::var_os("BWVISU_INSTALL_DIR").filter(|folder| !folder.is_empty()) {
        return folder.into();
    }
    let program = env::current_exe().unwrap_or_default();
    program.parent().and_then(Path::parent).unwrap_or(Path::new("/opt/runner")).to_owned()
}

/// The files that are looked for when none is named, in this order.
pub fn search_path() -> [PathBuf; 4] {
    let install = install_dir();
    [
        install.join("config.json"),
        install.join("../etc/config.json"),
        "/etc/runner/config.json".into(),
        "/opt/runner/etc/config.json".into(),
    ]
}

/// Reads the configuration named on the command line, or the first that is found.
pub fn load(named: Option<&Path>) -> Result<Config> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => search_path().into_iter().find(|path| path.exists()).ok_or_else(nothing_found)?,
    };
    let settings = file::read_settings(&path.with_file_name("settings.json"))?;
    let settings = with_credentials(settings)?;
    unedited::check(&path, &settings)?;
    check(file::read(&path)?, settings, &path)
}

fn nothing_found() -> Error {
    let looked = search_path().map(|path| path.display().to_string()).join(", ");
    Error::bad_input(format!("no configuration found (looked for {looked}); name one with --config, or try `bwvisu-runner demo`"))
}

/// Credentials that systemd hands over win over `settings.json`.
pub(crate) fn with_credentials(settings: Settings) -> Result<Settings> {
    let Some(folder) = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from) else { return Ok(settings) };
    let credential = |name: &str, otherwise: Option<String>| match std::fs::read_to_string(folder.join(name)) {
        Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(otherwise),
        Err(e) => Err(Error::bad_input(format!("credential {name}: cannot be read: {e}"))),
    };
    Ok(Settings {
        api_password: credential("api-password", settings.api_password)?,
        metrics_password: credential("metrics-password", settings.metrics_password)?,
        etcd_user: credential("etcd-user", settings.etcd_user)?,
        etcd_password: credential("etcd-password", settings.etcd_password)?,
    })
}

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
    Ok(Api { listen, transport, password: password.map(Secret) })
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
    Ok(Metrics { listen, password: password.map(Secret) })
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
