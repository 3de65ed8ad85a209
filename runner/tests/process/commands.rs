//! The command line: what it teaches, what it checks, its client for the API, its demo.

use crate::api::demo;
use crate::world::{Bench, Ended, PASSWORD, PROGRAM, Served, clients, ended, user};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

#[test]
fn help_teaches_what_there_is() {
    let cases: [(&[&str], &[&str]); 10] = [
        (&["--help"], &["serve", "demo", "config", "hosts", "template", "submit", "list", "show", "cancel", "wait", "Examples:"]),
        (&["--help"], &["/etc/runner/config.json", "bwvisu-runner hosts trust", "--config"]),
        (&["serve", "--help"], &["--only", "api, jobs-watch, keyhole, keyhole-watch"]),
        (&["demo", "--help"], &["--once", "--template"]),
        (&["config", "--help"], &["check"]),
        (&["template", "--help"], &["check", "render"]),
        (&["template", "render", "--help"], &["NAME=VALUE", "--templates"]),
        (&["submit", "--help"], &["--user", "--template", "NAME=VALUE", "--url", "--certificate", "BWVISU_API_URL"]),
        (&["wait", "--help"], &["--for", "available", "finished", "--timeout"]),
        (&["hosts", "trust", "--help"], &["--yes", "fingerprints"]),
    ];
    for (words, expected) in cases {
        let ended = ended(Command::new(PROGRAM).args(words));
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{words:?}");
        for word in expected {
            assert!(ended.stdout.contains(word), "{words:?}: no {word:?} in {}", ended.stdout);
        }
        assert!(!ended.stdout.contains("local-job"), "{words:?} shows what is none of a person's business");
    }
    let none = ended(&mut Command::new(PROGRAM));
    assert_eq!(none.code, Some(2));
    assert!(none.stderr.contains("Usage:"), "{}", none.stderr);
    assert!(ended(Command::new(PROGRAM).arg("--version")).stdout.starts_with("bwvisu-runner "));
}

#[test]
fn a_good_configuration_is_all_right() {
    let bench = Bench::new();
    let ended = bench.run(&["config", "check"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    for words in ["all right", "self-signed", "embedded", "Local scheduler, Relay gateway", "templates "] {
        assert!(ended.stdout.contains(words), "{words:?}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains(PASSWORD));
    assert!(!bench.path("state").exists(), "a check changes nothing");
}

#[test]
fn a_wrong_configuration_is_an_error_that_names_key_file_and_line() {
    let cases = [
        ("{\n  \"bwvisu-home-prefix\": \"/h\",\n  \"colour\": 1\n}", "colour", "line 3"),
        ("{\n\"bwvisu-home-prefix\": 7}", "bwvisu-home-prefix", "line 2"),
        (
            "{\"bwvisu-home-prefix\": \"/h\",\n\"debug\": {\"keyholed-static-forwarding\": \"perhaps\"}}",
            "keyholed-static-forwarding",
            "line 2",
        ),
        ("{\"bwvisu-home-prefix\": \"/h\"", "EOF", "line 1"),
        ("", "EOF", "line 1"),
        ("{\"bwvisu-home-prefix\": \"/h\", \"keyholed-servers\": []} x", "trailing", "line 1"),
        ("{\"bwvisu-home-prefix\": \"/h\"}", "keyholed-servers", "missing"),
        ("{\"bwvisu-home-prefix\": \"/h\", \"keyholed-servers\": [],\n \"watch\": {\"often\": 1}}", "watch.often", "line 2"),
    ];
    let bench = Bench::plain();
    for (text, key, place) in cases {
        bench.write("wrong.json", text, 0o644);
        let file = bench.path("wrong.json").display().to_string();
        let ended = ended(Command::new(PROGRAM).args(["--config", &file, "config", "check"]));
        assert_eq!(ended.code, Some(1), "{text}: {ended:?}");
        for words in [key, place, file.as_str()] {
            assert!(ended.stderr.contains(words), "{text}: no {words:?} in {}", ended.stderr);
        }
    }
    let none = ended(Command::new(PROGRAM).args(["--config", "/no/such/file.json", "config", "check"]));
    assert!(none.code == Some(1) && none.stderr.contains("/no/such/file.json: cannot be read"), "{none:?}");
}

#[test]
fn values_that_cannot_be_are_refused_by_their_key() {
    let cases = [
        ("api-listen", json!("4242"), "api-listen: \"4242\" is not ADDRESS:PORT"),
        ("keyholed-port-range", json!({"min": 80, "max": 90}), "keyholed-port-range"),
        ("keyholed-port-range", json!({"min": 60000, "max": 50000}), "keyholed"),
        ("keyholed-port-range", json!({"min": 60000, "max": 70000}), "keyholed-port-range.max"),
        ("keyholed-max-forwarders-per-job", json!(0), "keyholed-max-forwarders-per-job: 0 is not between 1 and"),
        ("bwvisu-home-prefix", json!("home"), "bwvisu-home-prefix: is not an absolute path"),
        ("bwvisu-home-prefix", json!("/srv/my home"), "bwvisu-home-prefix: "),
        ("bwvisu-home-prefix", json!("/srv/$(id)'s"), "bwvisu-home-prefix: "),
        ("scheduler", json!("pbs"), "scheduler: unknown variant `pbs`"),
        ("gateway-nodes", json!([]), "gateway-nodes: empty"),
        ("gateway-nodes", json!([{"internal-ip": "-oProxyCommand=x", "external-ip": "1.2.3.4"}]), "gateway-nodes: internal-ip"),
        ("keyholed-servers", json!([]), "keyholed-servers: empty"),
        ("forwarding-hostname-suffix", json!("; id"), "forwarding-hostname-suffix: only letters"),
        ("watch", json!({"jobs-seconds": 0}), "watch.jobs-seconds: is not a sensible time"),
        ("local-job-slots", json!(-1), "local-job-slots"),
    ];
    for (key, value, words) in cases {
        let mut bench = Bench::plain();
        bench.set(key, value.clone());
        let ended = bench.run(&["config", "check"]);
        assert_eq!(ended.code, Some(1), "{key} {value}: {ended:?}");
        assert!(ended.stderr.contains(words), "{key} {value}: {}", ended.stderr);
    }
}

#[test]
fn a_check_lists_all_that_is_wrong_around_the_configuration() {
    let bench = Bench::plain();
    bench.template("template_broken.txt", "#!/bin/bash\n{{#open}}\n");
    fs::remove_file(bench.path("settings.json")).unwrap();
    fs::remove_file(bench.path("install/share")).unwrap();
    let ended = bench.run(&["config", "check"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for words in ["there is no api-password", "template_broken.txt", "install/share"] {
        assert!(ended.stdout.lines().any(|line| line.starts_with("WRONG") && line.contains(words)), "{words}: {}", ended.stdout);
    }
    bench.write("settings.json", &json!({"api-password": "x"}).to_string(), 0o644);
    let ended = bench.run(&["config", "check"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("its mode is 0644: chmod 0600"), "{ended:?}");
    bench.write("settings.json", &json!({"api-pasword": "x"}).to_string(), 0o600);
    let ended = bench.run(&["config", "check"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("settings.json: api-pasword: unknown field"), "{ended:?}");
}

#[test]
fn templates_are_checked_and_rendered() {
    let bench = Bench::plain();
    let good = bench.run(&["template", "check"]);
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(good.stdout.contains("template_demo.txt: all right") && good.stdout.contains("tasks_per_node"), "{}", good.stdout);

    bench.template("template_wrong.txt", "#!/bin/bash\necho {{unclosed\n");
    let wrong = bench.run(&["template", "check"]);
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.stdout.contains("WRONG template template_wrong.txt:2"), "{}", wrong.stdout);
    assert_eq!(bench.run(&["template", "check", "template_demo.txt"]).code, Some(0));
    let none = bench.run(&["template", "check", "template_none.txt"]);
    assert!(none.code == Some(1) && none.stdout.contains("no such template"), "{none:?}");

    let rendered = bench.run(&["template", "render", "template_sleeper.txt", "word=hello"]);
    assert_eq!((rendered.code, rendered.stderr.as_str()), (Some(0), ""));
    assert_eq!(rendered.stdout, "#!/bin/bash\n#SBATCH --time=5\necho started hello\nexec sleep 300\n");
    for (words, message) in [
        (vec!["template_sleeper.txt"], "needs the variable word"),
        (vec!["template_sleeper.txt", "word=a;b"], "holds the character ';'"),
        (vec!["../settings.json"], "holds the character '/'"),
        (vec!["template_none.txt"], "no such template"),
    ] {
        let ended = bench.run(&[vec!["template", "render"], words.clone()].concat());
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{words:?}");
        assert!(ended.stderr.contains(message), "{words:?}: {}", ended.stderr);
    }
    assert_eq!(bench.run(&["template", "render", "template_sleeper.txt", "word"]).code, Some(2));
}

#[test]
fn a_configuration_that_is_named_and_wrong_is_not_passed_over_by_template_commands() {
    let ended = ended(Command::new(PROGRAM).args(["--config", "/no/such/file.json", "template", "check"]));
    assert!(ended.code == Some(1) && ended.stderr.contains("/no/such/file.json"), "{ended:?}");
}

/// A sub-command of the client's, pointed at `served`.
fn client(bench: &Bench, served: &Served, words: &[&str]) -> Ended {
    let mut command = bench.command();
    ended(command.args(words).env("BWVISU_API_URL", &served.url).env("https_proxy", "http://127.0.0.1:9"))
}

#[test]
fn the_client_submits_lists_shows_waits_and_cancels_over_tls() {
    let bench = Bench::new();
    let served = bench.serve();
    let name = user().name.as_str();
    let mut words = vec!["submit".to_owned(), "--user".into(), name.into(), "--template".into(), "template_demo.txt".into()];
    words.extend(demo().as_object().unwrap().iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap())));
    let submitted = client(&bench, &served, &words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((submitted.code, submitted.stdout.as_str()), (Some(0), "1\n"), "{submitted:?}");

    let waited = client(&bench, &served, &["wait", "1", "--timeout", "30"]);
    let service = &served.job("1")["services"][0];
    assert_eq!((waited.code, waited.stdout), (Some(0), format!("127.0.0.1:{}\n", service["external-port"])), "{}", waited.stderr);

    let listed = client(&bench, &served, &["list"]);
    let row = listed.stdout.lines().nth(1).unwrap().to_owned();
    for word in ["1", name, "available", "template_demo.txt", "127.0.0.1:"] {
        assert!(row.contains(word), "{word}: {row}");
    }
    let shown: Value = serde_json::from_str(&client(&bench, &served, &["show", "1"]).stdout).unwrap();
    assert_eq!((&shown["job-id"], &shown["state"]), (&json!("1"), &json!("available")));

    let cancelled = client(&bench, &served, &["cancel", "1"]);
    assert_eq!((cancelled.code, cancelled.stdout.as_str()), (Some(0), "job 1 cancelled\n"));
    let waited = client(&bench, &served, &["wait", "1", "--for", "finished"]);
    assert_eq!((waited.code, waited.stdout.as_str()), (Some(0), "cancelled\n"));
}

fn assert_fails(ended: &Ended, words: &str) {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(ended.stderr.starts_with("bwvisu-runner: ") && ended.stderr.contains(words), "{words:?}: {}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "one line: {}", ended.stderr);
}

#[test]
fn what_goes_wrong_with_the_client_is_one_line_and_exit_code_1() {
    let bench = Bench::new();
    let served = bench.serve();
    assert_fails(&client(&bench, &served, &["show", "9"]), "says 404 Not Found: no such job");
    assert_fails(&client(&bench, &served, &["cancel", "9"]), "says 404 Not Found: no such running job");
    assert_fails(&client(&bench, &served, &["wait", "9"]), "no such job");
    let refused = client(&bench, &served, &["submit", "--user", "root", "--template", "template_demo.txt"]);
    assert_fails(&refused, "says 400 Bad Request: the template template_demo.txt needs the variable");

    let wrong = ended(bench.command().arg("list").env("BWVISU_API_URL", &served.url).env("BWVISU_API_PASSWORD", "wrong"));
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.stderr.contains("says 401 Unauthorized: the user or the password of the API is wrong"), "{}", wrong.stderr);

    let other = Bench::new();
    other.serve().terminate();
    let foreign = other.path("state/tls/certificate.pem").display().to_string();
    assert_fails(&client(&bench, &served, &["show", "1", "--certificate", &foreign]), "certificate");
    assert_fails(&client(&bench, &served, &["show", "1", "--certificate", "/no/such.pem"]), "certificate /no/such.pem:");

    let url = served.url.clone();
    served.terminate();
    assert_fails(&ended(bench.command().args(["show", "1", "--url", &url])), "refused");
    assert_eq!(bench.run(&["show", "x"]).code, Some(2));
}

#[test]
fn waiting_ends_when_the_job_ends_or_the_time_is_over() {
    let bench = Bench::plain();
    bench.template("template_bad.txt", "#!/bin/bash\nexit 3\n");
    let served = bench.serve();
    let id = served.submit(&user().name, "template_bad.txt", json!({}));
    assert_fails(&client(&bench, &served, &["wait", &id]), "exit code 3");
    let id = served.submit(&user().name, "template_sleeper.txt", json!({"word": "a"}));
    served.await_state(&id, "running");
    assert_fails(&client(&bench, &served, &["wait", &id, "--timeout", "1"]), "is still running");
}

#[test]
fn without_configuration_the_client_says_what_it_needs() {
    let alone = |words: &[&str]| {
        let mut command = Command::new(PROGRAM);
        ended(command.env_clear().env("BWVISU_INSTALL_DIR", "/no/such/folder").args(words))
    };
    assert_fails(&alone(&["list"]), "no --url is given, and no configuration found");
    assert_fails(&alone(&["list", "--url", "http://127.0.0.1:1"]), "set BWVISU_API_PASSWORD");
}

#[test]
fn the_demo_works_once_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let install = folder.path().join("install");
    fs::create_dir_all(install.join("templates")).unwrap();
    symlink(clients(), install.join("share")).unwrap();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../templates/template_demo.txt");
    fs::copy(shipped, install.join("templates/template_demo.txt")).unwrap();
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    for path in [folder.path(), &temporary] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    }
    let mut command = Command::new(PROGRAM);
    command.args(["demo", "--once"]).env("BWVISU_INSTALL_DIR", &install).env("TMPDIR", &temporary);
    // Behind a proxy, as in many a centre: it must not be asked for what is on this machine.
    let demo = ended(command.env("http_proxy", "http://127.0.0.1:9").env("ALL_PROXY", "http://127.0.0.1:9"));
    assert_eq!(demo.code, Some(0), "{demo:?}");
    for words in ["POST /jobs", "available after", "GET http://127.0.0.1:", "\"bwVisu job 1\""] {
        assert!(demo.stdout.contains(words), "{words}: {}", demo.stdout);
    }
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let processes = crate::world::mentioning(&folder.path().display().to_string());
    assert!(processes.is_empty(), "{processes:?}");
}

#[test]
fn a_demo_that_cannot_work_says_why_and_fails() {
    let mut command = Command::new(PROGRAM);
    let demo = ended(command.args(["demo", "--once"]).env("BWVISU_INSTALL_DIR", "/no/such/folder"));
    assert_eq!(demo.code, Some(1));
    assert!(demo.stderr.contains("/no/such/folder/share"), "{demo:?}");
}
