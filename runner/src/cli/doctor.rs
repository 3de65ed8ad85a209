//! `doctor`: every requirement on every machine, in one table.

use super::client::{ApiArgs, ApiClient};
use crate::doctor::{self, Options, job};
use crate::domain::user::check_user_name;
use crate::error::Result;
use crate::logging::{self, Format};
use clap::Args;
use std::env;
use std::path::Path;
use std::process::ExitCode;

/// What to look at.
#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// Also look at what a job of this user meets: account, folder, `sbatch --test-only`
    #[arg(long, value_parser = user)]
    user: Option<String>,
    /// Also submit a tiny job of that user by the running service, connect to it, and cancel it
    #[arg(long, requires = "user")]
    with_job: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn user(name: &str) -> Result<String, String> {
    check_user_name(name).map(|()| name.to_owned()).map_err(|error| error.message.trim_start_matches("uid: ").to_owned())
}

/// Looks, prints the table; exit code 1 if something failed.
pub fn run(named: Option<&Path>, args: &DoctorArgs) -> Result<ExitCode> {
    logging::start("error", Format::People);
    let program = env::current_exe().map_or_else(|_| "bwvisu-runner".to_owned(), |path| path.display().to_string());
    let program = named.map_or(program.clone(), |file| format!("{program} --config {}", file.display()));
    let options = Options { user: args.user.clone(), program };
    let (config, mut report) = doctor::examine(named, &options);
    if let (true, Some(config), Some(user)) = (args.with_job, &config, &args.user) {
        report.checks.extend(job::examine(ApiClient::new(named, &args.api), config, user));
    }
    if args.json {
        println!("{:#}", report.json());
    } else {
        println!("{report}");
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
