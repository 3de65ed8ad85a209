//! The program as a value: started from a configuration, stopped within a bounded time. Tests start several in one process.

use crate::cluster::Cluster;
use crate::config::{self, Config, StoreConfig, Transport};
use crate::descriptors;
use crate::domain::batch_script::Clients;
use crate::error::{Error, Result};
use crate::folder::{check_own, make_private};
use crate::http::credentials::Credentials;
use crate::http::guard::{self, Handler, Limits, Server, Service};
use crate::http::{self, jobs::Api, self_signed, tls};
use crate::jobs::Jobs;
use crate::keyhole::Keyhole;
use crate::live::Live;
use crate::reload::{Changes, settle};
use crate::store::{Backend, Store, embedded::Embedded, etcd::Etcd};
use crate::systemd::Sockets;
use crate::templates::TemplateFolder;
use crate::vitals::Vitals;
use crate::watch::{Stop, Watcher, jobs::JobsWatch, keyhole::KeyholeWatch, repeat};
use rustls::ServerConfig;
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
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

/// What requests and watchers work on. When the configuration changes, another one takes its place as a whole.
struct Setup {
    clusters: Vec<Arc<Cluster>>,
    keyhole: Arc<Keyhole>,
    watch: config::Watch,
    keep_finished: Duration,
    keep_trail: Duration,
}

impl Setup {
    fn cluster(&self, name: &str) -> Result<&Arc<Cluster>> {
        let found = self.clusters.iter().find(|cluster| cluster.name == name);
        found.ok_or_else(|| Error::internal(format!("cluster {name} is no longer configured")))
    }
}

/// What the API is made of, checked and ready.
struct Front {
    jobs: Jobs,
    templates: TemplateFolder,
    clients: Clients,
    /// The certificate and its key, and their digest.
    tls: Option<(Arc<ServerConfig>, [u8; 32])>,
}

/// What was read last, to be compared with what is read next.
struct Known {
    config: Config,
    clients: Option<Clients>,
    certificate: Option<[u8; 32]>,
}

/// A running program.
pub struct Runner {
    setup: Arc<Live<Setup>>,
    known: Mutex<Known>,
    api: Option<(Arc<Api>, Server)>,
    keyhole: Option<Server>,
    metrics: Option<Server>,
    credentials: Arc<Credentials>,
    vitals: Arc<Vitals>,
    watchers: Arc<Mutex<Vec<Watcher>>>,
    stop: Stop,
    store: Arc<Store>,
}

impl Runner {
    /// Starts these parts.
    pub fn start(config: &Config, parts: &BTreeSet<Part>) -> Result<Self> {
        Self::start_on(config, parts, &mut Sockets::default())
    }

    /// The same, with those of the sockets that listen already where they should.
    pub fn start_on(config: &Config, parts: &BTreeSet<Part>, sockets: &mut Sockets) -> Result<Self> {
        descriptors::provide(config)?;
        prepare_folders(config)?;
        let store = Arc::new(Store::new(keep_store(&config.store)?));
        let clusters =
            config.clusters.iter().map(|cluster| Cluster::new(cluster, config).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let (max_ports, fixed) = (config.keyhole.max_ports, config.keyhole.static_forwarding);
        let keyhole = Keyhole::new(Arc::clone(&store), clusters.clone(), max_ports, fixed);
        let setup = Arc::new(Live::new(setup(config, clusters, keyhole)));
        let known = Known { config: config.clone(), clients: None, certificate: None };
        let (watchers, stop) = (Arc::<Mutex<Vec<Watcher>>>::default(), Stop::default());
        let present = Arc::clone(&setup);
        let vitals = Vitals::new(
            Arc::clone(&store),
            Box::new(move || present.get().clusters.clone()),
            Arc::clone(&watchers),
            stop.clone(),
        );
        let mut runner = Self {
            setup,
            known: Mutex::new(known),
            api: None,
            keyhole: None,
            metrics: None,
            credentials: Arc::new(Credentials::new(config.api.password.as_ref(), config.metrics.password.as_ref())),
            vitals: Arc::new(vitals),
            watchers,
            stop,
            store,
        };
        for part in parts {
            runner.watch(*part, config)?;
        }
        // Before the API: a job that starts at once must find it.
        if parts.contains(&Part::Keyhole) {
            runner.keyhole = Some(start_keyhole(config, Arc::clone(&runner.setup), Arc::clone(&runner.vitals), sockets)?);
        }
        if let Some(address) = config.metrics.listen {
            runner.metrics = Some(runner.start_metrics(address, sockets)?);
        }
        if parts.contains(&Part::Api) {
            runner.start_api(config, sockets)?;
        }
        Ok(runner)
    }

    /// Where front ends find it, if the API runs here.
    pub fn api_address(&self) -> Option<SocketAddr> {
        self.api.as_ref().map(|(_, server)| server.address())
    }

    /// Where jobs find it, if keyhole runs here.
    pub fn keyhole_address(&self) -> Option<SocketAddr> {
        self.keyhole.as_ref().map(Server::address)
    }

    /// What of it stands still though it should not: an accepting thread, or a watcher. While the program ends nothing does.
    pub fn ailing(&self) -> Option<String> {
        if self.stop.is_given() {
            return None;
        }
        let mut servers = self.api.iter().map(|(_, server)| server).chain(&self.keyhole).chain(&self.metrics);
        servers.find_map(Server::ailing).or_else(|| lock(&self.watchers).iter().find_map(Watcher::ailing))
    }

    /// Ends everything within a bounded time: requests in flight are answered, leads are handed over.
    pub fn stop(&self) {
        self.stop.stop();
        thread::scope(|scope| {
            let servers = self.api.iter().map(|(_, server)| server).chain(&self.keyhole).chain(&self.metrics);
            servers.for_each(|server| drop(scope.spawn(|| server.stop(STOP_WITHIN))));
            // Meanwhile: other programs wait for the leads.
            self.stop_watchers();
        });
    }

    fn stop_watchers(&self) {
        let watchers = std::mem::take(&mut *lock(&self.watchers));
        let deadline = Instant::now() + WATCHERS_STOP_WITHIN;
        while watchers.iter().any(|watcher| !watcher.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        if watchers.iter().any(|watcher| !watcher.is_finished()) {
            log::warn!("a watcher waits for another machine; the program ends without it");
        }
        self.store.resign();
    }

    /// Goes on with a changed configuration, and returns what has changed. If anything in it is wrong, all stays as it was. Requests
    /// that are under way finish on what they began with; connections, ports and sessions that are in both configurations live on.
    pub fn reload(&self, mut config: Config) -> Result<Vec<&'static str>> {
        let mut known = lock(&self.known);
        let Changes { mut taken, kept } = settle(&known.config, &mut config);
        let old = self.setup.get();
        let clusters = config
            .clusters
            .iter()
            .map(|cluster| old.cluster(&cluster.name)?.renewed(cluster, &config).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        let front = self.api.as_ref().map(|_| self.front(&config, &clusters)).transpose()?;
        front.as_ref().map(|front| check_templates(&front.templates)).transpose()?;
        // From here on nothing fails.
        for key in kept {
            let file = config.file.display();
            log::warn!("{file}: {key} was changed, which a running program cannot follow: it stays as it was; restart for it");
        }
        let keyhole = old.keyhole.renewed(clusters.clone(), config.keyhole.max_ports, config.keyhole.static_forwarding);
        self.setup.set(setup(&config, clusters, keyhole));
        self.credentials.renew(config.api.password.as_ref(), config.metrics.password.as_ref());
        if let Some(front) = front {
            taken.extend(self.show(front, &mut known));
        }
        known.config = config;
        Ok(taken)
    }

    /// The API goes on with this; returns what is new of it.
    fn show(&self, front: Front, known: &mut Known) -> Vec<&'static str> {
        let Some((api, server)) = &self.api else { return Vec::new() };
        let mut taken = Vec::new();
        if known.clients.replace(front.clients.clone()).is_some_and(|before| before != front.clients) {
            taken.push("keyhole-clients");
        }
        // Left alone where it is the same: clients that come back may resume their sessions.
        if let Some((tls, digest)) = front.tls
            && known.certificate.replace(digest) != Some(digest)
        {
            server.renew_tls(tls);
            taken.push("certificate");
        }
        api.renew(front.jobs);
        taken
    }

    fn watch(&self, part: Part, config: &Config) -> Result<()> {
        for cluster in &config.clusters {
            let (store, stop, live) = (Arc::clone(&self.store), self.stop.clone(), Arc::clone(&self.setup));
            let (name, times) = (cluster.name.clone(), Arc::clone(&self.setup));
            let started = match part {
                Part::JobsWatch => {
                    let setup = live.get();
                    let mut watch = JobsWatch::new(Arc::clone(&store), Arc::clone(setup.cluster(&name)?), setup.keep_finished);
                    let cycle = move || {
                        let setup = live.get();
                        watch.follow(setup.cluster(&name)?, setup.keep_finished, setup.keep_trail);
                        watch.cycle()
                    };
                    repeat(format!("jobs-watch-{}", cluster.name), move || times.get().watch.jobs, store, stop, cycle)
                }
                Part::KeyholeWatch => {
                    let setup = live.get();
                    let mut watch =
                        KeyholeWatch::new(Arc::clone(&store), Arc::clone(setup.cluster(&name)?), Arc::clone(&setup.keyhole));
                    let cycle = move || {
                        let setup = live.get();
                        watch.follow(setup.cluster(&name)?, &setup.keyhole);
                        watch.step(setup.watch.keyhole)
                    };
                    let step = move || times.get().watch.step();
                    repeat(format!("keyhole-watch-{}", cluster.name), step, store, stop, cycle)
                }
                Part::Api | Part::Keyhole => return Ok(()),
            };
            let started = started.map_err(|e| Error::internal(format!("no thread can be started: {e}")))?;
            lock(&self.watchers).push(started);
        }
        Ok(())
    }

    fn start_metrics(&self, address: SocketAddr, sockets: &mut Sockets) -> Result<Server> {
        let service = http::vitals::service(Arc::clone(&self.vitals), Arc::clone(&self.credentials));
        let listener = sockets.listen("metrics", address)?;
        let server = guard::start_on("metrics", listener, None, http::vitals::limits(), service)?;
        log::info!("metrics: listening on {}", server.address());
        Ok(server)
    }

    fn start_api(&mut self, config: &Config, sockets: &mut Sockets) -> Result<()> {
        let front = self.front(config, &self.setup.get().clusters)?;
        check_templates(&front.templates).unwrap_or_else(|error| log::error!("templates: {error}"));
        let api = Arc::new(Api::new(front.jobs, Arc::clone(&self.credentials), Arc::clone(&self.vitals)));
        let (tls, digest) = front.tls.unzip();
        let listener = sockets.listen("api", config.api.listen)?;
        let server = guard::start_on("api", listener, tls, api_limits(), api.service())?;
        log::info!("api: listening on {} ({:?})", server.address(), config.api.transport);
        let mut known = lock(&self.known);
        (known.clients, known.certificate) = (Some(front.clients), digest);
        drop(known);
        self.api = Some((api, server));
        Ok(())
    }

    /// Reads what the API needs beside the configuration, and checks it.
    fn front(&self, config: &Config, clusters: &[Arc<Cluster>]) -> Result<Front> {
        if config.api.password.is_none() {
            let settings = config.file.with_file_name("settings.json");
            return Err(Error::bad_input(format!(
                "there is no api-password: write {{\"api-password\": \"…\"}} into {} (mode 0600)",
                settings.display()
            )));
        }
        let templates = TemplateFolder::new(config.templates.clone(), config.keyhole.max_ports);
        let clients = load_clients(&config.clients)?;
        let (servers, max_ports) = (self.keyhole_servers(config), config.keyhole.max_ports);
        let store = Arc::clone(&self.store);
        let jobs = Jobs::new(store, clusters.to_vec(), templates.clone(), clients.clone(), servers, max_ports, config.limits)
            .watched_every(config.watch.jobs);
        Ok(Front { jobs, templates, clients, tls: load_tls(config)? })
    }

    /// Port 0 stands for the port that keyhole got here, whichever it is.
    fn keyhole_servers(&self, config: &Config) -> Vec<SocketAddr> {
        let own = self.keyhole_address().map_or(0, |address| address.port());
        let with_port = |address: &SocketAddr| if address.port() == 0 { SocketAddr::new(address.ip(), own) } else { *address };
        config.keyhole.servers.iter().map(with_port).collect()
    }
}

fn setup(config: &Config, clusters: Vec<Arc<Cluster>>, keyhole: Keyhole) -> Setup {
    Setup {
        clusters,
        keyhole: Arc::new(keyhole),
        watch: config.watch,
        keep_finished: config.keep_finished,
        keep_trail: config.keep_trail,
    }
}

fn load_tls(config: &Config) -> Result<Option<(Arc<ServerConfig>, [u8; 32])>> {
    let (certificate, key) = match &config.api.transport {
        Transport::Tls { certificate, key } => (certificate.clone(), key.clone()),
        Transport::SelfSigned => self_signed::make_if_absent(&config.state_dir.join("tls"), config.api.listen.ip())?,
        Transport::Plain => return Ok(None),
    };
    // Before the files are read for good: what is changed in between is then seen as changed the next time.
    let digest = tls::digest(&certificate, &key);
    Ok(Some((tls::load(&certificate, &key)?, digest)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_keyhole(config: &Config, setup: Arc<Live<Setup>>, vitals: Arc<Vitals>, sockets: &mut Sockets) -> Result<Server> {
    let handler: Handler = Arc::new(move |request| http::keyhole::handle(&setup.get().keyhole, &vitals, request));
    let service = Service { handler, screen: None, routes: http::keyhole::count_by };
    let listener = sockets.listen("keyhole", config.keyhole.listen)?;
    let server = guard::start_on("keyhole", listener, None, keyhole_limits(), service)?;
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

/// Opens the store that the configuration names, for one look.
pub fn open_store(config: &StoreConfig) -> Result<Box<dyn Backend>> {
    Ok(match config {
        StoreConfig::Etcd(etcd) => Box::new(Etcd::connect(etcd.clone())?),
        StoreConfig::Embedded(path) => Box::new(Embedded::open(path)?),
    })
}

/// The same, for a program that goes on looking.
fn keep_store(config: &StoreConfig) -> Result<Box<dyn Backend>> {
    match config {
        StoreConfig::Etcd(etcd) => Ok(Box::new(Etcd::connect(etcd.clone())?.mirrored())),
        StoreConfig::Embedded(_) => open_store(config),
    }
}

/// The folders that everything else stands on.
pub fn prepare_folders(config: &Config) -> Result<()> {
    make_private(&config.state_dir)?;
    check_own(&config.state_dir)?;
    make_private(&config.state_dir.join("ssh"))?;
    make_private(&config.ssh.sockets)?;
    crate::ssh::remove_stale_sockets(&config.ssh.sockets);
    Ok(())
}

/// A template that is wrong is its own misfortune: the others work, and so does this one as soon as it is mended.
fn check_templates(templates: &TemplateFolder) -> Result<()> {
    let names = templates.names()?;
    if names.is_empty() {
        log::warn!("templates: there are none");
    }
    names.iter().filter_map(|name| templates.load(name).err()).for_each(|error| log::error!("templates: {error}"));
    Ok(())
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
