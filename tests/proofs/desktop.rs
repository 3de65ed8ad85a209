//! Remote desktops from the shipped templates, opened in a browser outside, typed into, and seen.

use bwvisu_tests::bed::repository;
use bwvisu_tests::wait::{PAUSE, until};
use bwvisu_tests::{Bed, Runner};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_vnc_desktop_is_opened_typed_into_and_seen_from_outside() {
    use_desktop("vnc", "template_vnc.txt", "Desktop: ", json!({"geometry": "1024x640"}));
}

#[test]
fn an_application_under_xpra_is_opened_typed_into_and_seen_from_outside() {
    use_desktop("xpra", "template_xpra.txt", "Xpra: ", json!({}));
}

fn use_desktop(kind: &str, template: &str, announcement: &str, more: serde_json::Value) {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[]);
    let mut variables = json!({"expected_runtime_in_minutes": "10", "number_of_nodes": "1", "tasks_per_node": "1"});
    variables.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let id = runner.api.submit("alice", template, &variables);
    let job = runner.wait_for(&id, "available", 60);
    let log = until("the job to tell its address", 20, || runner.job_log("alice", &id), |log| log.contains(announcement));
    let url = log.lines().find_map(|line| line.strip_prefix(announcement)).unwrap();
    let service = &job["services"][0];
    let address = format!("http://{}:{}/", service["external-ip"].as_str().unwrap(), service["external-port"]);
    assert!(url.starts_with(&address), "{url}");

    let typed = bed.home("alice").join(format!("typed-{id}"));
    let _ = fs::remove_file(&typed);
    let picture = screenshots().join(format!("{kind}.png"));
    let text = format!("echo hello from $(hostname) | tee typed-{id}");
    let password = bed.home("alice").join(format!(".bwvisu/job-{id}.password"));
    let expected = format!("hello from {}\n", job["details"]["NodeList"].as_str().unwrap());
    // On a slow machine a key that is typed before the window has the focus goes nowhere.
    let done = (0..3).any(|_| {
        look(&bed, &[kind, url, path(&password), &text, path(&picture)]);
        holds_soon(&typed, &expected)
    });
    assert!(done, "what was typed is not done: {:?}", fs::read_to_string(&typed));
    assert!(fs::metadata(&picture).unwrap().len() > 5_000, "{} shows nothing", picture.display());
    fs::remove_file(&typed).unwrap();
    runner.api.cancel(&id);
    runner.wait_for(&id, "finished", 30);
    until("the password to be gone", 10, || password.exists(), |there| !there);
}

/// Whether a file holds this within twenty seconds.
fn holds_soon(file: &Path, text: &str) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        if fs::read_to_string(file).is_ok_and(|found| found == text) {
            return true;
        }
        thread::sleep(PAUSE);
    }
    false
}

fn look(bed: &Bed, words: &[&str]) {
    let program = repository().join("tests/browser/type-and-look");
    // Six steps, for each of which it waits a minute.
    let output = bed.exec_within(600, "outside", &[&[path(&program)], words].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Where pictures go: `BWVISU_SCREENSHOTS`, or the build folder.
fn screenshots() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let folder = std::env::var_os("BWVISU_SCREENSHOTS").map_or_else(|| built.join("screenshots"), PathBuf::from);
    fs::create_dir_all(&folder).unwrap();
    folder
}
