//! `hosts`: the host keys of the nodes. First contact is an explicit step of a person who compares fingerprints.

use crate::command;
use crate::config::{self, Config, Login};
use crate::error::{Error, Result};
use clap::Subcommand;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// `hosts …`
#[derive(Subcommand)]
pub enum HostsCommand {
    /// Ask all command and gateway nodes for their host keys, show the fingerprints, and write those that you accept into the known-hosts file
    Trust {
        /// Accept all without asking: only where nobody can stand between this machine and the nodes
        #[arg(long)]
        yes: bool,
    },
}

/// Runs `hosts …`.
pub fn run(named: Option<&Path>, command: &HostsCommand) -> Result<ExitCode> {
    let config = config::load(named)?;
    match command {
        HostsCommand::Trust { yes } => trust(&config, *yes),
    }
}

fn trust(config: &Config, yes: bool) -> Result<ExitCode> {
    let mut failed = false;
    for login in logins(config) {
        let keys = scan(&login)?;
        if keys.is_empty() {
            println!("{}:{}: no answer", login.address, login.port);
            failed = true;
            continue;
        }
        println!("{}:{}\n{}", login.address, login.port, fingerprints(&keys)?);
        if yes || accept()? {
            remember(&config.ssh.known_hosts, &keys)?;
            println!("  written to {}", config.ssh.known_hosts.display());
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Every node that is reached over ssh, once.
pub(super) fn logins(config: &Config) -> Vec<Login> {
    use config::file::{GatewayKind, SchedulerKind};
    let mut logins: Vec<Login> = Vec::new();
    for cluster in &config.clusters {
        let commands = cluster.command_nodes.iter().filter(|_| cluster.scheduler == SchedulerKind::Slurm);
        let gateways = cluster.gateways.iter().map(|gateway| &gateway.login).filter(|_| cluster.gateway == GatewayKind::Iptables);
        for login in commands.chain(gateways) {
            if !logins.iter().any(|known| (&known.address, known.port) == (&login.address, login.port)) {
                logins.push(login.clone());
            }
        }
    }
    logins
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn scan(login: &Login) -> Result<String> {
    let mut command = Command::new("ssh-keyscan");
    command.args(["-T", "8", "-p", &login.port.to_string(), "--", &login.address]);
    Ok(command::run(&mut command, b"", soon())?.stdout)
}

fn fingerprints(keys: &str) -> Result<String> {
    let mut command = Command::new("ssh-keygen");
    let output = command::run(command.args(["-l", "-f", "-"]), keys.as_bytes(), soon())?;
    Ok(output.stdout.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))
}

fn accept() -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Error::bad_input("nobody can be asked here; compare the fingerprints, then call it again with --yes"));
    }
    print!("  are these the node's own? [y/N] ");
    let mut line = String::new();
    let read = io::stdout().flush().and_then(|()| io::stdin().lock().read_line(&mut line));
    read.map_err(|e| Error::internal(format!("cannot ask: {e}")))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

fn remember(file: &Path, keys: &str) -> Result<()> {
    let failed = |e: io::Error| Error::unavailable(format!("{} cannot be written: {e}", file.display()));
    if let Some(folder) = file.parent() {
        crate::folder::make_private(folder)?;
    }
    let known = fs::read_to_string(file).unwrap_or_default();
    let fresh: String = keys
        .lines()
        .filter(|line| !line.starts_with('#') && !known.lines().any(|k| k == *line))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut out = OpenOptions::new().append(true).create(true).mode(0o644).open(file).map_err(failed)?;
    out.write_all(fresh.as_bytes()).map_err(failed)
}
