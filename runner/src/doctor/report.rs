//! What a look at the whole came to: findings, for people as a table and for programs as JSON.

use crate::domain::text::printable;
use serde::Serialize;
use std::fmt;

/// Where the checks of this machine were made.
pub const HERE: &str = "this machine";

macro_rules! checks {
    ($($(#[$doc:meta])* $variant:ident => $name:literal),* $(,)?) => {
        /// What is looked at. The names are for programs too: they stay.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub enum Check {
            $($(#[$doc])* #[serde(rename = $name)] $variant),*
        }

        impl Check {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

checks! {
    /// The configuration file.
    Configuration => "configuration",
    /// `settings.json`.
    Secrets => "secrets",
    /// The API's password.
    Password => "password",
    /// The API's certificate.
    Certificate => "certificate",
    /// The folder of templates.
    Templates => "templates",
    /// The keyhole-clients.
    Clients => "clients",
    /// The state folder.
    StateFolder => "state-folder",
    /// The store.
    Store => "store",
    /// The limit of open files.
    OpenFiles => "open-files",
    /// OpenSSH's programs here.
    SshPrograms => "ssh-programs",
    /// Our key for other machines.
    SshKey => "ssh-key",
    /// A clock.
    Clock => "clock",
    /// The scheduler as a whole, where there are no nodes of it.
    Scheduler => "scheduler",
    /// The gateway as a whole, where there are no nodes of it.
    Relay => "relay",
    /// Whether a node answers.
    Reachable => "reachable",
    /// Whether a node is the one that we know.
    HostKey => "host-key",
    /// Whether a node lets us in.
    Login => "login",
    /// What must be installed on a node.
    Programs => "programs",
    /// What we must be allowed there.
    Sudo => "sudo",
    /// What we should not be allowed there.
    SudoNeedless => "sudo-needless",
    /// Slurm's controller.
    Slurm => "slurm",
    /// A user's account.
    User => "user",
    /// A user's folder.
    Home => "home",
    /// `sbatch --test-only`.
    DryRun => "dry-run",
    /// The kind of iptables.
    Iptables => "iptables",
    /// The kind of `nc`.
    Nc => "nc",
    /// Whether a gateway forwards.
    IpForward => "ip-forward",
    /// Whether somebody else has ports of ours.
    PortRange => "port-range",
    /// Whether the kernel gives ports of ours to connections.
    EphemeralPorts => "ephemeral-ports",
    /// Whether compute nodes have names on a gateway.
    NodeNames => "node-names",
    /// Whether a gateway reaches compute nodes.
    NodeReach => "node-reach",
    /// Whether the external address is the gateway's.
    ExternalAddress => "external-address",
    /// Whether answers may go back to users.
    ReturnPath => "return-path",
    /// Whether the service answers.
    Service => "service",
    /// A job, from its submission to its start.
    Job => "job",
    /// Whether a compute node reaches keyhole.
    JobKeyhole => "job-keyhole",
    /// Where a program may be unpacked and run on a compute node.
    JobFolder => "job-folder",
    /// `base64` on a compute node.
    JobBase64 => "job-base64",
    /// `gzip` on a compute node.
    JobGzip => "job-gzip",
    /// A job, until it is available.
    JobAvailable => "job-available",
    /// A connection to a job.
    JobConnection => "job-connection",
    /// The end of a job.
    JobEnd => "job-end",
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but should be otherwise.
    Warning,
    /// It will not work.
    Failed,
    /// It could not be looked at, or does not apply.
    NotChecked,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::NotChecked => "not checked",
        }
    }
}

/// What to do about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    words: String,
    command: Option<(String, Option<String>)>,
}

impl Advice {
    /// In words.
    pub fn new(words: impl Into<String>) -> Self {
        Self { words: words.into(), command: None }
    }

    /// And by a command, which root runs in a shell on the machine that was looked at.
    #[must_use]
    pub fn run(self, command: impl Into<String>) -> Self {
        Self { command: Some((command.into(), None)), ..self }
    }

    /// And by a command that is run on the runner's machine.
    #[must_use]
    pub fn run_here(self, command: impl Into<String>) -> Self {
        Self { command: Some((command.into(), Some(HERE.to_owned()))), ..self }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// Where: [`HERE`], or a node's address.
    #[serde(rename = "where")]
    pub place: String,
    /// What it came to.
    pub result: Verdict,
    /// What was seen.
    pub found: String,
    /// What to do, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// A command that does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Where root runs that command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_on: Option<String>,
}

impl Finding {
    /// All is as it should be.
    pub fn ok(check: Check, place: &str, found: impl Into<String>) -> Self {
        Self::plain(check, place, Verdict::Ok, found)
    }

    /// It could not be looked at, for this reason.
    pub fn not_checked(check: Check, place: &str, why: impl Into<String>) -> Self {
        Self::plain(check, place, Verdict::NotChecked, why)
    }

    /// It will not work.
    pub fn failed(check: Check, place: &str, found: impl Into<String>, advice: Advice) -> Self {
        Self::advised(check, place, Verdict::Failed, found, advice)
    }

    /// It should be otherwise.
    pub fn warning(check: Check, place: &str, found: impl Into<String>, advice: Advice) -> Self {
        Self::advised(check, place, Verdict::Warning, found, advice)
    }

    fn plain(check: Check, place: &str, result: Verdict, found: impl Into<String>) -> Self {
        Self { check, place: place.to_owned(), result, found: found.into(), advice: None, command: None, command_on: None }
    }

    fn advised(check: Check, place: &str, result: Verdict, found: impl Into<String>, advice: Advice) -> Self {
        let (command, on) = advice.command.unzip();
        let command_on = on.map(|on| on.unwrap_or_else(|| place.to_owned()));
        Self { advice: Some(advice.words), command, command_on, ..Self::plain(check, place, result, found) }
    }
}

/// All findings, in the order in which they are best mended.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The lines.
    pub checks: Vec<Finding>,
}

impl Report {
    /// Whether nothing failed.
    pub fn is_good(&self) -> bool {
        self.count(Verdict::Failed) == 0
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|finding| finding.result == verdict).count()
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "ok": self.is_good(),
            "failed": self.count(Verdict::Failed),
            "warnings": self.count(Verdict::Warning),
            "not-checked": self.count(Verdict::NotChecked),
            "checks": self.checks,
        })
    }
}

/// For people: an aligned table; under a line that is not good, what to do.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Finding) -> &str, least: usize| {
            self.checks.iter().map(|finding| text(finding).chars().count()).chain([least]).max().unwrap_or(least)
        };
        let (check, place) = (width(|finding| finding.check.name(), 5), width(|finding| &finding.place, 5));
        writeln!(f, "{:check$}  {:place$}  {:11}  FOUND", "CHECK", "WHERE", "RESULT")?;
        for finding in &self.checks {
            let found = one_line(&finding.found);
            let (name, result) = (finding.check.name(), finding.result.word());
            writeln!(f, "{name:check$}  {:place$}  {result:11}  {found}", one_line(&finding.place))?;
            let margin = check + place + 4;
            if let Some(advice) = &finding.advice {
                writeln!(f, "{:margin$}to do:       {}", "", one_line(advice))?;
            }
            if let Some((command, on)) = finding.command.as_ref().zip(finding.command_on.as_ref()) {
                writeln!(f, "{:margin$}on {on}, as root:\n{:margin$}             {}", "", "", printable(command))?;
            }
        }
        let [ok, warnings, failed, not] =
            [Verdict::Ok, Verdict::Warning, Verdict::Failed, Verdict::NotChecked].map(|verdict| self.count(verdict));
        write!(f, "{ok} ok, {warnings} warnings, {failed} failed, {not} not checked")
    }
}

/// What other machines said must not move the cursor, add lines or hide a part of itself.
fn one_line(text: &str) -> String {
    printable(&text.replace(['\n', '\t'], " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn report() -> Report {
        let advice = Advice::new("allow it").run("echo line >/etc/sudoers.d/x");
        Report {
            checks: vec![
                Finding::ok(Check::Store, HERE, "embedded"),
                Finding::failed(Check::Sudo, "10.0.0.2", "no\n\u{1b}[2Jway", advice),
                Finding::warning(Check::Clock, "10.0.0.2", "3 s", Advice::new("set it").run_here("date")),
            ],
        }
    }

    #[test]
    fn the_table_is_aligned_and_says_what_to_do_under_the_line() {
        let expected = "CHECK  WHERE         RESULT       FOUND\n\
                        store  this machine  ok           embedded\n\
                        sudo   10.0.0.2      FAILED       no \\u{1b}[2Jway\n                     to do:       allow it\n\
                        \u{20}                    on 10.0.0.2, as root:\n\
                        \u{20}                                 echo line >/etc/sudoers.d/x\n\
                        clock  10.0.0.2      warning      3 s\n                     to do:       set it\n\
                        \u{20}                    on this machine, as root:\n\
                        \u{20}                                 date\n\
                        1 ok, 1 warnings, 1 failed, 0 not checked";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn programs_get_the_same_with_stable_names() {
        let json = report().json();
        assert_eq!((&json["ok"], &json["failed"], &json["warnings"]), (&false.into(), &1.into(), &1.into()));
        let sudo = &json["checks"][1];
        let expected = serde_json::json!({
            "check": "sudo", "where": "10.0.0.2", "result": "failed", "found": "no\n\u{1b}[2Jway",
            "advice": "allow it", "command": "echo line >/etc/sudoers.d/x", "command-on": "10.0.0.2"
        });
        assert_eq!(sudo, &expected);
        assert_eq!(json["checks"][2]["command-on"], HERE);
    }

    #[test]
    fn no_two_checks_have_one_name() {
        let names: BTreeSet<&str> = Check::ALL.iter().map(|check| check.name()).collect();
        assert_eq!(names.len(), Check::ALL.len());
    }
}
