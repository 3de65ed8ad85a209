//! `gateway`: the gateways' condition and drains, over the API.

use super::client::{ApiArgs, ApiClient};
use crate::error::Result;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;

/// What to do with gateways.
#[derive(Subcommand)]
pub enum GatewayCommand {
    /// List the gateways: addresses, ports in use, whether they are drained or silent
    List(ApiArgs),
    /// Keep a gateway free of new forwardings; those that are there stay until their jobs end
    Drain(AddressArgs),
    /// Open a drained gateway again
    Undrain(AddressArgs),
    /// Take for removed what is still to be removed from a gateway that is no longer configured and forwards nothing any more
    Forget(AddressArgs),
}

/// A gateway.
#[derive(Args)]
pub struct AddressArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// Its internal address, as in the configuration
    address: String,
}

/// Runs `command`.
pub fn run(named: Option<&Path>, command: &GatewayCommand) -> Result<ExitCode> {
    match command {
        GatewayCommand::List(args) => {
            let answer = ApiClient::new(named, args)?.call("GET", "/cluster/gateways")?;
            table(answer["gateways"].as_array().map_or(&[], Vec::as_slice));
        }
        GatewayCommand::Drain(args) => drain(named, args, "PUT")?,
        GatewayCommand::Undrain(args) => drain(named, args, "DELETE")?,
        GatewayCommand::Forget(args) => {
            let path = format!("/cluster/gateways/{}", args.address);
            let answer = ApiClient::new(named, &args.api)?.call("DELETE", &path)?;
            println!("{}: forgotten; {} forwardings are taken for removed", args.address, answer["forgotten"]);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn drain(named: Option<&Path>, args: &AddressArgs, method: &str) -> Result<()> {
    let path = format!("/cluster/gateways/{}/drain", args.address);
    table(&[ApiClient::new(named, &args.api)?.call(method, &path)?]);
    Ok(())
}

fn table(gateways: &[Value]) {
    println!("{:<18} {:<18} {:>6} {:>8}  CONDITION", "GATEWAY", "EXTERNAL", "PORTS", "CLOSING");
    for gateway in gateways {
        let word = |name: &str| gateway[name].as_str().unwrap_or("-").to_owned();
        println!(
            "{:<18} {:<18} {:>6} {:>8}  {}",
            word("address"),
            word("external-ip"),
            gateway["ports"].to_string(),
            gateway["closing"].to_string(),
            condition(gateway)
        );
    }
}

fn condition(gateway: &Value) -> String {
    let silent = gateway["silent-since"]
        .as_str()
        .map(|since| format!("silent since {since}: {}", gateway["reason"].as_str().unwrap_or_default()));
    let drained = gateway["drained"].as_str().map(|by| format!("drained {by}"));
    let gone = gateway["external-ip"].is_null().then(|| "not configured".to_owned());
    let all: Vec<String> = [gone, drained, silent].into_iter().flatten().collect();
    if all.is_empty() { "ok".to_owned() } else { all.join("; ") }
}
