use super::*;

fn answers(all: &[(&str, i32, &str)]) -> Answers {
    let text: String = all.iter().map(|(name, status, text)| format!("{ANSWER} {name} {status}\n|{text}\n")).collect();
    Answers { all: parse(&format!("{text}{END}\n")).unwrap(), asked: (1000, 1003) }
}

#[test]
fn answers_are_read_and_nothing_that_a_program_says_passes_for_one() {
    let stdout =
        "Welcome!\nbwvisu-answer a 0\n|one\n|bwvisu-answer b 0\n|two\nbwvisu-answer b 3\n|\nnoise of a shell\n|x\nbwvisu-end\n";
    let all = parse(stdout).unwrap();
    assert_eq!(all["a"], Answer { status: 0, text: "one\nbwvisu-answer b 0\ntwo\n".into() });
    assert_eq!(all["b"], Answer { status: 3, text: "\nx\n".into() });
    for cut in ["", "bwvisu-answer a 0\n|x\n", "bwvisu-answer a\nbwvisu-end\n", "bwvisu-answer a b\nbwvisu-end\n"] {
        assert_eq!(parse(cut), None, "{cut:?}");
    }
}

#[test]
fn the_prelude_frames_whatever_commands_say_and_ends_what_hangs() {
    let prelude = PRELUDE.replace("BUDGET", "20");
    let script = format!(
        "{prelude}ask many printf 'a\\nbwvisu-end\\n'\nask bad sh -c 'echo no >&2; exit 7'\nask hangs soon 1 sleep 20\nask gone no-such-program\n{}echo {END}\n",
        ask("shell", 5, "echo \"it's $((1 + 1))\"")
    );
    let mut command = std::process::Command::new("sh");
    let begun = std::time::Instant::now();
    let output = crate::command::run(&mut command, script.as_bytes(), begun + Duration::from_secs(30)).unwrap();
    let all = parse(&output.stdout).unwrap();
    let seen = |name: &str| (all[name].status, all[name].text.trim().to_owned());
    assert_eq!(seen("many"), (0, "a\nbwvisu-end".into()));
    assert_eq!(seen("bad"), (7, "no".into()));
    assert_eq!(seen("hangs"), (124, String::new()));
    assert_eq!(seen("gone").0, MISSING);
    assert_eq!(seen("shell"), (0, "it's 2".into()));
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn when_the_time_is_over_nothing_more_is_asked_and_that_is_said() {
    let prelude = PRELUDE.replace("BUDGET", "0");
    let output = crate::command::run(
        &mut std::process::Command::new("sh"),
        format!("{prelude}ask late touch /nowhere/x\necho {END}\n").as_bytes(),
        std::time::Instant::now() + Duration::from_secs(20),
    );
    let all = parse(&output.unwrap().stdout).unwrap();
    assert_eq!((all["late"].status, all["late"].text.trim()), (124, "there was no time left to look"));
}

#[test]
fn a_clock_is_wrong_only_by_what_cannot_be_the_time_that_asking_took() {
    let cases = [
        ("1000", "1003", 0, "ok"),
        ("1001", "1001", 0, "ok"),
        ("1010", "1011", 7, "warning"),
        ("1200", "1200", 196, "failed"),
        ("900", "901", -99, "failed"),
        ("992", "993", -7, "warning"),
    ];
    for (begin, end, offset, result) in cases {
        let answers = answers(&[("clock-begin", 0, begin), ("clock-end", 0, end)]);
        assert_eq!(answers.clock_offset(), Some(offset), "{begin} {end}");
        let finding = serde_json::to_value(clock("node", &answers)).unwrap();
        assert_eq!(finding["result"], result, "{begin} {end}");
    }
    assert_eq!(answers(&[("clock-begin", 0, "noon")]).clock_offset(), None);
}

#[test]
fn the_first_contact_says_which_of_three_things_failed() {
    let login = Login { address: "10.0.0.2".into(), user: "svc".into(), port: 22 };
    let ssh = SshOptions { identity_file: None, known_hosts: "/k".into(), sockets: "/s".into() };
    let cases = [
        ("ssh: connect to host 10.0.0.2 port 22: Connection refused", "failed - -", "firewall"),
        ("no connection within the time. ", "failed - -", "firewall"),
        (
            "No ED25519 host key is known for 10.0.0.2 and you have requested strict checking. Host key verification failed.",
            "ok failed -",
            "not in /k",
        ),
        (
            "Host key for 10.0.0.2 has changed and you have requested strict checking. Host key verification failed.",
            "ok failed -",
            "another one",
        ),
        ("svc@10.0.0.2: Permission denied (publickey).", "ok ok failed", "authorized_keys"),
    ];
    for (detail, expected, advice) in cases {
        let error = Error::unavailable("10.0.0.2 cannot be reached by ssh").with_detail(detail);
        let findings = serde_json::to_value(first_contact(&login, &ssh, "bwvisu-runner", Some(&error))).unwrap();
        let results: Vec<&str> =
            (0..3).map(|i| findings[i]["result"].as_str().unwrap()).map(|r| if r == "not-checked" { "-" } else { r }).collect();
        assert_eq!(results.join(" "), expected, "{detail}");
        let failed = findings.as_array().unwrap().iter().find(|finding| finding["result"] == "failed").unwrap();
        assert!(failed["advice"].as_str().unwrap().contains(advice), "{failed}");
    }
    let refused = Error::unavailable("10.0.0.2: its sshd refuses more sessions on a connection; MaxSessions should be 10");
    assert_eq!(contact(&refused), Contact::NoShell);
    assert_eq!(contact(&Error::unknown("10.0.0.2: ssh did not end in time")), Contact::NoShell);
}

const HEAD: &str = "Matching Defaults entries for svc on cmd0:\n    env_reset, secure_path=/usr/bin\n\nUser svc may run the following commands on cmd0:\n";

#[test]
fn what_sudo_allows_without_a_password_is_read_from_its_list() {
    let cases: &[(&str, &[&str])] = &[
        ("    (ALL) NOPASSWD: /usr/bin/sbatch, /usr/bin/squeue\n", &["/usr/bin/sbatch", "/usr/bin/squeue"]),
        ("    (ALL) /usr/bin/sbatch, NOPASSWD: /usr/bin/squeue\n", &["/usr/bin/squeue"]),
        ("    (root) NOPASSWD: /a, PASSWD: /b\n", &["/a"]),
        ("    (ALL : ALL) NOPASSWD: ALL\n", &["ALL"]),
        ("    (ALL : ALL) ALL\n", &[]),
        ("    (root) NOPASSWD:SETENV: /a --flag x\n    (bob) NOPASSWD: /b\n", &["/a", "/b"]),
        ("    (root) NOEXEC: NOPASSWD: /a, !/b\n", &["/a"]),
        (
            "    (root) NOPASSWD: /usr/sbin/iptables,\n        /usr/sbin/iptables-save\n",
            &["/usr/sbin/iptables", "/usr/sbin/iptables-save"],
        ),
        ("", &[]),
    ];
    for (entries, expected) in cases {
        let listed = allowed(&format!("{HEAD}{entries}"));
        assert_eq!(listed, expected.iter().map(|path| (*path).to_owned()).collect(), "{entries}");
    }
    assert!(allowed("sudo: a password is required\n").is_empty());
}

#[test]
fn what_is_allowed_beyond_need_is_a_warning_that_names_it() {
    let cases = [
        ("    (ALL) NOPASSWD: /opt/slurm/bin/sbatch", "ok", ""),
        ("    (ALL) NOPASSWD: ALL", "warning", "ALL"),
        ("    (ALL) NOPASSWD: /usr/bin/sbatch, /usr/bin/vi", "warning", "/usr/bin/vi"),
    ];
    for (entry, result, found) in cases {
        let text = format!("{}{entry}", HEAD.replace('\n', "\n|"));
        let answers = answers(&[("sudo-list", 0, &text)]);
        let finding = serde_json::to_value(needless("n", "svc", &answers, &["sbatch"], &["svc ALL=x".to_owned()])).unwrap();
        assert_eq!(finding["result"], result, "{entry}");
        assert!(finding["found"].as_str().unwrap().contains(found), "{finding}");
        if result == "warning" {
            assert_eq!(
                finding["command"],
                "printf '%s\\n' 'svc ALL=x' >/etc/sudoers.d/svc && chmod 0440 /etc/sudoers.d/svc && visudo -cf /etc/sudoers.d/svc"
            );
        }
    }
}
