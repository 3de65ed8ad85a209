//! `hosts`: the host keys of the nodes. First contact is an explicit step of a person who compares fingerprints.

use crate::command;
use crate::config::{self, Config, Login};
use crate::error::{Error, Result};
use clap::Subcommand;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
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
pub(crate) fn logins(config: &Config) -> Vec<Login> {
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

/// Writes the keys into the file, in place of any others that the same host had.
fn remember(file: &Path, keys: &str) -> Result<()> {
    let failed = |e: io::Error| Error::unavailable(format!("{} cannot be written: {e}", file.display()));
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    crate::folder::make_private(folder)?;
    let text = replace_keys(&fs::read_to_string(file).unwrap_or_default(), keys);
    // All or nothing: ssh may read it at any moment.
    let mut fresh = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    fresh.write_all(text.as_bytes()).and_then(|()| fresh.as_file().sync_all()).map_err(failed)?;
    fresh.persist(file).map_err(|e| failed(e.error)).map(drop)
}

fn replace_keys(known: &str, keys: &str) -> String {
    let host = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let fresh: Vec<&str> = keys.lines().filter(|line| !line.starts_with('#')).collect();
    let others = known.lines().filter(|line| !fresh.iter().any(|key| host(key) == host(line)));
    others.chain(fresh.iter().copied()).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_new_keys_replace_its_old_ones_and_no_others() {
        let known = "a ssh-ed25519 OLD\na ssh-rsa OLD\nb ssh-ed25519 B\n";
        assert_eq!(replace_keys(known, "# a:22 SSH-2.0\na ssh-ed25519 NEW\n"), "b ssh-ed25519 B\na ssh-ed25519 NEW\n");
    }
}
