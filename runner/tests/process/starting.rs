//! `serve`: how it starts, what it says when it cannot, and how it ends.

use crate::cluster::Cluster;
use crate::slurm::job;
use crate::world::{Bench, ended, until};
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};

/// What `serve` says when it cannot start.
fn fails(bench: &Bench, words: &[&str]) -> String {
    let begin = Instant::now();
    let ended = ended(bench.command().arg("serve").args(words));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(begin.elapsed() < Duration::from_secs(40));
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    // A watcher that had begun may still write to the log.
    ended.stderr.lines().find(|line| line.starts_with("bwvisu-runner: ")).unwrap_or_default().to_owned()
}

#[test]
fn sigterm_and_ctrl_c_end_it_within_seconds_with_exit_code_0() {
    for signal in ["-TERM", "-INT"] {
        let bench = Bench::plain();
        let served = bench.serve();
        served.signal(signal);
        let (code, time) = served.terminate();
        assert_eq!(code, Some(0), "{signal}");
        assert!(time < Duration::from_secs(12), "{signal}: {time:?}");
    }
}

#[test]
fn sighup_does_not_end_it() {
    let bench = Bench::plain();
    let served = bench.serve();
    served.signal("-HUP");
    until("it says so", || served.log().contains("SIGHUP: read again; nothing has changed").then_some(()), || served.log());
    assert_eq!(served.get("/jobs").status, 200);
}

#[test]
fn a_cluster_that_hangs_does_not_hold_up_its_end() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    assert_eq!(served.post(&job("alice")).status, 200);
    cluster.hold("squeue");
    let (code, time) = served.terminate();
    cluster.release("squeue");
    assert_eq!(code, Some(0));
    // A look may take 20 s.
    assert!(time < Duration::from_secs(12), "{time:?}");
}

#[test]
fn a_missing_password_is_an_error_that_names_the_file() {
    let bench = Bench::plain();
    fs::remove_file(bench.path("settings.json")).unwrap();
    let words = fails(&bench, &[]);
    let file = bench.path("settings.json").display().to_string();
    assert!(words.contains("there is no api-password") && words.contains(&file) && words.contains("mode 0600"), "{words}");
    // Without the API no password is needed.
    let served = bench.serve_with(&["--only", "jobs-watch,keyhole,keyhole-watch"]);
    assert_eq!(served.listening("api"), None);
}

#[test]
fn settings_that_others_may_read_are_refused() {
    let bench = Bench::plain();
    for mode in [0o644, 0o640, 0o604, 0o660] {
        bench.write("settings.json", &json!({"api-password": "x"}).to_string(), mode);
        let words = fails(&bench, &[]);
        assert!(words.contains(&format!("its mode is {mode:04o}: chmod 0600")), "{words}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let first = Bench::plain();
    let served = first.serve();
    for (key, part) in [("api-listen", "api"), ("keyhole-listen", "keyhole")] {
        let mut second = Bench::plain();
        let address = served.listening(part).unwrap();
        second.set(key, address.clone());
        let words = fails(&second, &[]);
        assert!(words.contains(&address) && words.contains("in use"), "{words}");
    }
}

#[test]
fn two_programs_on_one_embedded_store_are_told_apart() {
    let bench = Bench::plain();
    let _api = bench.serve_with(&["--only", "api"]);
    let words = fails(&bench, &["--only", "jobs-watch,keyhole,keyhole-watch"]);
    assert!(words.contains("store.redb") && words.contains("etcd"), "{words}");
}

#[test]
fn missing_clients_a_bad_certificate_and_a_state_folder_that_cannot_be_are_named() {
    let bench = Bench::plain();
    fs::remove_file(bench.path("install/share")).unwrap();
    let words = fails(&bench, &[]);
    assert!(words.contains("install/share") && words.contains("make build"), "{words}");

    let mut bench = Bench::new();
    bench.set("api-tls", json!({"certificate": bench.path("none.pem"), "key": bench.path("none.pem")}));
    assert!(fails(&bench, &[]).contains("none.pem: the certificate file cannot be read"));

    let mut bench = Bench::plain();
    bench.write("file", "", 0o644);
    bench.set("state-dir", bench.path("file/state").display().to_string());
    assert!(fails(&bench, &[]).contains("file/state cannot be made"));
}

#[test]
fn a_damaged_store_is_named_and_not_overwritten() {
    let bench = Bench::plain();
    bench.serve().terminate();
    fs::write(bench.path("state/store.redb"), "this is no database").unwrap();
    assert!(fails(&bench, &[]).contains("store.redb"));
    assert_eq!(fs::read(bench.path("state/store.redb")).unwrap(), b"this is no database");
}

#[test]
fn parts_that_do_not_exist_are_refused_with_those_that_do() {
    let ended = Bench::plain().run(&["serve", "--only", "api,web"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("is not one of api, jobs-watch, keyhole, keyhole-watch"), "{}", ended.stderr);
}

#[test]
fn a_killed_runner_leaves_no_ssh_behind() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    assert_eq!(served.post(&job("alice")).status, 200);
    served.kill();
    let socket = cluster.bench.path("state/ssh/sockets").display().to_string();
    let gone = || crate::world::mentioning(&socket).is_empty().then_some(());
    until("no ssh is left", gone, || format!("{:?}", crate::world::mentioning(&socket)));
}
