//! The program as a value: started from a configuration, stopped within a bounded time. Tests start several in one process.

use crate::cluster::Cluster;
use crate::config::{Config, StoreConfig, Transport};
use crate::domain::batch_script::Clients;
use crate::error::{Error, Result};
use crate::folder::{check_own, make_private};
use crate::http::guard::{self, Handler, Limits, Server};
use crate::http::{self, jobs::Api, self_signed, tls};
use crate::jobs::Jobs;
use crate::keyhole::Keyhole;
use crate::store::{Store, embedded::Embedded, etcd::Etcd};
use crate::templates::TemplateFolder;
use crate::watch::{Stop, jobs::JobsWatch, keyhole::KeyholeWatch, repeat};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long requests in flight may take when the program ends.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How long watchers may take then: what they are at is done again by the next leader, and another machine may let them wait long.
const WATCHERS_STOP_WITHIN: Duration = Duration::from_secs(3);

/// The four parts, which may run in one program or apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The API for front ends.
    Api,
    /// The scheduler's watcher.
    JobsWatch,
    /// The API for running jobs.
    Keyhole,
    /// The watcher of forwarded services.
    KeyholeWatch,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Api, Self::JobsWatch, Self::Keyhole, Self::KeyholeWatch];
}

impl FromStr for Part {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "api" => Ok(Self::Api),
            "jobs-watch" => Ok(Self::JobsWatch),
            "keyhole" => Ok(Self::Keyhole),
            "keyhole-watch" => Ok(Self::KeyholeWatch),
            _ => Err(format!("{word:?} is not one of api, jobs-watch, keyhole, keyhole-watch")),
        }
    }
}

/// A running program.
pub struct Runner {
    api: Option<Server>,
    keyhole: Option<Server>,
    watchers: Vec<JoinHandle<()>>,
    stop: Stop,
    store: Arc<Store>,
}

impl Runner {
    /// Starts these parts.
    pub fn start(config: &Config, parts: &BTreeSet<Part>) -> Result<Self> {
        prepare_folders(config)?;
        let store = Arc::new(Store::new(open_store(&config.store)?));
        let clusters =
            config.clusters.iter().map(|cluster| Cluster::new(cluster, config).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let keyhole = Arc::new(Keyhole::new(
            Arc::clone(&store),
            clusters.clone(),
            config.keyhole.max_ports,
            config.keyhole.static_forwarding,
        ));
        let mut runner = Self { api: None, keyhole: None, watchers: Vec::new(), stop: Stop::default(), store };
        for part in parts {
            runner.watch(*part, config, &clusters, &keyhole)?;
        }
        // Before the API: a job that starts at once must find it.
        if parts.contains(&Part::Keyhole) {
            runner.keyhole = Some(start_keyhole(config, keyhole)?);
        }
        if parts.contains(&Part::Api) {
            runner.api = Some(runner.start_api(config, clusters)?);
        }
        Ok(runner)
    }

    /// Where front ends find it, if the API runs here.
    pub fn api_address(&self) -> Option<SocketAddr> {
        self.api.as_ref().map(Server::address)
    }

    /// Where jobs find it, if keyhole runs here.
    pub fn keyhole_address(&self) -> Option<SocketAddr> {
        self.keyhole.as_ref().map(Server::address)
    }

    /// Ends everything: requests in flight are answered, leads are handed over.
    pub fn stop(self) {
        self.stop.stop();
        self.api.into_iter().chain(self.keyhole).for_each(|server| server.stop(STOP_WITHIN));
        let deadline = Instant::now() + WATCHERS_STOP_WITHIN;
        while self.watchers.iter().any(|watcher| !watcher.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        if self.watchers.iter().any(|watcher| !watcher.is_finished()) {
            log::warn!("a watcher waits for another machine; the program ends without it");
        }
        self.store.resign();
    }

    fn watch(&mut self, part: Part, config: &Config, clusters: &[Arc<Cluster>], keyhole: &Arc<Keyhole>) -> Result<()> {
        for cluster in clusters {
            let (store, stop) = (Arc::clone(&self.store), self.stop.clone());
            let started = match part {
                Part::JobsWatch => {
                    let interval = config.watch.jobs;
                    let mut watch = JobsWatch::new(Arc::clone(&store), Arc::clone(cluster), config.keep_finished);
                    repeat(format!("jobs-watch-{}", cluster.name), move || interval, store, stop, move || watch.cycle())
                }
                Part::KeyholeWatch => {
                    let interval = config.watch.keyhole;
                    let mut watch = KeyholeWatch::new(Arc::clone(&store), Arc::clone(cluster), Arc::clone(keyhole));
                    repeat(format!("keyhole-watch-{}", cluster.name), move || interval, store, stop, move || watch.cycle())
                }
                Part::Api | Part::Keyhole => return Ok(()),
            };
            self.watchers.push(started.map_err(|e| Error::internal(format!("no thread can be started: {e}")))?);
        }
        Ok(())
    }

    fn start_api(&self, config: &Config, clusters: Vec<Arc<Cluster>>) -> Result<Server> {
        let password = config.api.password.as_ref().ok_or_else(|| {
            let settings = config.file.with_file_name("settings.json");
            Error::bad_input(format!(
                "there is no api-password: write {{\"api-password\": \"…\"}} into {} (mode 0600)",
                settings.display()
            ))
        })?;
        let templates = TemplateFolder::new(config.templates.clone(), config.keyhole.max_ports);
        check_templates(&templates);
        let clients = load_clients(&config.clients)?;
        let servers = self.keyhole_servers(config);
        let max_ports = config.keyhole.max_ports;
        let jobs = Jobs::new(Arc::clone(&self.store), clusters, templates, clients, servers, max_ports, config.limits)
            .watched_every(config.watch.jobs);
        let api = Api::new(jobs, password).into_service();
        let tls = match &config.api.transport {
            Transport::Tls { certificate, key } => Some(tls::load(certificate, key)?),
            Transport::SelfSigned => Some(self_signed::load_or_make(&config.state_dir.join("tls"), config.api.listen.ip())?),
            Transport::Plain => None,
        };
        let server = guard::start("api", config.api.listen, tls, api_limits(), &config.state_dir.join("http"), api)?;
        log::info!("api: listening on {} ({:?})", server.address(), config.api.transport);
        Ok(server)
    }

    /// Port 0 stands for the port that keyhole got here, whichever it is.
    fn keyhole_servers(&self, config: &Config) -> Vec<SocketAddr> {
        let own = self.keyhole_address().map_or(0, |address| address.port());
        let with_port = |address: &SocketAddr| if address.port() == 0 { SocketAddr::new(address.ip(), own) } else { *address };
        config.keyhole.servers.iter().map(with_port).collect()
    }
}

fn start_keyhole(config: &Config, keyhole: Arc<Keyhole>) -> Result<Server> {
    let handler: Handler = Arc::new(move |request| http::keyhole::handle(&keyhole, &request));
    let server = guard::start("keyhole", config.keyhole.listen, None, keyhole_limits(), &config.state_dir.join("http"), handler)?;
    log::info!("keyhole: listening on {}", server.address());
    Ok(server)
}

/// A submission may have to try several command nodes, and look for a job whose answer was lost.
fn api_limits() -> Limits {
    Limits { handle: Duration::from_secs(150), body_bytes: 256 << 10, ..Limits::default() }
}

/// Room for the names of the largest job's nodes.
fn keyhole_limits() -> Limits {
    Limits { body_bytes: 320 << 10, ..Limits::default() }
}

/// Opens the store that the configuration names.
pub fn open_store(config: &StoreConfig) -> Result<Box<dyn crate::store::Backend>> {
    Ok(match config {
        StoreConfig::Etcd(etcd) => Box::new(Etcd::connect(etcd.clone())?),
        StoreConfig::Embedded(path) => Box::new(Embedded::open(path)?),
    })
}

fn prepare_folders(config: &Config) -> Result<()> {
    make_private(&config.state_dir)?;
    check_own(&config.state_dir)?;
    make_private(&config.state_dir.join("ssh"))?;
    make_private(&config.state_dir.join("http"))?;
    make_private(&config.ssh.sockets)?;
    crate::ssh::remove_stale_sockets(&config.ssh.sockets);
    Ok(())
}

/// A template that is wrong is its own misfortune: the others work.
fn check_templates(templates: &TemplateFolder) {
    match templates.names() {
        Ok(names) if names.is_empty() => log::warn!("templates: there are none"),
        Ok(names) => {
            for error in names.iter().filter_map(|name| templates.load(name).err()) {
                log::error!("{error}");
            }
        }
        Err(error) => log::error!("{error}"),
    }
}

/// The keyhole-clients of a folder, one per architecture: `keyhole-client.x86_64` and so on.
pub fn load_clients(folder: &Path) -> Result<Clients> {
    let unreadable = |e: std::io::Error| Error::bad_input(format!("folder {}: {e}; `make build` makes it", folder.display()));
    let mut programs = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(architecture) = name.strip_prefix("keyhole-client.") {
            programs.push((architecture.to_owned(), fs::read(&path).map_err(unreadable)?));
        }
    }
    programs.sort();
    if programs.is_empty() {
        return Err(Error::bad_input(format!(
            "folder {} holds no keyhole-client.<architecture>; `make build` makes them",
            folder.display()
        )));
    }
    Clients::new(programs)
}
