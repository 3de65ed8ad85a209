//! A command node: what Slurm's commands need there, and what a user's job would meet.

use super::node::{self, Answers, ask, paths};
use super::report::{Advice, Check, Finding};
use crate::domain::shell;
use crate::domain::user::{User, UserPolicy, parse_passwd};
use std::fmt::Write;

/// What is called there, and by whom: the first three by sudo.
pub(super) const BY_SUDO: [&str; 3] = ["sbatch", "squeue", "scancel"];
/// Where `PrivateData` hides jobs from our account, root is asked how they ended.
pub(super) const MAY_BE_ALLOWED: &str = "sacct";
const PROGRAMS: [&str; 6] = ["sbatch", "squeue", "scancel", "sudo", "getent", "id"];
/// Who stands for a user where none was named.
const ANYBODY: &str = "nobody";
/// More compute nodes than these say nothing new.
const MOST_NODES: usize = 12;

/// What a command node is asked about.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The user whose job is tried.
    pub(super) user: Option<&'a str>,
    /// Users' folders lie here.
    pub(super) home_prefix: &'a str,
    /// Who may use the service.
    pub(super) policy: &'a UserPolicy,
}

/// The script's questions.
pub(super) fn questions(wanted: &Wanted) -> String {
    let who = shell::quote(wanted.user.unwrap_or(ANYBODY));
    let mut script = paths(&PROGRAMS);
    let _ = write!(
        script,
        "ask sudo-list soon 10 sudo -n -l\n\
         who=$(getent passwd -- {who} | cut -d: -f1)\n\
         ask sudo-sbatch soon 10 sudo -n -u \"${{who:-root}}\" sbatch --version\n\
         ask sudo-scancel soon 10 sudo -n -u \"${{who:-root}}\" scancel --version\n\
         ask sudo-squeue soon 10 sudo -n squeue --version\n\
         ask version squeue --version\n"
    );
    if wanted.user.is_some() {
        let prefix = shell::quote(wanted.home_prefix.trim_end_matches('/'));
        let _ =
            write!(script, "ask user soon 10 getent passwd -- {who}\nask groups soon 10 id -Gn -- {who}\nhome={prefix}/$who\n");
        script += "export who home\n";
        script += &ask("home", 10, HOME);
    }
    // A controller that is silent is waited for once.
    script += &ask("slurm", 15, CONTROLLER);
    // `--all`: partitions that are closed to our own account have nodes, too.
    script += "if [ $status = 0 ]; then\nask nodes soon 15 sinfo --all --noheader --Node --format='%N %T'\n";
    if wanted.user.is_some() {
        let _ = writeln!(script, "[ -z \"$who\" ] || {}", ask("dry-run", 25, DRY_RUN).trim_end());
    }
    script + "fi\n"
}

/// `squeue` waits half a minute for a controller that is down; a ping knows at once, where there is `scontrol`.
const CONTROLLER: &str = "ping=$(scontrol ping 2>/dev/null); case $ping in *' is UP'*) ;; *' is DOWN'*) echo \"$ping\" | head -n 1; exit 1 ;; esac\n\
                          exec squeue --noheader --name=bwvisu-doctor";
/// 3: it is missing; 4: homes are not seen on this machine.
const HOME: &str = "if [ -d \"$home\" ]; then stat -c %U \"$home\"; elif [ -x \"${home%/*}/.\" ]; then exit 3; else exit 4; fi";
const DRY_RUN: &str =
    "printf '#!/bin/sh\\ntrue\\n' | sudo -n -u \"$who\" sbatch --test-only --chdir=\"$home\" --output=/dev/null";

/// What the answers mean. `lines`: the rules of sudo that are right for this node.
pub(super) fn judge(
    place: &str,
    login: &str,
    wanted: &Wanted,
    answers: &Answers,
    needed: &[&str],
    lines: &[String],
) -> Vec<Finding> {
    let mut findings = vec![programs(place, answers), sudo(place, login, answers, lines)];
    findings.push(node::needless(place, login, answers, needed, lines));
    findings.push(node::clock(place, answers));
    findings.push(slurm(place, answers));
    match wanted.user {
        Some(name) => {
            let user = user(place, name, wanted, answers);
            let known = user.1;
            findings.extend([user.0, home(place, known.as_ref(), wanted, answers), dry_run(place, known.as_ref(), answers)]);
        }
        None => findings.extend(
            [Check::User, Check::Home, Check::DryRun]
                .map(|check| Finding::not_checked(check, place, "name a user of yours with --user NAME")),
        ),
    }
    findings
}

/// The rule that lets our account do what it must, and nothing else.
pub(super) fn sudo_rule(login: &str, answers: Option<&Answers>) -> String {
    node::sudo_rule(login, "ALL", &BY_SUDO, "/usr/bin", answers)
}

fn programs(place: &str, answers: &Answers) -> Finding {
    match answers.paths(&PROGRAMS) {
        Ok(paths) => Finding::ok(Check::Programs, place, paths.join(" ")),
        Err(missing) => Finding::failed(
            Check::Programs,
            place,
            format!("missing: {}", missing.join(", ")),
            Advice::new(format!(
                "install Slurm's commands and sudo there (Debian: slurm-client, sudo; EL: slurm, sudo), and have their folder in the PATH of \
                 shells that do not log in: {} is not found by `ssh {place} command -v {}`",
                missing[0], missing[0]
            )),
        ),
    }
}

fn sudo(place: &str, login: &str, answers: &Answers, lines: &[String]) -> Finding {
    let there = |program: &&&str| answers.line(&format!("path-{program}")).is_some();
    let refused = |program: &&&str| !answers.get(&format!("sudo-{program}")).is_good();
    if answers.line("path-sudo").is_none() {
        return Finding::not_checked(Check::Sudo, place, "sudo is missing");
    }
    let bad: Vec<&&str> = BY_SUDO.iter().filter(there).filter(refused).collect();
    let Some(first) = bad.first() else {
        return Finding::ok(Check::Sudo, place, format!("{} without a password", BY_SUDO.join(", ")));
    };
    let words = answers.get(&format!("sudo-{first}")).words();
    let names = bad.iter().map(|name| **name).collect::<Vec<_>>().join(", ");
    let found = format!("{login} cannot run {names}: {words}");
    if words.contains("command not found") {
        let folder = answers.line(&format!("path-{first}")).unwrap_or_default();
        let folder = folder.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        let rule =
            format!("Defaults:{login} secure_path=\"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"");
        let all: Vec<String> = lines.iter().cloned().chain([rule]).collect();
        let advice = Advice::new(format!("sudo looks for programs in its own secure_path alone: add {folder} to it"));
        return Finding::failed(Check::Sudo, place, found, advice.run(node::write_sudoers(login, &all)));
    }
    let advice =
        Advice::new(format!("allow it, without a password, by this line in /etc/sudoers.d/{login}: {}", lines.join(" / ")));
    Finding::failed(Check::Sudo, place, found, advice.run(node::write_sudoers(login, lines)))
}

fn slurm(place: &str, answers: &Answers) -> Finding {
    let version = answers.line("version").unwrap_or_else(|| "of unknown version".into());
    let answer = answers.get("slurm");
    if answer.is_good() {
        return Finding::ok(Check::Slurm, place, format!("{version} answers"));
    }
    if answers.line("path-squeue").is_none() {
        return Finding::not_checked(Check::Slurm, place, "squeue is missing");
    }
    let words = answer.words();
    let host = words.split_once(" at ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("its machine").to_owned();
    let advice = Advice::new(format!(
        "start Slurm's controller on {host} (`systemctl start slurmctld`), and munge on both machines; `scontrol ping` on this node says whether it answers"
    ));
    Finding::failed(Check::Slurm, place, format!("{version}: {words}"), advice)
}

fn user(place: &str, name: &str, wanted: &Wanted, answers: &Answers) -> (Finding, Option<User>) {
    let answer = answers.get("user");
    let Some(mut user) = answer.text.lines().find_map(parse_passwd).filter(|_| answer.is_good()) else {
        let advice = Advice::new(format!(
            "the account must be known to this node: `getent passwd {name}` must show it there (mend its name service, or choose another user)"
        ));
        return (Finding::failed(Check::User, place, format!("there is no user {name} on this node"), advice), None);
    };
    user.groups = answers.get("groups").text.split_whitespace().map(str::to_owned).collect();
    match wanted.policy.check_name(&user.name).and_then(|()| wanted.policy.check(&user)) {
        Ok(()) => (Finding::ok(Check::User, place, format!("{}, user id {}", user.name, user.uid)), Some(user)),
        Err(error) => {
            let advice = Advice::new("choose another user, or change users.min-uid or users.group in config.json");
            let why = error.message.trim_start_matches("uid: ").to_owned();
            (Finding::failed(Check::User, place, why, advice), Some(user))
        }
    }
}

fn home(place: &str, user: Option<&User>, wanted: &Wanted, answers: &Answers) -> Finding {
    let Some(user) = user else { return Finding::not_checked(Check::Home, place, "no such user") };
    let home = format!("{}/{}", wanted.home_prefix.trim_end_matches('/'), user.name);
    let answer = answers.get("home");
    let make = || {
        let words = "jobs run and log there, on the compute nodes too: make it, or mend bwvisu-home-prefix in config.json";
        let (name, group) = (shell::quote(&user.name), user.gid);
        Advice::new(words).run(format!("install -d -o {name} -g {group} -m 700 {}", shell::quote(&home)))
    };
    match (answer.status, answer.text.trim()) {
        (0, owner) if owner == user.name => Finding::ok(Check::Home, place, home),
        (0, owner) => Finding::failed(Check::Home, place, format!("{home} belongs to {owner}"), make()),
        (3, _) => Finding::failed(Check::Home, place, format!("{home} is not there"), make()),
        _ => Finding::not_checked(
            Check::Home,
            place,
            format!("{home} cannot be seen from here; --with-job tries it on a compute node"),
        ),
    }
}

fn dry_run(place: &str, user: Option<&User>, answers: &Answers) -> Finding {
    if !answers.has("dry-run") {
        let why = if user.is_none() { "no such user" } else { "Slurm does not answer" };
        return Finding::not_checked(Check::DryRun, place, why);
    }
    if !answers.get("sudo-sbatch").is_good() {
        return Finding::not_checked(Check::DryRun, place, "sudo does not let us call sbatch");
    }
    let answer = answers.get("dry-run");
    if answer.is_good() {
        return Finding::ok(Check::DryRun, place, answer.words().trim_start_matches("sbatch: ").to_owned());
    }
    let name = user.map_or("", |user| user.name.as_str());
    let words = answer.words();
    let advice = match refusal_advice(&words, name) {
        Some(advice) => advice,
        None => Advice::new(format!(
            "that is Slurm's word about a job of {name} with a template's defaults; on this node `sudo -u {name} sbatch --test-only --wrap=true` says \
             it again"
        )),
    };
    Finding::failed(Check::DryRun, place, words, advice)
}

/// What Slurm's usual refusals come from.
fn refusal_advice(words: &str, user: &str) -> Option<Advice> {
    let said = |mark: &str| words.contains(mark);
    if said("group not permitted") {
        let words = format!(
            "the partition has AllowGroups without a group of {user}: choose another partition in the templates, or let all in"
        );
        return Some(Advice::new(words).run("scontrol update PartitionName=$(sinfo -h -o %R | head -n 1) AllowGroups=ALL"));
    }
    if said("Invalid account") {
        let words = format!("give {user} an account in Slurm's accounting (ACCOUNT is one of `sacctmgr list account`)");
        return Some(Advice::new(words).run(format!("sacctmgr -i add user {user} account=ACCOUNT")));
    }
    if said("No partition specified") || said("invalid partition") {
        return Some(Advice::new("make one partition the default (Default=YES in slurm.conf), or name one in the templates"));
    }
    if said("Time limit") {
        return Some(Advice::new(
            "the partition has no DefaultTime and a MaxTime that is shorter; templates must name their --time",
        ));
    }
    None
}

/// Compute nodes that should answer, evenly chosen from all, and how many there are.
pub(super) fn compute_nodes(answers: &Answers) -> (Vec<String>, usize) {
    sample(&answers.get("nodes").text)
}

fn sample(listing: &str) -> (Vec<String>, usize) {
    let mut nodes: Vec<String> = Vec::new();
    for line in listing.lines() {
        let Some((name, state)) = line.trim().split_once(' ') else { continue };
        // `*`: it does not answer Slurm either; `~` and `#`: switched off to save power, or just starting.
        let away =
            state.contains(['*', '~', '#', '%']) || ["down", "future", "unknown"].iter().any(|word| state.starts_with(word));
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) && !name.starts_with('-');
        if plain && !away && !nodes.iter().any(|known| known == name) {
            nodes.push(name.to_owned());
        }
    }
    let count = nodes.len();
    let step = count.div_ceil(MOST_NODES).max(1);
    (nodes.into_iter().step_by(step).collect(), count)
}

#[cfg(test)]
#[path = "command_node_tests.rs"]
mod tests;
