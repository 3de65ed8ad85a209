//! Prometheus's own checker (Debian: prometheus). Where it is not installed, a test says so, or fails with `REQUIRE_PROMTOOL=1`.

use std::io::Write;
use std::process::{Command, Stdio};

/// What promtool says of `input`: nothing where it is content, or is not there.
pub fn complaints(words: &[&str], input: &[u8]) -> Option<String> {
    let child = Command::new("promtool").args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        let advice = "promtool is not installed (Debian: prometheus)";
        assert!(std::env::var("REQUIRE_PROMTOOL").as_deref() != Ok("1"), "REQUIRE_PROMTOOL=1, but {advice}");
        // Written past the test harness, which would keep it to itself where the test passes.
        std::io::stderr().lock().write_all(format!("\n*** NOT TESTED: {advice} ***\n").as_bytes()).unwrap();
        return None;
    };
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (!output.status.success()).then_some(text)
}
