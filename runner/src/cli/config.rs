//! `config check`: what the program makes of the configuration, without connecting to anything.

use crate::config::{self, Config, StoreConfig, Transport};
use crate::error::{Error, Result};
use crate::templates::TemplateFolder;
use clap::Subcommand;
use std::path::Path;
use std::process::ExitCode;

/// `config …`
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration, its secrets, the templates and the keyhole-clients, and say what they come to
    Check,
}

/// Runs `config …`.
pub fn run(named: Option<&Path>, command: &ConfigCommand) -> Result<ExitCode> {
    match command {
        ConfigCommand::Check => check(named),
    }
}

fn check(named: Option<&Path>) -> Result<ExitCode> {
    let config = config::load(named)?;
    print(&config);
    let faults = faults(&config);
    faults.iter().for_each(|fault| println!("WRONG    {fault}"));
    if faults.is_empty() {
        println!("all right");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

fn print(config: &Config) {
    println!("file     {}", config.file.display());
    let transport = match &config.api.transport {
        Transport::Tls { certificate, .. } => format!("HTTPS, certificate {}", certificate.display()),
        Transport::SelfSigned => format!("HTTPS, self-signed certificate in {}/tls", config.state_dir.display()),
        Transport::Plain => "plain HTTP".into(),
    };
    println!("api      {} ({transport})", config.api.listen);
    let servers: Vec<String> = config.keyhole.servers.iter().map(ToString::to_string).collect();
    println!("keyhole  {}; jobs find it at {}", config.keyhole.listen, servers.join(", "));
    match &config.store {
        StoreConfig::Etcd(etcd) => println!("store    etcd at {}", etcd.endpoints.join(", ")),
        StoreConfig::Embedded(path) => println!("store    embedded, {}", path.display()),
    }
    for cluster in &config.clusters {
        println!(
            "cluster  {}: {:?} scheduler, {:?} gateway, ports {}",
            cluster.name, cluster.scheduler, cluster.gateway, cluster.ports
        );
        cluster
            .command_nodes
            .iter()
            .for_each(|node| println!("         command node {}@{}:{}", node.user, node.address, node.port));
        for gateway in &cluster.gateways {
            println!("         gateway {} for users at {}", gateway.login.address, gateway.external_ip);
        }
    }
    println!("folders  templates {}, clients {}", config.templates.display(), config.clients.display());
}

fn faults(config: &Config) -> Vec<Error> {
    let mut faults = Vec::new();
    if config.api.password.is_none() {
        let settings = config.file.with_file_name("settings.json");
        faults.push(Error::bad_input(format!("{}: there is no api-password", settings.display())));
    }
    if let Transport::Tls { certificate, key } = &config.api.transport {
        faults.extend(crate::http::tls::load(certificate, key).err());
    }
    faults.extend(crate::app::load_clients(&config.clients).err());
    let templates = TemplateFolder::new(config.templates.clone(), config.keyhole.max_ports);
    match templates.names() {
        Ok(names) => faults.extend(names.iter().filter_map(|name| templates.load(name).err())),
        Err(error) => faults.push(error),
    }
    if !super::hosts::logins(config).is_empty() && !config.ssh.known_hosts.exists() {
        faults.push(Error::bad_input(format!(
            "{} is not there: see `bwvisu-runner hosts trust`",
            config.ssh.known_hosts.display()
        )));
    }
    faults
}
