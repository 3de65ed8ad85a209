//! Wrong input of every kind: the message says what to mend, and nothing of it reaches ssh.

use crate::templates::PORTLESS;
use bwvisu_tests::api::{USER, basic};
use bwvisu_tests::runner::PASSWORD;
use bwvisu_tests::{Api, Bed, Reply, Runner};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn job() -> Value {
    json!({"uid": "alice", "template-name": PORTLESS.0, "variables": {"seconds": "5"}})
}

/// A good job with one thing changed, posted.
fn post(api: &Api, change: impl Fn(&mut Value)) -> Reply {
    let mut body = job();
    change(&mut body);
    api.call("POST", "/jobs", &body)
}

#[test]
fn wrong_variables_are_refused_with_their_name_and_the_character() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    let characters = [
        (";", "';'"),
        ("&", "'&'"),
        ("|", "'|'"),
        ("`", "'`'"),
        ("$", "'$'"),
        ("(", "'('"),
        (")", "')'"),
        ("<", "'<'"),
        (">", "'>'"),
        ("\"", "'\\\"'"),
        ("'", "'\\''"),
        ("\\", "'\\\\'"),
        (" ", "' '"),
        ("\t", "'\\t'"),
        ("\n", "'\\n'"),
        ("\r", "'\\r'"),
        ("\0", "'\\0'"),
        ("*", "'*'"),
        ("?", "'?'"),
        ("[", "'['"),
        ("{", "'{'"),
        ("~", "'~'"),
        ("!", "'!'"),
        ("#", "'#'"),
        ("%", "'%'"),
        ("=", "'='"),
        (",", "','"),
        (":", "':'"),
        ("+", "'+'"),
        ("@", "'@'"),
        ("^", "'^'"),
        ("\u{7f}", "'\\u{7f}'"),
        ("\u{1b}", "'\\u{1b}'"),
        ("ä", "'\\u{e4}'"),
        ("\u{2028}", "'\\u{2028}'"),
        ("\u{ff10}", "'\\u{ff10}'"),
    ];
    for (bad, shown) in characters {
        for value in [format!("5{bad}"), format!("{bad}5"), format!("a{bad}b")] {
            let reply = post(&runner.api, |job| job["variables"]["seconds"] = json!(value));
            let detail = reply.assert_problem(&format!("{value:?}"), 400, shown);
            assert!(detail.contains("the variable seconds"), "{detail}");
        }
    }
    let cases = [
        (json!({"seconds": "-5"}), "the variable seconds begins with '-'"),
        (json!({"seconds": "--wrap"}), "the variable seconds begins with '-'"),
        (json!({"seconds": ""}), "the variable seconds is empty"),
        (json!({"seconds": "a/../b"}), "the variable seconds holds \"..\""),
        (json!({"seconds": "x".repeat(5000)}), "the variable seconds is longer than"),
        (json!({}), "seconds"),
        (json!({"seconds": "5", "a b": "1"}), "the name of the variable \"a b\""),
        (json!({"seconds": "5", "x\ny": "1"}), "the name of the variable \"x\\ny\""),
        (json!({"seconds": "5", "bwvisu_user": "root"}), "bwvisu_user\" is built in"),
        (json!({"seconds": 5}), "variables.seconds: invalid type"),
        (json!({"seconds": null}), "variables.seconds: invalid type"),
        (json!({"seconds": ["5"]}), "variables.seconds: invalid type"),
        (json!("seconds"), "variables: invalid type"),
    ];
    for (variables, words) in cases {
        post(&runner.api, |job| job["variables"] = variables.clone()).assert_problem(&variables.to_string(), 400, words);
    }
    assert!(runner.api.jobs().is_empty());
}

#[test]
fn wrong_template_names_and_users_are_refused_with_the_reason() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    let templates = [
        ("../config.json", 400, "holds the character '/'"),
        ("/etc/passwd", 400, "holds the character '/'"),
        ("..\\x", 400, "holds the character '\\\\'"),
        ("a\nb", 400, "holds the character '\\n'"),
        ("x\0", 400, "holds the character '\\0'"),
        ("", 400, "is empty"),
        ("..", 400, "must not begin with a dot"),
        (".", 400, "must not begin with a dot"),
        (".hidden", 400, "must not begin with a dot"),
        ("-x", 400, "must not begin with a dot, a dash"),
        ("absent.txt", 404, "absent.txt"),
    ];
    for (name, status, words) in templates {
        post(&runner.api, |job| job["template-name"] = json!(name)).assert_problem(&format!("{name:?}"), status, words);
    }
    let users = [
        ("root", "root may not submit"),
        ("0", "root may not submit"),
        ("-u", "begins with"),
        ("--help", "begins with"),
        ("../x", "cannot hold the character '/'"),
        ("a b", "cannot hold the character ' '"),
        ("", "1 to 32 characters"),
        ("alice;id", "cannot hold the character ';'"),
        ("$(id)", "cannot hold the character '$'"),
        ("alice\n", "cannot hold the character '\\n'"),
        ("carol", "below 1000"),
        ("919", "below 1000"),
        ("bwvisurunner", "below 1000"),
        ("mallory", "mallory"),
        ("54321", "54321"),
    ];
    for (user, words) in users {
        post(&runner.api, |job| job["uid"] = json!(user)).assert_problem(&format!("{user:?}"), 400, words);
        let path: String = user.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let reply = runner.api.call("GET", &format!("/cluster/check-user/{path}"), &Value::Null);
        reply.assert_problem(&format!("check-user {user:?}"), 404, "");
    }
    for user in ["alice", "bob", "20101"] {
        let reply = runner.api.call("GET", &format!("/cluster/check-user/{user}"), &Value::Null);
        assert_eq!((reply.status, reply.body), (200, json!({"response": "success"})), "{user}");
    }
    let echoed = post(&runner.api, |job| {
        job["uid"] = json!("20102");
        job["variables"]["seconds"] = json!("600");
    });
    let id = echoed.body["job-id"].as_str().expect("a uid number is resolved on the cluster");
    assert_eq!(runner.api.job(id)["uid"], "20102", "and echoed as given");
    assert!(bed.sh("cmd0", "squeue --noheader --format=%u").trim() == "bob");
}

#[test]
fn wrong_bodies_methods_paths_and_credentials_are_refused() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    let (api, right) = (&runner.api, runner.api.authorization());
    let json_type = ("Content-Type", "application/json");
    let good = job().to_string();
    let send = |body: &str| api.send("POST", "/jobs", &[("Authorization", &right), json_type], body.as_bytes());
    let bodies = [
        ("", "the body"),
        ("null", "the body"),
        ("[]", "the body"),
        ("{", "the body"),
        ("{}", "missing field `uid`"),
        ("\u{fffd}{}", "the body"),
        (&good.replace("alice\"", "alice\",\"nodes\":3"), "unknown field `nodes`"),
        (&good.replace("\"alice\"", "7"), "uid: invalid type"),
        (&good.replace("\"alice\"", "[\"alice\"]"), "uid: invalid type"),
        (&good.replace("\"portless.txt\"", "null"), "template-name: invalid type"),
        (&good.replace("\"uid\":", "\"uid\":\"bob\",\"uid\":"), "duplicate field `uid`"),
        (&format!("{good} {good}"), "behind the JSON object"),
    ];
    for (body, words) in bodies {
        send(body).assert_problem(body, 400, words);
    }
    let large = good.replace("alice", &"a".repeat(1 << 20));
    assert_eq!(
        api.try_send("POST", "/jobs", &[("Authorization", &right), json_type], large.as_bytes()).map(|reply| reply.status),
        Ok(413)
    );
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let reply = api.send("POST", "/jobs", &[("Authorization", &right), ("Content-Type", kind)], good.as_bytes());
        reply.assert_problem(kind, 415, "must be application/json");
    }
    for (method, path, status) in [
        ("PUT", "/jobs", 405),
        ("DELETE", "/jobs", 405),
        ("POST", "/jobs/1", 405),
        ("PATCH", "/jobs/1", 405),
        ("POST", "/cluster/check-user/alice", 405),
        ("GET", "/", 404),
        ("GET", "/jobs/", 404),
        ("GET", "/jobs/1/x", 404),
        ("GET", "/cluster", 404),
        ("GET", "//jobs", 404),
    ] {
        let body = if method == "POST" { job() } else { Value::Null };
        assert_eq!(api.call(method, path, &body).status, status, "{method} {path}");
    }
    for id in ["0", "1", "01", "-1", "+1", "1e3", "x", "99999999999999999999999", "%31%00", "..%2f1", "1%0a"] {
        api.call("GET", &format!("/jobs/{id}"), &Value::Null).assert_problem(id, 404, "no such job");
        api.cancel(id).assert_problem(id, 404, "no such running job");
    }
    assert_credentials_matter(api, &good);
    assert!(api.jobs().is_empty());
}

fn assert_credentials_matter(api: &Api, good: &str) {
    let wrong = [
        None,
        Some(basic(USER, "wrong")),
        Some(basic(USER, "")),
        Some(basic("root", PASSWORD)),
        Some(basic("", PASSWORD)),
        Some(basic(USER, &PASSWORD[1..])),
        Some(basic(USER, &format!("{PASSWORD} "))),
        Some(format!("Bearer {PASSWORD}")),
        Some("Basic".to_owned()),
        Some("Basic !!!".to_owned()),
        Some(PASSWORD.to_owned()),
    ];
    for credentials in wrong {
        let mut headers = vec![("Content-Type", "application/json")];
        headers.extend(credentials.as_deref().map(|value| ("Authorization", value)));
        for (method, path, body) in [
            ("POST", "/jobs", good),
            ("GET", "/jobs", ""),
            ("DELETE", "/jobs/1", ""),
            ("GET", "/cluster/check-user/alice", ""),
            ("GET", "/nowhere", ""),
        ] {
            let reply = api.send(method, path, &headers, body.as_bytes());
            let what = format!("{credentials:?} {method} {path}");
            reply.assert_problem(&what, 401, "wrong");
            assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Basic ")), "{what}");
        }
    }
}

#[test]
fn nothing_of_wrong_input_reaches_ssh() {
    let bed = Bed::take();
    // Without watchers: whatever happens on the command nodes is the API's doing.
    let runner = Runner::with(&bed, &bwvisu_tests::Setup { templates: &[PORTLESS], parts: "api", ..Default::default() });
    let ordinary = post(&runner.api, |_| ());
    assert_eq!(ordinary.status, 200, "the connection is there, and the user is known");
    let idle = cost(&bed, || ());
    let wrong = |name: &'static str, value: Value| post(&runner.api, move |job| job[name] = value.clone()).status;
    let inputs = || {
        let variables = |value: &str| json!({"seconds": value});
        for value in ["5;id", "$(id)", "`id`", "-5", "5\n#SBATCH --uid=0", ""] {
            assert_eq!(wrong("variables", variables(value)), 400);
        }
        for user in ["-u", "../x", "a b", "alice;id", "", "$(id)", "alice\nroot"] {
            assert_eq!(wrong("uid", json!(user)), 400);
        }
        for template in ["../x", "/etc/passwd", "x\ny", "absent.txt"] {
            assert_ne!(wrong("template-name", json!(template)), 200);
        }
        assert_eq!(
            runner.api.send("POST", "/jobs", &[("Content-Type", "application/json")], job().to_string().as_bytes()).status,
            401
        );
    };
    assert_eq!(cost(&bed, inputs), idle, "processes started on a command node, between two looks");
    // And the measure is a measure: what is right does start some.
    assert_ne!(cost(&bed, || assert_eq!(post(&runner.api, |_| ()).status, 200)), idle);
}

/// How many processes began on the command nodes, how far Slurm counted and sshd logged, while `work` was done (and one look).
fn cost(bed: &Bed, work: impl FnOnce()) -> Vec<i64> {
    let before = traces(bed);
    work();
    traces(bed).iter().zip(before).map(|(after, before)| after - before).collect()
}

fn traces(bed: &Bed) -> Vec<i64> {
    let number = |host: &str, script: &str| bed.sh(host, script).trim().parse::<i64>().unwrap();
    let log = |host: &str| fs::metadata(Path::new(bed.get("BED_LOG")).join(format!("sshd-{host}.out"))).unwrap().len() as i64;
    vec![
        // Every command is at least one process on the host, which has process numbers of its own.
        number("cmd0", "cat /proc/sys/kernel/ns_last_pid"),
        number("cmd1", "cat /proc/sys/kernel/ns_last_pid"),
        number("ctl", "scontrol show config | sed -n 's/^NEXT_JOB_ID *= //p'"),
        log("cmd0"),
        log("cmd1"),
    ]
}
