//! The two files as they are written: `config.json` and `settings.json`. Checked values are made of them in the parent module.

use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// `config.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ConfigFile {
    /// Users' private folders lie here, one for each user's name.
    pub bwvisu_home_prefix: PathBuf,
    #[serde(default)]
    pub gateway_nodes: Vec<GatewayNode>,
    #[serde(default)]
    pub command_nodes: Vec<CommandNode>,
    pub keyholed_servers: Vec<Server>,
    #[serde(default)]
    pub keyholed_port_range: PortRangeKey,
    #[serde(default = "default_max_forwarders")]
    pub keyholed_max_forwarders_per_job: u32,
    #[serde(default)]
    pub etcd_servers: Vec<Server>,
    pub etcd_tls: Option<EtcdTls>,
    #[serde(default)]
    pub debug: Debug,
    #[serde(default)]
    pub forwarding_hostname_suffix: String,
    #[serde(default = "default_api_listen")]
    pub api_listen: String,
    pub api_tls: Option<Tls>,
    #[serde(default)]
    pub api_plain_http: bool,
    #[serde(default = "default_keyhole_listen")]
    pub keyhole_listen: String,
    pub templates: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    #[serde(default)]
    pub ssh: Ssh,
    #[serde(default)]
    pub scheduler: SchedulerKind,
    #[serde(default)]
    pub gateway: GatewayKind,
    #[serde(default)]
    pub users: Users,
    #[serde(default = "default_chain_prefix")]
    pub iptables_chain_prefix: String,
    #[serde(default)]
    pub watch: Watch,
    #[serde(default = "default_keep_days")]
    pub keep_finished_jobs_days: f64,
    #[serde(default = "default_keep_trail_days")]
    pub keep_trail_days: f64,
    #[serde(default)]
    pub local_job_slots: Option<usize>,
    #[serde(default = "default_gateway_down_seconds")]
    pub gateway_down_seconds: f64,
    #[serde(default)]
    pub limits: Limits,
    pub metrics_listen: Option<String>,
    #[serde(default)]
    pub metrics_plain_http: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GatewayNode {
    pub internal_ip: String,
    pub external_ip: String,
    #[serde(default)]
    pub user: String,
    #[serde(default = "default_ssh_port")]
    pub port: u16,
    #[serde(default)]
    pub drain: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CommandNode {
    pub ip: String,
    pub user: String,
    #[serde(default = "default_ssh_port")]
    pub port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Server {
    pub ip: String,
    pub port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PortRangeKey {
    pub min: u16,
    pub max: u16,
}

impl Default for PortRangeKey {
    fn default() -> Self {
        Self { min: 50000, max: 60000 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EtcdTls {
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Debug {
    #[serde(default, deserialize_with = "bool_or_word")]
    pub keyholed_static_forwarding: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ssh {
    pub identity_file: Option<PathBuf>,
    pub known_hosts: Option<PathBuf>,
}

/// Where batch jobs go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchedulerKind {
    /// Slurm, over ssh to the command nodes.
    #[default]
    Slurm,
    /// Processes on this machine.
    Local,
}

/// How ports are forwarded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayKind {
    /// iptables, over ssh to the gateway nodes.
    #[default]
    Iptables,
    /// A relay in this program.
    Relay,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Users {
    #[serde(default = "default_min_uid")]
    pub min_uid: u32,
    pub group: Option<String>,
}

impl Default for Users {
    fn default() -> Self {
        Self { min_uid: default_min_uid(), group: None }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Watch {
    #[serde(default = "default_jobs_seconds")]
    pub jobs_seconds: f64,
    #[serde(default = "default_keyhole_seconds")]
    pub keyhole_seconds: f64,
    #[serde(default = "default_probe_seconds")]
    pub probe_seconds: f64,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            jobs_seconds: default_jobs_seconds(),
            keyhole_seconds: default_keyhole_seconds(),
            probe_seconds: default_probe_seconds(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Limits {
    #[serde(default = "default_submissions_in_flight")]
    pub submissions_in_flight: usize,
    #[serde(default = "default_jobs_per_user")]
    pub jobs_per_user: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { submissions_in_flight: default_submissions_in_flight(), jobs_per_user: default_jobs_per_user() }
    }
}

/// `settings.json`: what nobody else may read.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    pub api_password: Option<String>,
    pub metrics_password: Option<String>,
    pub etcd_user: Option<String>,
    pub etcd_password: Option<String>,
}

fn default_max_forwarders() -> u32 {
    100
}
fn default_api_listen() -> String {
    "0.0.0.0:4242".into()
}
fn default_keyhole_listen() -> String {
    "0.0.0.0:80".into()
}
fn default_chain_prefix() -> String {
    "BWVISU".into()
}
fn default_keep_days() -> f64 {
    7.0
}
fn default_keep_trail_days() -> f64 {
    180.0
}
fn default_ssh_port() -> u16 {
    22
}
fn default_min_uid() -> u32 {
    1000
}
fn default_jobs_seconds() -> f64 {
    5.0
}
fn default_keyhole_seconds() -> f64 {
    2.0
}
fn default_probe_seconds() -> f64 {
    0.5
}
fn default_gateway_down_seconds() -> f64 {
    60.0
}
fn default_submissions_in_flight() -> usize {
    24
}
fn default_jobs_per_user() -> u32 {
    100
}

/// `true`, `false`, or these words in quotes, as older files have them.
fn bool_or_word<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<bool, D::Error> {
    struct BoolOrWord;
    impl Visitor<'_> for BoolOrWord {
        type Value = bool;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true, false, \"True\" or \"False\"")
        }
        fn visit_bool<E>(self, value: bool) -> std::result::Result<bool, E> {
            Ok(value)
        }
        fn visit_str<E: de::Error>(self, value: &str) -> std::result::Result<bool, E> {
            match value {
                "True" | "true" => Ok(true),
                "False" | "false" => Ok(false),
                _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
            }
        }
    }
    deserializer.deserialize_any(BoolOrWord)
}

/// Reads `path`. Errors name the key, the file and the line.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(&text_of(path)?, path)
}

fn text_of(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::bad_input(format!("{}: cannot be read: {e}", path.display())))
}

/// Reads `text`, which came from `path`.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let key = e.path().to_string();
        // "?" is what it says where the text itself is broken.
        let key = if key == "." || key == "?" { String::new() } else { format!("{key}: ") };
        Error::bad_input(format!("{}: {key}{}", path.display(), e.into_inner()))
    })?;
    json.end().map_err(|e| Error::bad_input(format!("{}: {e}", path.display())))?;
    Ok(value)
}

/// Reads the text of `settings.json`, which came from `path`. Errors do not show what it holds, since they end up in logs.
pub fn parse_settings(text: &str, path: &Path) -> Result<Settings> {
    parse(text, path).map_err(|error| Error { message: without_values(error.message), ..error })
}

/// "invalid type: integer `4711`, expected a string" without the number.
fn without_values(message: String) -> String {
    let value = ["invalid type: ", "invalid value: "].iter().find_map(|words| message.find(words).map(|at| at + words.len()));
    match (value, message.rfind("expected ")) {
        (Some(begin), Some(end)) if begin <= end => format!("{}{}", &message[..begin], &message[end..]),
        _ => message,
    }
}

/// Reads `settings.json`, which only its owner may read. It may be absent.
pub fn read_settings(path: &Path) -> Result<Settings> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(Settings::default()) };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.display();
        return Err(Error::bad_input(format!("{path}: holds secrets, but its mode is {mode:04o}: chmod 0600 {path}")));
    }
    parse_settings(&text_of(path)?, path)
}
