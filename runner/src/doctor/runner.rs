//! This machine: the configuration and all that it names, looked at piece by piece, so that one fault does not hide the others.

use super::report::{Advice, Check, Finding, HERE};
use crate::app;
use crate::command;
use crate::config::file::{self, ConfigFile, Settings};
use crate::config::{self, Config, StoreConfig, Transport, unedited};
use crate::descriptors;
use crate::error::Result;
use crate::http::self_signed::certificate_file;
use crate::http::tls;
use crate::store::etcd::{Etcd, EtcdConfig};
use crate::templates::TemplateFolder;
use jiff::{Timestamp, ToSpan};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The processors that keyhole-clients are made for.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
/// Words that stand in examples.
const PLACEHOLDERS: [&str; 8] = [
    "a long random word",
    "change-me",
    "changeme",
    "change me",
    "CHANGE-ME",
    "password",
    "5d41402abc4b2a76b9719d911017c592a9f0e61a2c3d4e5f",
    "7b52009b64fd0a2a49e6d8a939753077792b0554c1d2e3f4",
];
/// A password that is shorter can be guessed.
const SHORT: usize = 12;
/// A certificate is renewed in good time.
const RENEW_DAYS: i64 = 30;
/// What a store needs in the next days.
const ROOM_BYTES: u64 = 100 << 20;
/// A command that makes a good password.
const NEW_PASSWORD: &str = "head -c 24 /dev/urandom | base64 | tr -d '/+='";

/// The configuration, as far as it could be read.
pub(super) struct Read {
    /// What it says, if that can be said at all.
    pub(super) config: Option<Config>,
    /// The lines about it.
    pub(super) findings: Vec<Finding>,
}

fn ok(check: Check, found: impl Into<String>) -> Finding {
    Finding::ok(check, HERE, found)
}

fn failed(check: Check, found: impl Into<String>, advice: Advice) -> Finding {
    Finding::failed(check, HERE, found, advice)
}

fn warning(check: Check, found: impl Into<String>, advice: Advice) -> Finding {
    Finding::warning(check, HERE, found, advice)
}

/// Reads the configuration. Secrets that others can read are read all the same, so that the rest can be looked at.
pub(super) fn read(named: Option<&Path>) -> Read {
    let nothing = |finding: Finding| Read { config: None, findings: vec![finding] };
    let Some(path) = named.map(Path::to_owned).or_else(|| config::search_path().into_iter().find(|path| path.exists())) else {
        let looked = config::search_path().map(|path| path.display().to_string()).join(", ");
        let advice = Advice::new("write one (docs/config.md has whole files), or name it with --config");
        return nothing(failed(Check::Configuration, format!("there is none (looked for {looked})"), advice));
    };
    let settings_path = path.with_file_name("settings.json");
    let (settings, secrets) = settings(&settings_path);
    // Secrets have a line of their own.
    let loaded: Result<Config> = unedited::check(&path, &Settings::default())
        .and_then(|()| config::check(file::read::<ConfigFile>(&path)?, config::with_credentials(settings)?, &path));
    match loaded {
        Err(error) => {
            let advice =
                Advice::new("mend that line; docs/config.md has all keys, and `bwvisu-runner config check` reads it again");
            Read { config: None, findings: vec![failed(Check::Configuration, error.message, advice), secrets] }
        }
        Ok(config) => {
            let findings = vec![modes(&path), owner(&settings_path, &config, secrets), password(&config, &settings_path)];
            Read { config: Some(config), findings }
        }
    }
}

fn settings(path: &Path) -> (Settings, Finding) {
    let shown = path.display();
    match file::read_settings(path) {
        Ok(settings) if path.exists() => (settings, ok(Check::Secrets, shown.to_string())),
        Ok(settings) => (settings, Finding::not_checked(Check::Secrets, HERE, format!("there is no {shown}"))),
        Err(error) => {
            let text = fs::read_to_string(path).ok();
            let lenient = text.and_then(|text| file::parse_settings(&text, path).ok());
            let advice = match &lenient {
                Some(_) => Advice::new("let nobody but its owner read it").run(format!("chmod 0600 {shown}")),
                None => {
                    Advice::new("mend it; docs/config.md says what it holds, and it must be readable for the service's account")
                }
            };
            (lenient.unwrap_or_default(), failed(Check::Secrets, error.message, advice))
        }
    }
}

/// Whoever may write to the configuration may send the runner's key anywhere.
fn modes(path: &Path) -> Finding {
    let shown = path.display().to_string();
    let writable =
        |path: &Path| path.metadata().is_ok_and(|metadata| metadata.mode() & 0o002 != 0 && metadata.mode() & 0o1000 == 0);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match [path, folder].into_iter().find(|path| writable(path)) {
        None => ok(Check::Configuration, shown),
        Some(open) => {
            let advice = Advice::new("let only its owner write to it").run(format!("chmod o-w {}", open.display()));
            failed(Check::Configuration, format!("everybody may write to {}", open.display()), advice)
        }
    }
}

/// The account that the service runs as: root looks on behalf of the owner of the state folder.
fn service_account(config: &Config) -> u32 {
    let own = rustix::process::geteuid().as_raw();
    let owner = config.state_dir.metadata().map(|metadata| metadata.uid());
    if own == 0 { owner.unwrap_or(0) } else { own }
}

fn account_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let users = passwd.lines().filter_map(crate::domain::user::parse_passwd);
    users.into_iter().find(|user| user.uid == uid).map_or_else(|| uid.to_string(), |user| user.name)
}

fn owner(path: &Path, config: &Config, secrets: Finding) -> Finding {
    let account = service_account(config);
    let foreign = path.metadata().is_ok_and(|metadata| metadata.uid() != account);
    if !foreign || secrets.result == super::report::Verdict::Failed {
        return secrets;
    }
    let (shown, account) = (path.display(), account_name(account));
    let advice = Advice::new("give it to the account that the service runs as").run(format!("chown -h {account} {shown}"));
    failed(Check::Secrets, format!("{shown} cannot be read by {account}, who owns the state folder"), advice)
}

fn password(config: &Config, settings: &Path) -> Finding {
    let shown = settings.display();
    let write = || {
        let command = format!(
            "sed -i \"s|\\\"api-password\\\": *\\\"[^\\\"]*\\\"|\\\"api-password\\\": \\\"$({NEW_PASSWORD})\\\"|\" {shown}"
        );
        Advice::new(format!("write a long random one into {shown}, let the service read it (systemctl reload bwvisu-runner), and tell the front end")).run(command)
    };
    let Some(secret) = &config.api.password else {
        let words =
            format!("write {{\"api-password\": \"…\"}} into {shown}, mode 0600; the part `api` does not start without it");
        let advice = Advice::new(words);
        // What else stands in the file must stay.
        let empty = fs::read_to_string(settings).map_or(true, |text| text.trim().is_empty() || text.trim() == "{}");
        let command = format!("(umask 077; echo \"{{\\\"api-password\\\": \\\"$({NEW_PASSWORD})\\\"}}\" >{shown})");
        return failed(Check::Password, "there is no api-password", if empty { advice.run(command) } else { advice });
    };
    let secret = secret.expose();
    if secret.starts_with(unedited::MARK) || PLACEHOLDERS.iter().any(|known| known.eq_ignore_ascii_case(secret)) {
        return failed(Check::Password, "the api-password is that of the example, which everybody knows", write());
    }
    if secret.chars().count() < SHORT {
        return warning(Check::Password, format!("the api-password has fewer than {SHORT} characters"), write());
    }
    ok(Check::Password, "set")
}

/// All other lines about this machine.
pub(super) fn examine(config: &Config, program: &str) -> Vec<Finding> {
    let mut findings = vec![certificate(config), templates(config, program), clients(config), state_folder(config)];
    findings.extend(store(config));
    findings.extend([open_files(config), clock(config)]);
    if !crate::cli::hosts::logins(config).is_empty() {
        findings.extend([ssh_programs(), ssh_key(config)]);
    }
    findings
}

fn certificate(config: &Config) -> Finding {
    let (certificate, own) = match &config.api.transport {
        Transport::Plain if config.api.listen.ip().is_loopback() => {
            return ok(Check::Certificate, "none needed: plain HTTP on loopback");
        }
        Transport::Plain => {
            let advice = Advice::new(
                "passwords cross the network readable, unless a proxy that speaks TLS stands in front on this machine: set api-listen \
                 to 127.0.0.1:4242 then, or take api-plain-http out of config.json",
            );
            return warning(Check::Certificate, format!("plain HTTP on {}", config.api.listen), advice);
        }
        Transport::SelfSigned => (certificate_file(&config.state_dir.join("tls")), true),
        Transport::Tls { certificate, key } => {
            if let Err(error) = tls::load(certificate, key) {
                let advice = Advice::new(
                    "mend the files, or their names under api-tls in config.json; both are PEM, readable for the service's account",
                );
                return failed(Check::Certificate, error.message, advice);
            }
            (certificate.clone(), false)
        }
    };
    if own && !certificate.exists() {
        return ok(Check::Certificate, format!("the service makes {} at its first start", certificate.display()));
    }
    match tls::validity(&certificate) {
        Ok((from, until)) => judge_validity(&certificate.display().to_string(), from, until, Timestamp::now()),
        Err(error) => {
            failed(Check::Certificate, error.message, Advice::new("mend the file, or its name under api-tls in config.json"))
        }
    }
}

fn judge_validity(file: &str, from: Timestamp, until: Timestamp, now: Timestamp) -> Finding {
    let renew = || {
        Advice::new(format!(
            "have it renewed, put it into {file} with its key, and let the service read it: systemctl reload bwvisu-runner"
        ))
    };
    let soon = now.checked_add((RENEW_DAYS * 24).hours()).unwrap_or(now);
    match () {
        () if now < from => failed(Check::Certificate, format!("{file} is not valid before {from:.0}"), renew()),
        () if now >= until => failed(Check::Certificate, format!("{file} has expired at {until:.0}"), renew()),
        () if soon >= until => {
            warning(Check::Certificate, format!("{file} expires at {until:.0}, within {RENEW_DAYS} days"), renew())
        }
        () => ok(Check::Certificate, format!("{file}, until {until:.0}")),
    }
}

fn templates(config: &Config, program: &str) -> Finding {
    let folder = TemplateFolder::new(config.templates.clone(), config.keyhole.max_ports);
    let shown = config.templates.display();
    let check = || Advice::new(format!("mend it or take it out of the folder; `{program} template check` looks at it again"));
    let names = match folder.names() {
        Ok(names) => names,
        Err(error) => {
            return failed(
                Check::Templates,
                error.message,
                Advice::new("make the folder readable, or mend templates in config.json"),
            );
        }
    };
    if names.is_empty() {
        let advice = Advice::new("put templates there (files called template_*), or mend templates in config.json");
        return warning(Check::Templates, format!("there are none in {shown}"), advice);
    }
    let faults: Vec<String> = names.iter().filter_map(|name| folder.load(name).err()).map(|error| error.message).collect();
    match faults.first() {
        None => ok(Check::Templates, format!("{} in {shown}", names.len())),
        Some(first) => failed(Check::Templates, format!("{} of {} are wrong: {first}", faults.len(), names.len()), check()),
    }
}

fn clients(config: &Config) -> Finding {
    let shown = config.clients.display();
    let advice = || Advice::new(format!("install the package again, or copy share/ of the install folder to {shown}"));
    let clients = match app::load_clients(&config.clients) {
        Ok(clients) => clients,
        Err(error) => return failed(Check::Clients, error.message, advice()),
    };
    let there: Vec<&str> = clients.sizes().map(|(architecture, _)| architecture).collect();
    let missing: Vec<&str> = ARCHITECTURES.into_iter().filter(|architecture| !there.contains(architecture)).collect();
    if missing.is_empty() {
        return ok(Check::Clients, format!("for {}", there.join(", ")));
    }
    warning(Check::Clients, format!("{shown} has none for {}: jobs on such nodes get no ports", missing.join(", ")), advice())
}

fn state_folder(config: &Config) -> Finding {
    let folder = &config.state_dir;
    let shown = folder.display();
    let make = || {
        Advice::new("it must be a folder of the account that the service runs as, mode 0700")
            .run(format!("install -d -o bwvisurunner -g bwvisurunner -m 700 {shown}"))
    };
    let Ok(metadata) = folder.metadata() else {
        return failed(Check::StateFolder, format!("{shown} is not there"), make());
    };
    let account = service_account(config);
    if metadata.uid() != account {
        return failed(
            Check::StateFolder,
            format!("{shown} belongs to {}, not to {}", account_name(metadata.uid()), account_name(account)),
            make(),
        );
    }
    if metadata.mode() & 0o022 != 0 {
        let advice = Advice::new("whoever may write there could put keys and records there").run(format!("chmod 0700 {shown}"));
        return failed(
            Check::StateFolder,
            format!("others may write to {shown}: its mode is {:04o}", metadata.mode() & 0o7777),
            advice,
        );
    }
    if rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_err() {
        return failed(Check::StateFolder, format!("{shown} cannot be written to (read-only?)"), make());
    }
    match rustix::fs::statvfs(folder) {
        Ok(room) if room.f_bavail.saturating_mul(room.f_frsize) < ROOM_BYTES => {
            let advice = Advice::new("make room: with a full disk nothing can be submitted");
            warning(Check::StateFolder, format!("less than {} MB are free in {shown}", ROOM_BYTES >> 20), advice)
        }
        _ => ok(Check::StateFolder, format!("{shown}, owned by {}", account_name(account))),
    }
}

fn store(config: &Config) -> Vec<Finding> {
    match &config.store {
        StoreConfig::Embedded(path) => vec![embedded(config, path)],
        StoreConfig::Etcd(etcd) => members(etcd),
    }
}

fn embedded(config: &Config, path: &Path) -> Finding {
    let shown = path.display();
    match path.metadata() {
        Err(_) => ok(Check::Store, format!("embedded; the service makes {shown} at its first start")),
        Ok(metadata) if metadata.uid() != service_account(config) => {
            let account = account_name(service_account(config));
            let advice =
                Advice::new("give it to the account that the service runs as").run(format!("chown -h {account} {shown}"));
            failed(Check::Store, format!("{shown} belongs to {}", account_name(metadata.uid())), advice)
        }
        Ok(metadata) => ok(Check::Store, format!("embedded, {shown}, {} KB", metadata.len() >> 10)),
    }
}

/// Each member is asked by itself: a program that finds one of three needs only that one, until it is the next to go.
fn members(etcd: &EtcdConfig) -> Vec<Finding> {
    thread::scope(|scope| {
        let asked: Vec<_> = etcd.endpoints.iter().map(|endpoint| scope.spawn(move || member(etcd, endpoint))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn member(etcd: &EtcdConfig, endpoint: &str) -> Finding {
    let alone = EtcdConfig { endpoints: vec![endpoint.to_owned()], ..etcd.clone() };
    match Etcd::connect(alone).and_then(|etcd| etcd.version()) {
        Ok(version) => ok(Check::Store, format!("etcd {version} at {endpoint}")),
        Err(error) => {
            let advice = Advice::new(
                "see that this member runs, that this machine may reach its port, and that user, password and certificates are right (etcd-servers and \
                 etcd-tls in config.json, etcd-user and etcd-password in settings.json)",
            );
            failed(Check::Store, format!("etcd at {endpoint}: {error}"), advice.run("systemctl start etcd"))
        }
    }
}

fn open_files(config: &Config) -> Finding {
    match descriptors::check(config) {
        Ok(()) => ok(Check::OpenFiles, format!("{} may be needed, and are allowed", descriptors::needed(config))),
        Err(error) => {
            let advice = Advice::new("that is so for this shell; the service's unit must say it for the service")
                .run(format!("systemctl edit bwvisu-runner   # [Service] LimitNOFILE={}", descriptors::needed(config)));
            warning(Check::OpenFiles, error.message, advice)
        }
    }
}

/// A clock that stands before a file that was just written is wrong.
fn clock(config: &Config) -> Finding {
    let now = SystemTime::now();
    let files = [config.file.clone(), config.state_dir.clone(), config.templates.clone()];
    let ahead =
        |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|at| at.duration_since(now).ok());
    match files.iter().find(|path| ahead(path).is_some_and(|by| by > Duration::from_secs(60))) {
        None => ok(Check::Clock, format!("{:.0}", Timestamp::now())),
        Some(path) => {
            let words = "set this machine's clock, and let it follow a time server";
            let advice =
                Advice::new(words).run("timedatectl set-ntp true; chronyc makestep || systemctl restart systemd-timesyncd");
            failed(Check::Clock, format!("it is {:.0} here, and {} was written later", Timestamp::now(), path.display()), advice)
        }
    }
}

fn ssh_programs() -> Finding {
    let folders: Vec<PathBuf> = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let missing: Vec<&str> = ["ssh", "ssh-keyscan", "ssh-keygen"]
        .into_iter()
        .filter(|name| !folders.iter().any(|folder| folder.join(name).is_file()))
        .collect();
    if !missing.is_empty() {
        let advice = Advice::new("install OpenSSH's client (Debian: openssh-client; EL: openssh-clients)")
            .run("apt-get install openssh-client || dnf install openssh-clients");
        return failed(Check::SshPrograms, format!("missing on the PATH: {}", missing.join(", ")), advice);
    }
    match command::run(Command::new("ssh").arg("-V"), b"", Instant::now() + Duration::from_secs(5)) {
        Ok(output) => ok(Check::SshPrograms, output.complaint()),
        Err(error) => failed(Check::SshPrograms, error.to_string(), Advice::new("`ssh -V` must work")),
    }
}

fn ssh_key(config: &Config) -> Finding {
    let Some(file) = &config.ssh.identity_file else {
        return ok(Check::SshKey, "where ssh itself looks (ssh.identity-file is not set)");
    };
    let (shown, account) = (file.display(), account_name(service_account(config)));
    let Ok(metadata) = file.metadata() else {
        let advice = Advice::new("make one, and put its .pub into the authorized_keys of all nodes")
            .run(format!("ssh-keygen -q -t ed25519 -N '' -f {shown} && chown -h {account} {shown}"));
        return failed(Check::SshKey, format!("{shown} is not there"), advice);
    };
    if metadata.mode() & 0o077 != 0 || metadata.uid() != service_account(config) {
        let advice = Advice::new("ssh takes a key only if it is its account's alone")
            .run(format!("chown -h {account} {shown} && chmod 0600 {shown}"));
        let found = format!("{shown} belongs to {} and has mode {:04o}", account_name(metadata.uid()), metadata.mode() & 0o777);
        return failed(Check::SshKey, found, advice);
    }
    ok(Check::SshKey, shown.to_string())
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
