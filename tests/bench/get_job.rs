//! `GET /jobs/<id>` over TLS, against Flask and gunicorn without it.

use crate::Effort;
use crate::figures::{Figure, Goal, Rounds};
use crate::ground::{HELD, baseline, cancel_all, family, pss_mb, results_folder, setup};
use crate::kept::Kept;
use bwvisu_tests::runner::API_PORT;
use bwvisu_tests::{Bed, Runner, until};
use serde_json::json;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const FLASK_PORT: u16 = 8000;

/// The service that we are measured against. Dropped, it ends.
struct Flask(Child);

impl Flask {
    fn start(bed: &Bed) -> Self {
        let program = environment().join("bin/gunicorn").to_string_lossy().into_owned();
        let folder = baseline("");
        let words = [
            &program,
            "--workers=2",
            // Threads, since the workers that are the default take no connection that is kept.
            "--worker-class=gthread",
            "--threads=8",
            "--keep-alive=75",
            "--bind=0.0.0.0:8000",
            "--chdir",
            folder.to_str().unwrap(),
            "--log-level=error",
            "get_job:app",
        ];
        let mut command = bed.command("runner", &words);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let flask = Self(command.stdout(Stdio::null()).spawn().unwrap());
        let there = || bed.at("runner", || TcpStream::connect(("127.0.0.1", FLASK_PORT)).is_ok());
        until("gunicorn to listen", 60, there, |there| *there);
        flask
    }
}

impl Drop for Flask {
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        // gunicorn's master ends its workers.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// A virtual environment with what `requirements.txt` names, made when it is not there or was made of something else.
fn environment() -> PathBuf {
    let (place, list) = (results_folder().join("venv"), baseline("requirements.txt"));
    let (wanted, mark) = (std::fs::read_to_string(&list).unwrap(), place.join("made-of"));
    if std::fs::read_to_string(&mark).is_ok_and(|made| made == wanted) {
        return place;
    }
    let run = |command: &mut Command| assert!(command.status().is_ok_and(|status| status.success()), "{command:?}");
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place));
    run(Command::new(place.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--retries=10", "--timeout=60", "--requirement"])
        .arg(&list));
    std::fs::write(mark, wanted).unwrap();
    place
}

/// Requests per second, memory under load, and what etcd was asked meanwhile.
pub fn measure(effort: Effort) -> Vec<Figure> {
    let bed = Bed::take();
    let runner = Runner::with(&bed, &setup(&[HELD], &json!({})));
    let id = Kept::open(&bed, &runner).post(HELD.0, &json!({}), &mut 0);
    let flask = Flask::start(&bed);
    let (rounds, seconds) = (effort.rounds(7, 3), effort.rounds(5, 2));
    let ours = Load {
        url: format!("https://{}:{API_PORT}/jobs/{id}", bed.external("runner")),
        authorization: runner.api.authorization(),
        seconds,
    };
    let theirs = Load { url: format!("http://{}:{FLASK_PORT}/jobs/{id}", bed.external("runner")), ..ours.clone() };
    let (mut speed, mut memory, mut asked) = (Rounds::default(), Rounds::default(), Vec::new());
    for round in 0..=rounds {
        let before = Instant::now();
        let calls = calls_of_etcd(&bed);
        thread::sleep(Duration::from_secs(seconds as u64));
        let at_rest = (calls_of_etcd(&bed) - calls) / before.elapsed().as_secs_f64();
        let (before, calls) = (Instant::now(), calls_of_etcd(&bed));
        let (fast, size) = ours.run(&bed, runner.pid());
        let meanwhile = calls_of_etcd(&bed) - calls - at_rest * before.elapsed().as_secs_f64();
        let (slow, size_of_theirs) = theirs.run(&bed, flask.0.id());
        if round > 0 {
            speed.ours.push(fast);
            speed.baseline.push(slow);
            memory.ours.push(size);
            memory.baseline.push(size_of_theirs);
            asked.push((meanwhile / (fast * seconds as f64)).max(0.0));
        }
    }
    drop(flask);
    cancel_all(&bed);
    let notes = format!(
        "wrk, 16 connections that are kept, {rounds} rounds of {seconds} s in turns; ours over TLS with a password, theirs without either"
    );
    let etcd =
        Figure::plain("get-job etcd", "none", "calls of etcd per request", crate::figures::median(&asked), Goal::AtMost(0.001));
    let against = "Flask + gunicorn, 2 workers, etcd over gRPC, plain HTTP";
    vec![
        speed.ours_by_theirs("get-job", against, "requests/s", Goal::AtLeast(6.0)).noting(notes),
        memory
            .ours_by_theirs("get-job memory", against, "MB", Goal::AtMost(0.2))
            .noting("PSS under load, of all processes of each (ours: with its ssh clients)"),
        Figure { spread: crate::figures::range(&asked), ..etcd }
            .noting("by etcd's own counters, less what it is asked in the same time without load"),
    ]
}

#[derive(Clone)]
struct Load {
    url: String,
    authorization: String,
    seconds: usize,
}

impl Load {
    /// Requests per second, and the memory of this process and its family in the midst of it.
    fn run(&self, bed: &Bed, pid: u32) -> (f64, f64) {
        let duration = format!("-d{}s", self.seconds);
        let header = format!("Authorization: {}", self.authorization);
        let words = ["wrk", "-t1", "-c16", &duration, "-H", &header, &self.url];
        let child = bed.command("outside", &words).stdout(Stdio::piped()).spawn().expect("wrk is installed");
        thread::sleep(Duration::from_millis(500 * self.seconds as u64));
        let memory = pss_mb(&family(pid));
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
        let speed =
            text.lines().find_map(|line| line.strip_prefix("Requests/sec:")).unwrap_or_else(|| panic!("wrk said {text:?}"));
        (speed.trim().parse().unwrap(), memory)
    }
}

/// All calls about keys that etcd has answered, reads and transactions alike: a read may be made as either.
fn calls_of_etcd(bed: &Bed) -> f64 {
    let text = bed.sh("runner", "curl -sS --noproxy '*' http://127.0.0.1:2379/metrics");
    let calls = |line: &&str| line.starts_with("grpc_server_handled_total{") && line.contains("grpc_service=\"etcdserverpb.KV\"");
    let count = |line: &str| line.rsplit(' ').next().and_then(|word| word.parse::<f64>().ok());
    text.lines().filter(calls).filter_map(count).sum()
}
