//! One member of an etcd of several, on a host for runners, to be killed, paused and started again.

use crate::bed::Bed;
use crate::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::{Child, Stdio};

/// Where members listen for clients; the bed's own etcd has the usual port.
pub const CLIENT_PORT: u16 = 2479;
const PEER_PORT: u16 = 2480;

/// A member. Dropped, it is killed.
pub struct Member<'b> {
    bed: &'b Bed,
    host: &'static str,
    words: Vec<String>,
    child: Option<Child>,
}

impl<'b> Member<'b> {
    /// The member on `host`, which does not run yet, of an etcd on `hosts`; it writes into `folder`.
    pub fn new(bed: &'b Bed, host: &'static str, hosts: &[&str], folder: &Path) -> Self {
        let url = |host: &str, port: u16| format!("http://{}:{port}", bed.ip(host));
        let all: Vec<String> = hosts.iter().map(|host| format!("{host}={}", url(host, PEER_PORT))).collect();
        let words = [
            ("--name", host.to_owned()),
            ("--data-dir", folder.join(host).to_string_lossy().into_owned()),
            ("--listen-client-urls", url(host, CLIENT_PORT)),
            ("--advertise-client-urls", url(host, CLIENT_PORT)),
            ("--listen-peer-urls", url(host, PEER_PORT)),
            ("--initial-advertise-peer-urls", url(host, PEER_PORT)),
            ("--initial-cluster", all.join(",")),
        ];
        let words = words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        // SIGKILL takes nothing from the page cache, so what was answered outlives it all the same.
        let no_sync = (bed.get("BED_ETCD_SYNC") == "no").then(|| "--unsafe-no-fsync".to_owned());
        Self { bed, host, words: ["etcd".to_owned()].into_iter().chain(words).chain(no_sync).collect(), child: None }
    }

    /// The host that it is on.
    pub fn host(&self) -> &'static str {
        self.host
    }

    /// Starts it, and waits for nothing.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "etcd on {} runs already", self.host);
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let mut command = self.bed.command(self.host, &words);
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("it is ours");
    }

    /// Waits until a majority agrees with it.
    pub fn wait_until_healthy(&self) {
        until(
            &format!("etcd on {} to be healthy", self.host),
            60,
            || self.etcdctl(&["endpoint", "health"]).0,
            |healthy| *healthy,
        );
    }

    /// What etcdctl says of this member: whether it succeeded, and what it printed.
    pub fn etcdctl(&self, words: &[&str]) -> (bool, String) {
        let endpoint = format!("{}:{CLIENT_PORT}", self.bed.ip(self.host));
        let before = ["env", "ETCDCTL_API=3", "etcdctl", "--command-timeout=10s", "--endpoints", &endpoint];
        let output = self.bed.exec(self.host, &[&before, words].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}
