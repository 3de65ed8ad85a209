//! Batch scripts as they come out, and as bash runs them.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

#[path = "batch_script/job.rs"]
mod job;
#[path = "batch_script/settings.rs"]
mod settings;

use bwvisu_runner::domain::batch_script::{Clients, KeyholeSetup, batch_script};
use job::{ANSWERS, Job, TOKEN, bash, can_mount, has, say, stub};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

#[test]
fn scripts_look_as_recorded() {
    let clients = |names: &[&str]| {
        let programs = names.iter().map(|name| ((*name).to_owned(), format!("#!/bin/sh\n# {name}\n").into_bytes()));
        Clients::new(programs.collect()).unwrap()
    };
    let servers: [SocketAddr; 2] = ["10.0.0.1:80".parse().unwrap(), "[fd00::1]:8080".parse().unwrap()];
    let cases = [
        (
            "one_port.sh",
            "#!/bin/bash\n#SBATCH --nodes=1\nset -e\n#KEYHOLE-REQUEST-PORTS 1\nserve\n",
            clients(&["x86_64"]),
            &servers[..1],
        ),
        ("three_ports.sh", "#!/bin/bash -l\n  #KEYHOLE-REQUEST-PORTS  3 \n", clients(&["x86_64", "aarch64"]), &servers[..]),
    ];
    for (file, rendered, clients, servers) in cases {
        let setup = KeyholeSetup { job_id: 17, token_hex: TOKEN, servers, give_up_after_seconds: 120, clients: &clients };
        same_as_recorded(file, &batch_script(rendered, &setup, 100).unwrap());
    }
}

fn same_as_recorded(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        return fs::write(&path, text).unwrap();
    }
    let recorded = fs::read_to_string(&path).unwrap_or_default();
    let (old, new): (Vec<&str>, Vec<&str>) = (recorded.lines().collect(), text.lines().collect());
    let differing = (0..old.len().max(new.len())).filter(|i| old.get(*i) != new.get(*i));
    let differing =
        differing.take(10).map(|i| format!("line {}\n- {}\n+ {}\n", i + 1, old.get(i).unwrap_or(&""), new.get(i).unwrap_or(&"")));
    let differing: String = differing.collect();
    assert!(
        recorded == text,
        "{file} is no longer as recorded:\n{differing}If that is meant, renew it: UPDATE_GOLDEN=1 cargo test -p bwvisu-runner --test batch_script"
    );
}

#[test]
fn the_client_is_called_without_the_token_in_any_arguments() {
    let mut job = Job::new();
    job.ports = 100;
    job.after =
        "echo $KEYHOLE_NUM_PORTS $KEYHOLE_PORT99 $KEYHOLE_GATEWAY99 $KEYHOLE_EXTERNAL_PORT99; env | grep -c '^KEYHOLE_'".into();
    let run = job.run();
    assert_eq!(run.stdout, "100 50099 192.0.2.99 60099\n301\n", "{}", run.told());
    assert_eq!(run.stderr, "");
    assert_eq!(job.record("arguments"), "--job 17 --ports 100 --server 127.0.0.1:9 --server [::1]:9 --give-up-after 1");
    assert_eq!(job.record("stdin"), "/dev/null\n");
    assert!(job.record("cmdlines").contains("keyhole-client") && !job.record("cmdlines").contains(TOKEN));
}

#[test]
fn it_does_not_matter_how_bash_comes_by_the_script() {
    let job = Job::new();
    let script = job.path("script");
    let script = script.to_str().unwrap();
    let source = format!("exec 3<'{script}'; source /dev/fd/3");
    let stdin = format!("exec {} -s <'{script}'", bash());
    for words in [&[bash(), script][..], &[bash(), "-c", &source], &[bash(), "-c", &stdin], &[bash(), "--posix", script]] {
        let run = job.run_as(words);
        run.must_have_one_port();
        assert_eq!(run.stderr, "", "{words:?}");
    }
}

#[test]
fn bash_env_and_exported_functions_do_no_harm() {
    let mut job = Job::new();
    fs::write(job.path("env"), "echo sourced >&2; mktemp() { echo evil; }; export -f mktemp; set -x\n").unwrap();
    job.set("BASH_ENV", job.path("env"));
    job.run().must_have_one_port();
}

#[test]
fn the_scripts_own_exit_trap_runs_in_success_and_failure() {
    let mut job = Job::new();
    job.before = "trap 'echo bye $?' EXIT; trap 'echo usr1' USR1".into();
    job.after = "trap -p; kill -USR1 $$; exit 3".into();
    let run = job.run();
    assert_eq!(
        (run.status, run.stdout.as_str()),
        (Some(3), "trap -- 'echo bye $?' EXIT\ntrap -- 'echo usr1' SIGUSR1\nusr1\nbye 3\n"),
        "{}",
        run.told()
    );
    job.client = stub("exit 6");
    let run = job.run();
    assert_eq!((run.status, run.stdout.as_str()), (Some(6), "bye 6\n"), "{}", run.told());
}

#[test]
fn a_client_that_gets_no_ports_ends_the_job_also_without_set_e() {
    for before in ["", "set -e", "set -x", "set +e; trap 'echo err >&2' ERR"] {
        let mut job = Job::new();
        job.before = before.into();
        job.client = stub("echo 'keyhole-client: the job may not ask twice' >&2; exit 6");
        let run = job.run();
        run.must_have_ended(
            6,
            &["keyhole-client: the job may not ask twice\n", "keyhole-client ended with status 6; its reason stands above"],
        );
        assert_eq!(job.leftovers(), [] as [&Path; 0]);
    }
}

#[test]
fn only_an_answer_of_the_expected_form_is_evaluated() {
    let answer = "export KEYHOLE_PORT0=50000\nexport KEYHOLE_GATEWAY0=192.0.2.1\nexport KEYHOLE_EXTERNAL_PORT0=60000\nexport KEYHOLE_NUM_PORTS=1";
    let unexpected = [
        "export PATH=/evil",
        "touch \"$RECORD/evil\"",
        "export KEYHOLE_PORT0=$(touch \"$RECORD/evil\")",
        "export KEYHOLE_PORT0=1;touch \"$RECORD/evil\"",
        "export KEYHOLE_PORT0=`touch \"$RECORD/evil\"`",
        "export KEYHOLE_GATEWAY0=a b",
        "export KEYHOLE_GATEWAY0=",
        "export KEYHOLE_GATEWAY0=-n",
        "export KEYHOLE_PORT0=0",
        "export KEYHOLE_PORT0=123456",
        "export KEYHOLE_PORT=1",
        "export KEYHOLE_PORT0=1 ",
        " export KEYHOLE_PORT0=1",
        "export  KEYHOLE_PORT0=1",
        "KEYHOLE_PORT0=1",
        "export KEYHOLE_NUM_PORTS=2",
        "export KEYHOLE_TOKEN=1",
        "\nexport KEYHOLE_PORT0=1",
        "export keyhole_port0=1",
        "export KEYHOLE_PORT0=1\r",
        "\u{1b}[2J",
    ];
    let more = unexpected.map(|line| (format!("{answer}\n{line}"), "keyhole-client printed something unexpected"));
    let less = (0..4).map(|left_out| {
        let lines = answer.lines().enumerate().filter(|(i, _)| *i != left_out);
        (lines.map(|(_, line)| format!("{line}\n")).collect(), "keyhole-client's answer is not complete")
    });
    let other = [(String::new(), "is not complete"), (format!("{answer}\nexport KEYHOLE_PORT0=50000"), "is not complete")];
    for (lines, reason) in more.into_iter().chain(less).chain(other) {
        let mut job = Job::new();
        job.before = "shopt -s nocasematch".into();
        job.client = stub(&format!("cat <<'THESE'\n{lines}\nTHESE\n"));
        let run = job.run();
        run.must_have_ended(1, &[reason]);
        assert!(job.record("evil").is_empty() && !job.path("record/evil").exists(), "it was evaluated: {lines}");
        assert!(!run.stderr.contains('\u{1b}'), "{}", run.told());
    }
}

#[test]
fn another_processor_is_named_with_what_to_do() {
    let mut job = Job::new();
    job.tool("uname", "echo riscv64");
    job.run().must_have_ended(
        1,
        &["a processor of the kind \"riscv64\"", &format!("is here for {} only", job::HERE), "keyhole-client.riscv64"],
    );
    for (said, meant) in [("arm64", "aarch64"), ("amd64", "x86_64"), ("aarch64", "aarch64")] {
        let mut job = Job::new();
        job.architecture = meant.into();
        job.tool("uname", &format!("echo {said}"));
        job.run().must_have_one_port();
    }
}

#[test]
fn any_of_the_usual_unpackers_will_do() {
    let cases: [(&[&str], &[&str]); 5] = [
        (&[], &[]),
        (&["gzip"], &["pigz"]),
        (&["gzip"], &["gunzip", "zcat", "busybox"]), // gunzip and zcat are scripts that call gzip
        (&["gzip", "base64"], &["busybox"]),
        (&["base64"], &["openssl"]),
    ];
    for (without, with) in cases {
        if !with.iter().all(|tool| has(tool)) {
            continue;
        }
        let mut job = Job::new();
        job.only_tools(without, with);
        job.after = "env | grep ^KEYHOLE_ | tr A-Z A-Z >\"$RECORD/ports\"".into();
        let run = job.run();
        assert_eq!((run.status, job.record("ports").lines().count()), (Some(0), 4), "without {without:?}: {}", run.told());
    }
}

#[test]
fn without_an_unpacker_the_message_names_those_that_would_do() {
    let cases: [(&[&str], &str); 2] = [
        (&["gzip"], "has none of gzip, gunzip, zcat, pigz and busybox working on its PATH"),
        (&["base64"], "has none of base64, busybox and openssl on its PATH"),
    ];
    for (without, reason) in cases {
        let mut job = Job::new();
        job.only_tools(without, &[]);
        job.run().must_have_ended(1, &[reason, "Have "]);
        assert_eq!(job.leftovers(), [] as [&Path; 0]);
    }
}

#[test]
fn a_folder_that_is_missing_or_not_ours_is_passed_over() {
    for tmpdir in ["/nonexistent", "", "relative", "/proc", "/dev/null", "/tmp with blanks"] {
        let mut job = Job::new();
        job.set("TMPDIR", tmpdir);
        job.run().must_have_one_port();
        assert_eq!(job.leftovers(), [] as [&Path; 0], "{tmpdir:?}");
    }
}

#[test]
fn a_folder_with_a_hostile_name_is_only_a_folder() {
    let mut job = Job::new();
    let folder = job.path("tmp").join("a'; touch evil; $(touch evil) *\n-rf \\");
    fs::create_dir(&folder).unwrap();
    job.set("TMPDIR", &folder);
    job.client = [stub("printf '%s' \"$0\" >\"$RECORD/self\"\n"), ANSWERS.into()].concat();
    job.run().must_have_one_port();
    assert!(job.record("self").starts_with(folder.to_str().unwrap()), "{}", job.record("self"));
    assert!(!job.path("work/evil").exists());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn folders_that_are_noexec_or_full_are_passed_over() {
    if !can_mount() {
        return;
    }
    for options in ["noexec", "size=64k", "size=4k", "ro", "nr_inodes=2", "nr_inodes=3"] {
        let mut job = Job::new();
        job.client = big_client();
        job.within = Some(format!("mount -t tmpfs -o {options} none '{}'", job.path("tmp").display()));
        job.run().must_have_one_port();
    }
}

/// A client whose text does not fit into a pipe, so that bash keeps it in a file while it reads it.
fn big_client() -> Vec<u8> {
    [&stub(ANSWERS)[..], &noise(60_000)].concat()
}

/// Bytes that do not compress and that no sh reads, for it has ended by then.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let bytes = (0..length).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    b"exit 0\n".iter().copied().chain(bytes).collect()
}

#[test]
fn without_any_folder_the_message_names_each_with_its_reason() {
    if !can_mount() {
        return;
    }
    let mut job = Job::beneath(Path::new(env!("CARGO_TARGET_TMPDIR"))); // for /tmp goes away
    job.client = big_client();
    job.set("TMPDIR", job.path("full"));
    job.set("XDG_RUNTIME_DIR", job.path("readonly"));
    let mounts = [
        ("size=64k", "\"$TMPDIR\""),
        ("ro", "\"$XDG_RUNTIME_DIR\""),
        ("noexec", "\"$HOME\""),
        ("noexec", "\"$PWD\""),
        ("ro", "/tmp"),
        ("noexec", "/dev/shm"),
        ("nr_inodes=1", "/var/tmp"),
        ("ro", "/run"),
    ];
    job.within =
        Some(mounts.map(|(options, folder)| format!("mount -t tmpfs -o {options} none {folder}")).join("\n") + "\ncd \"$PWD\"");
    let run = job.run();
    run.must_have_ended(1, &["cannot be unpacked and run anywhere on this node", "set TMPDIR to a folder"]);
    let reasons = [
        ("full", "No space left on device"),
        ("readonly", "Read-only file system"),
        ("home", "programs there cannot be run (status 126; mounted noexec?)"),
        ("work", "programs there cannot be run (status 126; mounted noexec?)"),
    ];
    for (folder, reason) in reasons {
        assert!(run.stderr.contains(&format!(" {}: {reason};", job.path(folder).display())), "{folder}: {}", run.told());
    }
    for reason in [" /tmp: Read-only file system;", " /dev/shm: programs", " /var/tmp: No space left", " /run/user/"] {
        assert!(run.stderr.contains(reason), "{reason}: {}", run.told());
    }
}

#[test]
fn a_signal_during_the_call_leaves_no_file() {
    for signal in ["TERM", "INT", "HUP", "USR1", "XCPU"] {
        for whole_group in [true, false] {
            let mut job = Job::new();
            job.client = stub("touch \"$RECORD/runs\"; until [ -e \"$RECORD/go\" ]; do sleep 0.05; done; exit 6");
            let mut child = job.start();
            wait_until(|| job.path("record/runs").exists(), "the client runs");
            assert_eq!(job.leftovers().len(), 1, "the client lies there while it runs");
            let target = if whole_group { format!("-{}", child.id()) } else { child.id().to_string() };
            let killed = std::process::Command::new("kill").args(["-s", signal, "--", &target]).status().unwrap();
            assert!(killed.success());
            std::fs::write(job.path("record/go"), "").unwrap();
            let status = child.wait().unwrap();
            assert!(!status.success(), "{signal}: {status}");
            let told = format!("{signal} to {target}: {:?}", job.leftovers());
            wait_until(|| job.leftovers().is_empty(), &told);
        }
    }
}

#[test]
fn a_signal_that_the_script_ignores_changes_nothing() {
    let mut job = Job::new();
    job.before = "trap '' USR1 HUP".into();
    job.client = [stub("touch \"$RECORD/runs\"; until [ -e \"$RECORD/go\" ]; do sleep 0.05; done\n"), ANSWERS.into()].concat();
    job.after = "trap -p; echo $KEYHOLE_PORT0".into();
    let child = job.start();
    wait_until(|| job.path("record/runs").exists(), "the client runs");
    for signal in ["USR1", "HUP"] {
        let killed = std::process::Command::new("kill").args(["-s", signal, "--", &format!("-{}", child.id())]).status().unwrap();
        assert!(killed.success());
    }
    std::fs::write(job.path("record/go"), "").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "trap -- '' SIGHUP\ntrap -- '' SIGUSR1\n50000\n");
}

fn wait_until(holds: impl Fn() -> bool, what: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "not within 20 seconds: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_script_with_two_clients_is_far_below_what_slurm_refuses() {
    let programs = vec![("x86_64".to_owned(), noise(45_000)), ("aarch64".to_owned(), noise(45_000))];
    let clients = Clients::new(programs).unwrap();
    let servers = ["10.0.0.1:80".parse().unwrap()];
    let setup = KeyholeSetup { job_id: 17, token_hex: TOKEN, servers: &servers, give_up_after_seconds: 120, clients: &clients };
    let script = batch_script("#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 100\n", &setup, 100).unwrap();
    let carried: usize = clients.sizes().map(|(_, size)| size).sum();
    assert!(carried > 120_000 && script.len() < 150_000, "{carried} of {}", script.len());
}

#[test]
fn the_real_client_is_unpacked_and_gives_its_own_reason() {
    let Some(program) = env::var_os("TEST_KEYHOLE_CLIENT") else {
        return say("*** NOT RUN: the real keyhole-client in a batch script; set TEST_KEYHOLE_CLIENT to its file ***");
    };
    let mut job = Job::new();
    job.client = fs::read(program).unwrap();
    job.set("SLURM_JOB_NODELIST", "localhost");
    let run = job.run();
    assert!(run.stderr.contains("keyhole-client ended with status"), "{}", run.told());
    assert!(!matches!(run.status, Some(0 | 126 | 127) | None), "{}", run.told());
    assert_eq!(job.leftovers(), [] as [&Path; 0]);
}
