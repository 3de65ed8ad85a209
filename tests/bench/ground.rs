//! What several rows stand on: runners as they are by default, shells on hosts that tell microseconds, processes and what they cost.

use bwvisu_tests::bed::repository;
use bwvisu_tests::{Bed, Runner, Setup, until};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A job that holds its ports' script and waits until somebody releases it: the scheduler takes it and does no more.
pub const HELD: (&str, &str) =
    ("held.txt", "#!/bin/bash\n#SBATCH --time=10 --nodes=1 --hold\n#KEYHOLE-REQUEST-PORTS 1\nexec sleep 5\n");
/// A job that runs and does nothing.
pub const IDLE: (&str, &str) = ("idle.txt", "#!/bin/bash\n#SBATCH --time=60 --nodes=1 --ntasks=1\nexec sleep 3000\n");
/// The same on three nodes.
pub const WIDE: (&str, &str) =
    ("wide.txt", "#!/bin/bash\n#SBATCH --time=60 --nodes=3 --ntasks-per-node=1 --nodelist=c[0-2]\nexec sleep 3000\n");

/// A setup as installed: the intervals that nobody has changed, and any number of jobs for a user.
pub fn setup<'s>(templates: &'s [(&'s str, &'s str)], more: &Value) -> Setup<'s> {
    let mut config = json!({"watch": {}, "limits": {"jobs-per-user": 0, "submissions-in-flight": 28}, "keyholed-port-range": {"min": 50000, "max": 59999}});
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    Setup { templates, config, ..Setup::default() }
}

/// Waits until both gateways were set up so many times.
pub fn wait_for_chains(runner: &Runner, times: usize) {
    until("the chains to be there", 30, || runner.log().matches("chains BWVISU set up").count(), |count| *count >= 2 * times);
}

/// The programs that we are measured against.
pub fn baseline(name: &str) -> PathBuf {
    repository().join("tests/bench/baselines").join(name)
}

/// The numbers that a baseline's script prints on a host, run there as `user` or as root.
pub fn numbers(bed: &Bed, host: &str, user: Option<&str>, script: &str, arguments: &[&str]) -> Vec<f64> {
    let path = baseline(script);
    let path = path.to_str().unwrap();
    let mut words: Vec<&str> = user.into_iter().flat_map(|user| ["-u", user]).collect();
    words.extend(["bash", path]);
    words.extend(arguments);
    let output = bed.exec(host, &words);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} on {host}: {}: {complaint}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{script} printed {line:?}; {complaint}"))).collect()
}

/// Where results lie: `bench/` where cargo leaves what it builds.
pub fn results_folder() -> PathBuf {
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let folder = built.join("bench");
    fs::create_dir_all(&folder).unwrap();
    folder.canonicalize().unwrap()
}

/// Ends all of Slurm's jobs without telling the runner, and waits until none is left.
pub fn cancel_all(bed: &Bed) {
    bed.sh("cmd0", "scancel --user=alice --quiet; true");
    until("the queue to be empty", 110, || bed.sh("cmd0", "squeue --noheader | wc -l"), |left| left.trim() == "0");
}

/// Processes by number.
pub type Processes = Vec<u32>;

fn all_processes() -> Processes {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The words of `/proc/PID/stat` behind the name; nothing if it has ended.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// A process and all that it has started.
pub fn family(pid: u32) -> Processes {
    let parents: Vec<(u32, u32)> =
        all_processes().into_iter().filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?))).collect();
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    family
}

/// All that runs on a host.
pub fn on_host(bed: &Bed, host: &str) -> Processes {
    let pid = fs::read_to_string(Path::new(bed.get("BED_DIR")).join(format!("run/{host}.pid"))).unwrap();
    let space = fs::read_link(format!("/proc/{}/ns/net", pid.trim())).unwrap();
    all_processes()
        .into_iter()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link == space))
        .collect()
}

/// Seconds of CPU that these have used, and those that they started and that have ended.
pub fn cpu_seconds(processes: &[u32]) -> f64 {
    let of_one =
        |pid: &u32| stat(*pid).map_or(0.0, |words| words[11..15].iter().filter_map(|word| word.parse::<f64>().ok()).sum());
    // The kernel counts in hundredths.
    processes.iter().map(of_one).sum::<f64>() / 100.0
}

/// MB in memory that are theirs: what several share is divided among them.
pub fn pss_mb(processes: &[u32]) -> f64 {
    let of_one = |pid: &u32| field_kb(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default(), "Pss:");
    processes.iter().map(of_one).sum::<f64>() / 1000.0 * 1.024
}

/// A line of `/proc/PID/status`, in MB.
pub fn status_mb(pid: u32, name: &str) -> f64 {
    field_kb(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), name) / 1000.0 * 1.024
}

fn field_kb(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()).and_then(|word| word.parse().ok()).unwrap_or(0.0)
}
