//! Tokens and the API's password are nowhere to be seen: not in process lists, logs, files, or the job's environment.

use crate::templates::TELLTALE;
use bwvisu_tests::api::USER;
use bwvisu_tests::keyhole::token_of;
use bwvisu_tests::runner::PASSWORD;
use bwvisu_tests::wait::until;
use bwvisu_tests::{Bed, Broken, Runner, Setup};
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const JOBS: usize = 10;

#[test]
fn no_secret_is_seen_in_processes_logs_files_or_what_a_job_is_left_with() {
    let bed = Bed::take();
    let setup = Setup { templates: &[TELLTALE], log: "debug", ..Setup::default() };
    let runner = Runner::with(&bed, &setup);
    // It lives for some milliseconds, which a busy machine's samplers may miss.
    let lingers = "\"$real\" \"$@\"; status=$?; sleep 0.3; exit $status";
    let _slow = ["cmd0", "cmd1"].map(|host| Broken::stub(&bed, host, "/usr/bin/sbatch", lingers));
    // Behind this name stands a program of many names.
    let lingers = "case $0 in *-restore) sleep 0.3 ;; esac; exec -a \"${0##*/}\" \"$real\" \"$@\"";
    let _slow = ["gw0", "gw1"].map(|host| Broken::stub(&bed, host, "/usr/sbin/iptables-restore", lingers));
    let begun = runner.folder().join("begun");
    fs::write(&begun, "").unwrap();
    let done = AtomicBool::new(false);
    let (ids, secrets, seen) = thread::scope(|scope| {
        let samplers = [(); 2].map(|()| scope.spawn(|| sample_processes(&done)));
        let (ids, secrets) = run_jobs(&bed, &runner);
        done.store(true, Ordering::SeqCst);
        let seen: HashMap<Vec<u8>, String> = samplers.into_iter().flat_map(|sampler| sampler.join().unwrap()).collect();
        (ids, secrets, seen)
    });
    assert_eq!(secrets.len(), JOBS + 3);

    assert_sampled(&seen);
    for (bytes, owner) in &seen {
        assert!(!holds_any(bytes, &secrets), "a secret in {owner}");
    }
    assert!(runner.log().lines().any(|line| line.contains(" DEBUG ")), "the log is as talkative as it can be");
    assert!(!holds_any(runner.log().as_bytes(), &secrets), "a secret in the runner's log");
    for (number, id) in ids.iter().enumerate() {
        let left = runner.job_log(owner(number), id);
        assert!(left.contains("KEYHOLE_PORT0=") && left.contains("that is all\n"), "{left}");
        assert!(!holds_any(left.as_bytes(), &secrets) && !left.contains("KEYHOLE_TOKEN"), "a secret is left to job {id}");
    }
    let settings = runner.folder().join("settings.json");
    // Runners of other beds have the same password, in the file that it belongs in.
    let of_others = |path: &PathBuf| path.ends_with("settings.json") && !path.starts_with(runner.folder());
    let found: Vec<PathBuf> = files_with(&bed, &secrets, &begun).into_iter().filter(|path| !of_others(path)).collect();
    assert_eq!(found, [] as [PathBuf; 0], "files that hold a secret (the store and Slurm's spool aside)");
    assert!(files_in(&[runner.folder().to_owned()], &secrets, None).contains(&settings), "the search finds what is there");
}

fn owner(number: usize) -> &'static str {
    ["alice", "bob"][number % 2]
}

/// All jobs until they are available, the secrets of all, and some that never lead to one.
fn run_jobs(bed: &Bed, runner: &Runner) -> (Vec<String>, Vec<String>) {
    let encoded = bwvisu_tests::api::basic(USER, PASSWORD).replace("Basic ", "");
    let mut secrets = vec![PASSWORD.to_owned(), encoded, format!("{USER}:{PASSWORD}")];
    let ids: Vec<String> = (0..JOBS).map(|number| runner.api.submit(owner(number), TELLTALE.0, &json!({}))).collect();
    secrets.extend(ids.iter().map(|id| token_of(bed, id).to_hex()));
    for id in &ids {
        runner.wait_for(id, "available", 60);
    }
    until("the output of all jobs", 10, || logs(runner, &ids), |logs| logs.iter().all(|log| log.contains("that is all")));
    (ids, secrets)
}

fn logs(runner: &Runner, ids: &[String]) -> Vec<String> {
    ids.iter().enumerate().map(|(number, id)| runner.job_log(owner(number), id)).collect()
}

/// Arguments and environments of all processes of all hosts, as often as can be, each text once. The environment of keyhole-client
/// itself is where the token belongs: only its own user can read that.
fn sample_processes(done: &AtomicBool) -> HashMap<Vec<u8>, String> {
    let mut seen = HashMap::new();
    while !done.load(Ordering::SeqCst) {
        for process in fs::read_dir("/proc").unwrap().flatten() {
            if process.file_name().to_string_lossy().parse::<u32>().is_ok_and(|pid| pid != std::process::id()) {
                sample(&process.path(), &mut seen);
            }
        }
    }
    seen
}

fn sample(process: &Path, seen: &mut HashMap<Vec<u8>, String>) {
    // A process may be gone, or become another program, between any two looks.
    let program = || fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned();
    for file in ["cmdline", "environ"] {
        let before = program();
        let bytes = fs::read(process.join(file)).unwrap_or_default();
        let is_client = [before.as_str(), &program()].contains(&"keyhole-client");
        if file == "environ" && (is_client || before.is_empty()) {
            continue;
        }
        seen.entry(bytes).or_insert_with(|| format!("{} of {before} ({})", file, process.display()));
    }
}

/// The sampling was quick enough to meet what lives for some milliseconds.
fn assert_sampled(seen: &HashMap<Vec<u8>, String>) {
    for program in ["sbatch", "squeue", "keyhole-client", "iptables-restore", "slurm_script"] {
        let met = seen.iter().any(|(bytes, owner)| owner.starts_with("cmdline") && holds(bytes, program.as_bytes()));
        assert!(met, "{program} was never seen");
    }
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn holds_any(bytes: &[u8], secrets: &[String]) -> bool {
    secrets.iter().any(|secret| holds(bytes, secret.as_bytes()))
}

/// Files on any host, written since `begun`, that hold a secret and are none of the places for secrets.
fn files_with(bed: &Bed, secrets: &[String], begun: &Path) -> Vec<PathBuf> {
    let folder = Path::new(bed.get("BED_DIR"));
    let on_hosts = ["etc", "home", "log", "munge", "run", "service", "ssh", "sudoers", "tmp"].map(|name| folder.join(name));
    let on_machine = ["/tmp", "/var/tmp", "/var/log", "/var/spool", "/dev/shm", "/root", "/run"].map(PathBuf::from);
    files_in(&[on_hosts.as_slice(), on_machine.as_slice()].concat(), secrets, Some(begun))
}

fn files_in(folders: &[PathBuf], secrets: &[String], newer_than: Option<&Path>) -> Vec<PathBuf> {
    let mut find = Command::new("find");
    find.args(folders).args(["-xdev", "-type", "f", "-size", "-64M"]);
    if let Some(file) = newer_than {
        find.arg("-newer").arg(file);
    }
    // The secrets go to grep by its standard input: we would be the ones who show them otherwise.
    let names = find.args(["-print0"]).stderr(Stdio::null()).output().unwrap().stdout;
    let names: Vec<&str> = std::str::from_utf8(&names).unwrap().split('\0').filter(|name| !name.is_empty()).collect();
    let found = names.chunks(500).flat_map(|names| grep(names, secrets));
    found.collect()
}

fn grep(files: &[&str], secrets: &[String]) -> Vec<PathBuf> {
    let mut grep = Command::new("grep");
    grep.args(["--files-with-matches", "--text", "--fixed-strings", "--no-messages", "--file=-", "--"]).args(files);
    let mut child = grep.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(secrets.join("\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect()
}
