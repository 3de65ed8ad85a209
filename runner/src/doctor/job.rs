//! `--with-job`: a tiny job by the running service, from its submission to a connection and back to nothing.

use super::report::{Advice, Check, Finding, HERE};
use crate::cli::client::{ApiClient, address};
use crate::config::file::GatewayKind;
use crate::config::{Cluster, Config};
use crate::error::{Error, ErrorKind, Result};
use crate::gateway::{Gateway, iptables::Iptables};
use crate::ssh::{Node, SshOptions};
use serde_json::{Map, Value, json};
use std::io::Read;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

/// The name of the job's template, which no folder needs to have.
pub const TEMPLATE: &str = "bwvisu-doctor";
/// Its text.
pub const TEXT: &str = include_str!("job.txt");

/// How long a job may wait for its start: a busy cluster is no fault of ours, but nobody waits here for hours.
const START: Duration = Duration::from_secs(120);
/// How long it may take until it is available.
const WORK: Duration = Duration::from_secs(120);
/// How long its end and the removal of its rules may take.
const END: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(300);
/// What the job adds to what it found wrong, for its exit code.
const FAULTS: i64 = 64;
/// Nothing on the node can listen.
const NO_LISTENER: i64 = 16;

/// The lines about a job, in order.
const LINES: [Check; 8] = [
    Check::Job,
    Check::JobKeyhole,
    Check::JobFolder,
    Check::JobBase64,
    Check::JobGzip,
    Check::JobAvailable,
    Check::JobConnection,
    Check::JobEnd,
];

/// Submits a job of `user` by the service, looks at it, and cancels it.
pub fn examine(api: Result<ApiClient>, config: &Config, user: &str) -> Vec<Finding> {
    let api = match api.and_then(|api| api.list().map(|_| api)) {
        Ok(api) => api,
        Err(error) => return after(vec![service_failed(&error)], "the service does not answer"),
    };
    let mut findings = vec![Finding::ok(Check::Service, HERE, "it answers")];
    match api.submit(user, TEMPLATE, variables(config)) {
        Ok(id) => findings.extend(Journey { api: &api, config, id: &id }.examine(user)),
        Err(error) => findings.push(Finding::failed(Check::Job, HERE, error.to_string(), submit_advice(&error))),
    }
    after(findings, "see above")
}

/// What could not be looked at stands in the report, too.
fn after(mut findings: Vec<Finding>, why: &str) -> Vec<Finding> {
    for check in LINES {
        if findings.iter().all(|finding| finding.check != check) {
            findings.push(Finding::not_checked(check, HERE, why));
        }
    }
    let order = |finding: &Finding| LINES.iter().position(|check| *check == finding.check).map_or(0, |at| at + 1);
    findings.sort_by_key(order);
    findings
}

fn service_failed(error: &Error) -> Finding {
    let advice = match error.kind {
        ErrorKind::BadGateway if error.message.contains("401") => {
            Advice::new("the service runs with another password than settings.json has: let it read that again")
                .run("systemctl reload bwvisu-runner")
        }
        _ => Advice::new(
            "a job goes by the running service: start it, then look again (or name its API with --url and --certificate)",
        )
        .run("systemctl start bwvisu-runner"),
    };
    Finding::failed(Check::Service, HERE, error.to_string(), advice)
}

fn submit_advice(error: &Error) -> Advice {
    if error.message.contains("no such template") {
        return Advice::new("the service is of an older version than this program: restart it")
            .run("systemctl restart bwvisu-runner");
    }
    Advice::new(
        "mend what the lines above say about command nodes and the user; the service's log has more (journalctl -u bwvisu-runner)",
    )
}

fn variables(config: &Config) -> Map<String, Value> {
    // Colons have no place in a variable. Which port 0 became, the service alone knows.
    let word = |server: &SocketAddr| format!("{}/{}", server.ip().to_string().replace(':', "-"), server.port());
    let known: Vec<String> = config.keyhole.servers.iter().filter(|server| server.port() != 0).map(word).collect();
    let servers = if known.is_empty() { "none".to_owned() } else { known.join("_") };
    [("keyhole_servers".to_owned(), json!(servers))].into_iter().collect()
}

/// A job that was submitted.
struct Journey<'a> {
    api: &'a ApiClient,
    config: &'a Config,
    id: &'a str,
}

impl Journey<'_> {
    fn examine(&self, user: &str) -> Vec<Finding> {
        let mut findings = match self.wait(START, |state| state != "submitted") {
            Ok(job) => self.started(&job, user),
            Err(error) => {
                let advice = Advice::new(
                    "if the cluster is busy, look again later; if not, Slurm's reason says what is missing (a default partition, an account, nodes that are up)",
                );
                vec![Finding::failed(Check::Job, HERE, error.message, advice)]
            }
        };
        findings.push(self.end());
        findings
    }

    /// Looks at the job until its state is as wanted.
    fn wait(&self, limit: Duration, done: impl Fn(&str) -> bool) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let job = self.api.show(self.id)?;
            let (state, message) = (word(&job, "state"), word(&job, "message"));
            if done(&state) {
                return Ok(job);
            }
            if begun.elapsed() >= limit {
                let seconds = limit.as_secs();
                return Err(Error::unavailable(format!("job {} is still {state} after {seconds} s: {message}", self.id)));
            }
            thread::sleep(PAUSE);
        }
    }

    fn started(&self, job: &Value, user: &str) -> Vec<Finding> {
        let job = match self.wait(WORK, |state| state == "available" || state == "finished") {
            Ok(job) => job,
            Err(error) => {
                let started = Finding::ok(Check::Job, HERE, format!("job {} began", self.id));
                return vec![started, Finding::failed(Check::JobAvailable, &node_of(job), error.message, self.way_advice(user))];
            }
        };
        let node = node_of(&job);
        let mut findings = Vec::new();
        if word(&job, "state") == "available" {
            findings.push(Finding::ok(Check::Job, HERE, format!("job {} of {user} runs on {node}", self.id)));
            findings.extend(self.available(&job, &node));
        } else {
            findings.extend(self.ended_early(&job, &node, user));
        }
        findings
    }

    fn way_advice(&self, user: &str) -> Advice {
        let home = self.config.clusters.first().map(|cluster| cluster.home_prefix.join(user)).unwrap_or_default();
        Advice::new(format!(
            "the job's own words are in {}/bwvisu-job-{}.out, those of the service in its log (journalctl -u bwvisu-runner)",
            home.display(),
            self.id
        ))
    }

    /// The job said by its exit code what is wrong on its node.
    fn ended_early(&self, job: &Value, node: &str, user: &str) -> Vec<Finding> {
        let began = Finding::ok(Check::Job, HERE, format!("job {} of {user} ran on {node}", self.id));
        let code = job["exit-code"].as_i64().unwrap_or(-1);
        let mut findings = vec![began];
        match code - FAULTS {
            faults @ 1..=15 => findings.extend(node_lines(faults, node, self.config)),
            NO_LISTENER => {
                findings.extend(node_lines(0, node, self.config));
                let why = "nothing on the node can listen (python3, perl, ncat, socat, busybox or OpenBSD's nc), so no connection can be tried; ports were had";
                findings.push(Finding::not_checked(Check::JobAvailable, node, why));
            }
            _ => findings.push(Finding::failed(Check::JobAvailable, node, word(job, "message"), self.way_advice(user))),
        }
        findings
    }

    fn available(&self, job: &Value, node: &str) -> Vec<Finding> {
        let mut findings = node_lines(0, node, self.config);
        let Some(external) = address(job) else { return findings };
        findings.push(Finding::ok(Check::JobAvailable, node, format!("at {external}")));
        match read_page(&external) {
            Ok(page) if page.starts_with(&format!("{TEMPLATE} {}\n", self.id)) => {
                findings.push(Finding::ok(Check::JobConnection, &external, "this machine reaches the job"));
                findings.retain(|finding| finding.check != Check::JobKeyhole && finding.check != Check::JobFolder);
                findings.extend(page_lines(&page, node));
            }
            Ok(page) => {
                let found = format!("something else answers: {:?}", page.chars().take(60).collect::<String>());
                let advice =
                    Advice::new("another machine has this address, or another program this port: see external-ip in config.json");
                findings.push(Finding::failed(Check::JobConnection, &external, found, advice));
            }
            Err(why) => {
                let advice = Advice::new(format!(
                    "the gateway says that the job listens, and from here {external} is not reached: open the ports for users in the firewalls before the \
                     gateway (and on it). If only this machine is kept out, try `nc {external}` where users are",
                    external = external.replace(':', " ")
                ));
                findings.push(Finding::failed(Check::JobConnection, &external, why, advice));
            }
        }
        findings
    }

    /// Cancels it, and sees that nothing of it stays.
    fn end(&self) -> Finding {
        let failed = |found: String| {
            let advice =
                Advice::new("the service's watchers end it as soon as they can; `bwvisu-runner audit` tells what is left");
            Finding::failed(Check::JobEnd, HERE, found, advice.run_here("bwvisu-runner audit"))
        };
        let finished = self.api.show(self.id).is_ok_and(|job| word(&job, "state") == "finished");
        if !finished && let Err(error) = self.api.cancel(self.id) {
            return failed(error.to_string());
        }
        if let Err(error) = self.wait(END, |state| state == "finished") {
            return failed(error.to_string());
        }
        let begun = Instant::now();
        loop {
            match self.rules_left() {
                Ok(0) => return Finding::ok(Check::JobEnd, HERE, "it has ended, and its forwardings are gone"),
                Ok(left) if begun.elapsed() >= END => return failed(format!("{left} forwardings of job {} are left", self.id)),
                Err(error) if begun.elapsed() >= END => return failed(error.to_string()),
                _ => thread::sleep(PAUSE),
            }
        }
    }

    /// What gateways still have of it. A relay closes with the job; its rules are inside the service.
    fn rules_left(&self) -> Result<usize> {
        let folder = tempfile::Builder::new().prefix("bwvisu-doctor-").tempdir();
        let folder = folder.map_err(|error| Error::internal(format!("no temporary folder: {error}")))?;
        let ssh = SshOptions { sockets: folder.path().to_owned(), ..self.config.ssh.clone() };
        let clusters = self.config.clusters.iter().filter(|cluster| cluster.gateway == GatewayKind::Iptables);
        let mut left = 0;
        for (cluster, gateway) in clusters.flat_map(|cluster| cluster.gateways.iter().map(move |gateway| (cluster, gateway))) {
            left += self.rules_on(cluster, gateway, &ssh)?;
        }
        Ok(left)
    }

    fn rules_on(&self, cluster: &Cluster, gateway: &crate::config::GatewayNode, ssh: &SshOptions) -> Result<usize> {
        let login = &gateway.login;
        let node = Node::new(&login.user, &login.address, login.port, ssh.clone());
        let installed = Iptables::new(node, &gateway.external_ip, &cluster.chain_prefix, cluster.ports).installed()?;
        let rules = installed.blocks.values().flatten();
        Ok(rules.filter(|rule| rule.cluster == cluster.name && rule.job.to_string() == self.id).count())
    }
}

fn word(job: &Value, name: &str) -> String {
    job[name].as_str().unwrap_or_default().to_owned()
}

fn node_of(job: &Value) -> String {
    let node = job["details"]["BatchHost"].as_str().or_else(|| job["details"]["NodeList"].as_str());
    node.filter(|node| !node.is_empty()).unwrap_or("a compute node").to_owned()
}

/// The lines about the node that the job ran on, by what it found wrong there.
fn node_lines(faults: i64, node: &str, config: &Config) -> Vec<Finding> {
    let servers = config.keyhole.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let port = config.keyhole.listen.port();
    let line = |check, bit: i64, good: &str, bad: String, advice: Advice| match faults & bit {
        0 => Finding::ok(check, node, good),
        _ => Finding::failed(check, node, bad, advice),
    };
    vec![
        line(
            Check::JobKeyhole,
            8,
            "reached",
            format!("none of {servers} is reached from there"),
            Advice::new(format!(
                "jobs ask for ports there: see that the part `keyhole` runs, that keyholed-servers in config.json are addresses that compute nodes reach, and \
                 that the firewall here lets compute nodes come to port {port}"
            ))
            .run_here(format!("iptables -I INPUT -p tcp --dport {port} -j ACCEPT")),
        ),
        line(
            Check::JobFolder,
            4,
            "there is one",
            "no folder there in which a program of 200 KB can be put and run (tried TMPDIR, /tmp, /dev/shm, /var/tmp, XDG_RUNTIME_DIR, the home)".into(),
            Advice::new("one of them must have room, and must not be mounted noexec; or set TMPDIR in the templates").run("mount -o remount,exec /tmp; df -h /tmp"),
        ),
        line(
            Check::JobBase64,
            1,
            "there",
            "none of base64, busybox and openssl is there".into(),
            Advice::new("install coreutils").run("apt-get install coreutils || dnf install coreutils"),
        ),
        line(
            Check::JobGzip,
            2,
            "there",
            "none of gzip, gunzip, zcat, pigz and busybox works there".into(),
            Advice::new("install gzip").run("apt-get install gzip || dnf install gzip"),
        ),
    ]
}

/// What the job told about its node.
fn page_lines(page: &str, node: &str) -> Vec<Finding> {
    let told = |name: &str| page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    let silent = told("silent");
    let keyhole = match silent.is_empty() {
        true => Finding::ok(Check::JobKeyhole, node, "reached"),
        false => {
            let advice = Advice::new(
                "jobs try all of keyholed-servers, and lose time with these: start keyhole there, open the way, or take them out",
            );
            Finding::warning(Check::JobKeyhole, node, format!("not reached from there: {silent}"), advice)
        }
    };
    vec![keyhole, Finding::ok(Check::JobFolder, node, told("folder"))]
}

fn read_page(external: &str) -> Result<String, String> {
    let found = external.to_socket_addrs().map_err(|error| error.to_string())?.next().ok_or("it has no address")?;
    let mut stream = TcpStream::connect_timeout(&found, Duration::from_secs(5)).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|error| error.to_string())?;
    let mut page = Vec::new();
    // What came before an error counts.
    let _ = stream.by_ref().take(4096).read_to_end(&mut page);
    Ok(String::from_utf8_lossy(&page).into_owned())
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
