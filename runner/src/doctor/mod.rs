//! What an admin looks at before the first job, and when something is wrong: every requirement on every machine, with what to do about
//! those that are not met. Nothing is changed by it, but with a job (`job.rs`), which is submitted, looked at and cancelled.
//!
//! Each node is asked all questions in one script; nodes are looked at side by side, first the command nodes, then, with the names of
//! compute nodes, the gateways. What the answers mean is decided by functions of the answers alone.

mod command_node;
mod gateway;
pub mod job;
mod node;
pub mod report;
mod runner;

use crate::config::file::{GatewayKind, SchedulerKind};
use crate::config::{Cluster, Config, GatewayNode, Login};
use crate::error::{Error, Result};
use crate::ssh::SshOptions;
use node::Answers;
use report::{Advice, Check, Finding, HERE, Report};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;

/// What else to look at.
#[derive(Debug, Default)]
pub struct Options {
    /// The user whose job is tried with `sbatch --test-only`.
    pub user: Option<String>,
    /// How this program is called, for advice.
    pub program: String,
}

/// The configuration, if it could be read, and everything about it.
pub fn examine(named: Option<&Path>, options: &Options) -> (Option<Config>, Report) {
    let runner::Read { config, findings } = runner::read(named);
    let mut report = Report { checks: findings };
    if let Some(config) = &config {
        let sockets = tempfile::Builder::new().prefix("bwvisu-doctor-").tempdir();
        // Connections of our own: those of the service are none of our business.
        let ssh = SshOptions {
            sockets: sockets.as_ref().map_or_else(|_| config.ssh.sockets.clone(), |folder| folder.path().to_owned()),
            ..config.ssh.clone()
        };
        thread::scope(|scope| {
            let here = scope.spawn(|| runner::examine(config, &options.program));
            let clusters: Vec<Finding> =
                config.clusters.iter().flat_map(|cluster| examine_cluster(cluster, &ssh, options)).collect();
            report.checks.extend(here.join().unwrap_or_else(|_| vec![broken_off()]));
            report.checks.extend(clusters);
        });
    }
    (config, report)
}

/// What was not looked at may not pass for good.
fn broken_off() -> Finding {
    let advice = Advice::new("that is a fault of this program: report it, with what it wrote to standard error");
    Finding::failed(Check::Configuration, HERE, "the look at this machine ended by itself", advice)
}

fn examine_cluster(cluster: &Cluster, ssh: &SshOptions, options: &Options) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut nodes = (Vec::new(), 0);
    match cluster.scheduler {
        SchedulerKind::Local => findings.push(local()),
        SchedulerKind::Slurm => {
            let (lines, known) = command_nodes(cluster, ssh, options);
            findings.extend(lines);
            nodes = known;
        }
    }
    match cluster.gateway {
        GatewayKind::Relay => findings.extend(cluster.gateways.iter().map(|gateway| relay(cluster, gateway))),
        GatewayKind::Iptables => findings.extend(gateways(cluster, ssh, options, nodes)),
    }
    findings
}

/// One machine may be both; then its account needs both.
fn is_also(cluster: &Cluster, login: &Login) -> (bool, bool) {
    let same = |other: &Login| (&other.address, other.port, &other.user) == (&login.address, login.port, &login.user);
    let command = cluster.scheduler == SchedulerKind::Slurm && cluster.command_nodes.iter().any(same);
    let gateway = cluster.gateway == GatewayKind::Iptables && cluster.gateways.iter().any(|gateway| same(&gateway.login));
    (command, gateway)
}

/// What our account needs (or may have) of sudo on a machine: the programs, and the rules that say so.
fn needed(cluster: &Cluster, login: &Login, answers: Option<&Answers>) -> (Vec<&'static str>, Vec<String>) {
    let (mut programs, mut lines) = (Vec::new(), Vec::new());
    let (command, gateway) = is_also(cluster, login);
    if command {
        programs.extend(command_node::BY_SUDO);
        programs.push(command_node::MAY_BE_ALLOWED);
        lines.push(command_node::sudo_rule(&login.user, answers));
    }
    if gateway {
        programs.extend(gateway::BY_SUDO);
        lines.push(gateway::sudo_rule(&login.user, answers));
    }
    (programs, lines)
}

/// Looks at machines side by side.
fn side_by_side<'l>(logins: impl Iterator<Item = &'l Login>, ssh: &SshOptions, questions: &str) -> Vec<Result<Answers>> {
    thread::scope(|scope| {
        let asked: Vec<_> = logins.map(|login| scope.spawn(|| node::examine(login, ssh, questions))).collect();
        let gone = || Err(Error::internal("a look at a node ended by itself"));
        asked.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
    })
}

fn command_nodes(cluster: &Cluster, ssh: &SshOptions, options: &Options) -> (Vec<Finding>, (Vec<String>, usize)) {
    let home_prefix = cluster.home_prefix.to_string_lossy();
    let wanted = command_node::Wanted { user: options.user.as_deref(), home_prefix: &home_prefix, policy: &cluster.users };
    let all = side_by_side(cluster.command_nodes.iter(), ssh, &command_node::questions(&wanted));
    let (mut findings, mut nodes) = (Vec::new(), (Vec::new(), 0));
    for (login, answers) in cluster.command_nodes.iter().zip(&all) {
        findings.extend(node::first_contact(login, ssh, &options.program, answers.as_ref().err()));
        let Ok(answers) = answers else { continue };
        let (needed, lines) = needed(cluster, login, Some(answers));
        findings.extend(command_node::judge(&login.address, &login.user, &wanted, answers, &needed, &lines));
        if nodes.1 == 0 {
            nodes = command_node::compute_nodes(answers);
        }
    }
    (findings, nodes)
}

fn gateways(cluster: &Cluster, ssh: &SshOptions, options: &Options, (nodes, of): (Vec<String>, usize)) -> Vec<Finding> {
    let wanted = gateway::Wanted {
        range: cluster.ports,
        prefix: &cluster.chain_prefix,
        suffix: &cluster.hostname_suffix,
        nodes: &nodes,
        of,
    };
    let answers = side_by_side(cluster.gateways.iter().map(|gateway| &gateway.login), ssh, &gateway::questions(&wanted));
    let all: Vec<_> = cluster.gateways.iter().zip(answers.iter().map(|answers| answers.as_ref().ok())).collect();
    let mut findings = Vec::new();
    for (gateway, answers) in cluster.gateways.iter().zip(&answers) {
        findings.extend(node::first_contact(&gateway.login, ssh, &options.program, answers.as_ref().err()));
        let Ok(answers) = answers else { continue };
        let (needed, lines) = needed(cluster, &gateway.login, Some(answers));
        findings.extend(gateway::judge(gateway, &wanted, answers, &needed, &lines));
        findings.push(gateway::external(gateway, &all));
    }
    findings
}

fn local() -> Finding {
    match ["/bin/bash", "/usr/bin/bash"].iter().find(|path| Path::new(path).exists()) {
        Some(bash) => Finding::ok(
            Check::Scheduler,
            HERE,
            format!("jobs are processes of this machine, run by {bash}: there are no command nodes"),
        ),
        None => Finding::failed(
            Check::Scheduler,
            HERE,
            "there is no bash, which jobs are run by",
            Advice::new("install it").run("apt-get install bash || dnf install bash"),
        ),
    }
}

/// A relay listens here: is the address ours?
fn relay(cluster: &Cluster, gateway: &GatewayNode) -> Finding {
    let external = gateway.external_ip.as_str();
    let address: IpAddr = external.parse().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let found = format!("this program forwards ports of {} from {external}: there are no gateway nodes", cluster.ports);
    match TcpListener::bind((address, 0)) {
        Ok(_) => Finding::ok(Check::Relay, HERE, found),
        Err(error) => {
            let advice =
                Advice::new("write an address of this machine as external-ip into config.json, or a name that leads to it");
            Finding::failed(Check::Relay, HERE, format!("nothing can listen on {external}: {error}"), advice)
        }
    }
}
