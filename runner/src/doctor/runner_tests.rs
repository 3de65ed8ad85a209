use super::super::report::Verdict;
use super::*;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

const TEMPLATE: &str = "#!/bin/bash\n#SBATCH --time=1\ntrue\n";

/// A configuration that needs no other machine, and all that it names.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let path = |name: &str| place.path(name).display().to_string();
        let config = serde_json::json!({
            "bwvisu-home-prefix": "/home", "scheduler": "local", "gateway": "relay", "keyholed-servers": [{"ip": "127.0.0.1", "port": 8880}],
            "gateway-nodes": [{"internal-ip": "127.0.0.1", "external-ip": "127.0.0.1"}],
            "api-tls": {"certificate": path("cert.pem"), "key": path("key.pem")}, "templates": path("templates"), "state-dir": path("state"),
        });
        for folder in ["templates", "state"] {
            fs::create_dir(place.path(folder)).unwrap();
        }
        fs::set_permissions(place.path("state"), Permissions::from_mode(0o700)).unwrap();
        place.write("config.json", &config.to_string(), 0o640);
        place.write("settings.json", r#"{"api-password": "something that nobody guesses"}"#, 0o600);
        place.write("templates/template_a.txt", TEMPLATE, 0o644);
        place.certificate(4000);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    fn certificate(&self, year: i32) {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        self.write("cert.pem", &params.self_signed(&key).unwrap().pem(), 0o644);
        self.write("key.pem", &key.serialize_pem(), 0o600);
    }

    /// What is neither fine nor about the keyhole-clients, which an unpacked source does not have.
    fn faults(&self) -> Vec<Finding> {
        let Read { config, mut findings } = read(Some(&self.path("config.json")));
        findings.extend(config.iter().flat_map(|config| examine(config, "bwvisu-runner")));
        findings.retain(|finding| finding.result != Verdict::Ok && finding.check != Check::Clients);
        findings
    }
}

#[test]
fn each_fault_of_this_machine_makes_its_own_line_bad_and_following_the_advice_mends_it() {
    type Break = fn(&Place);
    let cases: &[(&str, Break, &str)] = &[
        (
            "secrets Failed",
            |p| p.write("settings.json", r#"{"api-password": "something that nobody guesses"}"#, 0o644),
            "chmod 0600",
        ),
        (
            "configuration Failed",
            |p| fs::set_permissions(p.path("config.json"), Permissions::from_mode(0o646)).unwrap(),
            "chmod o-w",
        ),
        ("password Failed", |p| p.write("settings.json", r#"{"api-password": "a long random word"}"#, 0o600), "sed -i"),
        (
            "password Failed",
            |p| p.write("settings.json", include_str!("../../../packaging/config/settings.json"), 0o600),
            "sed -i",
        ),
        ("password Warning", |p| p.write("settings.json", "{\n \"api-password\":\"short\" }", 0o600), "sed -i"),
        ("password Failed", |p| p.write("settings.json", "{}", 0o600), "umask 077"),
        ("state-folder Failed", |p| fs::set_permissions(p.path("state"), Permissions::from_mode(0o777)).unwrap(), "chmod 0700"),
    ];
    for (expected, breaks, command) in cases {
        let place = Place::new();
        assert_eq!(place.faults(), [], "all is well before {expected}");
        breaks(&place);
        let faults = place.faults();
        let [fault] = &faults[..] else { panic!("{expected}: {faults:#?}") };
        assert_eq!(format!("{} {:?}", fault.check.name(), fault.result), *expected);
        let line = fault.command.as_deref().unwrap();
        assert!(line.contains(command), "{line}");
        let output = command::run(Command::new("sh").arg("-c").arg(line), b"", Instant::now() + Duration::from_secs(20)).unwrap();
        assert!(output.status.success(), "{line}: {}", output.complaint());
        assert_eq!(place.faults(), [], "after {line}");
    }
}

#[test]
fn faults_that_no_command_mends_are_named() {
    type Break = fn(&Place);
    let cases: &[(&str, Break, &str)] = &[
        ("configuration", |p| p.write("config.json", "{\"x\": 1}", 0o640), "unknown field"),
        ("configuration", |p| p.write("config.json", include_str!("../../../packaging/config/config.json"), 0o640), "EDIT-ME"),
        ("secrets", |p| p.write("settings.json", "{", 0o600), "settings.json"),
        ("certificate", |p| p.certificate(2020), "has expired at 2020-01-01T00:00:00Z"),
        ("certificate", |p| p.write("key.pem", "x", 0o600), "key.pem"),
        ("templates", |p| p.write("templates/template_b.txt", "#!/bin/bash\n{{#x}}\n", 0o644), "1 of 2 are wrong: template"),
        ("templates", |p| fs::remove_file(p.path("templates/template_a.txt")).unwrap(), "there are none"),
        ("state-folder", |p| fs::remove_dir(p.path("state")).unwrap(), "is not there"),
    ];
    for (check, breaks, words) in cases {
        let place = Place::new();
        breaks(&place);
        let faults = place.faults();
        let found = faults.iter().find(|fault| fault.check.name() == *check).unwrap_or_else(|| panic!("{check}: {faults:#?}"));
        assert!(found.found.contains(words) && found.advice.is_some(), "{found:#?}");
    }
    let none = read(Some(Path::new("/nowhere/config.json")));
    assert!(none.config.is_none() && none.findings[0].result == Verdict::Failed, "{:?}", none.findings);
}

#[test]
fn a_certificate_is_to_be_renewed_in_good_time() {
    let time = |text: &str| text.parse::<Timestamp>().unwrap();
    let now = time("2026-06-01T00:00:00Z");
    let cases = [
        ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", Verdict::Ok),
        ("2026-01-01T00:00:00Z", "2026-07-01T00:00:01Z", Verdict::Ok),
        ("2026-01-01T00:00:00Z", "2026-06-30T23:00:00Z", Verdict::Warning),
        ("2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z", Verdict::Failed),
        ("2026-06-02T00:00:00Z", "2027-01-01T00:00:00Z", Verdict::Failed),
    ];
    for (from, until, expected) in cases {
        assert_eq!(judge_validity("x.pem", time(from), time(until), now).result, expected, "{from} {until}");
    }
}
