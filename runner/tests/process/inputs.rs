//! Input that is wrong: each is refused with what is to be mended, and nothing comes of it.

use crate::api::demo;
use crate::cluster::Cluster;
use crate::world::{Bench, Served, user};
use serde_json::{Value, json};

fn job(template: &str, variables: Value) -> Value {
    json!({"uid": user().name, "template-name": template, "variables": variables})
}

/// Nothing was written down, nothing was submitted.
fn assert_untouched(served: &Served) {
    assert_eq!(served.get("/jobs").body, json!({"jobs": []}));
    assert_eq!(served.get("/jobs/1").status, 404);
}

/// What a variable may not hold, and how the message shows it.
fn bad_characters() -> Vec<(String, String)> {
    let ascii = " !\"#$%&'()*+,:;<=>?@[\\]^`{|}~";
    let mut all: Vec<_> = ascii.chars().map(|c| (c.to_string(), c.escape_debug().to_string())).collect();
    for (text, shown) in
        [("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r"), ("\0", "\\0"), ("\u{1b}", "\\u{1b}"), ("\u{7f}", "\\u{7f}")]
    {
        all.push((text.into(), shown.into()));
    }
    for (text, shown) in
        [("ä", "\\u{e4}"), ("\u{202e}", "\\u{202e}"), ("٣", "\\u{663}"), ("😀", "\\u{1f600}"), ("\u{a0}", "\\u{a0}")]
    {
        all.push((text.into(), shown.into()));
    }
    all
}

#[test]
fn every_character_that_a_shell_or_a_template_could_take_for_something_is_refused_by_name() {
    let bench = Bench::plain();
    let served = bench.serve();
    for (bad, shown) in bad_characters() {
        for value in [format!("1{bad}"), bad.clone(), format!("a{bad}b")] {
            let mut variables = demo();
            variables["number_of_nodes"] = json!(value);
            let answer = served.post(&job("template_demo.txt", variables));
            answer.assert_problem(400, "Bad Request", &format!("the variable number_of_nodes holds the character '{shown}'"));
        }
    }
    assert_untouched(&served);
}

#[test]
fn other_wrong_variables_are_refused_by_name() {
    let bench = Bench::plain();
    let served = bench.serve();
    let with = |name: &str, value: Value| {
        let mut variables = demo();
        variables[name] = value;
        variables
    };
    let cases = [
        (with("tasks_per_node", json!("-1")), "the variable tasks_per_node begins with '-'"),
        (with("tasks_per_node", json!("--exclusive")), "the variable tasks_per_node begins with '-'"),
        (with("tasks_per_node", json!("")), "the variable tasks_per_node is empty"),
        (with("tasks_per_node", json!("x".repeat(1025))), "the variable tasks_per_node is longer than 1024 bytes"),
        (with("image_name", json!("../../etc/passwd")), "the variable image_name holds \"..\""),
        (with("tasks_per_node", json!(2)), "variables.tasks_per_node: invalid type: integer `2`"),
        (with("tasks_per_node", json!(null)), "variables.tasks_per_node: invalid type: null"),
        (with("tasks_per_node", json!(["1"])), "variables.tasks_per_node: invalid type: sequence"),
        (with("tasks_per_node", json!({"a": "1"})), "variables.tasks_per_node: invalid type: map"),
        (with("bad name", json!("1")), "the name of the variable \"bad name\" must be of letters, digits"),
        (with("a;b", json!("1")), "the name of the variable \"a;b\" must be of letters"),
        (with("", json!("1")), "the name of the variable \"\" must be of letters"),
        (with("bwvisu_home", json!("1")), "bwvisu_home\" is built in"),
        (json!({}), "the template template_demo.txt needs the variable"),
        (json!({"expected_runtime_in_minutes": "1", "number_of_nodes": "1"}), "needs the variable tasks_per_node"),
        (json!(null), "variables: invalid type: null"),
        (json!([]), "variables: invalid type: sequence"),
        (json!("x"), "variables: invalid type: string"),
    ];
    for (variables, words) in cases {
        served.post(&job("template_demo.txt", variables)).assert_problem(400, "Bad Request", words);
    }
    assert_untouched(&served);
}

#[test]
fn template_names_never_lead_out_of_their_folder() {
    let bench = Bench::plain();
    bench.write("secret.txt", "#!/bin/bash\necho out\n", 0o644);
    std::fs::create_dir(bench.path("templates/folder")).unwrap();
    let served = bench.serve();
    let bad = [
        ("../secret.txt", "holds the character '/'"),
        ("/etc/passwd", "holds the character '/'"),
        ("folder/../template_demo.txt", "holds the character '/'"),
        ("..\\secret.txt", "must not begin with a dot"),
        ("a\\b", "holds the character '\\\\'"),
        ("template_demo.txt\n", "holds the character '\\n'"),
        ("template_demo.txt\0", "holds the character '\\0'"),
        ("..", "must not begin with a dot"),
        (".", "must not begin with a dot"),
        (".hidden", "must not begin with a dot"),
        ("-rf", "must not begin with a dot, a dash"),
        (" template_demo.txt", "a blank"),
        ("", "is empty"),
    ];
    for (name, words) in bad {
        let answer = served.post(&job(name, demo()));
        assert_eq!(answer.status, 400, "{name:?}: {answer:?}");
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains("template name") && (detail.contains(words) || name.contains('\\')), "{name:?}: {detail}");
    }
    served.post(&job(&"x".repeat(200), demo())).assert_problem(400, "Bad Request", "is longer than 128 bytes");
    for name in ["template_none.txt", "a..b", "template_demo.txt.bak", "%2e%2e"] {
        served.post(&job(name, demo())).assert_problem(404, "Not Found", &format!("no such template: {name}"));
    }
    assert_untouched(&served);
}

#[test]
fn user_names_that_are_none_are_refused() {
    let bench = Bench::plain();
    let served = bench.serve();
    let cases = [
        ("root", "uid: root may not submit jobs"),
        ("0", "uid: root may not submit jobs"),
        ("-u", "uid: a user name begins with a letter"),
        ("../x", "uid: a user name cannot hold the character '/'"),
        ("a b", "uid: a user name cannot hold the character ' '"),
        ("a;b", "uid: a user name cannot hold the character ';'"),
        ("$(id)", "uid: a user name cannot hold the character '$'"),
        ("a\nb", "uid: a user name cannot hold the character '\\n'"),
        ("ä", "uid: a user name cannot hold the character 'ä'"),
        (".x", "uid: a user name begins with a letter"),
        ("", "uid: a user name has 1 to 32 characters"),
        ("#0", "uid: a user name cannot hold the character '#'"),
        ("no-such-account", "uid: there is no user no-such-account on the cluster"),
        ("abcdefghijklmnopqrstuvwxyz0123456", "uid: a user name has 1 to 32 characters"),
    ];
    for (name, words) in cases {
        let answer = served.post(&json!({"uid": name, "template-name": "template_demo.txt", "variables": demo()}));
        answer.assert_problem(400, "Bad Request", words);
    }
    assert_untouched(&served);
}

#[test]
fn bodies_that_are_no_job_are_refused_with_the_place() {
    let bench = Bench::plain();
    let served = bench.serve();
    let cases = [
        ("", "the body: "),
        ("{", "the body: EOF"),
        ("[]", "the body: "),
        ("null", "the body: "),
        ("\"x\"", "the body: "),
        ("{}", "the body: missing field `uid`"),
        (r#"{"uid":"a"}"#, "missing field `template-name`"),
        (r#"{"template-name":"t"}"#, "missing field `uid`"),
        (r#"{"uid":7.5,"template-name":"t"}"#, "uid: invalid type"),
        (r#"{"uid":null,"template-name":"t"}"#, "uid: invalid type: null"),
        (r#"{"uid":"a","template-name":["t"]}"#, "template-name: invalid type: sequence"),
        (r#"{"uid":"a","template-name":"t","nodes":1}"#, "unknown field `nodes`"),
        (r#"{"uid":"a","template-name":"t","variables":{},"job-id":"9"}"#, "unknown field `job-id`"),
        (r#"{"uid":"a","uid":"b","template-name":"t"}"#, "duplicate field `uid`"),
        (r#"{"uid":"a","template-name":"t"} {}"#, "there is something behind the JSON object"),
        (r#"{"uid":"a","template-name":"t",}"#, "the body: trailing comma"),
        ("uid=a&template-name=t", "the body: "),
        ("{\"uid\":\"a\u{0}\",\"template-name\":\"t\"}", "control character"),
    ];
    for (body, words) in cases {
        served.post_text("application/json", body).assert_problem(400, "Bad Request", words);
    }
    let deep = format!("{{\"uid\":{}", "[".repeat(100_000));
    assert_eq!(served.post_text("application/json", &deep).status, 400);
    let large = json!({"uid": "x".repeat(2 << 20), "template-name": "t"}).to_string();
    let refused = served.raw(&format!(
        "POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        large.len()
    ));
    assert!(refused.starts_with("HTTP/1.1 413 ") && refused.contains("the body may have at most 262144 bytes"), "{refused}");
    assert_untouched(&served);
}

#[test]
fn only_json_is_taken() {
    let bench = Bench::plain();
    let served = bench.serve();
    let body = job("template_sleeper.txt", json!({"word": "a"})).to_string();
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", "json"]
    {
        let answer = served.post_text(kind, &body);
        answer.assert_problem(415, "Unsupported Media Type", "the body must be application/json");
    }
    assert_untouched(&served);
    assert_eq!(served.post_text("application/json; charset=utf-8", &body).status, 200);
}

#[test]
fn a_broken_template_is_the_services_fault_and_is_named() {
    let bench = Bench::plain();
    bench.template("template_two.txt", "#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 1\n#KEYHOLE-REQUEST-PORTS 1\n");
    bench.template("template_many.txt", "#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 6\n");
    bench.template("template_late_option.txt", "#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 1\n#SBATCH --nodes=1\n");
    let served = bench.serve();
    for name in ["template_two.txt", "template_many.txt", "template_late_option.txt"] {
        served.post(&job(name, json!({}))).assert_problem(500, "Internal Server Error", name);
        assert!(served.log().contains(name), "not in the log when it started");
    }
    assert_untouched(&served);
}

#[test]
fn no_bad_input_ever_reaches_ssh() {
    let cluster = Cluster::new();
    let served = cluster.bench.serve();
    let good = json!({"uid": "alice", "template-name": "template_sleeper.txt", "variables": {"word": "a"}});
    let with = |member: &str, value: Value| {
        let mut job = good.clone();
        job[member] = value;
        job
    };
    for uid in ["root", "0", "00", "-u", "../x", "a b", "", "a'b", "a\nb", "$(id)", "alice;id", "alice\0"] {
        let answer = served.post(&with("uid", json!(uid)));
        assert_eq!(answer.status, 400, "{uid:?}: {answer:?}");
    }
    for (bad, _) in bad_characters() {
        assert_eq!(served.post(&with("variables", json!({"word": format!("a{bad}")}))).status, 400, "{bad:?}");
    }
    for variables in
        [json!({}), json!({"word": "-x"}), json!({"word": "../x"}), json!({"word": ""}), json!({"w;x": "a", "word": "a"})]
    {
        assert_eq!(served.post(&with("variables", variables.clone())).status, 400, "{variables}");
    }
    for name in ["../x", "/etc/passwd", "a\\b", "a\nb", ".."] {
        assert_eq!(served.post(&with("template-name", json!(name))).status, 400, "{name:?}");
    }
    assert_eq!(served.post(&with("template-name", json!("none"))).status, 404);
    assert_eq!(served.post(&with("extra", json!(1))).status, 400);
    for name in ["root", "-u", "a%20b", "%24(id)", "..", "0"] {
        assert_eq!(served.get(&format!("/cluster/check-user/{name}")).status, 404, "{name}");
    }
    assert_eq!(cluster.calls(), Vec::<Vec<String>>::new());
    // Only the cluster knows who is there; a stranger costs one question and no submission.
    served.post(&with("uid", json!("stranger"))).assert_problem(400, "Bad Request", "there is no user stranger");
    assert_eq!(cluster.called("getent"), [["getent", "passwd", "--", "stranger"]]);
    assert!(cluster.called("sudo").is_empty() && cluster.called("sbatch").is_empty());
}
