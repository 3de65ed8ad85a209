//! The API's client: `submit`, `list`, `show`, `cancel`, `wait`.
//!
//! On the runner's own machine the configuration says where the API is and what its password is; elsewhere `--url`,
//! `BWVISU_API_PASSWORD` and `--certificate` do.

use crate::config::{self, Config, Transport};
use crate::error::{Error, ErrorKind, Result};
use crate::http::jobs::API_USER;
use crate::http::self_signed::certificate_file;
use crate::jobs::random;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::env;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// When to make a submission again that may or may not have been taken.
const SUBMIT_PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(5)];

/// Where the API is.
#[derive(Args)]
pub struct ApiArgs {
    /// The API's address, such as `https://runner.example:4242`; without it BWVISU_API_URL, or what the configuration on this machine says
    #[arg(long)]
    url: Option<String>,
    /// The certificate that the API shows, or its authority's (PEM)
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

/// A job.
#[derive(Args)]
pub struct JobArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The job's id
    job: u64,
}

/// A new job.
#[derive(Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The owner's name
    #[arg(long)]
    user: String,
    /// The template's name
    #[arg(long)]
    template: String,
    /// The template's variables
    #[arg(value_name = "NAME=VALUE", value_parser = super::template::variable)]
    variables: Vec<(String, String)>,
}

/// What to wait for.
#[derive(Args)]
pub struct WaitArgs {
    #[command(flatten)]
    job: JobArgs,
    /// What to wait for
    #[arg(long = "for", value_enum, default_value = "available")]
    event: Event,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// What `wait` waits for.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Event {
    /// Users can connect.
    Available,
    /// The job has ended.
    Finished,
}

/// `submit`
pub fn submit(named: Option<&Path>, args: &SubmitArgs) -> Result<ExitCode> {
    let variables: Map<String, Value> = args.variables.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let id = ApiClient::new(named, &args.api)?.submit(&args.user, &args.template, variables)?;
    println!("{id}");
    Ok(ExitCode::SUCCESS)
}

/// `list`
pub fn list(named: Option<&Path>, args: &ApiArgs) -> Result<ExitCode> {
    let api = ApiClient::new(named, args)?;
    let ids = api.list()?;
    println!("{:>8}  {:<12} {:<10} {:<28} ADDRESS", "JOB", "USER", "STATE", "TEMPLATE");
    for id in ids {
        let job = api.show(&id)?;
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let template = word(&job["batch-script"]["template-name"]);
        println!(
            "{id:>8}  {:<12} {:<10} {template:<28} {}",
            word(&job["uid"]),
            word(&job["state"]),
            address(&job).unwrap_or_default()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// `show`
pub fn show(named: Option<&Path>, args: &JobArgs) -> Result<ExitCode> {
    let job = ApiClient::new(named, &args.api)?.show(&args.job.to_string())?;
    println!("{job:#}");
    Ok(ExitCode::SUCCESS)
}

/// `cancel`
pub fn cancel(named: Option<&Path>, args: &JobArgs) -> Result<ExitCode> {
    ApiClient::new(named, &args.api)?.cancel(&args.job.to_string())?;
    println!("job {} cancelled", args.job);
    Ok(ExitCode::SUCCESS)
}

/// `wait`
pub fn wait(named: Option<&Path>, args: &WaitArgs) -> Result<ExitCode> {
    let api = ApiClient::new(named, &args.job.api)?;
    let limit = args.timeout.map(Duration::from_secs);
    let job = api.wait(&args.job.job.to_string(), args.event, limit)?;
    match (args.event, address(&job)) {
        (Event::Available, Some(address)) => println!("{address}"),
        _ => println!("{}", job["outcome"].as_str().unwrap_or_default()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The first address that users connect to.
pub fn address(job: &Value) -> Option<String> {
    let service = job["services"].get(0)?;
    Some(format!("{}:{}", service["external-ip"].as_str()?, service["external-port"]))
}

/// The API from the other side.
pub struct ApiClient {
    agent: ureq::Agent,
    url: String,
    authorization: String,
}

impl ApiClient {
    /// The API that the arguments name, or the configuration.
    pub fn new(named: Option<&Path>, args: &ApiArgs) -> Result<Self> {
        let config = config::load(named);
        let url = args.url.clone().or_else(|| env::var("BWVISU_API_URL").ok());
        let url = match (url, &config) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Ok(config)) => own_url(config),
            (None, Err(error)) => return Err(Error::bad_input(format!("no --url is given, and {}", error.message))),
        };
        let configured =
            config.as_ref().ok().and_then(|config| config.api.password.as_ref()).map(|secret| secret.expose().to_owned());
        let password = env::var("BWVISU_API_PASSWORD").ok().or(configured);
        let password = password.ok_or_else(|| Error::bad_input("the API's password is not known: set BWVISU_API_PASSWORD"))?;
        let certificate = args.certificate.clone().or_else(|| config.ok().and_then(|config| own_certificate(&config)));
        Self::connect(&url, &password, certificate.as_deref())
    }

    /// A client of the API at `url`, which trusts `certificate`, or the public authorities without it.
    pub fn connect(url: &str, password: &str, certificate: Option<&Path>) -> Result<Self> {
        let roots = certificate.map(trusted).transpose()?.unwrap_or(RootCerts::WebPki);
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .proxy(proxy(url))
            .build()
            .into();
        let authorization = format!("Basic {}", STANDARD.encode(format!("{API_USER}:{password}")));
        Ok(Self { agent, url: url.to_owned(), authorization })
    }

    /// Submits a job; returns its id. The request has a name of its own, so that it may be made again when its answer is lost.
    pub fn submit(&self, user: &str, template: &str, variables: Map<String, Value>) -> Result<String> {
        let body = json!({"uid": user, "template-name": template, "variables": variables}).to_string();
        let key = format!("{:032x}", u128::from_be_bytes(random()?));
        for pause in SUBMIT_PAUSES {
            match self.submit_as(&key, &body) {
                Err(error) if error.kind == ErrorKind::Unavailable => eprintln!("bwvisu-runner: {error}; once more"),
                done => return done,
            }
            thread::sleep(pause);
        }
        self.submit_as(&key, &body)
    }

    fn submit_as(&self, key: &str, body: &str) -> Result<String> {
        let request = self.agent.post(format!("{}/jobs", self.url)).header("Authorization", &self.authorization);
        let request = request.header("Idempotency-Key", key).content_type("application/json");
        let answer = self.read(request.send(body))?;
        answer["job-id"].as_str().map(str::to_owned).ok_or_else(|| Error::bad_gateway("the API named no job"))
    }

    /// The ids of all jobs that are not finished.
    pub fn list(&self) -> Result<Vec<String>> {
        let answer = self.get("/jobs")?;
        let ids = answer["jobs"].as_array().ok_or_else(|| Error::bad_gateway("the API listed no jobs"))?;
        Ok(ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect())
    }

    /// A job.
    pub fn show(&self, id: &str) -> Result<Value> {
        self.get(&format!("/jobs/{id}"))
    }

    /// Cancels a job.
    pub fn cancel(&self, id: &str) -> Result<()> {
        let request = self.agent.delete(format!("{}/jobs/{id}", self.url)).header("Authorization", &self.authorization);
        self.read(request.call()).map(drop)
    }

    /// Has the service make a backup of its store; the name of the file on its side.
    pub fn back_up(&self) -> Result<String> {
        let request = self.agent.post(format!("{}/cluster/backup", self.url)).header("Authorization", &self.authorization);
        let answer = self.read(request.send_empty())?;
        answer["backup"].as_str().map(str::to_owned).ok_or_else(|| Error::bad_gateway("the API named no backup"))
    }

    /// Waits for `event`, with a line on the terminal that tells how it stands. An error if the job ends before it was available.
    pub fn wait(&self, id: &str, event: Event, limit: Option<Duration>) -> Result<Value> {
        let begin = Instant::now();
        let progress = Progress::new();
        loop {
            let job = self.show(id)?;
            let (state, message) = (job["state"].as_str().unwrap_or_default(), job["message"].as_str().unwrap_or_default());
            progress.show(&format!("job {id}: {state} ({message}), {} s", begin.elapsed().as_secs()));
            match (state, event) {
                ("available", Event::Available) | ("finished", Event::Finished) => return Ok(job),
                ("finished", Event::Available) => return Err(Error::bad_gateway(format!("job {id} ended: {message}"))),
                _ if limit.is_some_and(|limit| begin.elapsed() > limit) => {
                    return Err(Error::unavailable(format!("job {id} is still {state} ({message})")));
                }
                _ => thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// A call without a body.
    pub fn call(&self, method: &str, path: &str) -> Result<Value> {
        let url = format!("{}{path}", self.url);
        let password = &self.authorization;
        self.read(match method {
            "POST" => self.agent.post(url).header("Authorization", password).send_empty(),
            "PUT" => self.agent.put(url).header("Authorization", password).send_empty(),
            "DELETE" => self.agent.delete(url).header("Authorization", password).call(),
            _ => self.agent.get(url).header("Authorization", password).call(),
        })
    }

    fn get(&self, path: &str) -> Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.url)).header("Authorization", &self.authorization);
        self.read(request.call())
    }

    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
        let mut answer = answer.map_err(|e| Error::unavailable(format!("{}: {e}", self.url)))?;
        let status = answer.status();
        let text = answer.body_mut().read_to_string().map_err(|e| Error::unavailable(format!("{}: {e}", self.url)))?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() {
            return Ok(value);
        }
        let detail = value["detail"].as_str().unwrap_or("no reason was given");
        let kind = if status == 503 { ErrorKind::Unavailable } else { ErrorKind::BadGateway };
        Err(Error::new(kind, format!("{} says {status}: {detail}", self.url)))
    }
}

/// What the environment says, as with every tool; but neither to this machine itself, nor where a proxy could read the password.
fn proxy(url: &str) -> Option<ureq::Proxy> {
    let host = url.strip_prefix("https://")?;
    let here = ["127.", "localhost", "[::1]"].iter().any(|name| host.starts_with(name));
    if here { None } else { ureq::Proxy::try_from_env() }
}

fn own_url(config: &Config) -> String {
    let listen = config.api.listen;
    let ip = if listen.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { listen.ip() };
    let scheme = if config.api.transport == Transport::Plain { "http" } else { "https" };
    format!("{scheme}://{}", SocketAddr::new(ip, listen.port()))
}

fn own_certificate(config: &Config) -> Option<PathBuf> {
    match &config.api.transport {
        Transport::Tls { certificate, .. } => Some(certificate.clone()),
        Transport::SelfSigned => Some(certificate_file(&config.state_dir.join("tls"))),
        Transport::Plain => None,
    }
}

fn trusted(file: &Path) -> Result<RootCerts> {
    let unreadable = |why: String| Error::bad_input(format!("certificate {}: {why}", file.display()));
    let pem = fs::read(file).map_err(|e| unreadable(e.to_string()))?;
    let certificate = Certificate::from_pem(&pem).map_err(|e| unreadable(e.to_string()))?;
    Ok(RootCerts::new_with_certs(&[certificate.to_owned()]))
}

/// A line that is written over again and again, on a terminal; silence elsewhere.
struct Progress {
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    fn show(&self, text: &str) {
        if self.terminal {
            let short: String = text.chars().take(100).collect();
            eprint!("\r\x1b[K{short}");
            let _ = io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
