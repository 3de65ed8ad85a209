//! Another machine: many questions in one script, and what comes back. How the first contact went is a finding, too.

use super::report::{Advice, Check, Finding, HERE};
use crate::config::Login;
use crate::domain::shell;
use crate::error::{Error, ErrorKind, Result};
use crate::ssh::{Node, SshOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// All questions of one machine together. The script itself asks nothing more after [`BUDGET_SECONDS`].
const LIMIT: Duration = Duration::from_secs(75);
const BUDGET_SECONDS: u32 = 45;
/// The first word of the line before an answer.
const ANSWER: &str = "bwvisu-answer";
/// The last line of a complete script.
const END: &str = "bwvisu-end";
/// What the shell says of a program that is not there.
pub(super) const MISSING: i32 = 127;
/// What is wrong with a clock beyond this, in seconds.
const CLOCK_FAILED: i64 = 60;
const CLOCK_WARNING: i64 = 5;

/// `ask NAME COMMAND…` runs a command and reports how it ended and what it said, each line behind a bar, so that nothing that a
/// program says can pass for a line of ours. `soon SECONDS COMMAND…` ends a command that hangs.
const PRELUDE: &str = r#"export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
begun=$(date +%s)
soon() {
    if command -v timeout >/dev/null; then timeout "$@"; else shift; "$@"; fi
}
ask() {
    name=$1 status=124 said='there was no time left to look'
    shift
    if [ $(($(date +%s) - begun)) -lt BUDGET ]; then
        said=$("$@" 2>&1 </dev/null)
        status=$?
    fi
    echo "bwvisu-answer $name $status"
    printf '%s\n' "$said" | head -n 20000 | sed 's/^/|/'
}
ask clock-begin date +%s
"#;

/// What a machine answered to one question.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The command's exit code; 124 when it took too long.
    pub(super) status: i32,
    /// Standard output and standard error.
    pub(super) text: String,
}

impl Answer {
    pub(super) fn is_good(&self) -> bool {
        self.status == 0
    }

    /// The text on one line, or what its absence means.
    pub(super) fn words(&self) -> String {
        let words = crate::command::last_words(&self.text);
        match (words.is_empty(), self.status) {
            (true, status) => format!("it said nothing and ended with {status}"),
            (false, 124) => format!("it did not end in time; {words}"),
            (false, _) => words,
        }
    }
}

/// What a machine answered.
#[derive(Debug, Default)]
pub(super) struct Answers {
    all: BTreeMap<String, Answer>,
    /// Our own seconds since 1970 before the first question, and after the last answer.
    asked: (i64, i64),
}

impl Answers {
    /// The answer to a question; to one that was not asked, an empty one.
    pub(super) fn get(&self, name: &str) -> Answer {
        self.all.get(name).cloned().unwrap_or_else(|| Answer { status: MISSING, text: String::new() })
    }

    /// What tests let a machine say.
    #[cfg(test)]
    pub(super) fn of(all: &[(&str, i32, &str)]) -> Self {
        let answer = |(name, status, text): &(&str, i32, &str)| {
            ((*name).to_owned(), Answer { status: *status, text: format!("{text}\n") })
        };
        Self { all: all.iter().map(answer).collect(), asked: (0, 0) }
    }

    /// Whether it was asked.
    pub(super) fn has(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    /// The first line of a good answer.
    pub(super) fn line(&self, name: &str) -> Option<String> {
        let answer = self.all.get(name).filter(|answer| answer.is_good())?;
        answer.text.lines().next().filter(|line| !line.is_empty()).map(str::to_owned)
    }

    /// The paths of programs, asked by [`paths`]; their names where they are missing.
    pub(super) fn paths(&self, programs: &[&str]) -> Result<Vec<String>, Vec<String>> {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for program in programs {
            match self.line(&format!("path-{program}")).filter(|path| path.starts_with('/')) {
                Some(path) => found.push(path),
                None => missing.push((*program).to_owned()),
            }
        }
        if missing.is_empty() { Ok(found) } else { Err(missing) }
    }

    /// By how much at least the other clock is ahead of ours (negative: behind).
    fn clock_offset(&self) -> Option<i64> {
        let at = |name: &str| self.line(name)?.parse::<i64>().ok();
        // It was asked after our first moment and before our last; a second is what `date` cuts off.
        let (most, least) = (at("clock-begin")? - self.asked.0 + 1, at("clock-end")? - self.asked.1 - 1);
        Some(if least > 0 { least } else { most.min(0) })
    }
}

/// Lines of a script that ask where programs are.
pub(super) fn paths(programs: &[&str]) -> String {
    programs.iter().map(|program| format!("ask path-{program} command -v {program}\n")).collect()
}

/// A line of a script: `command`, written for a shell, may take so long.
pub(super) fn ask(name: &str, seconds: u32, command: &str) -> String {
    format!("ask {name} soon {seconds} sh -c {}\n", shell::quote(command))
}

/// What a script printed. Nothing if it did not come to its end.
fn parse(stdout: &str) -> Option<BTreeMap<String, Answer>> {
    let mut answers: BTreeMap<String, Answer> = BTreeMap::new();
    let mut current: Option<String> = None;
    let mut complete = false;
    for line in stdout.lines() {
        if let Some(head) = line.strip_prefix(ANSWER) {
            let (name, status) = head.trim_start().split_once(' ')?;
            answers.insert(name.to_owned(), Answer { status: status.parse().ok()?, text: String::new() });
            current = Some(name.to_owned());
        } else if let (Some(text), Some(answer)) =
            (line.strip_prefix('|'), current.as_ref().and_then(|name| answers.get_mut(name)))
        {
            answer.text += text;
            answer.text.push('\n');
        } else if line == END {
            complete = true;
        }
    }
    complete.then_some(answers)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default()
}

/// Asks all questions of a machine at once.
pub(super) fn examine(login: &Login, ssh: &SshOptions, questions: &str) -> Result<Answers> {
    let node = Node::new(&login.user, &login.address, login.port, ssh.clone());
    let prelude = PRELUDE.replace("BUDGET", &BUDGET_SECONDS.to_string());
    let script = format!("{prelude}{questions}ask clock-end date +%s\necho {END}\n");
    let run = || {
        let before = now();
        node.run("exec sh", script.as_bytes(), LIMIT).map(|output| (output, (before, now())))
    };
    let (output, asked) = match run() {
        // A login that took too long once is no fault to be mended.
        Err(error) if contact(&error) == Contact::Unreachable => run()?,
        result => result?,
    };
    let all = parse(&output.stdout).ok_or_else(|| {
        Error::unknown(format!("{} let us in, but no POSIX shell answered", login.address)).with_detail(output.complaint())
    })?;
    Ok(Answers { all, asked })
}

/// How far the first contact got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contact {
    Unreachable,
    UnknownKey,
    ChangedKey,
    KeyRefused,
    NoShell,
}

fn contact(error: &Error) -> Contact {
    let words = format!("{} {}", error.message, error.detail.as_deref().unwrap_or_default());
    let said = |marks: &[&str]| marks.iter().any(|mark| words.contains(mark));
    if said(&["has changed and you have requested", "IDENTIFICATION HAS CHANGED"]) {
        Contact::ChangedKey
    } else if said(&["host key is known", "Host key verification failed"]) {
        Contact::UnknownKey
    } else if said(&["Permission denied", "Too many authentication failures", "account is expired", "not available"]) {
        Contact::KeyRefused
    } else if error.kind == ErrorKind::Unknown || said(&["MaxSessions"]) {
        Contact::NoShell
    } else {
        Contact::Unreachable
    }
}

/// The three lines about the first contact.
pub(super) fn first_contact(login: &Login, ssh: &SshOptions, program: &str, failure: Option<&Error>) -> Vec<Finding> {
    const LINES: [Check; 3] = [Check::Reachable, Check::HostKey, Check::Login];
    let place = login.address.as_str();
    let Some(error) = failure else {
        let found = [format!("port {} answers", login.port), "known".to_owned(), format!("as {}", login.user)];
        return LINES.into_iter().zip(found).map(|(check, found)| Finding::ok(check, place, found)).collect();
    };
    let kind = contact(error);
    let at = match kind {
        Contact::Unreachable => 0,
        Contact::UnknownKey | Contact::ChangedKey => 1,
        Contact::KeyRefused | Contact::NoShell => 2,
    };
    let words = crate::command::last_words(error.detail.as_deref().unwrap_or(&error.message));
    let line = |(index, check): (usize, Check)| match index.cmp(&at) {
        std::cmp::Ordering::Less => Finding::ok(check, place, "yes"),
        std::cmp::Ordering::Equal => Finding::failed(check, place, words.clone(), advice(kind, login, ssh, program)),
        std::cmp::Ordering::Greater => Finding::not_checked(check, place, "see above"),
    };
    LINES.into_iter().enumerate().map(line).collect()
}

fn advice(kind: Contact, login: &Login, ssh: &SshOptions, program: &str) -> Advice {
    let Login { address, user, port } = login;
    let known_hosts = ssh.known_hosts.display();
    let trust = format!("{program} hosts trust");
    match kind {
        Contact::Unreachable => Advice::new(format!(
            "see that {address} is up, that sshd listens on port {port} there, and that no firewall stands between; mend the address or the \
             port in the configuration if they are wrong"
        )),
        Contact::UnknownKey => Advice::new(format!(
            "its key is not in {known_hosts}: compare the fingerprint with the node's own \
             (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there), then accept it"
        ))
        .run_here(trust),
        Contact::ChangedKey => Advice::new(format!(
            "the key in {known_hosts} is another one. If the node was installed anew, compare the fingerprint with the node's own \
             (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there) and accept it; if it was not, somebody stands between"
        ))
        .run_here(trust),
        Contact::KeyRefused => {
            let public = public_key(ssh);
            let words = format!("put the runner's public key into the authorized_keys of {user} on {address}");
            let append = |key: &str| {
                let key = shell::quote(key.trim());
                format!(
                    "home=$(getent passwd {user} | cut -d: -f6) && install -d -o {user} -m 700 \"$home/.ssh\" && \
                     echo {key} >>\"$home/.ssh/authorized_keys\" && chown -h {user} \"$home/.ssh/authorized_keys\" && \
                     chmod 600 \"$home/.ssh/authorized_keys\""
                )
            };
            match public {
                Some(key) => Advice::new(words).run(append(&key)),
                None => Advice::new(format!("{words}; `ssh-keygen -y -f KEY` on {HERE} prints it")),
            }
        }
        Contact::NoShell => Advice::new(format!(
            "the login shell of {user} on {address} must be a POSIX one, with no forced command in authorized_keys, and sshd must take two sessions \
             on a connection at least (MaxSessions)"
        )),
    }
}

/// What stands beside our private key.
fn public_key(ssh: &SshOptions) -> Option<String> {
    let path = ssh.identity_file.as_ref()?;
    let mut name = path.clone().into_os_string();
    name.push(".pub");
    std::fs::read_to_string(name).ok().filter(|text| text.lines().count() == 1)
}

/// The other clock against ours.
pub(super) fn clock(place: &str, answers: &Answers) -> Finding {
    let Some(offset) = answers.clock_offset() else {
        return Finding::not_checked(Check::Clock, place, "date printed no seconds");
    };
    let found = match offset {
        0 => "the same as here".to_owned(),
        ahead @ 1.. => format!("{ahead} s ahead of this machine's"),
        behind => format!("{} s behind this machine's", -behind),
    };
    let advice = || {
        let words = "let all machines follow the same time servers, and set the clock that is wrong";
        Advice::new(words).run("timedatectl set-ntp true; chronyc makestep || systemctl restart systemd-timesyncd")
    };
    match offset.abs() {
        CLOCK_FAILED.. => Finding::failed(Check::Clock, place, found, advice()),
        CLOCK_WARNING.. => Finding::warning(Check::Clock, place, found, advice()),
        _ => Finding::ok(Check::Clock, place, found),
    }
}

/// What an account is allowed by sudo without a password: programs' paths, or `ALL`, as `sudo -l` lists them.
pub(super) fn allowed(listing: &str) -> BTreeSet<String> {
    let mut programs = BTreeSet::new();
    let entries = listing.lines().skip_while(|line| !line.contains("may run the following commands")).skip(1);
    // A long entry goes on in lines that are indented further.
    let mut joined: Vec<String> = Vec::new();
    for line in entries {
        match joined.last_mut() {
            Some(last) if !line.trim_start().starts_with('(') => *last = format!("{last} {}", line.trim()),
            _ => joined.push(line.trim().to_owned()),
        }
    }
    for entry in &joined {
        let commands = entry.split_once(')').map_or(entry.as_str(), |(_, rest)| rest);
        let mut free = false;
        for command in commands.split(',') {
            let mut words = command.split_whitespace().peekable();
            while let Some(tag) =
                words.next_if(|word| word.ends_with(':') && word.chars().all(|c| c == ':' || c.is_ascii_uppercase() || c == '_'))
            {
                // Several tags may stand together: NOPASSWD:SETENV:
                for tag in tag.split(':') {
                    free = match tag {
                        "NOPASSWD" => true,
                        "PASSWD" => false,
                        _ => free,
                    };
                }
            }
            if let Some(program) = words.next().filter(|program| free && !program.starts_with('!')) {
                programs.insert(program.to_owned());
            }
        }
    }
    programs
}

/// The line about what should not be allowed.
pub(super) fn needless(place: &str, user: &str, answers: &Answers, needed: &[&str], lines: &[String]) -> Finding {
    let listing = answers.get("sudo-list");
    if !listing.is_good() {
        return Finding::not_checked(Check::SudoNeedless, place, format!("sudo -l: {}", listing.words()));
    }
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let more: Vec<String> =
        allowed(&listing.text).into_iter().filter(|path| path == "ALL" || !needed.contains(&name(path).as_str())).collect();
    if more.is_empty() {
        return Finding::ok(Check::SudoNeedless, place, "nothing but that");
    }
    let found = format!("{user} may also run {} as another user, without a password", more.join(", "));
    let words = "whoever has the runner's key has these rights too: remove the rules that grant more from /etc/sudoers and \
                 /etc/sudoers.d, so that nothing is left but what the runner needs";
    Finding::warning(Check::SudoNeedless, place, found, Advice::new(words).run(write_sudoers(user, lines)))
}

/// The line of sudoers that lets `login` run these programs as `whom`: where they were found there, else in `folder`.
pub(super) fn sudo_rule(login: &str, whom: &str, programs: &[&str], folder: &str, answers: Option<&Answers>) -> String {
    let path = |program: &&str| {
        let known = answers.and_then(|answers| answers.line(&format!("path-{program}")));
        known.filter(|path| path.starts_with('/')).unwrap_or_else(|| format!("{folder}/{program}"))
    };
    format!("{login} ALL=({whom}) NOPASSWD: {}", programs.iter().map(path).collect::<Vec<_>>().join(", "))
}

/// The command that writes the rules of sudo for our account.
pub(super) fn write_sudoers(user: &str, lines: &[String]) -> String {
    let file = format!("/etc/sudoers.d/{user}");
    let lines: Vec<String> = lines.iter().map(|line| shell::quote(line)).collect();
    format!("printf '%s\\n' {} >{file} && chmod 0440 {file} && visudo -cf {file}", lines.join(" "))
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
