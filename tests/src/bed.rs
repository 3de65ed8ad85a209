//! The bed: commands on its hosts, connections from its hosts, faults.

use crate::wait::until;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// One test at a time: there is one Slurm, one etcd and one pair of gateways.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// No ordinary command on a host may take longer, in seconds.
const COMMAND_LIMIT: u32 = 120;

/// The bed, ours alone while this lives.
pub struct Bed {
    tool: PathBuf,
    env: BTreeMap<String, String>,
    _others_programs: File,
    _others_threads: MutexGuard<'static, ()>,
}

impl Bed {
    /// Waits for whoever has it, and leaves nothing of theirs: no job, no record, no rule of ours.
    pub fn take() -> Self {
        let threads = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let tool = repository().join("tests/bed");
        let output = Command::new(&tool).arg("env").output().expect("tests/bed must be there");
        let env = String::from_utf8(output.stdout).unwrap().lines().filter_map(assignment).collect::<BTreeMap<_, _>>();
        let ready = Path::new(&env["BED_DIR"]).join("ready");
        let programs = File::open(&ready).unwrap_or_else(|_| {
            panic!("the bed {:?} is not up: run `tests/bed up` as root, with the same BED_… variables", env["BED_PREFIX"])
        });
        programs.lock().expect("the lock of the bed");
        let bed = Self { tool, env, _others_programs: programs, _others_threads: threads };
        bed.assert_alive();
        bed.clean();
        bed
    }

    fn assert_alive(&self) {
        let status = Command::new(&self.tool).arg("status").output().unwrap();
        let table = String::from_utf8_lossy(&status.stdout);
        assert!(status.status.success(), "the bed is not healthy: `tests/bed down; tests/bed up`\n{table}");
    }

    /// Leaves no job, no record, no rule of ours, and nothing over programs.
    pub fn clean(&self) {
        for host in ["cmd0", "cmd1", "gw0", "gw1"] {
            // What a test that was killed had put over programs.
            self.sh(host, "awk '$5 ~ \"^/usr/\" { print $5 }' /proc/self/mountinfo | tac | xargs -r -n 1 umount --lazy");
        }
        for host in ["runner", "run1", "run2"] {
            self.sh(host, "iptables -F");
        }
        self.sh("cmd0", "squeue --noheader --format=%A | xargs -r scancel --quiet");
        until("the cluster to be empty", 40, || self.sh("cmd0", "squeue --noheader"), |left| left.is_empty());
        until("all nodes to be idle", 30, || self.sh("cmd0", "sinfo -h -o %t"), |states| states.trim() == "idle");
        self.sh("runner", "ETCDCTL_API=3 etcdctl del --prefix /bwvisu-runner/");
        for gateway in ["gw0", "gw1"] {
            self.sh(gateway, "iptables-save | grep -v BWVISU | iptables-restore");
        }
    }

    /// The value of one of the lines of `tests/bed env`.
    pub fn get(&self, name: &str) -> &str {
        self.env.get(name).unwrap_or_else(|| panic!("tests/bed env names no {name}"))
    }

    /// A host's inside address.
    pub fn ip(&self, host: &str) -> Ipv4Addr {
        self.get(&format!("BED_{}", host.to_uppercase())).parse().unwrap()
    }

    /// The address of `gw0`, `gw1` or `runner` that the outside reaches.
    pub fn external(&self, host: &str) -> Ipv4Addr {
        self.get(&format!("BED_{}_EXTERNAL", host.to_uppercase())).parse().unwrap()
    }

    /// The address of a compute node on the net of the suffix `-ib0`.
    pub fn ib(&self, node: &str) -> String {
        let octet = self.ip(node).octets()[3];
        format!("{}.{octet}", self.get("BED_IB"))
    }

    /// A user's home as this machine sees it.
    pub fn home(&self, user: &str) -> PathBuf {
        Path::new(self.get("BED_HOME_ON_MACHINE")).join(user)
    }

    /// `tests/bed exec`, to be started.
    pub fn command(&self, host: &str, words: &[&str]) -> Command {
        let mut command = Command::new(&self.tool);
        command.arg("exec").arg(host).args(words).current_dir("/").stdin(Stdio::null());
        command
    }

    /// What a command on a host printed, and how it ended.
    pub fn exec(&self, host: &str, words: &[&str]) -> Output {
        self.exec_within(COMMAND_LIMIT, host, words)
    }

    /// The same for one that takes its time: at most so many seconds.
    pub fn exec_within(&self, seconds: u32, host: &str, words: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", &seconds.to_string()]).arg(&self.tool).arg("exec").arg(host).args(words);
        command.current_dir("/").stdin(Stdio::null()).output().unwrap()
    }

    /// What a script on a host printed. It must succeed.
    pub fn sh(&self, host: &str, script: &str) -> String {
        self.succeed(host, &["bash", "-c", script])
    }

    /// The same as a user, in the user's home.
    pub fn sh_as(&self, host: &str, user: &str, script: &str) -> String {
        self.succeed(host, &["-u", user, "bash", "-c", script])
    }

    fn succeed(&self, host: &str, words: &[&str]) -> String {
        let output = self.exec(host, words);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "on {host}: {words:?}: {}: {complaint}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a command on a host; it is killed when the value is dropped.
    pub fn spawn(&self, host: &str, words: &[&str]) -> Background {
        Background(self.command(host, words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Writes a job's script as its user, hands it to `sbatch` and returns Slurm's id: a job that is none of ours.
    pub fn sbatch(&self, user: &str, options: &[&str], script: &str) -> String {
        let mut words = vec!["-u", user, "sbatch", "--parsable"];
        words.extend(options);
        let mut child = self.command("cmd1", &words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "sbatch: {}", output.status);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Does something in the network of a host: what is connected or listened on there stays there.
    pub fn at<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let pid = fs::read_to_string(Path::new(self.get("BED_DIR")).join(format!("run/{host}.pid")));
        let pid = pid.unwrap_or_else(|_| panic!("host {host} is not up"));
        let network = File::open(format!("/proc/{}/ns/net", pid.trim())).unwrap();
        let enter = || move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("must be root");
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                enter();
                work()
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Breaks something until the value is dropped: `stop-host`, `unplug`, `pause-daemon` or `stop-daemon`.
    pub fn fault(&self, verb: &'static str, host: &str, daemon: Option<&str>) -> Fault<'_> {
        let words = [host].into_iter().chain(daemon).map(str::to_owned).collect();
        let fault = Fault { bed: self, verb, words };
        fault.call(verb);
        fault
    }
}

/// The folder that holds `tests/`.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `NAME=value`, the value perhaps quoted as by `printf %q`; ours hold nothing that needs it.
fn assignment(line: &str) -> Option<(String, String)> {
    line.split_once('=').map(|(name, value)| (name.to_owned(), value.replace('\\', "")))
}

/// A command that runs on a host.
pub struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Something that is broken for as long as this lives.
pub struct Fault<'b> {
    bed: &'b Bed,
    verb: &'static str,
    words: Vec<String>,
}

impl Fault<'_> {
    fn call(&self, verb: &str) {
        let output = Command::new(&self.bed.tool).args(["fault", verb]).args(&self.words).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || thread::panicking(), "bed fault {verb} {:?}: {complaint}", self.words);
    }

    /// Ends it.
    pub fn mend(self) {}
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        self.call(match self.verb {
            "stop-host" => "start-host",
            "unplug" => "plug",
            "pause-daemon" => "resume-daemon",
            _ => "start-daemon",
        });
    }
}
