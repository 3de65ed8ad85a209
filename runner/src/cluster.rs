//! A cluster at work: its scheduler and its gateways, behind their doors, made from the configuration once.

use crate::config::{self, Config, Login};
use crate::domain::ports::PortRange;
use crate::domain::user::{User, UserPolicy};
use crate::effect;
use crate::error::{Error, Result};
use crate::gateway::{Gateway, iptables::Iptables, relay::Relay};
use crate::scheduler::{Scheduler, local::Local, slurm::Slurm};
use crate::ssh::{Node, SshOptions};
use config::file::{GatewayKind, SchedulerKind};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A cluster at work.
pub struct Cluster {
    /// Its name, in every record and key.
    pub name: String,
    /// Where batch jobs go.
    pub scheduler: Arc<dyn Scheduler>,
    /// Where ports are forwarded.
    pub gateways: Vec<Arc<dyn Gateway>>,
    /// The addresses of the gateways that the configuration drains: nothing new goes there.
    pub drained_by_config: BTreeSet<String>,
    /// A gateway that was silent for longer is taken for dead.
    pub gateway_down: Duration,
    /// The ports that were set aside for us.
    pub ports: PortRange,
    /// Appended to a node's name for the address to forward to.
    pub hostname_suffix: String,
    home_prefix: String,
    users: UserPolicy,
}

impl Cluster {
    /// The cluster that `config` describes. Connects to nothing yet.
    pub fn new(cluster: &config::Cluster, config: &Config) -> Result<Self> {
        Ok(Self {
            name: cluster.name.clone(),
            scheduler: scheduler(cluster, config)?,
            gateways: gateways(cluster, &config.ssh),
            drained_by_config: cluster.gateways.iter().filter(|g| g.drain).map(|g| g.login.address.clone()).collect(),
            gateway_down: cluster.gateway_down,
            ports: cluster.ports,
            hostname_suffix: cluster.hostname_suffix.clone(),
            home_prefix: cluster.home_prefix.to_string_lossy().trim_end_matches('/').to_owned(),
            users: cluster.users.clone(),
        })
    }

    /// The private folder of a user, where jobs run and log.
    pub fn home(&self, user: &User) -> String {
        format!("{}/{}", self.home_prefix, user.name)
    }

    /// The gateway with this internal address.
    pub fn gateway(&self, address: &str) -> Option<&dyn Gateway> {
        self.gateways.iter().find(|gateway| gateway.address() == address).map(AsRef::as_ref)
    }

    /// Ends a job of `user`. Fine if it has ended already.
    pub fn cancel(&self, user: &str, scheduler_job_id: &str) -> Result<()> {
        effect::around("cancel-job", || self.scheduler.cancel(user, scheduler_job_id))
    }

    /// The account that a front end named, if it exists and may use the service.
    pub fn user(&self, name: &str) -> Result<User> {
        self.users.check_name(name)?;
        let user = self.scheduler.user(name)?;
        let user = user.ok_or_else(|| Error::bad_input(format!("uid: there is no user {name} on the cluster")))?;
        // Name services cut off numbers that are too large.
        if name.bytes().all(|b| b.is_ascii_digit()) && user.name != name && user.uid.to_string() != name {
            return Err(Error::bad_input(format!("uid: there is no user {name} on the cluster")));
        }
        self.users.check(&user).map(|()| user)
    }
}

fn scheduler(cluster: &config::Cluster, config: &Config) -> Result<Arc<dyn Scheduler>> {
    Ok(match cluster.scheduler {
        SchedulerKind::Slurm => {
            let nodes = cluster.command_nodes.iter().map(|login| node(login, &config.ssh)).collect();
            Arc::new(Slurm::new(nodes, cluster.users.group.is_some()))
        }
        SchedulerKind::Local => Arc::new(local(&config.state_dir, cluster.local_slots)?),
    })
}

fn local(state_dir: &Path, slots: Option<usize>) -> Result<Local> {
    let mut options = crate::scheduler::local::LocalOptions::default();
    if let Some(slots) = slots {
        options.slots = slots;
    }
    Local::open(&state_dir.join("local-jobs"), options)
}

fn gateways(cluster: &config::Cluster, ssh: &SshOptions) -> Vec<Arc<dyn Gateway>> {
    cluster.gateways.iter().map(|gateway| one_gateway(cluster, gateway, ssh)).collect()
}

fn one_gateway(cluster: &config::Cluster, gateway: &config::GatewayNode, ssh: &SshOptions) -> Arc<dyn Gateway> {
    match cluster.gateway {
        GatewayKind::Iptables => {
            let node = node(&gateway.login, ssh);
            Arc::new(Iptables::new(node, &gateway.external_ip, &cluster.chain_prefix, cluster.ports))
        }
        GatewayKind::Relay => Arc::new(relay(gateway)),
    }
}

/// A relay listens on the address that users connect to, or on all when that is not one of this machine's own.
fn relay(gateway: &config::GatewayNode) -> Relay {
    let bind = gateway.external_ip.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
    Relay::new(gateway.login.address.clone(), gateway.external_ip.clone(), bind, crate::gateway::relay::RelayLimits::default())
}

fn node(login: &Login, ssh: &SshOptions) -> Node {
    Node::new(&login.user, &login.address, login.port, ssh.clone())
}
