//! `audit`: whether store, scheduler and gateways fit together.

use super::client::{ApiArgs, ApiClient};

use crate::admin::Admin;
use crate::app::open_store;
use crate::cluster::Cluster;
use crate::config;
use crate::error::{Error, Result};
use crate::logging::{self, Format, id};
use crate::store::Store;
use clap::Args;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// How to audit.
#[derive(Args)]
pub struct AuditArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// First do what the watchers would do, so that only what nobody can mend remains
    #[arg(long)]
    fix: bool,
    /// Do not ask the running service, but look from here: for when no service runs
    #[arg(long)]
    offline: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Nothing is wrong, but not all could be looked at.
const INCOMPLETE: u8 = 2;

/// Compares, prints every disagreement; exit code 1 if there is any, 2 if something did not answer.
pub fn run(named: Option<&Path>, args: &AuditArgs) -> Result<ExitCode> {
    let report = if args.offline { offline(named, args.fix)? } else { online(named, args)? };
    if args.json {
        println!("{report:#}");
    } else {
        print(&report);
    }
    let empty = |name: &str| report[name].as_array().is_some_and(Vec::is_empty);
    Ok(match (empty("disagreements"), empty("not-looked-at")) {
        (false, _) => ExitCode::FAILURE,
        (true, false) => ExitCode::from(INCOMPLETE),
        (true, true) => ExitCode::SUCCESS,
    })
}

fn online(named: Option<&Path>, args: &AuditArgs) -> Result<Value> {
    let api = ApiClient::new(named, &args.api)?;
    api.call(if args.fix { "POST" } else { "GET" }, "/cluster/audit")
}

fn offline(named: Option<&Path>, fix: bool) -> Result<Value> {
    logging::start("warn", Format::People);
    let config = config::load(named)?;
    crate::app::prepare_folders(&config)?;
    let store = Arc::new(Store::new(open_store(&config.store)?));
    let clusters = config.clusters.iter().map(|cluster| Cluster::new(cluster, &config).map(Arc::new)).collect::<Result<_>>()?;
    // Somebody's request, which waits for all that it does.
    let _request = id::within(id::fresh());
    let report = Admin::new(store, clusters).audit(fix)?;
    serde_json::to_value(&report).map_err(|e| Error::internal(format!("the report cannot be written: {e}")))
}

fn print(report: &Value) {
    let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
    for disagreement in list("disagreements") {
        let word = |name: &str| disagreement[name].as_str().unwrap_or_default().to_owned();
        println!("{:<28} {}", word("kind"), word("what"));
    }
    for place in list("not-looked-at") {
        println!("{:<28} {}", "NOT LOOKED AT", place.as_str().unwrap_or_default());
    }
    let compared = report["compared"].as_object().cloned().unwrap_or_default();
    let counts: Vec<String> = compared.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!("{} disagreements; compared: {}", list("disagreements").len(), counts.join(", "));
}
