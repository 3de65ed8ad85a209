use super::*;
use serde_json::Value;

fn judged(wanted: &Wanted, all: &[(&str, i32, &str)]) -> Vec<Value> {
    let answers = Answers::of(all);
    let lines = [sudo_rule("svc", Some(&answers))];
    let findings = judge("cmd0", "svc", wanted, &answers, &BY_SUDO, &lines);
    findings.iter().map(|finding| serde_json::to_value(finding).unwrap()).collect()
}

/// What a node says where all is well.
const GOOD: [(&str, i32, &str); 19] = [
    ("path-sbatch", 0, "/opt/slurm/bin/sbatch"),
    ("path-squeue", 0, "/opt/slurm/bin/squeue"),
    ("path-scancel", 0, "/opt/slurm/bin/scancel"),
    ("path-sudo", 0, "/usr/bin/sudo"),
    ("path-getent", 0, "/usr/bin/getent"),
    ("path-id", 0, "/usr/bin/id"),
    ("sudo-list", 0, "User svc may run the following commands on cmd0:\n    (ALL) NOPASSWD: /opt/slurm/bin/sbatch"),
    ("sudo-sbatch", 0, "slurm 24.11.5"),
    ("sudo-scancel", 0, "slurm 24.11.5"),
    ("sudo-squeue", 0, "slurm 24.11.5"),
    ("version", 0, "slurm 24.11.5"),
    ("user", 0, "alice:x:1001:100::/home/alice:/bin/bash"),
    ("groups", 0, "users vis"),
    ("home", 0, "alice"),
    ("slurm", 0, ""),
    ("nodes", 0, "c0 idle"),
    ("dry-run", 0, "sbatch: Job 5 to start at 2026-01-01T00:00:00 using 1 processors on nodes c0 in partition all"),
    ("clock-begin", 0, "0"),
    ("clock-end", 0, "0"),
];

/// Other answers, what they make bad, and words that are then to be read.
type Case = (&'static [(&'static str, i32, &'static str)], &'static [&'static str], &'static str);

fn good_but(changes: &[(&'static str, i32, &'static str)]) -> Vec<(&'static str, i32, &'static str)> {
    let unchanged = GOOD.into_iter().filter(|(name, ..)| changes.iter().all(|(other, ..)| other != name));
    unchanged.chain(changes.iter().copied()).collect()
}

/// What is otherwise than `ok`: check, result and what was found.
fn faults(lines: &[Value]) -> Vec<String> {
    let bad = lines.iter().filter(|line| line["result"] != "ok");
    bad.map(|line| format!("{} {}", line["check"].as_str().unwrap(), line["result"].as_str().unwrap())).collect()
}

#[test]
fn each_answer_that_is_not_as_it_should_be_makes_its_own_line_bad() {
    let policy = UserPolicy { min_uid: 1000, group: Some("vis".into()) };
    let wanted = Wanted { user: Some("alice"), home_prefix: "/srv/home/", policy: &policy };
    const NO: &str = "sudo: a password is required";
    let cases: &[Case] = &[
        (&[], &[], ""),
        (
            &[("sudo-sbatch", 1, NO)],
            &["sudo failed", "dry-run not-checked"],
            "svc ALL=(ALL) NOPASSWD: /opt/slurm/bin/sbatch, /opt/slurm/bin/squeue, /opt/slurm/bin/scancel",
        ),
        (&[("sudo-squeue", 1, NO)], &["sudo failed"], "svc cannot run squeue"),
        (&[("sudo-squeue", 1, "sudo: squeue: command not found")], &["sudo failed"], "secure_path=\"/opt/slurm/bin:"),
        (&[("sudo-list", 1, NO)], &["sudo-needless not-checked"], NO),
        (
            &[("path-scancel", 1, ""), ("sudo-scancel", 1, "sudo: scancel: command not found")],
            &["programs failed"],
            "missing: scancel",
        ),
        (
            &[("slurm", 1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")],
            &["slurm failed"],
            "Unable to contact",
        ),
        (&[("slurm", 124, "")], &["slurm failed"], "ended with 124"),
        (&[("user", 2, "")], &["user failed", "home not-checked"], "getent passwd alice"),
        (&[("user", 0, "alice:x:999:100::/:/bin/sh")], &["user failed"], "below 1000"),
        (&[("groups", 0, "users")], &["user failed"], "users.group"),
        (&[("home", 3, "")], &["home failed"], "install -d -o alice -g 100 -m 700 /srv/home/alice"),
        (&[("home", 0, "bob")], &["home failed"], "belongs to bob"),
        (&[("home", 4, "")], &["home not-checked"], "cannot be seen"),
        (
            &[("dry-run", 1, "allocation failure: Invalid account or account/partition combination specified")],
            &["dry-run failed"],
            "sacctmgr",
        ),
        (&[("dry-run", 1, "allocation failure: something new")], &["dry-run failed"], "sudo -u alice sbatch --test-only"),
        (&[("clock-begin", 0, "500"), ("clock-end", 0, "500")], &["clock failed"], "499 s ahead"),
    ];
    for (changes, expected, words) in cases {
        let lines = judged(&wanted, &good_but(changes));
        assert_eq!(faults(&lines), *expected, "{changes:?}");
        let text = lines.iter().filter(|line| line["result"] != "ok").map(ToString::to_string).collect::<String>();
        assert!(text.replace("\\\"", "\"").contains(words), "{changes:?}: {text}");
    }
}

#[test]
fn a_controller_that_is_silent_leaves_the_dry_run_alone() {
    let policy = UserPolicy::default();
    let wanted = Wanted { user: Some("alice"), home_prefix: "/srv/home", policy: &policy };
    let all: Vec<_> = good_but(&[("slurm", 1, "no")]).into_iter().filter(|(name, ..)| *name != "dry-run").collect();
    assert_eq!(faults(&judged(&wanted, &all)), ["slurm failed", "dry-run not-checked"]);
}

#[test]
fn without_a_user_what_needs_one_is_said_to_be_left_out() {
    let policy = UserPolicy::default();
    let wanted = Wanted { user: None, home_prefix: "/srv/home", policy: &policy };
    let lines = judged(&wanted, &GOOD);
    assert_eq!(faults(&lines), ["user not-checked", "home not-checked", "dry-run not-checked"]);
    assert!(!questions(&wanted).contains("test-only"));
}

#[test]
fn a_sample_of_many_compute_nodes_is_taken_from_those_that_are_up() {
    let many: String = (0..100).map(|n| format!("c{n} idle\n")).collect();
    let (nodes, count) = sample(&many);
    assert_eq!((nodes.len(), count, nodes[0].as_str(), nodes[1].as_str()), (12, 100, "c0", "c9"));
    let (nodes, count) = sample("c0 idle\nc0 idle\nc1 down*\nc2 mixed\nc3 idle~\nc4 drained\n$(x) idle\nc5 down\n\n");
    assert_eq!((nodes, count), (vec!["c0".to_owned(), "c2".into(), "c4".into()], 3));
}
