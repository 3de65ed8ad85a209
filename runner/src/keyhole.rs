//! What running jobs ask for: ports that users can reach.
//!
//! A grant goes through these steps, and may be cut off between any two of them:
//!
//! 1. *claim*: grant and ports are written down in one transaction;
//! 2. *install*: the rules are made to be what the ledger says;
//! 3. *activate*: the grant is marked, and the answer given;
//! 4. *close*, *remove*, *release*: the same way back, when the job has ended.
//!
//! A request that comes again resumes after the step that was done; the watcher (`watch::keyhole`) finishes the way back. A grant whose
//! gateway is down goes to another one (`moving`).

mod choice;
mod crowd;
mod hosts;
mod moving;
mod patience;
mod places;
mod rules;
mod search;

use crate::cluster::Cluster;
use crate::domain::grant::{Former, Grant, GrantState};
use crate::domain::job::{Job, State};
use crate::domain::summary::Summary;
use crate::error::{Error, ErrorKind, Result};
use crate::gateway::Gateway;
use crate::metrics::metrics;
use crate::seldom::Seldom;
use crate::store::Store;
use crate::store::turns::Turns;
use jiff::{SignedDuration, Timestamp};
use keyhole_protocol::{Confirm, GrantedPort, Nonce, Purpose, Request, Token, sign, verify};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use self::crowd::Crowd;
use self::hosts::{Ahead, Lookout};
use self::patience::Patience;
pub use self::rules::rules;
use self::search::Search;

/// So many refusals for one reason from one address are written down in ten seconds: all of an honest mistake, little of a flood.
const LINES: u32 = 8;

/// Fresh grants that wait for a watcher at most; it finds the others by itself.
const MOST_FRESH: usize = 10_000;

/// By cluster and gateway.
type Crowds = HashMap<(String, String), Arc<Crowd>>;

/// The verbs.
pub struct Keyhole {
    store: Arc<Store>,
    clusters: Vec<Arc<Cluster>>,
    max_ports: u32,
    static_forwarding: bool,
    // What follows is shared with the value that takes this one's place when the configuration changes (`renewed`).
    resting: Arc<Mutex<HashMap<String, Instant>>>,
    /// One writer per gateway and program, so that two of ours never defeat each other.
    writers: Arc<Mutex<HashMap<String, Arc<Turns>>>>,
    refusals: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    lines: Arc<Seldom<(&'static str, IpAddr)>>,
    patience: Arc<Patience>,
    crowds: Arc<Mutex<Crowds>>,
    /// By cluster.
    lookouts: Arc<Mutex<HashMap<String, Arc<Lookout>>>>,
    nodes: Arc<Mutex<HashSet<String>>>,
    fresh: Arc<Mutex<Vec<Grant>>>,
}

/// A signed answer.
#[derive(Debug)]
pub struct Answer {
    /// The grant, as `keyhole_protocol` writes it.
    pub body: String,
    /// Its signature.
    pub signature: String,
}

/// Why a request was refused: for the log and the counters alone, so that an attacker learns nothing from the answer.
struct Refusal(&'static str);

impl Keyhole {
    /// The verbs on these parts.
    pub fn new(store: Arc<Store>, clusters: Vec<Arc<Cluster>>, max_ports: u32, static_forwarding: bool) -> Self {
        if static_forwarding {
            log::warn!("static forwarding is on (debug.keyholed-static-forwarding): every job gets the same ports");
        }
        Self {
            store,
            clusters,
            max_ports,
            static_forwarding,
            resting: Arc::default(),
            writers: Arc::default(),
            refusals: Arc::default(),
            lines: Arc::new(Seldom::bursts_of(LINES)),
            patience: Arc::default(),
            crowds: Arc::default(),
            lookouts: Arc::default(),
            nodes: Arc::default(),
            fresh: Arc::default(),
        }
    }

    /// The same verbs on changed parts. Requests that are under way finish on the old ones; what keeps two of them apart holds for
    /// old and new together.
    pub fn renewed(&self, clusters: Vec<Arc<Cluster>>, max_ports: u32, static_forwarding: bool) -> Self {
        Self {
            resting: Arc::clone(&self.resting),
            writers: Arc::clone(&self.writers),
            refusals: Arc::clone(&self.refusals),
            lines: Arc::clone(&self.lines),
            patience: Arc::clone(&self.patience),
            crowds: Arc::clone(&self.crowds),
            lookouts: Arc::clone(&self.lookouts),
            nodes: Arc::clone(&self.nodes),
            fresh: Arc::clone(&self.fresh),
            ..Self::new(Arc::clone(&self.store), clusters, max_ports, static_forwarding)
        }
    }

    /// How many requests were refused so far, by reason.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives a job its ports.
    pub fn grant(&self, body: &[u8], signature: &str, peer: IpAddr) -> Result<Answer> {
        let request = read(body, Request::parse)?;
        let (job, token) = self.authenticate(request.job, Purpose::Request, body, signature, peer)?;
        let cluster = self.cluster(&job)?;
        let _turn = self.patience.turn(job.id)?;
        if request.ports > self.max_ports {
            self.count("too many ports", request.job, peer);
            return Err(Error::bad_input(format!("a job may have at most {} ports, not {}", self.max_ports, request.ports)));
        }
        let mut first = false;
        let grant = match self.earlier(&job, &request, peer)? {
            Earlier::Same(grant) => {
                self.resume(cluster, &grant)?;
                *grant
            }
            Earlier::Other(earlier) => {
                // Only the scheduler knows whether the run is true.
                let ahead = self.check_and_look(cluster, &job, &request, peer)?;
                let former = self.withdraw_earlier(cluster, &request, earlier.as_deref())?;
                let grant = self.claim(cluster, &job, &request, former.as_ref(), ahead)?;
                self.patience.repeats(job.id, &grant.nonce);
                first = true;
                grant
            }
        };
        self.activate(&grant)?;
        metrics().keyhole_grants.inc_by(first.into());
        Ok(answer(&grant, request.nonce, &token))
    }

    /// The job has its answer: from now on its request is used up.
    pub fn confirm(&self, body: &[u8], signature: &str, peer: IpAddr) -> Result<()> {
        let confirm = read(body, Confirm::parse)?;
        let (job, _) = self.authenticate(confirm.job, Purpose::Confirm, body, signature, peer)?;
        let nonce = confirm.nonce.to_string();
        let mine = |grant: &Grant| (grant.run, &grant.nonce) == (confirm.run, &nonce);
        let grant = self.store.update_grant(&job.cluster, job.id, "confirm", |grant| grant.confirmed |= mine(grant))?;
        if grant.is_some_and(|grant| mine(&grant)) {
            self.patience.forget(job.id, &nonce);
        }
        Ok(())
    }

    /// The job that the body speaks of, if the body was signed with its token. The same answer and the same work for a job that is not
    /// there, has ended, or did not sign this.
    fn authenticate(&self, id: u64, purpose: Purpose, body: &[u8], signature: &str, peer: IpAddr) -> Result<(Job, Token)> {
        let names: Vec<&str> = self.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        let job = self.store.job(&names, id)?;
        let token = job.as_ref().and_then(|job| Token::from_hex(job.token.as_deref()?).ok());
        let known = token.is_some();
        let token = token.unwrap_or_else(|| Token::from_bytes([0; 32]));
        let signed = verify(&token, purpose, body, signature);
        match job {
            Some(job) if signed && known => Ok((job, token)),
            Some(_) if known => Err(self.refuse(Refusal("wrong signature"), id, peer)),
            Some(_) => Err(self.refuse(Refusal("the job has ended"), id, peer)),
            None => Err(self.refuse(Refusal("unknown job"), id, peer)),
        }
    }

    fn refuse(&self, reason: Refusal, job: u64, peer: IpAddr) -> Error {
        self.count(reason.0, job, peer);
        Error::refused("the request is refused: it is not signed by a running job that may still ask for ports")
    }

    fn count(&self, reason: &'static str, job: u64, peer: IpAddr) {
        metrics().keyhole_refusals.with_label_values(&[reason]).inc();
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let count = refusals.entry(reason).or_default();
        *count += 1;
        if let Some(left_out) = self.lines.due((reason, peer)) {
            log::warn!("keyhole: job {job}: request from {peer} refused: {reason} ({count} so far){left_out}");
        }
    }

    fn cluster(&self, job: &Job) -> Result<&Arc<Cluster>> {
        let found = self.clusters.iter().find(|cluster| cluster.name == job.cluster);
        found.ok_or_else(|| Error::internal(format!("cluster {} is not configured", job.cluster)))
    }

    /// What the job was given before.
    fn earlier(&self, job: &Job, request: &Request, peer: IpAddr) -> Result<Earlier> {
        let Some(grant) = self.store.grant(&job.cluster, job.id)? else { return Ok(Earlier::Other(None)) };
        if grant.run < request.run {
            return Ok(Earlier::Other(Some(Box::new(grant))));
        }
        let same = (grant.run, grant.nonce.as_str()) == (request.run, request.nonce.to_string().as_str());
        let answerable = same && !grant.confirmed && grant.state != GrantState::Closing;
        if answerable && self.patience.repeats(job.id, &grant.nonce) {
            return Ok(Earlier::Same(Box::new(grant)));
        }
        Err(self.refuse(Refusal("already used"), job.id, peer))
    }

    /// Takes an earlier run's ports back, if that can be done now; a gateway that does not answer does not keep the job waiting. Returns
    /// where users found that run: they are to find this one there, too.
    fn withdraw_earlier(&self, cluster: &Cluster, request: &Request, earlier: Option<&Grant>) -> Result<Option<Former>> {
        if request.run == 0 {
            return Ok(None);
        }
        if let Some(grant) = earlier {
            let remember = |job: &mut Job| job.former = Some(grant.former());
            self.store.update_job(&cluster.name, grant.job, "remember-ports", remember)?;
            self.store.close_grant(grant)?;
        }
        // The watcher may be at it as well, or have been since the job was read.
        let former = self.store.job(&[&cluster.name], request.job)?.and_then(|job| job.former);
        let Some(gateway) = former.as_ref().map(|former| &former.gateway).filter(|gateway| !self.rests(gateway)) else {
            return Ok(former);
        };
        let mut closings = self.store.closings(&cluster.name, gateway)?;
        closings.retain(|closing| closing.job == request.job);
        if !closings.is_empty()
            && let Err(error) = self.finish(cluster, gateway, &closings)
        {
            log::warn!("keyhole: job {}: the rules of its earlier run will be removed later: {error}", request.job);
            self.rest(gateway);
        }
        Ok(former)
    }

    fn crowd(&self, cluster: &Cluster, gateway: &dyn Gateway) -> Arc<Crowd> {
        let mut crowds = self.crowds.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(crowds.entry((cluster.name.clone(), gateway.address().to_owned())).or_default())
    }

    /// The grants of a cluster that have become active here since the last call: whoever watches need not wait until they show in the store.
    pub fn take_fresh(&self, cluster: &str) -> Vec<Grant> {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, others) = std::mem::take(&mut *fresh).into_iter().filter(is_fresh).partition(|grant| grant.cluster == cluster);
        *fresh = others;
        ours
    }

    /// Claims ports on the best gateway that can forward them, and installs the rules.
    fn claim(
        &self,
        cluster: &Cluster,
        job: &Job,
        request: &Request,
        former: Option<&Former>,
        ahead: Option<Ahead>,
    ) -> Result<Grant> {
        let mut last = Error::unavailable("no gateway is configured");
        let (gateways, mut found) = match ahead {
            Some(ahead) => (ahead.gateways, Some(ahead.found)),
            None => (self.choice(cluster, former.map(|former| former.gateway.as_str()))?, None),
        };
        for gateway in gateways {
            let crowd = self.crowd(cluster, gateway);
            let search = Search { store: &self.store, crowd: &crowd, cluster, gateway, job, request, former };
            let claimed = if self.static_forwarding { search.fixed() } else { search.run(found.take()) };
            match claimed.and_then(|grant| self.install_claimed(cluster, gateway, &grant).map(|()| grant)) {
                Ok(grant) => return Ok(grant),
                // The job's other request was faster; no gateway is to blame.
                Err(error) if error.kind == ErrorKind::Conflict => return Err(Error::unavailable(error.message)),
                Err(error) => last = error,
            }
            log::warn!("keyhole: job {}: gateway {}: {last}", job.id, gateway.address());
            match last.kind {
                // Its rules may be there: the client's next try goes on with this claim.
                ErrorKind::Unknown => {
                    self.rest(gateway.address());
                    return Err(last);
                }
                ErrorKind::Unavailable => self.rest(gateway.address()),
                _ => {}
            }
        }
        // Whatever it was, it may pass: the client is to try again.
        let kind = if last.kind == ErrorKind::Busy { ErrorKind::Busy } else { ErrorKind::Unavailable };
        Err(Error { kind, message: format!("no gateway could forward the ports: {}", last.message), ..last })
    }

    /// Installs what was just claimed, or gives the claim back if nothing of it is installed. A claim that another try has gone on with
    /// stays, and one that goes on may have been installed by the try before: its ports are free only when the watcher has seen to
    /// its rules.
    fn install_claimed(&self, cluster: &Cluster, gateway: &dyn Gateway, grant: &Grant) -> Result<()> {
        let installed = match self.install_together(cluster, gateway, grant) {
            Ok(unresolved) if unresolved.contains(&grant.target) => {
                Err(Error::bad_gateway(format!("gateway {} cannot resolve {}", gateway.address(), grant.target)))
            }
            // A port of the relay's that another program has taken since it was looked at.
            Err(error) if error.kind == ErrorKind::Conflict => Err(Error { kind: ErrorKind::Busy, ..error }),
            other => other.map(drop),
        };
        if let Err(error) = &installed
            && error.kind != ErrorKind::Unknown
            && let Some(closing) = self.store.close_claim(grant)?
            && grant.attempt == 0
            // Another's call may have installed it with its own: the ports are free when the rules are certainly not there.
            && let Err(error) = self.finish(cluster, gateway.address(), &[closing])
        {
            log::info!("keyhole: job {}: its claim will be taken back later: {error}", grant.job);
        }
        installed
    }

    /// Installs a claim that an earlier try left behind. A gateway that is out of reach loses it: the next try chooses anew, and whatever
    /// was installed there goes when it answers again.
    fn resume(&self, cluster: &Cluster, grant: &Grant) -> Result<()> {
        match grant.state {
            GrantState::Active => return Ok(()),
            // The watcher is at it.
            GrantState::Moving => return Err(Error::unavailable("the job's ports move to another gateway; try again")),
            GrantState::Claimed | GrantState::Closing => {}
        }
        let gateway = cluster.gateway(&grant.gateway).ok_or_else(|| Error::unavailable("the gateway is no longer configured"))?;
        // From now on the try before, which may still be at it, leaves the claim alone.
        let mine = self.store.update_grant(&grant.cluster, grant.job, "claim", |now| {
            if now.nonce == grant.nonce && now.state == GrantState::Claimed {
                now.attempt += 1;
            }
        })?;
        match mine {
            Some(mine) if mine.nonce == grant.nonce => self.install_claimed(cluster, gateway, &mine),
            _ => Err(Error::unavailable("the job's ports are being assigned anew; try again")),
        }
    }

    fn activate(&self, grant: &Grant) -> Result<()> {
        let current = self.store.update_grant(&grant.cluster, grant.job, "activate", |grant| {
            if grant.state == GrantState::Claimed {
                grant.state = GrantState::Active;
            }
        })?;
        // The job ended meanwhile, and the watcher takes its ports back.
        let Some(current) = current.filter(|current| current.state == GrantState::Active && current.nonce == grant.nonce) else {
            return Err(Error::unavailable("the job is ending"));
        };
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody may be watching here.
        if fresh.len() >= MOST_FRESH {
            fresh.retain(is_fresh);
        }
        if fresh.len() < MOST_FRESH {
            fresh.push(current);
        }
        drop(fresh);
        let ports: Vec<String> = grant.spans.iter().map(|span| span.external_range().to_string()).collect();
        log::info!("keyhole: job {} has {}:{} for {}", grant.job, grant.external_ip, ports.join(","), grant.target);
        Ok(())
    }
}

/// What a job was given before.
enum Earlier {
    /// The same request was made before: it gets the same.
    Same(Box<Grant>),
    /// Nothing that is still valid; an earlier run's grant may be left.
    Other(Option<Box<Grant>>),
}

fn read<T, E: std::fmt::Display>(body: &[u8], parse: impl Fn(&str) -> Result<T, E>) -> Result<T> {
    let text = std::str::from_utf8(body).map_err(|_| Error::bad_input("the body is not text"))?;
    parse(text).map_err(|error| Error::bad_input(format!("the body cannot be read: {error}")))
}

fn answer(grant: &Grant, nonce: Nonce, token: &Token) -> Answer {
    let ports = grant.services().into_iter().map(|service| GrantedPort {
        internal: service.internal_port,
        gateway: service.external_ip,
        external: service.external_port,
    });
    let body = keyhole_protocol::Grant { nonce, ports: ports.collect() }.to_body();
    let signature = sign(token, Purpose::Grant, body.as_bytes());
    Answer { body, signature }
}

/// Later the watcher has it from the store.
fn is_fresh(grant: &Grant) -> bool {
    Timestamp::now().duration_since(grant.granted_at) < SignedDuration::from_secs(60)
}

/// Whether a grant's forwardings should be there at all.
pub fn keeps_ports(grant: &Grant, job: Option<&Summary>) -> bool {
    // Submitted again means that the scheduler started it anew: each run asks for itself.
    job.is_some_and(|job| !matches!(job.state, State::Finished | State::Submitted) && grant.run >= job.run)
}
