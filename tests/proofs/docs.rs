//! The documents, followed word by word.

use bwvisu_tests::Bed;
use bwvisu_tests::bed::repository;
use bwvisu_tests::docs::machines::NewMachines;
use bwvisu_tests::docs::markdown::{blocks, documents};
use bwvisu_tests::docs::reader::Reader;
use bwvisu_tests::runner::dist;
use std::path::PathBuf;
use std::process::Command;

/// What a person reads first; whatever else there is comes afterwards, and the page that ends with its removal in the end.
const FIRST: &str = "docs/install.md";
const LAST: &str = "docs/operate.md";

#[test]
fn every_command_in_the_documents_is_run_and_prints_what_they_show() {
    let bed = Bed::take();
    let machines = NewMachines::take(&bed);
    hand_over_the_package(&machines);
    let mut reader = Reader::new(&machines);
    let mut documents = documents(&repository());
    documents.sort_by_key(|(path, _)| (path != FIRST, path == LAST));
    for (path, text) in documents {
        // For whoever works on one of them; all stand on the first.
        if std::env::var("DOCS_ONLY").is_ok_and(|only| path != FIRST && !only.split(' ').any(|one| path.contains(one))) {
            continue;
        }
        reader.follow(&blocks(&path, &text).unwrap_or_else(|words| panic!("{words}")));
        // What follows stands on it.
        if path == FIRST && !reader.faults.is_empty() {
            break;
        }
    }
    report(&reader);
    assert!(reader.faults.is_empty(), "the documents are wrong:\n\n{}", reader.faults.join("\n\n"));
}

/// The package, twice (as it is and as its next release), in the folder that its reader is in.
fn hand_over_the_package(machines: &NewMachines) {
    let made = ["1", "2"].map(package);
    for host in ["runner", "run1"] {
        let files = made.iter().map(|file| file.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let output = machines.command(host, &["bash", "-c", HAND_OVER, "bash", &files]).output().unwrap();
        assert!(output.status.success(), "{host}: {output:?}");
    }
}

/// The package of what is under test, in a folder of our own. One that was made before is taken if it holds the same program.
fn package(release: &str) -> PathBuf {
    let folder = std::env::current_exe().unwrap().ancestors().nth(3).expect("a target folder").join("packages-to-read");
    let made = || {
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        files.into_iter().find(|path| path.to_string_lossy().ends_with(&format!("-{release}.x86_64.rpm")))
    };
    let program = output(Command::new("sha256sum").arg(dist().join("bin/bwvisu-runner")));
    let digest = program.split(' ').next().expect("a digest");
    let holds_it =
        |path: &PathBuf| output(Command::new("rpm").args(["--query", "--dump", "--package"]).arg(path)).contains(digest);
    if let Some(made) = made().filter(holds_it) {
        return made;
    }
    output(Command::new(repository().join("packaging/build-rpm")).arg(release).env("PACKAGES", &folder));
    made().filter(holds_it).expect("a package of the program under test: is it the one in dist/?")
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// There is no dnf on Debian. rpm does what it does, once it has fetched what the package needs; all of that is here, but rpm knows only of what
/// came as an RPM.
const HAND_OVER: &str = r#"set -e
mkdir -p /root && mount -t tmpfs -o mode=700 root /root
cp $1 /root/
cat >/usr/local/sbin/dnf <<'END'
#!/bin/bash
verb=$1
shift
[[ $1 != -y ]] || shift
case $verb in
    install | upgrade | downgrade) exec rpm --force-debian --nodeps --upgrade --oldpackage "$@" ;;
    remove) exec rpm --force-debian --erase "$@" ;;
esac
END
# No sshd listens on the runners' machines: what is copied to one lies where that one's reader finds it.
cat >/usr/local/sbin/scp <<'END'
#!/bin/bash
cp "$1" /srv/documents/run1-root/
END
chmod 755 /usr/local/sbin/{dnf,scp}
"#;

fn report(reader: &Reader) {
    for (heading, time) in &reader.times {
        println!("    {:>5.1} s  {heading}", time.as_secs_f64());
    }
    println!("{} commands of the documents were run; these blocks were not:", reader.commands);
    reader.not_run.iter().for_each(|block| println!("    {block}"));
}
