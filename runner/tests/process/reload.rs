//! SIGHUP: what is changed counts from then on, what is wrong changes nothing, and nobody who is connected notices.

use crate::cluster::{Cluster, mostly_counts};
use crate::slurm::job;
use crate::world::{Answer, Bench, Over, PASSWORD, Served, basic, free_port, until, user};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A certificate and its key in `cert.pem` and `key.pem`.
fn make_certificate(bench: &Bench) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    bench.write("cert.pem", &made.cert.pem(), 0o644);
    bench.write("key.pem", &made.signing_key.serialize_pem(), 0o600);
    made.cert.der().clone()
}

type Connection = BufReader<StreamOwned<ClientConnection, TcpStream>>;

fn connect(served: &Served, trusted: &CertificateDer<'static>) -> Connection {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
    let client = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
    let socket = TcpStream::connect(&served.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    BufReader::new(StreamOwned::new(client, socket))
}

/// One request on a connection that stays open; its status.
fn ask(connection: &mut Connection) -> std::io::Result<u16> {
    let authorization = basic("bwvisu-web", PASSWORD);
    write!(connection.get_mut(), "GET /jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n\r\n")?;
    let (mut first, mut length) = (String::new(), 0);
    connection.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        connection.read_line(&mut line)?;
        match line.trim().to_lowercase() {
            end if end.is_empty() => break,
            header => length = header.strip_prefix("content-length: ").map_or(length, |value| value.parse().unwrap()),
        }
    }
    connection.read_exact(&mut vec![0; length])?;
    Ok(first.split(' ').nth(1).unwrap_or_default().parse().unwrap_or_default())
}

#[test]
fn a_new_certificate_is_for_new_connections_and_old_ones_go_on() {
    let mut bench = Bench::new();
    let first = make_certificate(&bench);
    bench.set("api-tls", json!({"certificate": bench.path("cert.pem"), "key": bench.path("key.pem")}));
    // The address by which it waits for the start is not trusted here, and needs not be.
    let served = bench.serve();
    let mut old = connect(&served, &first);
    assert_eq!(ask(&mut old).unwrap(), 200);
    let second = make_certificate(&bench);
    let said = served.reload();
    assert!(said.ends_with("SIGHUP: read again; changed: certificate"), "{said}");
    assert_eq!(ask(&mut old).unwrap(), 200, "the old connection goes on");
    assert_eq!(ask(&mut connect(&served, &second)).unwrap(), 200);
    assert!(ask(&mut connect(&served, &first)).is_err(), "the old certificate is shown no more");
}

#[test]
fn a_new_certificate_of_its_own_making_is_taken_up_too() {
    let bench = Bench::new();
    let served = bench.serve();
    fs::remove_file(bench.path("state/tls/certificate.pem")).unwrap();
    assert!(served.reload().ends_with("changed: certificate"));
    let text = fs::read(bench.path("state/tls/certificate.pem")).unwrap();
    let certificate = rustls::pki_types::pem::PemObject::from_pem_slice(&text).unwrap();
    assert_eq!(ask(&mut connect(&served, &certificate)).unwrap(), 200);
}

#[test]
fn a_changed_password_counts_from_then_on() {
    let bench = Bench::plain();
    let served = bench.serve();
    bench.write("settings.json", &json!({"api-password": "another"}).to_string(), 0o600);
    assert_eq!(served.get("/jobs").status, 200, "nothing is read before the signal");
    assert!(served.reload().ends_with("changed: api-password"));
    assert_eq!(served.get("/jobs").status, 401);
    assert_eq!(served.get_as(&basic("bwvisu-web", "another"), "/jobs").status, 200);
    assert!(!served.log().contains("another"), "{}", served.log());
}

fn submit(served: &Served, template: &str) -> Answer {
    served.post(&json!({"uid": user().name, "template-name": template, "variables": {"word": "a"}}))
}

#[test]
fn a_new_folder_of_templates_and_a_changed_limit_count_from_then_on() {
    let mut bench = Bench::plain();
    let served = bench.serve();
    fs::create_dir(bench.path("more")).unwrap();
    fs::rename(bench.path("templates/template_sleeper.txt"), bench.path("more/template_new.txt")).unwrap();
    bench.set("templates", bench.path("more").display().to_string());
    bench.set("limits", json!({"jobs-per-user": 1}));
    bench.save();
    assert_eq!(submit(&served, "template_new.txt").status, 404);
    assert!(served.reload().ends_with("changed: templates, limits"));
    assert_eq!(submit(&served, "template_new.txt").status, 200);
    assert_eq!(submit(&served, "template_new.txt").status, 429);
    bench.set("limits", json!({"jobs-per-user": 0}));
    bench.save();
    assert!(served.reload().ends_with("changed: limits"));
    assert_eq!(submit(&served, "template_new.txt").status, 200);
}

#[test]
fn what_is_wrong_is_named_and_changes_nothing() {
    let mut bench = Bench::new();
    make_certificate(&bench);
    bench.set("api-tls", json!({"certificate": bench.path("cert.pem"), "key": bench.path("key.pem")}));
    let served = bench.serve();
    let certificate = fs::read_to_string(bench.path("cert.pem")).unwrap();
    let trusted = rustls::pki_types::pem::PemObject::from_pem_slice(certificate.as_bytes()).unwrap();
    let (good, settings) = (bench.config.to_string(), json!({"api-password": PASSWORD}).to_string());
    let mut unknown = bench.config.clone();
    unknown["limit"] = json!(1);
    let mut wrong = bench.config.clone();
    wrong["limits"] = json!({"submissions-in-flight": 99});
    let mut nowhere = bench.config.clone();
    nowhere["templates"] = json!("/nowhere");
    let cases = [
        ("config.json", "{".to_owned(), 0o644, &["config.json: EOF", "line 1"][..]),
        ("config.json", unknown.to_string(), 0o644, &["config.json: ", "unknown field `limit`"]),
        ("config.json", wrong.to_string(), 0o644, &["config.json: limits.submissions-in-flight: 99"]),
        ("config.json", nowhere.to_string(), 0o644, &["templates folder /nowhere"]),
        ("settings.json", "{}".into(), 0o600, &["there is no api-password", "settings.json"]),
        ("settings.json", json!({"api-password": "new"}).to_string(), 0o644, &["settings.json: ", "chmod 0600"]),
        ("settings.json", json!({"api-pasword": "new"}).to_string(), 0o600, &["settings.json: ", "api-pasword"]),
        ("cert.pem", "no certificate".into(), 0o644, &["cert.pem: there is no certificate"]),
        ("key.pem", certificate.clone(), 0o600, &["key.pem: there is no private key"]),
    ];
    let key = fs::read_to_string(bench.path("key.pem")).unwrap();
    for (name, text, mode, words) in cases {
        bench.write(name, &text, mode);
        let said = served.reload();
        for part in words.iter().chain(&["everything stays as it was"]) {
            assert!(said.contains(part), "{name}: {part}: {said}");
        }
        assert_eq!(ask(&mut connect(&served, &trusted)).unwrap(), 200, "{name}: it serves as before");
        let before = [("config.json", &good), ("settings.json", &settings), ("cert.pem", &certificate), ("key.pem", &key)];
        before.iter().for_each(|(name, text)| bench.write(name, text, 0o600));
        assert!(served.reload().ends_with("nothing has changed"), "{name}");
    }
    fs::remove_file(bench.path("install/share")).unwrap();
    assert!(served.reload().contains("install/share"));
}

#[test]
fn what_a_running_program_cannot_change_stays_and_is_named() {
    let mut bench = Bench::plain();
    let served = bench.serve();
    bench.set("api-listen", format!("127.0.0.1:{}", free_port()));
    bench.set("state-dir", bench.path("elsewhere").display().to_string());
    bench.set("keep-finished-jobs-days", 1);
    bench.save();
    assert!(served.reload().ends_with("changed: keep-finished-jobs-days"));
    for key in ["api-listen", "state-dir"] {
        let line = served.log().lines().find(|line| line.contains(&format!("config.json: {key} was changed"))).map(str::to_owned);
        assert!(line.is_some_and(|line| line.contains("WARN") && line.contains("restart")), "{key}: {}", served.log());
    }
    assert_eq!(served.get("/jobs").status, 200, "at the old address");
    assert!(!bench.path("elsewhere").exists());
}

/// The connections that were made to a node.
fn connections(cluster: &Cluster, node: &str) -> usize {
    cluster.called("connect").iter().filter(|call| call[1] == format!("runner@{node}")).count()
}

#[test]
fn nodes_come_and_go_and_those_that_stay_keep_their_connection() {
    mostly_counts([2, 1, 1, 1], connections_where_nodes_come_and_go, "to cmd0, gw0, gw1, gw2");
}

/// To `cmd0`, `gw0`, `gw1` and `gw2`.
fn connections_where_nodes_come_and_go() -> [usize; 4] {
    let mut cluster = Cluster::new();
    let gateway = |number: usize| json!({"internal-ip": format!("gw{number}"), "external-ip": "127.0.0.1", "user": "runner"});
    cluster.bench.set("gateway", "iptables");
    cluster.bench.set("gateway-nodes", json!([gateway(0), gateway(1)]));
    let served = cluster.bench.serve();
    assert_eq!(served.post(&job("alice")).status, 200);
    let connected = |node: &str| until(node, || (connections(&cluster, node) > 0).then_some(()), || served.log());
    ["cmd0", "gw0", "gw1"].into_iter().for_each(connected);

    let mut config = cluster.bench.config.clone();
    config["gateway-nodes"] = json!([gateway(1), gateway(2)]);
    config["command-nodes"] = json!([{"ip": "cmd0", "user": "runner"}, {"ip": "cmd2", "user": "runner"}]);
    cluster.bench.write("config.json", &config.to_string(), 0o644);
    assert!(served.reload().ends_with("changed: command-nodes, gateway-nodes"), "{}", served.log());
    connected("gw2");
    cluster.looks(2);
    let asked = |node: &str| cluster.called("run").iter().filter(|call| call[1] == format!("runner@{node}")).count();
    let (gone, stays) = (asked("gw0"), asked("gw1"));
    assert_eq!(served.post(&job("alice")).status, 200);
    cluster.looks(3);
    until("the gateway that stays is looked at", || (asked("gw1") > stays).then_some(()), || served.log());
    assert_eq!(asked("gw0"), gone, "nobody asks the gateway that is gone");
    ["cmd0", "gw0", "gw1", "gw2"].map(|node| connections(&cluster, node))
}

#[test]
fn a_relayed_connection_and_a_job_of_this_machine_do_not_notice() {
    let mut bench = Bench::plain();
    bench.template("template_echo.txt", "#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 1\necho \"port $KEYHOLE_PORT0\"\nexec sleep 300\n");
    let served = bench.serve();
    let id = served.submit(&user().name, "template_echo.txt", json!({}));
    let log = bench.home().join(format!("bwvisu-job-{id}.out"));
    let port = || fs::read_to_string(&log).ok()?.trim().strip_prefix("port ")?.parse::<u16>().ok();
    let port = until("the job has its port", port, || served.log());
    // The application, played here.
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &client, &mut &client));
        }
    });
    let job = served.await_state(&id, "available");
    let external = job["services"][0]["external-port"].as_u64().unwrap();
    let mut user = TcpStream::connect(("127.0.0.1", u16::try_from(external).unwrap())).unwrap();
    user.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for round in 0..20_u8 {
        bench.set("limits", json!({"jobs-per-user": 10 + round}));
        bench.set("watch", json!({"jobs-seconds": 0.2, "keyhole-seconds": 0.2 + 0.01 * f64::from(round)}));
        bench.save();
        let said = thread::scope(|scope| {
            let reload = scope.spawn(|| served.reload());
            for byte in 0..50 {
                let (sent, mut back) = ([round, byte].repeat(2048), vec![0; 4096]);
                user.write_all(&sent).unwrap();
                user.read_exact(&mut back).unwrap();
                assert_eq!(sent, back);
            }
            reload.join().unwrap()
        });
        assert!(said.contains("changed: limits"), "{said}");
    }
    let after = served.await_state(&id, "available");
    assert_eq!(after["services"], job["services"]);
    assert_eq!(served.delete(&format!("/jobs/{id}")).status, 200);
    assert_eq!(served.await_state(&id, "finished")["outcome"], "cancelled");
}

/// How many programs a process has started that are still there, dead ones that were not asked for their end among them.
fn children(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default().split_whitespace().count()).sum()
}

#[test]
fn two_hundred_signals_fail_no_request_and_leave_nothing_behind() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    let submit = || assert_eq!(served.post(&job("alice")).status, 200, "{}", served.log());
    submit();
    served.reload();
    let (threads, files) = (served.count("task"), served.count("fd"));
    let (over, asked, taken) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(served.get("/jobs/1").status, 200);
                    assert_eq!(served.get("/cluster/check-user/bob").status, 200);
                    asked.fetch_add(2, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                submit();
                taken.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut config = cluster.bench.config.clone();
        for round in 0..200 {
            config["limits"] = json!({"jobs-per-user": 1000 + round});
            config["command-nodes"][1]["port"] = json!(2222 + round);
            // As a whole: what is half written is rightly refused.
            cluster.bench.write("config.json.new", &config.to_string(), 0o644);
            fs::rename(cluster.bench.path("config.json.new"), cluster.bench.path("config.json")).unwrap();
            served.signal("-HUP");
        }
        served.reload();
        let (few, begin) = (|| asked.load(Ordering::SeqCst) <= 20 || taken.load(Ordering::SeqCst) <= 2, Instant::now());
        while few() && begin.elapsed() < Duration::from_secs(40) {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let (asked, taken) = (asked.into_inner(), taken.into_inner());
    assert!(asked > 20 && taken > 2, "{asked} and {taken} requests");
    assert!(!served.log().contains("everything stays"), "{}", served.log());
    let read = served.log().matches("SIGHUP: read again; changed: ").count();
    // One for what is ours, and one for what is users'. A good one breaks where the machine stands still for some seconds.
    let made = connections(&cluster, "cmd0");
    assert!((2..=4).contains(&made), "{made} connections to a node that stayed as it was, in {read} changes");
    println!("200 signals, {read} changes, {asked} questions, {taken} submissions");
    // A command of the watcher's is under way now and then; fifty leaks would be more than that.
    let settled = |threads: usize, files: usize| {
        let few = || (served.count("task") <= threads && served.count("fd") <= files).then_some(());
        until("nothing is left", few, || format!("{} of {threads}, {} of {files}", served.count("task"), served.count("fd")));
    };
    settled(threads + 12, files + 24);
    let (threads, files) = (served.count("task"), served.count("fd"));
    // One of the two hundred may still be heeded, so it is not enough that something is said.
    let taken = || served.log().matches("command-nodes").count();
    for port in 0..50 {
        let mut config = cluster.bench.config.clone();
        config["command-nodes"][0]["port"] = json!(3000 + port);
        cluster.bench.write("config.json", &config.to_string(), 0o644);
        let before = taken();
        served.signal("-HUP");
        until("the node is another one", || (taken() > before).then_some(()), || served.log());
        assert_eq!(served.get("/cluster/check-user/bob").status, 200, "over a connection of its own");
    }
    settled(threads + 4, files + 12);
    let few = || (children(served.pid()) <= 6).then_some(());
    until("no program is left", few, || format!("{} children", children(served.pid())));
}
