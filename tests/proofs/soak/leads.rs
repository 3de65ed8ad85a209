//! Who leads the watchers, as etcd tells it at the moment of every change.

use super::lanes::Caused;
use super::tally::{Tally, lock};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bwvisu_tests::Bed;
use bwvisu_tests::member::CLIENT_PORT;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const PREFIX: &str = "/bwvisu-runner/leaders/";
/// How many watchers there are: of the scheduler and of the gateways.
pub const ROLES: usize = 2;

/// A lead was taken or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    at: Instant,
    role: String,
    /// The program that leads now.
    leader: Option<String>,
}

type Events = Arc<Mutex<BTreeMap<(i64, String), Event>>>;

/// One `etcdctl watch` at each member, begun anew whenever it ends: whichever tells first is believed.
pub struct Leads {
    events: Events,
    ended: Arc<AtomicBool>,
    watchers: Vec<Arc<Mutex<Child>>>,
}

impl Leads {
    /// Listens from now on.
    pub fn watch(bed: &Bed, hosts: &[&str]) -> Self {
        let mut leads = Self { events: Events::default(), ended: Arc::default(), watchers: Vec::new() };
        for host in hosts {
            let endpoint = format!("{}:{CLIENT_PORT}", bed.ip(host));
            // From the first revision on, so that nothing is missed that happened in between.
            let words = [
                "env",
                "ETCDCTL_API=3",
                "etcdctl",
                "--endpoints",
                &endpoint,
                "watch",
                "--prefix",
                PREFIX,
                "--rev=1",
                "-w",
                "json",
            ];
            let mut command = bed.command(host, &words);
            command.stdout(Stdio::piped()).stderr(Stdio::null());
            let watcher = Arc::new(Mutex::new(command.spawn().unwrap()));
            let (events, ended, kept) = (Arc::clone(&leads.events), Arc::clone(&leads.ended), Arc::clone(&watcher));
            leads.watchers.push(watcher);
            thread::spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    let output = lock(&kept).stdout.take();
                    output.into_iter().for_each(|output| listen(output, &events));
                    let _ = lock(&kept).wait();
                    thread::sleep(Duration::from_millis(200));
                    let mut child = lock(&kept);
                    if !ended.load(Ordering::SeqCst) {
                        *child = command.spawn().unwrap();
                    }
                }
            });
        }
        leads
    }

    /// All changes so far, in etcd's order.
    fn events(&self) -> Vec<Event> {
        lock(&self.events).values().cloned().collect()
    }

    /// The host of the program that leads each role now.
    pub fn leaders(&self) -> BTreeMap<String, String> {
        let mut leaders = BTreeMap::new();
        for event in self.events() {
            match event.leader {
                Some(leader) => drop(leaders.insert(event.role, host_of(&leader))),
                None => drop(leaders.remove(&event.role)),
            }
        }
        leaders
    }

    /// How long after `then` each role that `host` led had another leader; nothing for those that have none yet.
    pub fn handed_over(&self, host: &str, then: Instant) -> Vec<Option<Duration>> {
        let events = self.events();
        let mut before: BTreeMap<&str, &str> = BTreeMap::new();
        for event in events.iter().filter(|event| event.at <= then) {
            before.insert(&event.role, event.leader.as_deref().unwrap_or_default());
        }
        let led = before.into_iter().filter(|(_, leader)| host_of(leader) == host);
        led.map(|(role, old)| {
            let taken =
                |event: &&Event| event.at > then && event.role == role && event.leader.as_deref().is_some_and(|new| new != old);
            events.iter().find(taken).map(|event| event.at.duration_since(then))
        })
        .collect()
    }

    /// Counts what became of the leads of every runner that something happened to.
    pub fn judge(&self, tally: &Tally, caused: &[Caused], hosts: &[&str]) {
        for one in caused {
            let Some(peer) = one.fault.runner() else { continue };
            let quiet = !one.fault.member()
                && !caused.iter().any(|other| other.fault.member() && other.overlaps(one, Duration::from_secs(3)));
            for time in self.handed_over(hosts[peer], one.begun).into_iter().flatten() {
                // Later than this, it was for another reason.
                if time > one.mended.duration_since(one.begun) + Duration::from_secs(10) {
                    continue;
                }
                tally.count("leads handed over");
                tally.took(
                    if quiet { "hand-over of a lead, etcd being whole" } else { "hand-over of a lead, etcd being broken too" },
                    time,
                );
            }
        }
    }
}

impl Drop for Leads {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        for watcher in &self.watchers {
            let _ = lock(watcher).kill();
            let _ = lock(watcher).wait();
        }
    }
}

fn host_of(leader: &str) -> String {
    leader.split(':').next().unwrap_or_default().to_owned()
}

fn listen(output: ChildStdout, events: &Events) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let Ok(told) = serde_json::from_str::<Value>(&line) else { continue };
        for event in told["Events"].as_array().into_iter().flatten() {
            note(event, events);
        }
    }
}

fn note(event: &Value, events: &Events) {
    let text = |name: &str| {
        let bytes = event["kv"][name].as_str().and_then(|text| STANDARD.decode(text).ok());
        bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let (Some(key), Some(revision)) = (text("key"), event["kv"]["mod_revision"].as_i64()) else { return };
    let role = key.trim_start_matches(PREFIX).to_owned();
    let event = Event { at: Instant::now(), role: role.clone(), leader: text("value") };
    lock(events).entry((revision, role)).or_insert(event);
}
