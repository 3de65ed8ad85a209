use super::*;
use crate::domain::template::BuiltIns;
use crate::templates::TemplateFolder;
use std::collections::BTreeMap;

const CONFIG: &str = r#"{"bwvisu-home-prefix": "/home", "scheduler": "local", "gateway": "relay",
    "gateway-nodes": [{"internal-ip": "127.0.0.1", "external-ip": "127.0.0.1"}],
    "keyholed-servers": [{"ip": "10.0.0.4", "port": 80}, {"ip": "2001:db8::1", "port": 8080}]}"#;

fn config() -> Config {
    let path = std::path::Path::new("config.json");
    crate::config::check(crate::config::file::parse(CONFIG, path).unwrap(), Default::default(), path).unwrap()
}

fn results(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| format!("{} {:?}", finding.check.name(), finding.result)).collect()
}

#[test]
fn the_jobs_template_is_there_in_any_folder_and_takes_the_servers() {
    let folder = tempfile::tempdir().unwrap();
    let templates = TemplateFolder::new(folder.path().to_owned(), 9);
    assert!(templates.names().unwrap().is_empty(), "it is none that front ends are shown");
    let template = templates.load(TEMPLATE).unwrap();
    let variables: BTreeMap<String, String> =
        variables(&config()).into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_owned())).collect();
    let built_ins = BuiltIns { job_id: 7, user: "alice", home: "/home/alice", log: "/home/alice/x.out" };
    let rendered = template.render(&variables, &built_ins).unwrap();
    assert_eq!(rendered.ports, Some(1));
    assert!(rendered.script.contains("'10.0.0.4/80_2001-db8--1/8080'") && rendered.script.contains("bwvisu-doctor 7"));
}

#[test]
fn what_the_job_found_wrong_becomes_lines() {
    let names = ["job-keyhole", "job-folder", "job-base64", "job-gzip"];
    for (faults, bad) in [(0, ""), (1, "job-base64"), (2, "job-gzip"), (4, "job-folder"), (8, "job-keyhole"), (15, "job-")] {
        let lines = results(&node_lines(faults, "c0", &config()));
        let expected: Vec<String> = names
            .iter()
            .map(|name| format!("{name} {}", if !bad.is_empty() && name.starts_with(bad) { "Failed" } else { "Ok" }))
            .collect();
        assert_eq!(lines, expected, "{faults}");
    }
}

#[test]
fn what_the_job_tells_is_shown_and_a_silent_server_among_several_is_a_warning() {
    let page = |silent: &str| format!("bwvisu-doctor 7\nfolder /tmp\nsilent{silent}\nend\n");
    assert_eq!(results(&page_lines(&page(""), "c0")), ["job-keyhole Ok", "job-folder Ok"]);
    let lines = page_lines(&page(" 10.0.0.4/80"), "c0");
    assert_eq!(results(&lines)[0], "job-keyhole Warning");
    assert!(lines[0].found.contains("10.0.0.4/80"));
}

#[test]
fn lines_that_could_not_be_looked_at_stand_there_all_the_same_and_in_order() {
    let lines = after(
        vec![Finding::ok(Check::JobEnd, HERE, ""), Finding::ok(Check::Service, HERE, ""), Finding::ok(Check::Job, HERE, "")],
        "why",
    );
    let names: Vec<&str> = lines.iter().map(|finding| finding.check.name()).collect();
    let expected: Vec<&str> = [Check::Service].iter().chain(&LINES).map(|check| check.name()).collect();
    assert_eq!(names, expected);
    assert_eq!(lines.iter().filter(|finding| finding.found == "why").count(), 6);
}

#[test]
fn a_service_that_does_not_answer_and_one_with_another_password_are_told_apart() {
    let cases = [
        (Error::unavailable("http://127.0.0.1:1: Connection refused"), "systemctl start bwvisu-runner"),
        (Error::bad_gateway("https://x says 401 Unauthorized: no"), "systemctl reload bwvisu-runner"),
    ];
    for (error, command) in cases {
        let findings = examine(Err(error), &config(), "alice");
        assert_eq!(findings[0].command.as_deref(), Some(command));
        assert_eq!(findings.len(), 1 + LINES.len());
    }
}
