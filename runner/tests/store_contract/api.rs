//! What front ends see while etcd is silent: a real program with its API, and more requests at once than it has room for.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use bwvisu_runner::domain::job::Job;
use bwvisu_runner::error::ErrorKind;
use bwvisu_runner::store::Store;
use bwvisu_runner::store::etcd::{Etcd, EtcdConfig};
use serde_json::{Value, json};

use crate::programs::Program;
use crate::server::{EtcdServer, Kind, etcd_is_there};
use crate::throng::grant;

/// Ten seconds for a turn, and then one call of five; the rest is for a busy machine. Turn after turn would take fifty.
const BOUND: Duration = Duration::from_secs(40);

/// Without bounded turns, the last of them would wait for the timeouts of all others.
#[test]
fn no_verb_takes_longer_than_its_bound_however_many_wait_for_a_silent_etcd() {
    const CALLERS: u64 = 32;
    if !etcd_is_there() {
        return;
    }
    let server = EtcdServer::start(Kind::Plain);
    let client = Etcd::connect(EtcdConfig { timeout: EtcdConfig::DEFAULT_TIMEOUT, ..server.config() }).unwrap();
    server.wait_for(&client);
    let store = Store::new(Box::new(client));
    server.freeze();
    let times = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for caller in 1..=CALLERS {
            let (store, times) = (&store, &times);
            scope.spawn(move || {
                let job = Job { id: caller, cluster: "default".into(), user: "alice".into(), ..Job::default() };
                let begin = Instant::now();
                let outcome = match caller % 3 {
                    0 => store.new_id().map(drop),
                    1 => store.create_job(&job, None, 9).map(drop),
                    _ => store.claim(&grant(caller, "10.0.0.1", 50_000, &["c0"], "nonce")).map(drop),
                };
                times.lock().unwrap().push(begin.elapsed());
                assert_eq!(outcome.unwrap_err().kind, ErrorKind::Unavailable);
            });
        }
    });
    let longest = times.into_inner().unwrap().into_iter().max().unwrap();
    println!("{CALLERS} verbs at once on a silent etcd: the longest took {longest:?}");
    assert!(longest < BOUND, "{longest:?}");
    server.thaw();
    server.wait_for(&server.client());
    assert!(store.claim(&grant(1, "10.0.0.1", 50_000, &["c0"], "nonce")).unwrap());
}

/// A runner with its API alone, and where it listens.
fn start(folder: &Path, server: &EtcdServer) -> (Program, String) {
    for name in ["templates", "share"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    fs::write(folder.join("share/keyhole-client.x86_64"), "not needed by this test's jobs").unwrap();
    fs::write(folder.join("templates/template_sleeper.txt"), "#!/bin/bash\n#SBATCH --time=5\nexec sleep 5\n").unwrap();
    fs::write(folder.join("settings.json"), json!({"api-password": "opensesame"}).to_string()).unwrap();
    fs::set_permissions(folder.join("settings.json"), Permissions::from_mode(0o600)).unwrap();
    let address = server.client_address();
    let config = json!({
        "bwvisu-home-prefix": folder.join("home"), "state-dir": folder.join("state"), "templates": folder.join("templates"),
        "gateway-nodes": [{"internal-ip": "localhost", "external-ip": "127.0.0.1"}],
        "keyholed-servers": [{"ip": "127.0.0.1", "port": 80}], "keyhole-listen": "127.0.0.1:0",
        "api-listen": "127.0.0.1:0", "api-plain-http": true, "scheduler": "local", "gateway": "relay", "users": {"min-uid": 1},
        "etcd-servers": [{"ip": address.ip(), "port": address.port()}],
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bwvisu-runner"));
    command.arg("--config").arg(folder.join("config.json")).args(["serve", "--only", "api"]).env("BWVISU_INSTALL_DIR", folder);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut seen = Vec::new();
    let line = lines.find(|line| {
        seen.push(line.clone());
        line.contains("api: listening on ")
    });
    let line = line.unwrap_or_else(|| panic!("it does not start:\n{}", seen.join("\n")));
    let listening = line.split_once("listening on ").unwrap().1.split_whitespace().next().unwrap().to_owned();
    let mut log = File::create(folder.join("log")).unwrap();
    thread::spawn(move || lines.for_each(|line| std::io::Write::write_all(&mut log, (line + "\n").as_bytes()).unwrap()));
    (Program::new(child, folder.join("log")), format!("http://{listening}"))
}

/// Status, `Retry-After`, body.
fn ask(url: &str, body: Option<&Value>) -> (u16, Option<String>, Value) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let login = "Basic Ynd2aXN1LXdlYjpvcGVuc2VzYW1l";
    let answer = match body {
        Some(body) => agent.post(url).header("Authorization", login).send_json(body),
        None => agent.get(url).header("Authorization", login).call(),
    };
    let mut answer = answer.unwrap();
    let retry = answer.headers().get("Retry-After").map(|value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), retry, answer.body_mut().read_json().unwrap_or_default())
}

#[test]
fn front_ends_get_503_in_time_while_etcd_is_silent_and_answers_when_it_is_back() {
    if !etcd_is_there() {
        return;
    }
    let (server, folder) = (EtcdServer::start(Kind::Plain), tempfile::tempdir().unwrap());
    server.wait_for(&server.client());
    let (_runner, url) = start(folder.path(), &server);
    let jobs = format!("{url}/jobs");
    assert_eq!(ask(&jobs, None).0, 200);
    server.freeze();
    let own = fs::metadata("/proc/self").unwrap().uid();
    let user = if own == 0 { "nobody".to_owned() } else { own.to_string() };
    let submission = json!({"uid": user, "template-name": "template_sleeper.txt", "variables": {}});
    let longest = thread::scope(|scope| {
        let call = |number: u64| {
            let (jobs, submission) = (&jobs, &submission);
            scope.spawn(move || {
                let begin = Instant::now();
                let (status, retry, body) = ask(jobs, number.is_multiple_of(2).then_some(submission));
                // Where there are too many at once, 429 says so.
                assert!(matches!(status, 503 | 429), "{status} {body}");
                assert!(retry.is_some() && body["detail"].is_string(), "{retry:?} {body}");
                begin.elapsed()
            })
        };
        let calls: Vec<_> = (0..40).map(call).collect();
        calls.into_iter().map(|call| call.join().unwrap()).max().unwrap()
    });
    println!("40 requests at once on a silent etcd: the longest took {longest:?}");
    assert!(longest < BOUND, "{longest:?}");
    server.thaw();
    server.wait_for(&server.client());
    let begin = Instant::now();
    while ask(&jobs, None).0 != 200 {
        assert!(begin.elapsed() < BOUND, "it is back without a restart");
        thread::sleep(Duration::from_millis(100));
    }
}
