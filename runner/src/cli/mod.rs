//! The command line: one module per group of commands.

pub mod audit;
pub mod client;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod gateway;
pub mod hosts;
pub mod serve;
pub mod store;
pub mod template;
pub mod who;

use crate::app::Part;
use crate::logging::Format;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Puts a person in front of an application that runs on a supercomputer.
///
/// A web front end asks the runner over REST for a job; the runner fills in a batch script template and submits it to Slurm as
/// that user. When the job runs, its keyhole-client asks the keyhole service for ports, which are opened on a gateway; when the
/// application listens, the job is "available", and users connect to the gateway.
///
/// Try it on this machine, with nothing installed:  bwvisu-runner demo
#[derive(Parser)]
#[command(name = "bwvisu-runner", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// The configuration file; without it the first of $INSTALL_DIR/config.json, $INSTALL_DIR/../etc/config.json,
    /// /etc/runner/config.json, /opt/runner/etc/config.json
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  bwvisu-runner config check                       is the configuration right?
  bwvisu-runner hosts trust                        look at the nodes' host keys and accept them, once
  bwvisu-runner doctor --user alice                is everything there that it needs, on all machines?
  bwvisu-runner serve                              run all four parts
  bwvisu-runner serve --only keyhole,keyhole-watch run two of them; the others run elsewhere, on the same etcd
  bwvisu-runner template check                     are all templates right?
  bwvisu-runner submit --user alice --template template_vnc.txt expected_runtime_in_minutes=60 number_of_nodes=1 tasks_per_node=1
  bwvisu-runner gateway drain 10.0.0.5             nothing new goes to this gateway
  bwvisu-runner audit                              does everything fit together?
  bwvisu-runner who 203.0.113.1:50017 --at 2026-11-22T08:30:00Z
                                                   whose job had this port?
  bwvisu-runner wait 17                            until users can connect to job 17";

#[derive(Subcommand)]
enum Command {
    /// Run the service until SIGTERM or Ctrl-C
    Serve(ServeArgs),
    /// Run everything on this machine with embedded defaults, and show one job from submission to the user's connection
    Demo(demo::DemoArgs),
    /// Look at every requirement on every machine, and say what to do about those that are not met (exit code 1)
    Doctor(doctor::DoctorArgs),
    /// Look at the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look at the host keys of command and gateway nodes
    #[command(subcommand)]
    Hosts(hosts::HostsCommand),
    /// Look at batch script templates
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Look at gateways, drain them
    #[command(subcommand)]
    Gateway(gateway::GatewayCommand),
    /// Tell whose job had an external port of a gateway at a time (exit code 1 if nobody's)
    Who(who::WhoArgs),
    /// Compare store, scheduler and gateways, and print every disagreement (exit code 1)
    Audit(audit::AuditArgs),
    /// Back up and restore the embedded store
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Submit a job through the API
    Submit(client::SubmitArgs),
    /// List the jobs that are not finished
    List(client::ApiArgs),
    /// Show a job as the API shows it (JSON)
    Show(client::JobArgs),
    /// Cancel a job
    Cancel(client::JobArgs),
    /// Wait until users can connect to a job, or until it has finished
    Wait(client::WaitArgs),
    /// What the local scheduler starts for each job
    #[command(hide = true)]
    LocalJob {
        /// The job's folder in the spool.
        folder: PathBuf,
    },
}

#[derive(Args)]
struct ServeArgs {
    /// Run only these parts: api, jobs-watch, keyhole, keyhole-watch
    #[arg(long, value_delimiter = ',', value_name = "PART,…")]
    only: Vec<Part>,
    /// Who reads the log: people, or programs (json: an object per line)
    #[arg(long, value_name = "people|json", default_value = "people")]
    log_format: Format,
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let named = cli.config.as_deref();
    let result = match cli.command {
        Command::Serve(args) => serve::serve(named, &args.only, args.log_format),
        Command::Demo(args) => demo::demo(&args),
        Command::Doctor(args) => doctor::run(named, &args),
        Command::Config(command) => config::run(named, &command),
        Command::Hosts(command) => hosts::run(named, &command),
        Command::Template(command) => template::run(named, &command),
        Command::Gateway(command) => gateway::run(named, &command),
        Command::Who(args) => who::run(named, &args),
        Command::Audit(args) => audit::run(named, &args),
        Command::Store(command) => store::run(named, &command),
        Command::Submit(args) => client::submit(named, &args),
        Command::List(args) => client::list(named, &args),
        Command::Show(args) => client::show(named, &args),
        Command::Cancel(args) => client::cancel(named, &args),
        Command::Wait(args) => client::wait(named, &args),
        Command::LocalJob { folder } => return crate::scheduler::local::shepherd(&folder),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bwvisu-runner: {error}");
        ExitCode::FAILURE
    })
}
