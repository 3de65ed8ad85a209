//! Files → one checked [`Config`], when the program starts and when it is told to look again. Nobody else looks at the files.
//!
//! Inside, a configuration is a list of clusters; the file describes one, called [`DEFAULT_CLUSTER`].

#[allow(missing_docs, reason = "the keys are documented in docs/config.md, name by name")]
pub mod file;
pub mod unedited;

mod check;

use crate::domain::ports::PortRange;
use crate::domain::user::UserPolicy;
use crate::error::{Error, Result};
use crate::ssh::SshOptions;
use crate::store::etcd::EtcdConfig;
use file::{GatewayKind, SchedulerKind, Settings};
use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::check::check;

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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
