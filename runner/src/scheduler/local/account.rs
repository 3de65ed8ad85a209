//! Accounts of this machine: `getent` and `id` where they are, else `/etc/passwd`.

use crate::domain::user::{User, check_user_name, parse_passwd};
use crate::error::{Error, Result};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long the name service may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An account with what its jobs' environment needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) user: User,
    pub(super) home: String,
    pub(super) shell: String,
}

impl Account {
    /// An account of which the name service tells nothing: the job's folder serves as its home.
    pub(super) fn without_home(user: &User, folder: &str) -> Self {
        Self { user: user.clone(), home: folder.to_owned(), shell: "/bin/bash".to_owned() }
    }
}

/// The account behind a name or a number.
pub(super) fn find(name: &str) -> Result<Option<Account>> {
    check_user_name(name)?;
    Ok(known(name)?.or_else(|| nameless(name)))
}

fn known(name: &str) -> Result<Option<Account>> {
    match ask("getent", &["passwd", "--", name]) {
        Ok((_, text)) => Ok(text.lines().next().and_then(parse)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(search(&std::fs::read_to_string("/etc/passwd").unwrap_or_default(), name))
        }
        Err(error) => {
            Err(Error::unavailable("the accounts of this machine cannot be asked for").with_detail(format!("getent: {error}")))
        }
    }
}

/// In a container the runner's own user may have a number and no name; it may use its own workstation all the same.
fn nameless(name: &str) -> Option<Account> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let user = User { name: name.to_owned(), uid, gid, groups: Vec::new() };
    let home = std::env::var("HOME").unwrap_or_else(|_| "/".into());
    (name == uid.to_string()).then(|| Account { user, home, shell: "/bin/bash".into() })
}

/// The names of all groups of an account; none if nobody can tell.
pub(super) fn groups(name: &str) -> Vec<String> {
    match ask("id", &["-Gn", "--", name]) {
        Ok((true, text)) => text.split_whitespace().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn parse(line: &str) -> Option<Account> {
    let user = parse_passwd(line)?;
    let mut rest = line.trim_end().split(':').skip(5).map(|field| Some(field.to_owned()).filter(|field| !field.is_empty()));
    let home = rest.next().flatten().unwrap_or_else(|| "/".into());
    let shell = rest.next().flatten().unwrap_or_else(|| "/bin/sh".into());
    Some(Account { user, home, shell })
}

fn search(passwd: &str, name: &str) -> Option<Account> {
    let accounts: Vec<Account> = passwd.lines().filter_map(parse).collect();
    let by_name = accounts.iter().find(|account| account.user.name == name);
    by_name.or_else(|| accounts.iter().find(|account| account.user.uid.to_string() == name)).cloned()
}

/// Whether a small program succeeded, and what it said. It is killed when it takes too long.
fn ask(program: &str, words: &[&str]) -> std::io::Result<(bool, String)> {
    let mut command = Command::new(program);
    let mut child = command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdout = child.stdout.take();
    let (send, receive) = mpsc::channel();
    let reader = std::thread::Builder::new().spawn(move || {
        let mut text = String::new();
        let read = stdout.as_mut().map_or(Ok(0), |stdout| stdout.read_to_string(&mut text));
        let _ = send.send(read.map(|_| text));
    });
    let answer =
        reader.and_then(|_| receive.recv_timeout(PATIENCE).map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?);
    if answer.is_err() {
        let _ = child.kill();
    }
    let success = child.wait()?.success();
    answer.map(|text| (success, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\n1001:x:7:7::/seven:\nalice:x:1001:100:A,,:/home/alice:/bin/zsh\nbroken\n";

    #[test]
    fn a_name_comes_before_a_number_and_the_environment_is_read() {
        let alice = search(PASSWD, "alice").unwrap();
        assert_eq!((alice.user.uid, alice.home.as_str(), alice.shell.as_str()), (1001, "/home/alice", "/bin/zsh"));
        assert_eq!(search(PASSWD, "0").unwrap().user.name, "root");
        assert_eq!(search(PASSWD, "1001").unwrap().shell, "/bin/sh");
        assert_eq!(search(PASSWD, "nobody-here"), None);
    }

    #[test]
    fn this_machine_knows_root_by_name_and_number_and_refuses_options() {
        for name in ["root", "0"] {
            assert_eq!(find(name).unwrap().unwrap().user.name, "root", "{name}");
        }
        assert_eq!(find("no-such-account").unwrap(), None);
        assert!(find("-s").is_err());
        assert!(groups("root").contains(&"root".to_owned()));
        assert!(groups("no-such-account").is_empty());
    }

    #[test]
    fn the_runner_s_own_number_is_enough() {
        let own = rustix::process::geteuid().as_raw().to_string();
        assert_eq!(find(&own).unwrap().unwrap().user.uid.to_string(), own);
        assert_eq!(nameless("4294967294"), None);
    }
}
