//! `demo`: everything on this machine, with nothing installed: embedded store, local scheduler, relay. One job goes the whole way from
//! `POST /jobs` to bytes that came through the forwarded port.

use super::client::{ApiClient, Event, address};

use super::serve::{end_signals, wait_for_end};
use crate::app::{Part, Runner};
use crate::command;
use crate::config::file::{ConfigFile, Settings};
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::jobs::random;
use crate::logging::{self, Format};
use clap::Args;
use serde_json::{Map, Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// `demo`
#[derive(Args)]
pub struct DemoArgs {
    /// End as soon as it has worked, instead of waiting for Ctrl-C
    #[arg(long)]
    once: bool,
    /// The template of the job
    #[arg(long, default_value = "template_demo.txt")]
    template: String,
    /// Show the runner's log too
    #[arg(long, short)]
    verbose: bool,
}

/// How long the job may take to become available.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the watchers look: a person waits.
const WATCH_SECONDS: f64 = 0.3;

/// Runs the demo.
pub fn demo(args: &DemoArgs) -> Result<ExitCode> {
    logging::start(if args.verbose { "info" } else { "warn" }, Format::People);
    let folder = tempfile::Builder::new().prefix("bwvisu-demo-").tempdir().map_err(|e| failed("a folder", &e))?;
    let user = account()?;
    make_home(folder.path(), &user)?;
    let password = random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let config = demo_config(folder.path(), &password)?;
    let mut signals = end_signals()?;
    let runner = Runner::start(&config, &Part::ALL.into_iter().collect())?;
    let result = show(&runner, &password, &user.name, args, || {
        wait_for_end(&mut signals, || log::info!("SIGHUP is ignored: the demo has no configuration file"));
    });
    runner.stop();
    if result.is_err() {
        print_logs(&folder.path().join("home").join(&user.name));
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// The way of one job.
fn show(runner: &Runner, password: &str, user: &str, args: &DemoArgs, wait: impl FnOnce()) -> Result<()> {
    let listen = runner.api_address().ok_or_else(|| Error::internal("the API does not listen"))?;
    let url = format!("http://{listen}");
    println!("The runner's API listens on {url}, its store is a file, its scheduler runs jobs on this machine.");
    let api = ApiClient::connect(&url, password, None)?;
    let variables = variables();
    println!("POST /jobs {}", json!({"uid": user, "template-name": args.template, "variables": variables}));
    let id = api.submit(user, &args.template, variables)?;
    println!("  job {id}: submitted");
    let result = follow(&api, &id, args, wait);
    // Whatever happened, nothing stays behind.
    let _ = api.cancel(&id);
    let ended = api.wait(&id, Event::Finished, Some(Duration::from_secs(20)));
    result?;
    println!("  job {id}: {}", ended?["message"].as_str().unwrap_or_default());
    Ok(())
}

fn follow(api: &ApiClient, id: &str, args: &DemoArgs, wait: impl FnOnce()) -> Result<()> {
    let begin = Instant::now();
    let job = api.wait(id, Event::Available, Some(PATIENCE))?;
    let address = address(&job).ok_or_else(|| Error::internal("the job is available without an address"))?;
    println!("  job {id}: available after {:.1} s", begin.elapsed().as_secs_f64());
    let page = fetch(&format!("http://{address}/"))?;
    println!("GET http://{address}/  (through the forwarded port): {} bytes, {:?}", page.len(), title(&page));
    if !args.once {
        println!("\nOpen it in your browser:  http://{address}/\nCtrl-C ends the job and the demo.");
        wait();
    }
    Ok(())
}

fn variables() -> Map<String, Value> {
    let all = [("expected_runtime_in_minutes", "60"), ("number_of_nodes", "1"), ("tasks_per_node", "1")];
    all.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

fn fetch(url: &str) -> Result<String> {
    // An application that asks for a password has answered, too.
    let config =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).proxy(None).http_status_as_error(false);
    let agent: ureq::Agent = config.build().into();
    let read = agent.get(url).call().and_then(|mut answer| answer.body_mut().read_to_string());
    read.map_err(|e| Error::unavailable(format!("{url}: {e}")))
}

/// The page's title, to show that these are the application's bytes.
fn title(page: &str) -> &str {
    page.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>")).map_or("no title", |(title, _)| title)
}

/// Who runs the job: ourselves, or `nobody` when we are root, since root never may.
struct Account {
    name: String,
    root: bool,
}

fn account() -> Result<Account> {
    if rustix::process::geteuid().is_root() {
        return Ok(Account { name: "nobody".into(), root: true });
    }
    let mut id = Command::new("id");
    let output = command::run(id.arg("-un"), b"", Instant::now() + Duration::from_secs(10))?;
    Ok(Account { name: output.stdout.trim().to_owned(), root: false })
}

fn make_home(folder: &Path, user: &Account) -> Result<()> {
    let home = folder.join("home").join(&user.name);
    let make = || {
        fs::create_dir_all(&home)?;
        // Others must be able to pass through to the home, and see nothing on the way.
        for passage in [folder, &folder.join("home")] {
            fs::set_permissions(passage, Permissions::from_mode(0o711))?;
        }
        fs::set_permissions(&home, Permissions::from_mode(0o700))?;
        const NOBODY: u32 = 65534;
        if user.root { chown(&home, Some(NOBODY), Some(NOBODY)) } else { Ok(()) }
    };
    make().map_err(|e: std::io::Error| failed(&home.display().to_string(), &e))
}

fn demo_config(folder: &Path, password: &str) -> Result<Config> {
    let value = json!({
        "bwvisu-home-prefix": folder.join("home"),
        "state-dir": folder.join("state"),
        "gateway-nodes": [{"internal-ip": "localhost", "external-ip": "127.0.0.1"}],
        // Port 0: whatever is free.
        "keyholed-servers": [{"ip": "127.0.0.1", "port": 0}],
        "keyhole-listen": "127.0.0.1:0",
        "api-listen": "127.0.0.1:0",
        "api-plain-http": true,
        // Below the ports that this machine gives to outgoing connections.
        "keyholed-port-range": {"min": 30000, "max": 31999},
        "scheduler": "local",
        "gateway": "relay",
        "users": {"min-uid": 1},
        "watch": {"jobs-seconds": WATCH_SECONDS, "keyhole-seconds": WATCH_SECONDS},
    });
    let path = folder.join("config.json");
    let file: ConfigFile = config::file::parse(&value.to_string(), &path)?;
    let settings = Settings { api_password: Some(password.to_owned()), ..Settings::default() };
    config::check(file, settings, &path)
}

fn print_logs(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        eprintln!("--- {}\n{text}", entry.file_name().to_string_lossy());
    }
}

fn failed(what: &str, error: &std::io::Error) -> Error {
    Error::unavailable(format!("{what} cannot be made: {error}"))
}
