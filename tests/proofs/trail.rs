//! Who had a port: asked on the command line, of a job that moves from one gateway to the other, and ends.

use crate::templates::SERVICE;
use bwvisu_tests::books::Books;
use bwvisu_tests::gateway::{host_of, other, without_ssh};
use bwvisu_tests::wait::until;
use bwvisu_tests::{Bed, Runner, Setup};
use serde_json::{Value, json};

/// A moment of its own: what was done before is over, and what follows is later.
fn now(bed: &Bed) -> String {
    bed.sh("runner", "sleep 0.3; date -u +%Y-%m-%dT%H:%M:%S.%3NZ; sleep 0.3").trim().to_owned()
}

/// What `who` prints, and its exit code.
fn who(bed: &Bed, runner: &Runner, address: &str, port: u64, at: &str) -> (String, Option<i32>) {
    let words = runner.program(&format!("who {address}:{port} --at {at}"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = bed.command("runner", &words).output().unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr), output.status.code())
}

fn open_traces(bed: &Bed) -> Vec<String> {
    Books::read(bed).under("trail/open/").map(|(key, _)| key.to_owned()).collect()
}

#[test]
fn a_port_is_known_by_its_job_before_during_and_after_a_move_and_nobodys_afterwards() {
    let bed = Bed::take();
    let config = json!({"watch": {"jobs-seconds": 0.5, "keyhole-seconds": 0.5}, "gateway-down-seconds": 3.0});
    let runner = Runner::with(&bed, &Setup { templates: &[SERVICE], config, ..Setup::default() });
    let before = now(&bed);
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    let job = runner.wait_for(&id, "available", 60);
    let port = |job: &Value| job["services"][0]["external-port"].as_u64().unwrap();
    let (first, port_there) = (host_of(&bed, &job), port(&job));
    let second = other(first);
    let (here, there) = (bed.external(first).to_string(), bed.external(second).to_string());
    let granted = now(&bed);

    let down = without_ssh(&bed, first);
    let behind_other = |job: &Value| job["state"] == "available" && job["services"][0]["external-ip"] == there.as_str();
    let moved = until("the job behind the other gateway", 60, || runner.api.job(&id), behind_other);
    let both = now(&bed);
    drop(down);
    until("the first gateway's ports to be free", 60, || open_traces(&bed), |open| open.len() == 1);
    let after = now(&bed);
    runner.api.cancel(&id);
    runner.wait_for(&id, "finished", 40);
    until("all ports to be free", 60, || open_traces(&bed), Vec::is_empty);
    let over = now(&bed);

    let inside = bed.ip(first).to_string();
    let mine = format!("job {id} of alice: ");
    let cases = [
        (&here, port_there, &before, false),
        (&here, port_there, &granted, true),
        (&inside, port_there, &granted, true),
        (&there, port(&moved), &granted, false),
        // Its rule was still there, and nobody could take it away.
        (&here, port_there, &both, true),
        (&there, port(&moved), &both, true),
        (&here, port_there, &after, false),
        (&there, port(&moved), &after, true),
        (&there, port(&moved), &over, false),
        (&here, port_there + 1, &granted, false),
    ];
    for (address, port, at, known) in cases {
        let (text, code) = who(&bed, &runner, address, port, at);
        let expected = if known { 0 } else { 1 };
        let words = if known { mine.as_str() } else { "nobody" };
        assert!(code == Some(expected) && text.contains(words), "{address}:{port} at {at}: {code:?} {text}");
    }
    let (text, _) = who(&bed, &runner, &here, port_there, &both);
    assert!(text.contains(" (given up at ") && !text.contains("still"), "{text}");
    let (text, code) = who(&bed, &runner, &here, port_there, "2001-01-01T00:00:00Z");
    assert!(code == Some(1) && text.contains("the trail goes back to 20") && text.contains(" only"), "{text}");
}
