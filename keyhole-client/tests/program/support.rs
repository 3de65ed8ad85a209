//! The shipped programs, and a server that does as it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::{env, fs, io, thread};

pub const PROCESSORS: [&str; 2] = ["x86_64", "aarch64"];
pub const TOKEN: &str = "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5";

/// Says it on standard error itself, because `eprintln!` is not shown for tests that pass.
pub fn say(message: &str) {
    writeln!(io::stderr(), "{message}").expect("standard error");
}

/// The folder with both programs: the one that `TEST_KEYHOLE_CLIENTS` names, else built now as they are shipped.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = env::var_os("TEST_KEYHOLE_CLIENTS") {
            return folder.into();
        }
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clients");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/build-clients");
        let output = Command::new(script).arg(&folder).output().expect("packaging/build-clients runs");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "packaging/build-clients failed: {complaint}");
        folder
    })
}

/// One of the programs, and how it is run here.
#[derive(Clone)]
pub struct Program {
    pub path: PathBuf,
    pub emulator: Option<String>,
}

impl Program {
    /// The program with nothing in its environment.
    pub fn command(&self) -> Command {
        let mut command = match &self.emulator {
            Some(emulator) => Command::new(emulator),
            None => Command::new(&self.path),
        };
        if self.emulator.is_some() {
            command.arg(&self.path);
        }
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The program as a job runs it, asking these servers for two ports.
    pub fn job(&self, servers: &[SocketAddr]) -> Command {
        let mut command = self.command();
        command.args(["--job", "17", "--ports", "2"]);
        for server in servers {
            command.args(["--server", &server.to_string()]);
        }
        command.env("KEYHOLE_TOKEN", TOKEN).env("SLURM_JOB_NODELIST", "c[0-1]");
        command
    }
}

/// The program of this machine's processor.
pub fn native() -> Program {
    Program { path: folder().join(format!("keyhole-client.{}", env::consts::ARCH)), emulator: None }
}

/// All programs that run here: the others under an emulator. Where there is none that is said, or an error if
/// `REQUIRE_QEMU=1`.
pub fn programs() -> Vec<Program> {
    let others = PROCESSORS.iter().filter(|processor| **processor != env::consts::ARCH);
    let emulated = others.filter_map(|processor| {
        let path = folder().join(format!("keyhole-client.{processor}"));
        emulator(processor).map(|emulator| Program { path, emulator: Some(emulator) })
    });
    std::iter::once(native()).chain(emulated).collect()
}

fn emulator(processor: &str) -> Option<String> {
    let names = [format!("qemu-{processor}-static"), format!("qemu-{processor}")];
    let found = names.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    if found.is_none() {
        assert_ne!(env::var("REQUIRE_QEMU").as_deref(), Ok("1"), "REQUIRE_QEMU=1, but qemu-{processor}-static is not here");
        say(&format!("NOT RUN: the client for {processor}, because qemu-{processor}-static is not here"));
    }
    found
}

/// What a program ended with.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn run(command: &mut Command) -> Ended {
    let output = command.output().expect("the program runs");
    let ended = Ended {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    };
    assert!(!ended.stdout.contains(TOKEN) && !ended.stderr.contains(TOKEN), "the token was printed: {ended:?}");
    ended
}

/// What a server does with a request; `None` closes the connection without a word.
pub type Reply = dyn Fn(usize, &str) -> Option<String> + Send + Sync;

/// A server on a loopback address for as long as the test's process lives.
pub struct Server {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves with `reply`, which gets the number of the request and the request.
    pub fn start(address: &str, reply: impl Fn(usize, &str) -> Option<String> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind(address).expect("a loopback address");
        let server = Server { address: listener.local_addr().expect("an address"), requests: Arc::default() };
        let (requests, reply): (_, Box<Reply>) = (server.requests.clone(), Box::new(reply));
        thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.expect("a connection");
                let request = read_request(&mut connection);
                let number = {
                    let mut requests = requests.lock().expect("no panic before");
                    requests.push(request.clone());
                    requests.len() - 1
                };
                if let Some(answer) = reply(number, &request) {
                    // The client may have gone; what that means, the test finds out.
                    let _ = connection.write_all(answer.as_bytes());
                }
            }
        });
        server
    }

    pub fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock().expect("no panic before").clone();
        assert!(requests.iter().all(|request| !request.contains(TOKEN)), "the token travelled");
        requests
    }
}

/// An address where nobody listens: tcpmux is served nowhere, and no program gets its port by chance.
pub fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

fn read_request(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65536];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next());
            if length.and_then(|length| length.parse().ok()) == Some(body.len()) {
                return text;
            }
        }
        let count = connection.read(&mut buffer).expect("a request");
        assert_ne!(count, 0, "the request ended early: {text}");
        bytes.extend_from_slice(&buffer[..count]);
    }
}

/// The kinds of the segments of a 64-bit little-endian ELF file.
pub fn segments(path: &Path) -> Vec<u32> {
    let bytes = fs::read(path).expect("the program");
    assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "{path:?} is an ELF file");
    let number = |position: usize, width: usize| {
        bytes[position..position + width].iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).map(|index| number(start + index * size, 4) as u32).collect()
}
