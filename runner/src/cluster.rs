//! A cluster at work: its scheduler and its gateways, behind their doors, made from the configuration, and made anew when that changes.

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
    made_from: config::Cluster,
    ssh: SshOptions,
    /// In the order of the configuration.
    command_nodes: Vec<Arc<Node>>,
}

impl Cluster {
    /// The cluster that `config` describes. Connects to nothing yet.
    pub fn new(cluster: &config::Cluster, config: &Config) -> Result<Self> {
        Self::made(cluster, config, None)
    }

    /// The cluster that a changed configuration describes. What is the same there lives on: connections, the local scheduler, the
    /// relay with its ports and sessions.
    pub fn renewed(&self, cluster: &config::Cluster, config: &Config) -> Result<Self> {
        Self::made(cluster, config, Some(self))
    }

    fn made(cluster: &config::Cluster, config: &Config, old: Option<&Self>) -> Result<Self> {
        let fresh = |login: &Login| Arc::new(node(login, &config.ssh));
        let known = |login: &Login| old.filter(|old| old.ssh == config.ssh)?.command_node(login);
        let command_nodes: Vec<_> =
            cluster.command_nodes.iter().map(|login| known(login).unwrap_or_else(|| fresh(login))).collect();
        let scheduler = match old.and_then(|old| old.same_scheduler(cluster, &command_nodes)) {
            Some(same) => same,
            None => scheduler(cluster, config, &command_nodes)?,
        };
        let gateway = |gateway: &config::GatewayNode| {
            let same = old.and_then(|old| old.same_gateway(cluster, gateway, &config.ssh));
            same.unwrap_or_else(|| one_gateway(cluster, gateway, &config.ssh))
        };
        Ok(Self {
            name: cluster.name.clone(),
            scheduler,
            gateways: cluster.gateways.iter().map(gateway).collect(),
            drained_by_config: cluster.gateways.iter().filter(|g| g.drain).map(|g| g.login.address.clone()).collect(),
            gateway_down: cluster.gateway_down,
            ports: cluster.ports,
            hostname_suffix: cluster.hostname_suffix.clone(),
            home_prefix: cluster.home_prefix.to_string_lossy().trim_end_matches('/').to_owned(),
            users: cluster.users.clone(),
            made_from: cluster.clone(),
            ssh: config.ssh.clone(),
            command_nodes,
        })
    }

    fn command_node(&self, login: &Login) -> Option<Arc<Node>> {
        let at = self.made_from.command_nodes.iter().position(|known| known == login)?;
        self.command_nodes.get(at).map(Arc::clone)
    }

    /// Our scheduler, if it is also that of the changed configuration.
    fn same_scheduler(&self, cluster: &config::Cluster, nodes: &[Arc<Node>]) -> Option<Arc<dyn Scheduler>> {
        let old = &self.made_from;
        let same_nodes = self.command_nodes.len() == nodes.len()
            && self.command_nodes.iter().zip(nodes).all(|(old, new)| Arc::ptr_eq(old, new));
        let same = old.scheduler == cluster.scheduler
            && (old.scheduler == SchedulerKind::Local
                || (same_nodes && old.users.group.is_some() == cluster.users.group.is_some()));
        same.then(|| Arc::clone(&self.scheduler))
    }

    /// Our gateway of this description, if we have one. There is one relay, and it is never made anew.
    fn same_gateway(
        &self,
        cluster: &config::Cluster,
        gateway: &config::GatewayNode,
        ssh: &SshOptions,
    ) -> Option<Arc<dyn Gateway>> {
        let old = &self.made_from;
        let relay = old.gateway == GatewayKind::Relay;
        let same_kind = old.gateway == cluster.gateway && (relay || (self.ssh == *ssh && old.ports == cluster.ports));
        let same = |known: &config::GatewayNode| {
            (&known.login.address, &known.external_ip) == (&gateway.login.address, &gateway.external_ip)
                && (relay || known.login == gateway.login)
        };
        let at = old.gateways.iter().position(same).filter(|_| same_kind && old.chain_prefix == cluster.chain_prefix)?;
        self.gateways.get(at).map(Arc::clone)
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

fn scheduler(cluster: &config::Cluster, config: &Config, nodes: &[Arc<Node>]) -> Result<Arc<dyn Scheduler>> {
    Ok(match cluster.scheduler {
        SchedulerKind::Slurm => Arc::new(Slurm::new(nodes.to_vec(), cluster.users.group.is_some())),
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
