//! The API's password and the jobs' tokens: not in the log, however much is logged; in no process's arguments; in no file that
//! others may read.

use crate::api::demo;
use crate::cluster::Cluster;
use crate::world::{Bench, Over, PASSWORD, basic, user};
use bwvisu_runner::store::{Store, embedded::Embedded};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The arguments of all processes that live while `work` goes on, which may wait until one with such a word is seen.
fn arguments_during(work: impl FnOnce(&dyn Fn(&str))) -> BTreeSet<String> {
    let (seen, done) = (Mutex::new(BTreeSet::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _over = Over(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let all = crate::world::mentioning("");
                seen.lock().unwrap().extend(all);
            }
        });
        let shown = |word: &str| seen.lock().unwrap().iter().any(|line: &String| line.contains(word));
        work(&|word| {
            let begin = Instant::now();
            // Less than what is held for it has: a submission 45 s.
            while !shown(word) && begin.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
    });
    seen.into_inner().unwrap()
}

/// How the password may look, and how it travels.
fn passwords() -> Vec<String> {
    let credentials = basic("bwvisu-web", PASSWORD).replace("Basic ", "");
    vec![PASSWORD.to_owned(), format!("{PASSWORD:?}"), PASSWORD.escape_default().to_string(), credentials]
}

fn assert_hidden(secrets: &[String], place: &str, text: &str) {
    for secret in secrets {
        let shown = text.lines().find(|line| line.contains(secret.as_str()));
        assert_eq!(shown, None, "a secret is shown in {place}");
    }
}

#[test]
fn on_this_machine_secrets_are_in_no_log_no_arguments_and_no_open_file() {
    let mut bench = Bench::plain();
    bench.environment.push(("RUST_LOG".into(), "trace".into()));
    let served = bench.serve();
    let arguments = arguments_during(|await_seen| {
        for _ in 0..4 {
            served.submit(&user().name, "template_demo.txt", demo());
        }
        served.await_state("4", "available");
        await_seen("local-job");
        served.get_as(&basic("bwvisu-web", &PASSWORD[1..]), "/jobs");
        // Written where the log is at its most talkative alone.
        served.raw("GET / HTTP/9\r\n\r\n");
        // The client has the password too.
        let listed = bench.command().args(["list", "--url", &served.url]).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    });
    assert!(arguments.iter().any(|line| line.contains("local-job")), "the sampler saw no job");
    let log = served.log();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log is not as talkative as it should be");
    modes_are_private(&bench);
    served.kill();

    let store = Store::new(Box::new(Embedded::open(&bench.path("state/store.redb")).unwrap()));
    let tokens: Vec<String> = store.active_jobs("default").unwrap().into_iter().filter_map(|job| job.token).collect();
    assert_eq!(tokens.len(), 4);
    drop(store);
    let secrets = [passwords(), tokens.clone()].concat();
    assert_hidden(&secrets, "the log", &log);
    assert_hidden(&secrets, "arguments", &arguments.into_iter().collect::<Vec<_>>().join("\n"));
    for (file, metadata) in bench.state_files() {
        if metadata.is_file() && file != bench.path("state/store.redb") {
            let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
            assert_hidden(&secrets, &file.display().to_string(), &text);
        }
    }
    for entry in fs::read_dir(bench.home()).unwrap() {
        let file = entry.unwrap().path();
        if file.is_file() {
            assert_hidden(&secrets, &file.display().to_string(), &String::from_utf8_lossy(&fs::read(&file).unwrap()));
        }
    }
}

#[test]
fn on_a_cluster_secrets_are_in_no_log_and_no_arguments_on_either_side() {
    let mut cluster = Cluster::new();
    cluster.bench.environment.push(("RUST_LOG".into(), "trace".into()));
    cluster.bench.template("template_ports.txt", "#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 1\nsleep 9\n");
    let served = cluster.bench.serve();
    let arguments = arguments_during(|await_seen| {
        for _ in 0..3 {
            served.submit("alice", "template_ports.txt", json!({}));
        }
        // The last one long enough to be seen.
        cluster.play("slow.sbatch", "");
        std::thread::scope(|scope| {
            scope.spawn(|| served.submit("alice", "template_ports.txt", json!({})));
            await_seen("sbatch");
            cluster.stop_playing("slow.sbatch");
        });
        // The ways that end in long error messages.
        for stage in ["refuse.sbatch", "refuse.squeue", "refuse.scancel"] {
            cluster.play(stage, "slurm: error: it does not work");
        }
        served.post(&json!({"uid": "alice", "template-name": "template_ports.txt", "variables": {}}));
        served.delete("/jobs/1");
        cluster.looks(2);
    });
    assert!(arguments.iter().any(|line| line.contains("sbatch")), "the sampler saw no submission");
    let tokens: Vec<String> = ["41", "42", "43", "44"]
        .iter()
        .map(|id| cluster.script(id).split_once("KEYHOLE_TOKEN=").unwrap().1[..64].to_owned())
        .collect();
    assert_eq!(tokens.iter().collect::<BTreeSet<_>>().len(), 4, "tokens are random");
    let secrets = [passwords(), tokens].concat();
    assert_hidden(&secrets, "the log", &served.log());
    assert_hidden(&secrets, "arguments", &arguments.into_iter().collect::<Vec<_>>().join("\n"));
    assert_hidden(&secrets, "calls", &cluster.calls().concat().join("\n"));
    modes_are_private(&cluster.bench);
}

/// Others find nothing that they may open below the state folder.
fn modes_are_private(bench: &Bench) {
    let files = bench.state_files();
    assert!(files.len() >= 4, "{files:?}");
    for (file, metadata) in files {
        let mode = metadata.permissions().mode() & 0o777;
        let allowed = match file.file_name().unwrap().to_str().unwrap() {
            // Front ends are given it.
            "certificate.pem" => 0o644,
            _ if metadata.is_dir() => 0o700,
            // In a folder that only we may enter; the mode of a socket says nothing else.
            _ if !metadata.is_file() => 0o777,
            _ => 0o600,
        };
        assert_eq!(mode & !allowed, 0, "{} has the mode {mode:o}", file.display());
    }
}

#[test]
fn the_key_of_the_certificate_is_private() {
    let bench = Bench::new();
    let served = bench.serve();
    assert_eq!(served.get("/jobs").status, 200);
    modes_are_private(&bench);
    let mode = |name: &str| fs::metadata(bench.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state/tls/key.pem"), mode("state/tls"), mode("state/store.redb")), (0o600, 0o700, 0o600));
}

#[test]
fn no_answer_of_the_api_shows_a_token() {
    let cluster = Cluster::new();
    cluster.bench.template("template_ports.txt", "#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 1\nsleep 9\n");
    let served = cluster.bench.serve();
    let id = served.submit("alice", "template_ports.txt", json!({}));
    let token = cluster.script("41").split_once("KEYHOLE_TOKEN=").unwrap().1[..64].to_owned();
    cluster.show("41", "State", "RUNNING");
    let job = served.await_state(&id, "running");
    assert!(!job.to_string().contains(&token));
}
