//! The documents, followed word by word.

use bwvisu_tests::Bed;
use bwvisu_tests::bed::repository;
use bwvisu_tests::docs::machines::NewMachines;
use bwvisu_tests::docs::markdown::{blocks, documents};
use bwvisu_tests::docs::reader::Reader;
use bwvisu_tests::runner::dist;

/// What a person reads first. Whatever else there is comes afterwards.
const ORDER: [&str; 4] = ["docs/install.md", "docs/api.md", "docs/templates.md", "docs/config.md"];

#[test]
fn every_command_in_the_documents_is_run_and_prints_what_they_show() {
    let bed = Bed::take();
    let machines = NewMachines::take(&bed);
    hand_over_the_package(&machines);
    let mut reader = Reader::new(&machines);
    let mut documents = documents(&repository());
    documents.sort_by_key(|(path, _)| ORDER.iter().position(|first| first == path).unwrap_or(ORDER.len()));
    for (path, text) in documents {
        // For whoever works on one of them; all stand on the first.
        if std::env::var("DOCS_ONLY").is_ok_and(|only| path != ORDER[0] && !only.split(' ').any(|one| path.contains(one))) {
            continue;
        }
        reader.follow(&blocks(&path, &text).unwrap_or_else(|words| panic!("{words}")));
        // What follows stands on it.
        if path == ORDER[0] && !reader.faults.is_empty() {
            break;
        }
    }
    report(&reader);
    assert!(reader.faults.is_empty(), "the documents are wrong:\n\n{}", reader.faults.join("\n\n"));
}

/// The package, in the folder that its reader is in. There is no dnf on Debian.
fn hand_over_the_package(machines: &NewMachines) {
    for host in ["runner", "run1"] {
        let output = machines.command(host, &["bash", "-c", INSTALL, "bash", &dist().to_string_lossy()]).output().unwrap();
        assert!(output.status.success(), "{host}: {output:?}");
    }
}

const INSTALL: &str = r#"
cat >/usr/local/sbin/dnf <<END
#!/bin/bash
set -e
cp -rL $1 /opt/runner
ln -s /opt/runner/bin/bwvisu-runner /usr/bin/
useradd --system --home-dir /var/lib/runner --shell /usr/sbin/nologin bwvisurunner
install -d -m 700 -o bwvisurunner -g bwvisurunner /var/lib/runner
install -d -m 750 -o root -g bwvisurunner /etc/runner
install -m 640 -o root -g bwvisurunner /dev/null /etc/runner/config.json
install -m 600 -o bwvisurunner -g bwvisurunner /dev/null /etc/runner/settings.json
cat >/usr/lib/systemd/system/bwvisu-runner.service <<UNIT
[Unit]
Description=bwVisu runner
Wants=network-online.target
After=network-online.target
[Service]
User=bwvisurunner
ExecStart=/opt/runner/bin/bwvisu-runner serve
ExecStartPost=/bin/sleep 1.5
ExecReload=/bin/kill -HUP \$MAINPID
StateDirectory=runner
StateDirectoryMode=0700
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=read-only
LimitNOFILE=16384
Restart=on-failure
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
END
chmod 755 /usr/local/sbin/dnf
"#;

fn report(reader: &Reader) {
    for (heading, time) in &reader.times {
        println!("    {:>5.1} s  {heading}", time.as_secs_f64());
    }
    println!("{} commands of the documents were run; these blocks were not:", reader.commands);
    reader.not_run.iter().for_each(|block| println!("    {block}"));
}
