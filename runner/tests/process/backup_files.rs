//! Which files `store backup` writes over and `store restore` reads, and where a backup is safe.

use crate::backup::{backup, contents, furnish, moved_on, names, refused, restore, store};
use crate::world::{Bench, Ended, ended, user};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is no regular file, each with what it is called: by name, in a folder of their own.
fn specials(bench: &Bench, target: &Path) -> Vec<(PathBuf, &'static str)> {
    fs::create_dir_all(bench.path("specials/folder")).unwrap();
    mknodat(CWD, bench.path("specials/pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    symlink(target, bench.path("specials/link")).unwrap();
    drop(UnixListener::bind(bench.path("specials/socket")).unwrap());
    let kinds =
        [("folder", "is a folder"), ("pipe", "is a named pipe"), ("link", "is a symbolic link"), ("socket", "is a socket")];
    kinds.map(|(name, kind)| (bench.path("specials").join(name), kind)).into()
}

/// Ended by force if it waits for something.
fn soon(bench: &Bench, words: &[&str]) -> Ended {
    let program = bench.command();
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "20"]).arg(program.get_program()).args(program.get_args()).args(words);
    ended(command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?)))))
}

#[test]
fn only_regular_files_are_restored_or_replaced() {
    let bench = Bench::plain();
    furnish(&store(&bench), "first");
    let (before, good) = (contents(&store(&bench)), bench.path("backup.jsonl"));
    assert_eq!(backup(&bench, &[&good.display().to_string()]).code, Some(0));
    let bytes = fs::read(&good).unwrap();
    for (file, kind) in specials(&bench, &good) {
        let path = file.display().to_string();
        let was = file.symlink_metadata().unwrap();
        for words in [&["store", "backup", &path][..], &["store", "backup", "--force", &path]] {
            refused(&soon(&bench, words), &[&path, kind, "replaces regular files alone", "name another file"]);
        }
        let is = file.symlink_metadata().unwrap();
        assert_eq!((is.ino(), is.file_type()), (was.ino(), was.file_type()), "{kind}");
        // A socket cannot even be opened.
        let words = if kind == "is a socket" { ["No such device"; 2] } else { [kind, "read from a regular file alone"] };
        refused(&soon(&bench, &["store", "restore", "--replace", &path]), &[&path, words[0], words[1]]);
    }
    assert!(fs::read(&good).unwrap() == bytes && contents(&store(&bench)) == before);
    assert_eq!(names(&bench.path("specials")).len(), 4, "nothing is left of the attempts");
}

#[test]
fn a_backup_that_others_may_write_to_is_not_restored() {
    let bench = Bench::plain();
    furnish(&store(&bench), "first");
    let (before, file) = (contents(&store(&bench)), bench.path("backup.jsonl"));
    let path = file.display().to_string();
    assert_eq!(backup(&bench, &[&path]).code, Some(0));
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let words = [&path, &format!("with mode {mode:04o}"), "a copy of your own", "`chmod go-w`"];
        refused(&restore(&bench, &["--replace", &path]), &words);
        assert!(contents(&store(&bench)) == before, "{mode:o}");
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(restore(&bench, &["--replace", &path]).code, Some(0));
    assert!(contents(&store(&bench)) == moved_on(before));
}

#[test]
fn a_backup_of_an_account_that_has_nothing_to_do_with_the_store_is_not_restored() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return eprintln!("*** NOT TESTED: another account's backup, since this is not root ***");
    }
    let bench = Bench::plain();
    furnish(&store(&bench), "first");
    let (before, file) = (contents(&store(&bench)), bench.path("backup.jsonl"));
    let path = file.display().to_string();
    assert_eq!(backup(&bench, &[&path]).code, Some(0));
    chown(&file, Some(user().uid), Some(user().gid)).unwrap();
    let belongs = format!("belongs to user {}", user().uid);
    for mode in [0o600, 0o666] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let said = restore(&bench, &["--replace", &path]);
        refused(&said, &[&path, &belongs, &format!("mode {mode:04o}"), "to this user (0)", "`chown`"]);
        assert!(contents(&store(&bench)) == before, "{mode:o}");
    }
    // What root pipes in is root's own business.
    let mut piped = bench.command();
    let piped = piped.args(["store", "restore", "--replace", "-"]).stdin(fs::File::open(&file).unwrap()).output().unwrap();
    assert!(piped.status.success(), "{piped:?}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    chown(bench.path("state"), Some(user().uid), Some(user().gid)).unwrap();
    let done = restore(&bench, &["--replace", &path]);
    assert_eq!(done.code, Some(0), "the account whose store it is: {done:?}");
}

#[test]
fn a_backup_in_a_folder_where_others_may_replace_it_is_made_with_a_warning() {
    let bench = Bench::plain();
    furnish(&store(&bench), "first");
    fs::create_dir_all(bench.path("outer/inner")).unwrap();
    let file = bench.path("outer/inner/backup").display().to_string();
    let (outer, inner) = (bench.path("outer"), bench.path("outer/inner"));
    let warns = |story: &str, who: Option<(&str, &Path)>| {
        let made = backup(&bench, &["--force", &file]);
        assert_eq!((made.code, made.stderr.is_empty()), (Some(0), who.is_none()), "{story}: {made:?}");
        if let Some((who, folder)) = who {
            let words = format!("warning: {who} may write to the folder {}, ", folder.display());
            assert!(made.stderr.contains(&words), "{story}: {made:?}");
        }
    };
    let group = format!("group {}", fs::metadata(&inner).unwrap().gid());
    for (outer_mode, inner_mode, who) in [
        (0o755, 0o700, None),
        (0o755, 0o1777, None),
        (0o1777, 0o755, None),
        (0o755, 0o777, Some(("everybody", inner.as_path()))),
        (0o755, 0o770, Some((group.as_str(), &inner))),
        (0o777, 0o700, Some(("everybody", &outer))),
    ] {
        fs::set_permissions(&outer, fs::Permissions::from_mode(outer_mode)).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(inner_mode)).unwrap();
        warns(&format!("{outer_mode:o} {inner_mode:o}"), who);
    }
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return eprintln!("*** NOT TESTED: a backup in another account's folder, since this is not root ***");
    }
    fs::set_permissions(&outer, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o1777)).unwrap();
    chown(&inner, Some(user().uid), None).unwrap();
    warns("another account's", Some((&format!("user {}", user().uid), &inner)));
}
