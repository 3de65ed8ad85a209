//! Hosts of the bed as machines on which nothing of ours was ever installed: without the account, its keys and its sudo rules. Where the
//! runner is installed, a real systemd runs.

use super::places::{REPOSITORY, Words};
use crate::bed::{Bed, repository};
use crate::wait::{PAUSE, until};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Where the runner is installed, and what these machines are called.
const RUNNERS: [(&str, &str); 2] = [("runner", "runner.example.org"), ("run1", "runner2.example.org")];
/// Where an account is made.
const NODES: [&str; 4] = ["cmd0", "cmd1", "gw0", "gw1"];

/// The hosts, new until this is dropped.
pub struct NewMachines<'b> {
    bed: &'b Bed,
    booted: BTreeMap<&'static str, Booted>,
}

/// A machine with process numbers of its own.
struct Booted {
    child: Child,
    /// The number of its first process, here.
    first: String,
}

/// A systemd that has not come up after so long will not.
const BOOT: Duration = Duration::from_secs(120);

impl<'b> NewMachines<'b> {
    /// Lays new disks over those of the hosts, and boots those that the runner is installed on.
    pub fn take(bed: &'b Bed) -> Self {
        let mut machines = Self { bed, booted: BTreeMap::new() };
        machines.put_back();
        for host in NODES.iter().chain(&["outside"]) {
            bed.sh(host, COVER);
        }
        for (host, name) in RUNNERS {
            machines.booted.insert(host, boot(bed, host, name));
        }
        // What a name service knows.
        let names = Words::of(bed).replace("203.0.113.4 runner.example.org\n203.0.113.6 runner2.example.org");
        for host in ["runner", "run1", "outside"] {
            let output = machines.command(host, &["sh", "-c", &format!("echo '{names}' >>/etc/hosts")]).output().unwrap();
            assert!(output.status.success(), "{host}: {output:?}");
        }
        machines
    }

    /// A command on a host, to be started; on this machine, in the project's folder.
    pub fn command(&self, host: &str, words: &[&str]) -> Command {
        if host == REPOSITORY {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).current_dir(repository());
            // What cargo tells a test would make it build all of ring anew.
            let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO";
            for (name, _) in std::env::vars().filter(|(name, _)| told(name)) {
                command.env_remove(name);
            }
            return command;
        }
        let Some(booted) = self.booted.get(host) else { return self.bed.command(host, words) };
        let mut command = Command::new("nsenter");
        command.args(["--target", &booted.first, "--mount", "--uts", "--net", "--pid", "--"]).args(words).current_dir("/");
        command
    }

    /// The bed.
    pub fn bed(&self) -> &'b Bed {
        self.bed
    }

    fn put_back(&self) {
        for host in NODES.iter().chain(&["outside"]) {
            self.bed.sh(
                host,
                "grep -- '- overlay new-machine ' /proc/self/mountinfo | cut -d' ' -f5 | tac | xargs -r -n 1 umount -l",
            );
        }
        for host in ["gw0", "gw1", "c0", "c1", "c2", "c3"] {
            self.bed.sh(host, "sysctl --quiet --write net.ipv4.ip_local_reserved_ports=");
        }
        let etcd = "export ETCDCTL_API=3
            etcdctl --user root:a-word-for-root auth disable
            for name in bwvisu-runner root; do etcdctl user delete $name; etcdctl role delete $name; done
            true";
        self.bed.sh("runner", etcd);
    }
}

impl Drop for NewMachines<'_> {
    fn drop(&mut self) {
        for (host, booted) in &mut self.booted {
            let _ = booted.child.kill();
            let _ = booted.child.wait();
            self.bed.sh(host, &format!("hostname {host}"));
            remove_groups(&mark(self.bed, host));
        }
        self.put_back();
    }
}

/// Folders of a host get a layer that takes all changes, in memory; nobody has an account of ours there, or a sudo rule. Its host key is where
/// people look for it.
const COVER: &str = "set -e
    for folder in /etc /home; do
        layer=/run/new-machine$folder
        rm -rf $layer && mkdir -p $layer/upper $layer/work
        mount -t overlay -o lowerdir=$folder,upperdir=$layer/upper,workdir=$layer/work new-machine $folder
    done
    sed -i /^bwvisurunner:/d /etc/passwd /etc/shadow /etc/group
    rm -f /etc/sudoers.d/*
    key=/srv/ssh/host_$(hostname).pub
    [ ! -e $key ] || cp $key /etc/ssh/ssh_host_ed25519_key.pub";

/// The control groups that a systemd made below its own.
fn remove_groups(mark: &str) {
    // Where they may only be looked at, that is changed for this command alone.
    let script = format!(
        "for place in /sys/fs/cgroup/systemd /sys/fs/cgroup; do
            [ -d $place/{mark} ] || continue
            [ -w $place ] || mount -o remount,rw,bind $place
            find $place/{mark} -depth -type d -exec rmdir {{}} +
        done"
    );
    let remove = || Command::new("unshare").args(["--mount", "sh", "-c", &script]).stderr(Stdio::null()).status();
    // The last processes may still be on their way out.
    let gone = || !["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"].iter().any(|place| Path::new(place).join(mark).exists());
    until("its control groups to be gone", 60, || remove().map(|_| gone()).unwrap_or_default(), |gone| *gone);
}

fn mark(bed: &Bed, host: &str) -> String {
    format!("bwvisu-docs-{}-{host}", bed.get("BED_PREFIX"))
}

/// With a systemd; where none can be booted, with what stands in for it, and that is said.
fn boot(bed: &Bed, host: &str, name: &str) -> Booted {
    let wanted = std::env::var_os("DOCS_WITHOUT_SYSTEMD").is_none();
    let booted = Some(()).filter(|()| wanted).and_then(|()| begin(bed, host, name, "systemd"));
    booted.unwrap_or_else(|| {
        eprintln!("!!! NOT RUN: {host} without a systemd of its own: units are started by tests/src/docs/systemctl");
        let folder = repository().join("tests/src/docs").to_string_lossy().into_owned();
        begin(bed, host, name, &folder).expect("a machine of its own")
    })
}

/// Nothing if it does not come up.
fn begin(bed: &Bed, host: &str, name: &str, manager: &str) -> Option<Booted> {
    let script = repository().join("tests/src/docs/boot").to_string_lossy().into_owned();
    let words = ["bash", &script, name, &mark(bed, host), manager];
    let mut child = bed.command(host, &words).stdout(Stdio::null()).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let begun = Instant::now();
    while begun.elapsed() < BOOT && child.try_wait().is_ok_and(|ended| ended.is_none()) {
        let all = fs::read_to_string(&children).unwrap_or_default();
        if let Some(first) = all.split_whitespace().next().filter(|first| is_up(first)) {
            return Some(Booted { child, first: first.to_owned() });
        }
        thread::sleep(PAUSE);
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn is_up(first: &str) -> bool {
    let question = ["--target", first, "--mount", "--uts", "--net", "--pid", "--", "systemctl", "is-system-running"];
    let output = Command::new("nsenter").args(question).stderr(Stdio::null()).output().unwrap();
    ["running", "degraded"].contains(&String::from_utf8_lossy(&output.stdout).trim())
}
