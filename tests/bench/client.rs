//! keyhole-client against the same in Python, with a keyhole that answers at once.

use crate::Effort;
use crate::figures::{Figure, Goal, Rounds};
use crate::ground::{baseline, status_mb};
use crate::stub::Stub;
use bwvisu_tests::runner::dist;
use keyhole_protocol::Token;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const TOKEN: [u8; 32] = [7; 32];

/// Time, memory and size.
pub fn measure(effort: Effort) -> Vec<Figure> {
    let stub = Stub::start(Token::from_bytes(TOKEN));
    let server = stub.address.to_string();
    let program = dist().join(format!("share/keyhole-client.{}", std::env::consts::ARCH));
    let mut ours = Command::new(program);
    ours.args(["--job", "17", "--ports", "1", "--server", &server, "--give-up-after", "60"]).env("SLURM_JOB_NODELIST", "c0");
    let mut theirs = Command::new("python3");
    theirs.arg(baseline("client.py")).args([&server, "17", "1", "c0"]);
    for command in [&mut ours, &mut theirs] {
        command.env("KEYHOLE_TOKEN", "07".repeat(32)).stdin(Stdio::null()).stdout(Stdio::piped());
    }
    let rounds = effort.rounds(60, 25);
    let (mut time, mut memory) = (Rounds::default(), Rounds::default());
    for round in 0..=rounds {
        let pair = (milliseconds(&mut ours), milliseconds(&mut theirs));
        if round > 0 {
            time.ours.push(pair.0);
            time.baseline.push(pair.1);
        }
    }
    for _ in 0..5 {
        memory.ours.push(peak_mb(&stub, &mut ours));
        memory.baseline.push(peak_mb(&stub, &mut theirs));
    }
    let sizes: Vec<(String, f64)> = base64_sizes();
    let largest = sizes.iter().map(|(_, size)| *size).fold(0.0, f64::max);
    let of_each: Vec<String> = sizes.iter().map(|(name, size)| format!("{name}: {size:.1} KiB")).collect();
    let against = "python3 with urllib, same request";
    vec![
        time.ours_by_theirs("client", against, "ms", Goal::AtMost(1.0 / 30.0))
            .noting(format!("{rounds} runs in turns, process start to end")),
        memory
            .ours_by_theirs("client memory", against, "MB", Goal::AtMost(1.0 / 50.0))
            .noting("the peak, when all is done but the end"),
        Figure::plain("client size", "none", "KiB of base64", largest, Goal::AtMost(64.0)).noting(of_each.join(", ")),
    ]
}

fn check(child: Child) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("export KEYHOLE_PORT0=50000\n"), "{}: {text}", output.status);
}

fn milliseconds(command: &mut Command) -> f64 {
    let begun = Instant::now();
    let child = command.spawn().unwrap();
    check(child);
    begun.elapsed().as_secs_f64() * 1e3
}

fn peak_mb(stub: &Stub, command: &mut Command) -> f64 {
    let (child, peak) = stub.while_it_waits(|| command.spawn().unwrap(), |child| status_mb(child.id(), "VmHWM:"));
    check(child);
    assert!(peak > 0.0, "the kernel tells the peak");
    peak
}

/// What each architecture adds to a script, in KiB.
fn base64_sizes() -> Vec<(String, f64)> {
    let size = |path: &std::path::Path| {
        let script = "gzip -9 -n <\"$1\" | base64 -w 76 | wc -c";
        let output = Command::new("bash").args(["-c", script, "bash"]).arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse::<f64>().unwrap() / 1024.0
    };
    let entries = std::fs::read_dir(dist().join("share")).unwrap().flatten().map(|entry| entry.path());
    let clients = entries.filter(|path| path.to_string_lossy().contains("keyhole-client."));
    let mut sizes: Vec<(String, f64)> =
        clients.map(|path| (path.extension().unwrap().to_string_lossy().into_owned(), size(&path))).collect();
    assert!(!sizes.is_empty(), "no keyhole-client is installed");
    sizes.sort_by(|a, b| a.0.cmp(&b.0));
    sizes
}
