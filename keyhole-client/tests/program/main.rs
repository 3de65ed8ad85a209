//! The programs as they are shipped, run as jobs run them.

#![allow(clippy::expect_used, reason = "helpers of tests, too, end the test when they fail")]

mod support;

use keyhole_protocol::{Confirm, Grant, GrantedPort, Purpose, Request, Token, sign, verify};
use std::env;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};
use support::{Ended, PROCESSORS, Server, TOKEN, folder, native, nobody, programs, run, say, segments};

fn token() -> Token {
    Token::from_hex(TOKEN).expect("a token")
}

fn body(request: &str) -> &str {
    request.split_once("\r\n\r\n").expect("a head").1
}

fn answer(status: &str, signature: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nKeyhole-Signature: {signature}\r\n\r\n{body}", body.len())
}

/// Plays keyhole: grants what is asked, and takes confirmations.
fn keyhole(request: &str, gateway: &str) -> Option<String> {
    if request.starts_with("POST /v1/ports/confirm ") {
        return Some(answer("204 No Content", "", ""));
    }
    let request = Request::parse(body(request)).expect("a request");
    let port = |index| GrantedPort { internal: 50000 + index, gateway: gateway.into(), external: 40000 + index };
    let grant = Grant { nonce: request.nonce, ports: (0..request.ports as u16).map(port).collect() }.to_body();
    Some(answer("200 OK", &sign(&token(), Purpose::Grant, grant.as_bytes()), &grant))
}

fn granted() -> Ended {
    let stdout = "\
export KEYHOLE_PORT0=50000
export KEYHOLE_GATEWAY0=1.2.3.4
export KEYHOLE_EXTERNAL_PORT0=40000
export KEYHOLE_PORT1=50001
export KEYHOLE_GATEWAY1=1.2.3.4
export KEYHOLE_EXTERNAL_PORT1=40001
export KEYHOLE_NUM_PORTS=2
";
    Ended { status: Some(0), stdout: stdout.into(), stderr: String::new() }
}

fn failed(status: i32, message: &str) -> Ended {
    Ended { status: Some(status), stdout: String::new(), stderr: format!("keyhole-client: {message}\n") }
}

#[test]
fn ports_are_asked_for_confirmed_and_printed() {
    for program in programs() {
        let server = Server::start("127.0.0.1:0", |_, request| keyhole(request, "1.2.3.4"));
        assert_eq!(run(program.job(&[server.address]).env("SLURM_RESTART_COUNT", "3")), granted());
        let requests = server.requests();
        let asked = Request::parse(body(&requests[0])).expect("a request");
        assert_eq!((asked.job, asked.run, asked.ports), (17, 3, 2));
        assert_eq!(asked.nodes, ["c0", "c1"]);
        let confirmed = Confirm::parse(body(&requests[1])).expect("a confirmation");
        assert_eq!(confirmed, Confirm { job: 17, run: 3, nonce: asked.nonce });
        assert_eq!(requests.len(), 2);
        for (request, purpose) in requests.iter().zip([Purpose::Request, Purpose::Confirm]) {
            let signature = request.split("Keyhole-Signature: ").nth(1).and_then(|rest| rest.lines().next());
            assert!(verify(&token(), purpose, body(request).as_bytes(), signature.expect("a signature")));
            assert!(request.contains(&format!("\r\nHost: {}\r\n", server.address)));
        }
    }
}

#[test]
fn every_run_draws_its_own_nonce() {
    let server = Server::start("127.0.0.1:0", |_, request| keyhole(request, "1.2.3.4"));
    for _ in 0..2 {
        assert_eq!(run(&mut native().job(&[server.address])), granted());
    }
    let requests = server.requests();
    let nonce = |request: &str| Request::parse(body(request)).map(|request| request.nonce);
    assert_ne!(nonce(&requests[0]), nonce(&requests[2]));
}

#[test]
fn a_lost_answer_is_asked_for_again_in_the_same_bytes() {
    for program in programs() {
        let server = Server::start("127.0.0.1:0", |number, request| match number {
            0 => None,
            1 => Some("HTTP/1.1 200 OK\r\nContent-Len".into()),
            2 => Some(answer("503 Service Unavailable", "", "{}")),
            _ => keyhole(request, "1.2.3.4"),
        });
        assert_eq!(run(&mut program.job(&[server.address])), granted());
        let requests = server.requests();
        assert_eq!(requests.len(), 5);
        assert!(requests[1..4].iter().all(|request| *request == requests[0]));
    }
}

#[test]
fn a_dead_server_is_passed_over() {
    for program in programs() {
        let server = Server::start("127.0.0.1:0", |_, request| keyhole(request, "1.2.3.4"));
        for _ in 0..4 {
            assert_eq!(run(&mut program.job(&[nobody(), server.address, nobody()])), granted());
        }
    }
}

#[test]
fn a_server_may_have_an_address_of_the_newer_kind() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        say("NOT RUN: the client over IPv6, because this machine has no [::1]");
        return;
    }
    for program in programs() {
        let server = Server::start("[::1]:0", |_, request| keyhole(request, "1.2.3.4"));
        assert_eq!(run(&mut program.job(&[server.address])), granted());
    }
}

#[test]
fn a_refusal_is_final_and_says_why() {
    for program in programs() {
        let detail = r#"{"status":409,"title":"Conflict","detail":"the token was used"}"#;
        let server = Server::start("127.0.0.1:0", move |_, _| Some(answer("409 Conflict", "", detail)));
        let message = format!("keyhole at {} refused the request (409): the token was used", server.address);
        assert_eq!(run(&mut program.job(&[server.address])), failed(6, &message));
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn it_gives_up_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback address");
    let silent = (silent.local_addr().expect("an address"), "timed out", silent);
    let dead = nobody();
    for program in programs() {
        for (address, reason) in [(silent.0, silent.1), (dead, "connection refused")] {
            let start = Instant::now();
            let ended = run(program.job(&[address]).args(["--give-up-after", "2"]));
            let message =
                format!("no keyhole server granted ports within 2 s, tried {address}; the last reason, from {address}: {reason}");
            assert_eq!(ended, failed(5, &message));
            assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
        }
    }
}

#[test]
fn an_environment_that_is_no_jobs_has_its_own_statuses() {
    let no_token = "KEYHOLE_TOKEN is not 64 lowercase hexadecimal digits";
    let no_list = "neither SLURM_JOB_NODELIST nor SLURM_NODELIST is set: is this a job?";
    type Change = fn(&mut Command) -> &mut Command;
    let cases: [(Change, i32, &str); 10] = [
        (|job| job.env_remove("KEYHOLE_TOKEN"), 3, "KEYHOLE_TOKEN is not set"),
        (|job| job.env("KEYHOLE_TOKEN", ""), 3, no_token),
        (|job| job.env("KEYHOLE_TOKEN", &TOKEN[1..]), 3, no_token),
        (|job| job.env("SLURM_RESTART_COUNT", "one"), 3, "SLURM_RESTART_COUNT is no number: \"one\""),
        (|job| job.env_remove("SLURM_JOB_NODELIST"), 4, no_list),
        (|job| job.env("SLURM_JOB_NODELIST", "c["), 4, "SLURM_JOB_NODELIST: expected a number, at byte 2 of \"c[\""),
        (|job| job.env("SLURM_JOB_NODELIST", not_text()), 4, "SLURM_JOB_NODELIST: a node name is missing, at byte 0 of \"?\""),
        (|job| job.args(["--job", "18"]), 2, "--job is given twice"),
        (|job| job.arg("-v"), 2, "unknown argument \"-v\", see --help"),
        (|job| job.arg(not_text()), 2, "unknown argument \"?\", see --help"),
    ];
    for (change, status, message) in cases {
        assert_eq!(run(change(&mut native().job(&[nobody()]))), failed(status, message));
    }
}

fn not_text() -> &'static std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(b"c\xff")
}

#[test]
fn the_older_name_of_the_node_list_serves_too() {
    let server = Server::start("127.0.0.1:0", |_, request| keyhole(request, "1.2.3.4"));
    let mut job = native().job(&[server.address]);
    assert_eq!(run(job.env_remove("SLURM_JOB_NODELIST").env("SLURM_NODELIST", "old")), granted());
    assert!(server.requests()[0].ends_with("\nnode old\n"));
}

#[test]
fn help_and_version_are_printed() {
    for program in programs() {
        let help = run(program.command().arg("--help"));
        assert_eq!((help.status, help.stdout.as_str()), (Some(0), keyhole_client::HELP));
        let version = run(program.command().arg("--version"));
        assert_eq!((version.status, version.stdout.as_str()), (Some(0), keyhole_client::VERSION));
    }
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let complaint = failed(7, "standard output cannot be written");
    for program in programs() {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let output = program.command().arg("--help").stdout(full).stderr(Stdio::piped()).output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&output.stderr), complaint.stderr);
        assert_eq!(output.status.code(), complaint.status);

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = program.command().arg("--help").stdout(writer).stderr(Stdio::piped()).output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&output.stderr), complaint.stderr);
        assert_eq!(output.status.code(), complaint.status);
    }
}

#[test]
fn the_largest_job_fits() {
    let gateway = "g".repeat(255);
    let nodes = format!("n[0001-4096]-{}.{}.{}", "x".repeat(55), "y".repeat(60), "z".repeat(60));
    for program in programs() {
        let gateway = gateway.clone();
        let server = Server::start("127.0.0.1:0", move |_, request| keyhole(request, &gateway));
        let mut command = program.command();
        command.args(["--job", "18446744073709551615", "--ports", "1000", "--server", &server.address.to_string()]);
        let ended = run(command.env("KEYHOLE_TOKEN", TOKEN).env("SLURM_JOB_NODELIST", &nodes));
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
        assert_eq!(ended.stdout.lines().count(), 3001);
        assert!(ended.stdout.ends_with("=40999\nexport KEYHOLE_NUM_PORTS=1000\n"));
        let asked = Request::parse(body(&server.requests()[0])).expect("a request");
        assert_eq!(asked.nodes.len(), 4096);
    }
}

/// Looks at the process from outside, as other users of the node and later steps of the job could.
#[test]
fn the_token_is_nowhere_while_it_asks() {
    let (arrived, arrival) = mpsc::channel();
    let (looked, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let server = Server::start("127.0.0.1:0", move |_, request| {
        arrived.send(()).expect("the test waits");
        // Until the test has looked.
        let _ = gate.lock().expect("no panic before").recv();
        keyhole(request, "1.2.3.4")
    });
    let child = native().job(&[server.address]).spawn().expect("it runs");
    arrival.recv().expect("a request");
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{file}", child.id())).expect("the process's own file");
        assert!(!String::from_utf8_lossy(&bytes).contains(TOKEN), "the token is in {file}");
        assert!(!bytes.is_empty(), "{file} was read");
    }
    drop(looked);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_programs_are_static_and_small() {
    const INTERPRETER: u32 = 3;
    const DYNAMIC: u32 = 2;
    for processor in PROCESSORS {
        let path = folder().join(format!("keyhole-client.{processor}"));
        let kinds = segments(&path);
        assert!(!kinds.contains(&INTERPRETER) && !kinds.contains(&DYNAMIC), "{path:?} is static: {kinds:?}");
        let gzip = Command::new("gzip").arg("-9nc").arg(&path).output().expect("gzip runs");
        let base64 = gzip.stdout.len().div_ceil(3) * 4;
        say(&format!("keyhole-client.{processor}: {base64} bytes of base64"));
        assert!(gzip.status.success() && gzip.stdout.len() > 1000, "gzip worked");
        assert!(base64 <= 64 * 1024, "keyhole-client.{processor} has {base64} bytes of base64, at most 65536 are allowed");
    }
    assert!(PROCESSORS.contains(&env::consts::ARCH), "this machine's processor is one of ours");
}
