//! A channel whose other side is this machine, with each shell that may stand behind `sh`.

use super::*;
use std::path::Path;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// A channel whose other side is this machine with `sh` being that program.
fn channel(folder: &Path, shell: &str) -> Channel {
    let path = std::env::var("PATH").unwrap();
    std::fs::write(folder.join("sh"), format!("#!/bin/sh\nPATH='{path}' exec {shell} \"$@\"\n")).unwrap();
    std::fs::set_permissions(folder.join("sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut ssh = Command::new("/bin/sh");
    ssh.env("PATH", format!("{}:{path}", folder.display())).current_dir(folder).arg("-c");
    Channel::open(ssh, soon()).unwrap()
}

/// Every shell that may stand behind `sh`.
fn with_each_shell(test: impl Fn(&mut Channel, &Path, &str)) {
    for shell in ["dash", "bash", "busybox sh"] {
        let program = shell.split(' ').next().unwrap();
        if Command::new(program).args(["-c", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            println!("NOT RUN with {shell}: not installed");
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        test(&mut channel(folder.path(), shell), folder.path(), shell);
    }
}

const BOTH: [Whose; 2] = [Whose::Ours, Whose::Users];

fn run(channel: &mut Channel, whose: Whose, line: &str) -> Output {
    channel.run(whose, line, b"", soon()).unwrap_or_else(|e| panic!("{whose:?}: {line}: {e:?}"))
}

#[test]
fn output_status_and_input_come_through_byte_by_byte() {
    with_each_shell(|channel, _, shell| {
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
            for whose in BOTH {
                let output = channel.run(whose, line, input.as_bytes(), soon());
                let output = output.unwrap_or_else(|e| panic!("{shell}: {whose:?}: {line}: {e:?}"));
                assert_eq!((output.stdout.as_str(), output.stderr.as_str()), (stdout, stderr), "{shell}: {whose:?}: {line}");
                assert_eq!(output.status.code(), Some(status), "{shell}: {whose:?}: {line}");
            }
        }
    });
}

#[test]
fn input_that_nobody_reads_is_never_a_command() {
    let input = "x\ntouch broken-out\n0123456789abcdef 1 ours touch broken-out\n".repeat(20_000);
    with_each_shell(|channel, folder, shell| {
        for line in ["true", "exec <&-", "exit 1", "head -c 10 >/dev/null", "exec true"] {
            for whose in BOTH {
                channel.run(whose, line, input.as_bytes(), soon()).unwrap_or_else(|e| panic!("{shell}: {line}: {e:?}"));
                assert_eq!(run(channel, whose, "echo next").stdout, "next\n", "{shell}: {whose:?}: {line}");
            }
        }
        assert!(!folder.join("broken-out").exists(), "{shell}");
    });
}

#[test]
fn no_output_passes_for_the_end_of_the_answer() {
    let forged = "0123456789abcdef0123456789abcdef 0\n";
    with_each_shell(|channel, _, shell| {
        for whose in BOTH {
            let line = format!("printf '\\n{0}'; printf '\\n{0}' >&2; sleep 0.2; exit 5", forged.trim());
            let output = run(channel, whose, &line);
            assert_eq!((output.stdout.trim(), output.status.code()), (forged.trim(), Some(5)), "{shell}");
            // Nor does a program learn the mark from its environment.
            let environment = run(channel, whose, "env").stdout;
            assert!(environment.contains("PATH=") && !environment.contains("mark="), "{shell}: {environment}");
        }
    });
}

#[test]
fn a_users_command_has_no_stream_of_the_shell_in_its_hands() {
    with_each_shell(|channel, _, shell| {
        let streams = "exec readlink /proc/self/fd/1 /proc/self/fd/2";
        let ours = run(channel, Whose::Ours, streams).stdout;
        let all = run(channel, Whose::Users, "readlink /proc/self/fd/1 /proc/self/fd/2; exec ls -l /proc/self/fd").stdout;
        assert!(ours.lines().count() == 2 && ours.lines().all(|stream| !all.contains(stream)), "{shell}: {ours}{all}");
        // Of the pipes themselves each once.
        let theirs = all.lines().take(2).map(|pipe| all.matches(pipe).count());
        assert_eq!(theirs.collect::<Vec<_>>(), [2, 2], "{shell}: {all}");
    });
}

#[test]
fn who_keeps_a_users_streams_writes_into_no_later_answer_and_holds_up_nobody() {
    let keeper = "(trap '' PIPE; while [ ! -e over ] && [ -d \"$PWD\" ]; do echo forged; echo forged >&2; sleep 0.01; done; echo >ended) & echo begun";
    with_each_shell(|channel, folder, shell| {
        let answer = run(channel, Whose::Users, keeper);
        assert!(answer.stdout.contains("begun\n"), "{shell}: {answer:?}");
        let begun = Instant::now();
        for whose in BOTH.repeat(20) {
            let output = run(channel, whose, "echo next; echo words >&2; sleep 0.02");
            assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("next\n", "words\n"), "{shell}: {whose:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "{shell}: {:?}", begun.elapsed());
        assert!(!folder.join("ended").exists(), "{shell}: it was there until now");
        std::fs::write(folder.join("over"), "").unwrap();
        while !folder.join("ended").exists() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{shell}: the keeper goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn a_user_who_prints_without_end_loses_the_shell() {
    with_each_shell(|channel, _, shell| {
        let line = format!("exec yes {}", "x".repeat(4000));
        let flooded = channel.run(Whose::Users, &line, b"", soon());
        assert!(matches!(&flooded, Err(Broken::Ended(words)) if words.contains("more than is taken")), "{shell}: {flooded:?}");
    });
}

#[test]
fn a_command_that_was_cut_off_on_its_way_is_never_run() {
    with_each_shell(|channel, folder, shell| {
        cut_off(channel, "0123456789abcdef 40 ours touch broken-out\nonly a part of it", shell);
        assert!(!folder.join("broken-out").exists(), "{shell}");
    });
}

#[test]
fn a_users_command_whose_input_was_cut_off_gets_nothing_of_it() {
    with_each_shell(|channel, folder, shell| {
        cut_off(channel, "0123456789abcdef 40 users cat >received; echo >ended\nonly a part of it", shell);
        assert_eq!(std::fs::read_to_string(folder.join("received")).unwrap(), "", "{shell}");
        assert!(folder.join("ended").exists(), "{shell}");
    });
}

#[test]
fn of_a_users_command_that_never_began_it_is_said_that_nothing_happened() {
    with_each_shell(|channel, folder, shell| {
        run(channel, Whose::Users, "echo it works");
        command::end(&mut channel.child);
        let unbegun = channel.run(Whose::Users, "cat >received", b"a script", soon());
        assert!(matches!(unbegun, Err(Broken::Unbegun(_))), "{shell}: {unbegun:?}");
        assert!(!folder.join("received").exists(), "{shell}");
    });
    with_each_shell(|channel, folder, shell| {
        // Its machine has died without a word.
        rustix::process::kill_process_group(rustix::process::Pid::from_child(&channel.child), rustix::process::Signal::STOP)
            .unwrap();
        let silent = channel.run(Whose::Users, "cat >received", b"a script", soon());
        assert!(matches!(&silent, Err(Broken::Unbegun(words)) if words.contains("silent")), "{shell}: {silent:?}");
        rustix::process::kill_process_group(rustix::process::Pid::from_child(&channel.child), rustix::process::Signal::CONT)
            .unwrap();
        drop(std::mem::replace(&mut channel.stdin, ChildStdin::from(std::os::fd::OwnedFd::from(std::io::pipe().unwrap().1))));
        channel.child.wait().unwrap();
        let received = std::fs::read_to_string(folder.join("received")).unwrap_or_default();
        assert_eq!(received, "", "{shell}: should it wake up, the command gets nothing of its input");
    });
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
    for whose in BOTH {
        with_each_shell(|channel, _, shell| {
            let late = channel.run(whose, "sleep 30", b"", Instant::now() + Duration::from_millis(300));
            assert!(matches!(late, Err(Broken::Late)), "{shell}: {whose:?}");
        });
    }
    with_each_shell(|channel, _, shell| {
        let ended = channel.run(Whose::Ours, "echo why >&2; kill -9 $$", b"", soon());
        assert!(matches!(&ended, Err(Broken::Ended(words)) if words.contains("why")), "{shell}: {ended:?}");
    });
}

#[test]
fn megabytes_come_through_both_ways() {
    let input = "0123456789abcde\n".repeat(1 << 17);
    with_each_shell(|channel, _, shell| {
        assert!(channel.run(Whose::Ours, "cat; cat /dev/null", input.as_bytes(), soon()).unwrap().stdout == input, "{shell}");
        assert_eq!(channel.run(Whose::Users, "wc -c", input.as_bytes(), soon()).unwrap().stdout.trim(), "2097152", "{shell}");
        let output = run(channel, Whose::Ours, "head -c 3000000 /dev/zero | tr '\\0' x | tee /dev/stderr");
        assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 3_000_000), "{shell}");
        let output = run(channel, Whose::Users, "head -c 200000 /dev/zero | tr '\\0' x | tee /dev/stderr");
        assert_eq!((output.stdout.len(), output.stderr.len()), (200_000, 200_000), "{shell}");
    });
}

#[test]
fn a_users_command_gets_its_input_only_when_somebody_says_so_while_it_starts() {
    with_each_shell(|channel, folder, shell| {
        for (go, received) in [(true, "a script\n"), (false, "")] {
            let asked = std::cell::Cell::new(0);
            let ask = || {
                asked.set(asked.get() + 1);
                std::thread::sleep(Duration::from_millis(100));
                assert_eq!(std::fs::read_to_string(folder.join("received")).unwrap_or_default(), "", "{shell}: not before");
                go
            };
            let line = "cat >received; echo done";
            let output = channel.run_if(Whose::Users, line, b"a script\n", soon(), &ask).unwrap();
            assert_eq!((output.stdout.as_str(), asked.get()), ("done\n", 1), "{shell}");
            assert_eq!(std::fs::read_to_string(folder.join("received")).unwrap(), received, "{shell}");
            std::fs::remove_file(folder.join("received")).unwrap();
        }
        assert_eq!(run(channel, Whose::Users, "echo next").stdout, "next\n", "{shell}: it is still of use");
    });
}
