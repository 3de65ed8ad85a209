//! A channel whose other side is this machine, with each shell that may stand behind `sh`.

use super::*;
use rustix::process::{Pid, Signal, kill_process_group};
use std::path::Path;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// A channel whose other side is this machine with `sh` being that program.
fn channel(folder: &Path, shell: &str, whose: Whose) -> Channel {
    let path = std::env::var("PATH").unwrap();
    std::fs::write(folder.join("sh"), format!("#!/bin/sh\nPATH='{path}' exec {shell} \"$@\"\n")).unwrap();
    std::fs::set_permissions(folder.join("sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut ssh = Command::new("/bin/sh");
    ssh.env("PATH", format!("{}:{path}", folder.display())).current_dir(folder).arg("-c");
    Channel::open(ssh, whose, soon()).unwrap()
}

/// Every shell that may stand behind `sh`.
fn with_each_shell(whose: &[Whose], test: impl Fn(&mut Channel, &Path, &str)) {
    for shell in ["dash", "bash", "busybox sh"] {
        let program = shell.split(' ').next().unwrap();
        if Command::new(program).args(["-c", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            println!("NOT RUN with {shell}: not installed");
            continue;
        }
        for &whose in whose {
            let folder = tempfile::tempdir().unwrap();
            test(&mut channel(folder.path(), shell, whose), folder.path(), &format!("{shell}, {whose:?}"));
        }
    }
}

const BOTH: [Whose; 2] = [Whose::Ours, Whose::Users];

fn run(channel: &mut Channel, line: &str) -> Output {
    channel.run(line, b"", soon()).unwrap_or_else(|e| panic!("{line}: {e:?}"))
}

#[test]
fn output_status_and_input_come_through_byte_by_byte() {
    with_each_shell(&BOTH, |channel, _, shell| {
        for (line, input, stdout, stderr, status) in [
            ("true", "", "", "", 0),
            ("echo a; echo b >&2; exit 7", "", "a\n", "b\n", 7),
            ("printf x; printf y >&2", "", "x", "y", 0),
            ("printf '\\n\\nx \\\\n\\n\\n'", "", "\n\nx \\n\n\n", "", 0),
            ("printf 'a\\n'; sleep 0.1; printf b; sleep 0.1; printf c", "", "a\nbc", "", 0),
            ("cat", "no newline at the end", "no newline at the end", "", 0),
            ("cat", "three newlines\n\n\n", "three newlines\n\n\n", "", 0),
            ("exec cat", " a 'quote', a \\ and a $dollar \n", " a 'quote', a \\ and a $dollar \n", "", 0),
            ("exec sh", "echo from a script; exit 3", "from a script\n", "", 3),
            ("printf 'a\\377b\\n'", "", "a\u{fffd}b\n", "", 0),
            ("exit 255", "", "", "", 255),
        ] {
            let output = channel.run(line, input.as_bytes(), soon());
            let output = output.unwrap_or_else(|e| panic!("{shell}: {line}: {e:?}"));
            assert_eq!((output.stdout.as_str(), output.stderr.as_str()), (stdout, stderr), "{shell}: {line}");
            assert_eq!(output.status.code(), Some(status), "{shell}: {line}");
        }
    });
}

#[test]
fn input_that_nobody_reads_is_never_a_command() {
    let input = "x\ntouch broken-out\n0123456789abcdef 1 touch broken-out\n".repeat(20_000);
    with_each_shell(&BOTH, |channel, folder, shell| {
        for line in ["true", "exec <&-", "exit 1", "head -c 10 >/dev/null", "exec true"] {
            channel.run(line, input.as_bytes(), soon()).unwrap_or_else(|e| panic!("{shell}: {line}: {e:?}"));
            assert_eq!(run(channel, "echo next").stdout, "next\n", "{shell}: {line}");
        }
        assert!(!folder.join("broken-out").exists(), "{shell}");
    });
}

#[test]
fn no_output_passes_for_the_end_of_the_answer() {
    let forged = "0123456789abcdef0123456789abcdef 0\n";
    with_each_shell(&BOTH, |channel, _, shell| {
        let line = format!("printf '\\n{0}'; printf '\\n{0}' >&2; sleep 0.2; exit 5", forged.trim());
        let output = run(channel, &line);
        assert_eq!((output.stdout.trim(), output.status.code()), (forged.trim(), Some(5)), "{shell}");
        // Nor does a program learn the mark from its environment.
        let environment = run(channel, "env").stdout;
        assert!(environment.contains("PATH=") && !environment.contains("mark="), "{shell}: {environment}");
    });
}

#[test]
fn a_users_command_has_no_stream_of_the_shell_in_its_hands() {
    with_each_shell(&[Whose::Users], |channel, _, shell| {
        let of_shell = format!("exec readlink /proc/{}/fd/1 /proc/{0}/fd/2", channel.child.id());
        let ours = run(channel, &of_shell).stdout;
        let all = run(channel, "readlink /proc/self/fd/1 /proc/self/fd/2; exec ls -l /proc/self/fd").stdout;
        assert!(ours.lines().count() == 2 && ours.lines().all(|stream| !all.contains(stream)), "{shell}: {ours}{all}");
        // Of the pipes themselves each once.
        let theirs = all.lines().take(2).map(|pipe| all.matches(pipe).count());
        assert_eq!(theirs.collect::<Vec<_>>(), [2, 2], "{shell}: {all}");
    });
}

#[test]
fn who_keeps_a_users_streams_writes_into_no_later_answer_and_holds_up_nobody() {
    let keeper = "(trap '' PIPE; while [ ! -e over ] && [ -d \"$PWD\" ]; do echo forged; echo forged >&2; sleep 0.01; done; echo >ended) & echo begun";
    with_each_shell(&[Whose::Users], |channel, folder, shell| {
        let answer = run(channel, keeper);
        assert!(answer.stdout.contains("begun\n"), "{shell}: {answer:?}");
        let begun = Instant::now();
        for _ in 0..40 {
            let output = run(channel, "echo next; echo words >&2; sleep 0.02");
            assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("next\n", "words\n"), "{shell}");
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "{shell}: {:?}", begun.elapsed());
        assert!(!folder.join("ended").exists(), "{shell}: it was there until now");
        std::fs::write(folder.join("over"), "").unwrap();
        let begun = Instant::now();
        while !folder.join("ended").exists() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{shell}: the keeper goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn a_user_who_prints_without_end_loses_the_shell() {
    with_each_shell(&[Whose::Users], |channel, _, shell| {
        let line = format!("exec yes {}", "x".repeat(4000));
        let flooded = channel.run(&line, b"", soon());
        assert!(matches!(&flooded, Err(Broken::Ended(words)) if words.contains("more than is taken")), "{shell}: {flooded:?}");
    });
}

#[test]
fn a_command_that_was_cut_off_on_its_way_is_never_run() {
    with_each_shell(&[Whose::Ours], |channel, folder, shell| {
        cut_off(channel, "0123456789abcdef 40 touch broken-out\nonly a part of it", shell);
        assert!(!folder.join("broken-out").exists(), "{shell}");
    });
}

#[test]
fn a_users_command_whose_input_was_cut_off_gets_nothing_of_it() {
    with_each_shell(&[Whose::Users], |channel, folder, shell| {
        cut_off(channel, "0123456789abcdef 40 cat >received; echo >ended\nonly a part of it", shell);
        assert_eq!(std::fs::read_to_string(folder.join("received")).unwrap(), "", "{shell}");
        assert!(folder.join("ended").exists(), "{shell}");
    });
}

#[test]
fn of_a_users_command_that_never_began_it_is_said_that_nothing_happened() {
    with_each_shell(&[Whose::Users], |channel, folder, shell| {
        run(channel, "echo it works");
        // As a session ends: not the shell alone, which may have begun what waits for the next command.
        signal(channel, Signal::KILL);
        channel.child.wait().unwrap();
        let unbegun = channel.run("cat >received", b"a script", soon());
        assert!(matches!(unbegun, Err(Broken::Unbegun(_))), "{shell}: {unbegun:?}");
        assert!(!folder.join("received").exists(), "{shell}");
    });
    with_each_shell(&[Whose::Users], |channel, folder, shell| {
        // Its machine has died without a word.
        signal(channel, Signal::STOP);
        let silent = channel.run("cat >received", b"a script", soon());
        assert!(matches!(&silent, Err(Broken::Unbegun(words)) if words.contains("silent")), "{shell}: {silent:?}");
        signal(channel, Signal::CONT);
        drop(std::mem::replace(&mut channel.stdin, ChildStdin::from(std::os::fd::OwnedFd::from(std::io::pipe().unwrap().1))));
        channel.child.wait().unwrap();
        let received = std::fs::read_to_string(folder.join("received")).unwrap_or_default();
        assert_eq!(received, "", "{shell}: should it wake up, the command gets nothing of its input");
    });
}

fn signal(channel: &Channel, signal: Signal) {
    kill_process_group(Pid::from_child(&channel.child), signal).unwrap();
}

/// The connection ends after these words.
fn cut_off(channel: &mut Channel, words: &str, shell: &str) {
    write(channel.stdin.as_fd(), words.as_bytes()).unwrap();
    let (nothing, other) = std::io::pipe().unwrap();
    drop(std::mem::replace(&mut channel.stdin, ChildStdin::from(std::os::fd::OwnedFd::from(other))));
    drop(nothing);
    assert!(channel.child.wait().unwrap().success(), "{shell}");
}

#[test]
fn a_command_that_hangs_is_late_and_one_that_ends_the_shell_says_so() {
    with_each_shell(&BOTH, |channel, _, shell| {
        // Not so soon that on a busy machine it has not even begun.
        let late = channel.run("sleep 30", b"", Instant::now() + Duration::from_secs(3));
        assert!(matches!(late, Err(Broken::Late)), "{shell}: {late:?}");
    });
    with_each_shell(&[Whose::Ours], |channel, _, shell| {
        let ended = channel.run("echo why >&2; kill -9 $$", b"", soon());
        assert!(matches!(&ended, Err(Broken::Ended(words)) if words.contains("why")), "{shell}: {ended:?}");
    });
    with_each_shell(&[Whose::Users], |channel, _, shell| {
        // Not the shell that is kept, but what stands between it and the command.
        let begun = Instant::now();
        let ended = channel.run("exec sh -c 'kill -9 $PPID'", b"", soon());
        assert!(matches!(&ended, Err(Broken::Ended(_))), "{shell}: {ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{shell}");
    });
}

#[test]
fn megabytes_come_through_both_ways() {
    let input = "0123456789abcde\n".repeat(1 << 17);
    with_each_shell(&BOTH, |channel, _, shell| {
        assert_eq!(channel.run("wc -c", input.as_bytes(), soon()).unwrap().stdout.trim(), "2097152", "{shell}");
        let output = run(channel, "head -c 200000 /dev/zero | tr '\\0' x | tee /dev/stderr");
        assert_eq!((output.stdout.len(), output.stderr.len()), (200_000, 200_000), "{shell}");
    });
    with_each_shell(&[Whose::Ours], |channel, _, shell| {
        assert!(channel.run("cat; cat /dev/null", input.as_bytes(), soon()).unwrap().stdout == input, "{shell}");
        let output = run(channel, "head -c 3000000 /dev/zero | tr '\\0' x | tee /dev/stderr");
        assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 3_000_000), "{shell}");
    });
}

#[test]
fn a_login_may_take_longer_than_a_shell_that_is_there_has_to_begin() {
    for whose in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let script = "#!/bin/sh\nsleep 5\nexec /bin/sh \"$@\"\n";
        std::fs::write(folder.path().join("sh"), script).unwrap();
        std::fs::set_permissions(folder.path().join("sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut ssh = Command::new("/bin/sh");
        ssh.env("PATH", format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap())).arg("-c");
        assert!(Duration::from_secs(5) > BEGIN_LIMIT);
        let mut channel = Channel::open(ssh, whose, soon()).unwrap();
        assert_eq!(run(&mut channel, "echo there").stdout, "there\n", "{whose:?}");
    }
}

#[test]
fn of_a_users_command_that_was_allowed_too_late_it_is_said_that_nothing_happened() {
    with_each_shell(&[Whose::Users], |channel, folder, shell| {
        let deadline = Instant::now() + Duration::from_secs(2);
        let go = || {
            while Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(100));
            }
            true
        };
        let late = channel.run_if("cat >received", b"a script", deadline, &go);
        assert!(matches!(late, Err(Broken::Unbegun(_))), "{shell}: {late:?}");
        cut_off(channel, "", shell);
        assert_eq!(std::fs::read_to_string(folder.join("received")).unwrap_or_default(), "", "{shell}");
    });
}

#[test]
fn a_users_command_gets_its_input_only_when_somebody_says_so_while_it_starts() {
    with_each_shell(&[Whose::Users], |channel, folder, shell| {
        for (go, received) in [(true, "a script\n"), (false, "")] {
            let asked = std::cell::Cell::new(0);
            let ask = || {
                asked.set(asked.get() + 1);
                std::thread::sleep(Duration::from_millis(100));
                assert_eq!(std::fs::read_to_string(folder.join("received")).unwrap_or_default(), "", "{shell}: not before");
                go
            };
            let line = "cat >received; echo done";
            let output = channel.run_if(line, b"a script\n", soon(), &ask).unwrap();
            assert_eq!((output.stdout.as_str(), asked.get()), ("done\n", 1), "{shell}");
            assert_eq!(std::fs::read_to_string(folder.join("received")).unwrap(), received, "{shell}");
            std::fs::remove_file(folder.join("received")).unwrap();
        }
        assert_eq!(run(channel, "echo next").stdout, "next\n", "{shell}: it is still of use");
    });
}
