//! People's accounts on a cluster, and which of them may use the service.

use crate::error::{Error, Result};

/// An account as the cluster's own name service tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric id of the primary group.
    pub gid: u32,
    /// Names of all groups, where they were asked for (only when a group is required).
    pub groups: Vec<String>,
}

/// Which accounts may use the service. Root never may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserPolicy {
    /// The lowest user id that may submit (1000 on most systems: below it lie system accounts).
    pub min_uid: u32,
    /// Only members of this group may submit, where it is set.
    pub group: Option<String>,
}

impl Default for UserPolicy {
    fn default() -> Self {
        Self { min_uid: 1000, group: None }
    }
}

impl UserPolicy {
    /// Refuses what no name of a user of ours can be, before anybody is asked about it.
    pub fn check_name(&self, name: &str) -> Result<()> {
        check_user_name(name)?;
        if name == "root" || name.parse() == Ok(0u64) { Err(root_refused()) } else { Ok(()) }
    }

    /// Refuses accounts that may not use the service, with the reason.
    pub fn check(&self, user: &User) -> Result<()> {
        if user.uid == 0 || user.name == "root" {
            return Err(root_refused());
        }
        if user.uid < self.min_uid {
            return Err(Error::bad_input(format!(
                "uid: {} has user id {}, below {}: system accounts may not submit jobs",
                user.name, user.uid, self.min_uid
            )));
        }
        match &self.group {
            Some(group) if !user.groups.contains(group) => {
                Err(Error::bad_input(format!("uid: {} is not in the group {group}, which may use the service", user.name)))
            }
            _ => Ok(()),
        }
    }
}

fn root_refused() -> Error {
    Error::bad_input("uid: root may not submit jobs")
}

/// Checks that `name` can be a user's name or number before anything is asked about it: letters, digits, `.`, `_`
/// and `-`, at most 32 of them, beginning with a letter, a digit or `_` (the portable names of POSIX, without those that look
/// like an option or a path).
pub fn check_user_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 32 {
        return Err(Error::bad_input("uid: a user name has 1 to 32 characters"));
    }
    if let Some(bad) = name.chars().find(|&c| !good(c)) {
        return Err(Error::bad_input(format!(
            "uid: a user name cannot hold the character {bad:?}; allowed are letters, digits, . _ -"
        )));
    }
    match name.chars().next() {
        Some('.' | '-') => Err(Error::bad_input("uid: a user name begins with a letter, a digit or _")),
        _ => Ok(()),
    }
}

/// Reads one line of `getent passwd`.
pub fn parse_passwd(line: &str) -> Option<User> {
    let mut fields = line.trim_end().split(':');
    let name = fields.next().filter(|name| check_user_name(name).is_ok())?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(User { name, uid, gid, groups: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, uid: u32) -> User {
        User { name: name.into(), uid, gid: 100, groups: vec!["users".into()] }
    }

    #[test]
    fn names_that_could_be_options_paths_or_shell_are_refused() {
        for bad in ["", "-u", "../x", "a b", ".", "..", "a/b", "a;b", "$x", "a\n", "ä", "a:b", &"x".repeat(33)] {
            assert!(check_user_name(bad).is_err(), "{bad:?}");
        }
        for good in ["alice", "a.b-c_d", "_x", "1001", "A1", "0day"] {
            assert!(check_user_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn root_and_system_accounts_and_strangers_to_the_group_are_refused() {
        let policy = UserPolicy::default();
        assert!(policy.check(&user("root", 0)).is_err());
        assert!(UserPolicy { min_uid: 0, group: None }.check(&user("toor", 0)).is_err());
        assert!(policy.check(&user("carol", 999)).is_err());
        assert!(policy.check(&user("alice", 1000)).is_ok());
        assert!(UserPolicy { group: Some("vis".into()), ..policy.clone() }.check(&user("alice", 1000)).is_err());
        assert!(UserPolicy { group: Some("users".into()), ..policy }.check(&user("alice", 1000)).is_ok());
    }

    #[test]
    fn root_is_refused_by_name_and_number_alone() {
        for name in ["root", "0", "00", "-u", ""] {
            assert!(UserPolicy::default().check_name(name).is_err(), "{name:?}");
        }
        for name in ["alice", "rooted", "1001", "0day"] {
            assert!(UserPolicy::default().check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_passwd_line_is_read() {
        let user = parse_passwd("alice:x:1001:100:Alice,,,:/home/alice:/bin/bash\n").unwrap();
        assert_eq!((user.name.as_str(), user.uid, user.gid), ("alice", 1001, 100));
        assert_eq!(parse_passwd("nonsense"), None);
    }
}
