//! The demo's template: what it renders to, and every way in which it can serve its page, by the real tools where they are.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use bwvisu_runner::domain::template::{BuiltIns, RequestedPorts, Template, template_name};
use bwvisu_runner::error::Error;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

#[path = "support/ports.rs"]
mod ports;
use ports::free_port;

/// What bash needs besides the one tool that serves.
const TOOLS: [&str; 5] = ["bash", "sh", "date", "uname", "grep"];

fn template() -> Template {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../templates/template_demo.txt");
    let no_partials = |_: &_| Err(Error::not_found("the demo has no partials"));
    Template::load(&template_name("template_demo.txt").unwrap(), &fs::read_to_string(file).unwrap(), &no_partials, 100).unwrap()
}

fn rendered(message: Option<&str>) -> String {
    let usual = [("expected_runtime_in_minutes", "10"), ("number_of_nodes", "1"), ("tasks_per_node", "2")];
    let given = usual.into_iter().chain(message.map(|message| ("message", message)));
    let variables: BTreeMap<String, String> = given.map(|(name, value)| (name.into(), value.into())).collect();
    let built_ins = BuiltIns { job_id: 17, user: "ada", home: "/home/ada", log: "/home/ada/bwvisu-job-17.out" };
    template().render(&variables, &built_ins).unwrap().script
}

#[test]
fn the_template_asks_for_one_port_and_the_usual_variables() {
    let template = template();
    assert_eq!(template.requested_ports, RequestedPorts::Number(1));
    let required: Vec<_> = template.required().iter().map(String::as_str).collect();
    assert_eq!(required, ["expected_runtime_in_minutes", "number_of_nodes", "tasks_per_node"]);
    assert_eq!(template.optional().iter().map(String::as_str).collect::<Vec<_>>(), ["message"]);
    assert!(
        rendered(None).starts_with("#!/bin/bash\n#SBATCH --time=10\n#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=2\n#KEYHOLE")
    );
    assert!(!rendered(None).contains("Message") && rendered(Some("hello.1")).contains("<td>hello.1</td>"));
}

#[test]
fn every_template_that_we_ship_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../templates");
    let read = |name: &str| fs::read_to_string(folder.join(name)).map_err(|error| Error::not_found(error.to_string()));
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let templates: Vec<String> = names.filter(|name| name.starts_with("template_")).collect();
    assert!(templates.iter().any(|name| name == "template_demo.txt"), "{templates:?}");
    for name in templates {
        let template =
            Template::load(&template_name(&name).unwrap(), &read(&name).unwrap(), &|partial| read(partial.as_str()), 100);
        assert!(template.is_ok_and(|template| template.requested_ports != RequestedPorts::None), "{name}");
    }
}

/// The demo, running with one tool to serve it.
struct Demo {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Demo {
    fn start(tools: &[(&str, PathBuf)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (bin, script) = (folder.path().join("bin"), folder.path().join("script"));
        fs::create_dir(&bin).unwrap();
        let found = TOOLS.map(|tool| (tool, find(tool).unwrap()));
        found.iter().chain(tools).for_each(|(name, file)| symlink(file, bin.join(name)).unwrap());
        fs::write(&script, rendered(Some("hello")).replace("#KEYHOLE-REQUEST-PORTS 1\n", "")).unwrap();
        let port = free_port();
        let mut command = Command::new("/bin/bash");
        command.arg(&script).env("PATH", &bin).env("KEYHOLE_PORT0", port.to_string()).env("KEYHOLE_GATEWAY0", "192.0.2.1");
        command.env("KEYHOLE_EXTERNAL_PORT0", "50000").stdin(Stdio::null());
        let log = |name| Stdio::from(fs::File::create(folder.path().join(name)).unwrap());
        let child = command.stdout(log("stdout")).stderr(log("stderr")).spawn().unwrap();
        Self { child, port, folder }
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    /// The answer to a request; one that is not taken is tried again for a while.
    fn ask(&self, method: &str) -> String {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match self.try_ask(method) {
                Ok(answer) if !answer.is_empty() => return answer,
                other if Instant::now() > end => panic!("{other:?}\n{}\n{}", self.said("stdout"), self.said("stderr")),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn try_ask(&self, method: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "{method} / HTTP/1.1\r\nHost: demo\r\nAccept: */*\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        stream.shutdown(Shutdown::Both).ok();
        Ok(answer)
    }

    /// Ends it as the scheduler does, and says how long that took.
    fn end(mut self) -> Duration {
        let began = Instant::now();
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        self.child.wait().unwrap();
        began.elapsed()
    }
}

fn check(answer: &str, with_body: bool) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no end of the head: {answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    assert_eq!((header("Connection"), header("Content-Type")), (Some("close"), Some("text/html; charset=utf-8")));
    let length: usize = header("Content-Length").unwrap().parse().unwrap();
    if !with_body {
        return assert!(length > 500 && body.is_empty(), "{answer}");
    }
    assert_eq!(length, body.len());
    for part in ["It works", "<td>17</td>", "<td>ada</td>", "192.0.2.1, port 50000", "<td>hello</td>", "</html>\n"] {
        assert!(body.contains(part), "{part}: {body}");
    }
    assert!(!body.contains("@NOW@") && !body.contains("{{"), "{body}");
}

/// Serves the page with one tool: many requests, side by side where the tool can, a silent client among them.
fn serves(name: &str, tools: &[(&str, PathBuf)], side_by_side: bool) {
    let demo = Demo::start(tools);
    check(&demo.ask("GET"), true);
    check(&demo.ask("HEAD"), false);
    let silent = side_by_side.then(|| TcpStream::connect(("127.0.0.1", demo.port)).unwrap());
    thread::scope(|scope| {
        (0..if side_by_side { 4 } else { 1 }).for_each(|_| {
            scope.spawn(|| (0..5).for_each(|_| check(&demo.ask("GET"), true)));
        });
    });
    drop(silent);
    let expected = format!("demo: {name} listens on port {} of ", demo.port);
    assert!(demo.said("stdout").starts_with(&expected), "{}", demo.said("stdout"));
    assert_eq!(demo.said("stderr"), "");
    let port = demo.port;
    let took = demo.end();
    assert!(took < Duration::from_secs(20), "{name} took {took:?} to end");
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(Instant::now() < end, "{name} still listens");
        thread::sleep(Duration::from_millis(50));
    }
}

fn find(tool: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(tool)).find(|file| file.is_file())
}

/// A tool's own file: a wrapper of python3 would need more tools.
fn file_of(tool: &str) -> Option<PathBuf> {
    let file = find(tool)?;
    if tool != "python3" {
        return Some(file);
    }
    let output = Command::new(file).args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

fn serves_if_there(tool: &str, side_by_side: bool) {
    match file_of(tool).filter(|file| tool != "nc" || is_openbsd(file)) {
        Some(file) => serves(tool, &[(tool, file)], side_by_side),
        None => {
            let message = format!("\n*** NOT RUN: the demo's page served by {tool}, which is not installed here ***\n");
            let _ = io::stderr().write_all(message.as_bytes());
        }
    }
}

fn is_openbsd(nc: &Path) -> bool {
    Command::new(nc).arg("-h").output().is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("OpenBSD"))
}

#[test]
fn python_serves_the_page() {
    serves_if_there("python3", true);
}

#[test]
fn perl_serves_the_page() {
    serves_if_there("perl", true);
}

#[test]
fn ncat_serves_the_page() {
    serves_if_there("ncat", true);
}

#[test]
fn socat_serves_the_page() {
    serves_if_there("socat", true);
}

#[test]
fn busybox_serves_the_page() {
    serves_if_there("busybox", true);
}

#[test]
fn openbsd_nc_serves_the_page() {
    serves_if_there("nc", false);
}

#[test]
fn without_any_tool_it_says_what_to_install() {
    let mut demo = Demo::start(&[]);
    assert_eq!(demo.child.wait().unwrap().code(), Some(1));
    let said = "demo: bash alone cannot listen, and this node has none of python3, perl, ncat, socat, busybox and OpenBSD's nc; have one installed\n";
    assert_eq!(demo.said("stderr"), said);
}
