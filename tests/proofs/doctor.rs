//! `bwvisu-runner doctor`: a healthy bed, then one fault after the other. Each is found in exactly its own lines, all others staying as
//! they were; then its advice is followed, and the next look finds exactly the next fault, so the one before is mended.

use bwvisu_tests::gateway::all_forwardings;
use bwvisu_tests::{Bed, Broken, Ward, until};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

const USER: &str = "--user alice";
const WITH_JOB: &str = "--user alice --with-job";

#[test]
fn a_healthy_bed_is_all_right_from_the_configuration_to_the_end_of_a_job() {
    let bed = Bed::take();
    // Looks, and asserts that every line is `ok`.
    let ward = Ward::new(&bed, WITH_JOB, true);
    let table = ward.run(USER);
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(table.status.success() && text.ends_with(" ok, 0 warnings, 0 failed, 0 not checked\n"), "{text}");
    assert!(!text.contains("job-end"), "nothing is changed without --with-job");
    let without = ward.run("");
    let text = String::from_utf8(without.stdout).unwrap();
    assert!(without.status.success() && text.contains("name a user of yours with --user"), "{text}");
    for wrong in ["--with-job", "--user -x", "--user a;b", "--no-such-option"] {
        assert_eq!(ward.run(wrong).status.code(), Some(2), "{wrong}");
    }
}

/// A folder over another one, empty but for a file of that text.
fn instead<'b>(bed: &'b Bed, host: &str, folder: &str, file: &str, text: &str) -> Broken<'b> {
    let write =
        if file.is_empty() { "true".to_owned() } else { format!("echo '{text}' >{folder}/{file} && chmod 440 {folder}/{file}") };
    Broken::by(bed, host, &format!("mount -t tmpfs -o mode=755 instead {folder} && {write}"), &format!("umount {folder}"))
}

/// A folder of programs that has all but these.
fn without<'b>(bed: &'b Bed, host: &str, folder: &str, programs: &str) -> Broken<'b> {
    let breaks = format!(
        "set -e; mkdir -p /run/whole{folder} /run/less{folder}; mount --bind {folder} /run/whole{folder}\n\
         cp -as /run/whole{folder}/. /run/less{folder}/; cd /run/less{folder}; rm -f {programs}; cd /; mount --bind /run/less{folder} {folder}"
    );
    Broken::by(bed, host, &breaks, &format!("umount {folder} /run/whole{folder}; rm -rf /run/less{folder}"))
}

/// Answers every question of a command with yes, as a person at a terminal.
fn agree(bed: &Bed, host: &str, command: &str) {
    let mut child = bed
        .command(host, &["script", "-qec", command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"y\ny\ny\ny\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
}

/// The lines of a node that was not entered.
fn closed(host: &str, at: usize, words: &'static str) -> Vec<(String, &'static str)> {
    let result = |index: usize| if index == at { "failed" } else { "not-checked" };
    let lines = ["reachable", "host-key", "login"].into_iter().enumerate().skip(at);
    lines.map(|(index, check)| (format!("{check} {host} {}", result(index)), if index == at { words } else { "" })).collect()
}

fn all_of<'l>(lines: &'l [Vec<(String, &'static str)>]) -> Vec<(&'l str, &'static str)> {
    lines.iter().flatten().map(|(line, words)| (line.as_str(), *words)).collect()
}

#[test]
fn each_fault_of_sudo_and_of_a_first_contact_is_found_and_its_advice_mends_it() {
    let bed = Bed::take();
    let mut ward = Ward::new(&bed, USER, false);
    let rule = "bwvisurunner ALL=(ALL) NOPASSWD: /usr/bin/sbatch, /usr/bin/squeue, /usr/bin/scancel";
    let _none = instead(&bed, "cmd0", "/etc/sudoers.d", "", "");
    let _asks = instead(&bed, "cmd1", "/etc/sudoers.d", "bwvisurunner", &rule.replace("NOPASSWD:", ""));
    let _gateway = instead(&bed, "gw0", "/etc/sudoers.d", "", "");
    let _all = instead(&bed, "gw1", "/etc/sudoers.d", "bwvisurunner", "bwvisurunner ALL=(ALL) NOPASSWD: ALL");
    ward.finds(
        "no rule for sudo, one with a password, and one for everything",
        &[
            ("sudo cmd0 failed", rule),
            ("sudo-needless cmd0 not-checked", "password"),
            ("dry-run cmd0 not-checked", "sudo"),
            ("sudo cmd1 failed", "a password is required"),
            ("sudo-needless cmd1 not-checked", "password"),
            ("dry-run cmd1 not-checked", "sudo"),
            ("sudo gw0 failed", "NOPASSWD: /usr/sbin/iptables, /usr/sbin/iptables-save, /usr/sbin/iptables-restore"),
            ("sudo-needless gw0 not-checked", "password"),
            ("port-range gw0 not-checked", "cannot be read"),
            ("sudo-needless gw1 warning", "whoever has the runner's key"),
        ],
    );
    ward.follow_all(&["sudo cmd0", "sudo cmd1", "sudo gw0", "sudo-needless gw1"]);

    let known_hosts = ward.runner.folder().join("known_hosts");
    let [unknown, changed] = ["cmd0", "gw0"].map(|host| format!("{} ", bed.ip(host)));
    let known = fs::read_to_string(&known_hosts).unwrap();
    let stranger = known.lines().find_map(|line| line.strip_prefix(&unknown)).unwrap();
    let others = known.lines().filter(|line| !line.starts_with(&unknown) && !line.starts_with(&changed));
    let others: String = others.map(|line| format!("{line}\n")).collect();
    fs::write(&known_hosts, format!("{others}{changed}{stranger}\n")).unwrap();
    let keys = instead(&bed, "cmd1", &format!("{}/service/bwvisurunner/.ssh", bed.get("BED_MOUNT")), "", "");
    let down = bed.fault("stop-daemon", "gw1", Some("sshd"));
    let lines = [
        closed("cmd0", 1, "compare the fingerprint"),
        closed("gw0", 1, "somebody stands between"),
        closed("cmd1", 2, "authorized_keys of bwvisurunner"),
        closed("gw1", 0, "sshd listens on port 22"),
    ];
    ward.finds("an unknown host key, a changed one, a key that is not accepted, no sshd", &all_of(&lines));
    ward.follow("login cmd1");
    down.mend();
    let answers = || bed.exec("gw1", &["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/22"]).status.success();
    until("sshd to be back", 10, answers, |up| *up);
    let (command, host) = ward.command("host-key cmd0");
    assert_eq!((&command, &host), (&ward.command("host-key gw0").0, &"runner".to_owned()));
    agree(&bed, &host, &command);
    ward.is_healthy();
    drop(keys);
    let dead = [bed.fault("unplug", "cmd0", None), bed.fault("unplug", "gw0", None)];
    let lines = [closed("cmd0", 0, "is up"), closed("gw0", 0, "is up")];
    // Four seconds, twice, at each, one after the other: gateways are asked when command nodes have answered. Once more at each would show.
    // A slow machine has three tries.
    let quick = (0..3).any(|_| ward.finds("two dead nodes", &all_of(&lines)) < Duration::from_secs(22));
    assert!(quick, "a dead node costs its timeout twice");
    drop(dead);
    until("the nodes to be back", 30, || ward.run("").status.success(), |well| *well);
}

#[test]
fn each_fault_that_slurm_knows_of_is_found_and_its_advice_mends_it() {
    let bed = Bed::take();
    let mut ward = Ward::new(&bed, USER, false);
    let down = bed.fault("stop-daemon", "ctl", Some("slurmctld"));
    let nodes =
        ["node-names gw0 not-checked", "node-names gw1 not-checked", "node-reach gw0 not-checked", "node-reach gw1 not-checked"];
    let mut lines = vec![("slurm cmd0 failed", "on ctl (`systemctl start slurmctld`)"), ("slurm cmd1 failed", "DOWN")];
    lines.extend([("dry-run cmd0 not-checked", "does not answer"), ("dry-run cmd1 not-checked", "does not answer")]);
    lines.extend(nodes.map(|line| (line, "")));
    ward.finds("no slurmctld", &lines);
    down.mend();
    until("slurmctld to be back", 40, || bed.sh("cmd0", "sinfo -h -o %t || true"), |states| states.trim() == "idle");
    bed.sh("ctl", "scontrol update PartitionName=all AllowGroups=root");
    let slow = Broken::stub(&bed, "cmd0", "/usr/bin/date", "exec faketime -f -3600s $real \"$@\"");
    let lines = [
        ("dry-run cmd0 failed", "group not permitted"),
        ("dry-run cmd1 failed", "AllowGroups=ALL"),
        ("clock cmd0 failed", "s behind this machine's"),
    ];
    ward.finds("a partition that is closed, and a clock that is off", &lines);
    ward.follow("dry-run cmd1");
    // What a time server would do.
    slow.mend();
    ward.words = "--user nobody-here".into();
    let lines = ["cmd0", "cmd1"].map(|host| {
        vec![
            (format!("user {host} failed"), "getent passwd nobody-here"),
            (format!("home {host} not-checked"), "no such user"),
            (format!("dry-run {host} not-checked"), "no such user"),
        ]
    });
    ward.finds("an unknown user", &all_of(&lines));
    ward.words = "--user carol".into();
    ward.finds("a system account", &[("user cmd0 failed", "below 1000"), ("user cmd1 failed", "users.min-uid")]);
    ward.edit("config.json", |config| config["users"] = json!({"min-uid": 900}));
    let home = bed.home("carol");
    let aside = home.with_extension("aside");
    let (home, aside) = (home.display(), aside.display());
    let _home = Broken::by(&bed, "runner", &format!("mv {home} {aside}"), &format!("rm -rf {home}; mv {aside} {home}"));
    ward.finds("a user without a home", &[("home cmd0 failed", "install -d -o carol"), ("home cmd1 failed", "is not there")]);
    ward.follow("home cmd0");
    ward.is_healthy();
}

/// Other external addresses for gw0 and gw1.
fn set_external(ward: &Ward, ips: [&str; 2]) {
    let gateways = [0, 1].map(|index| format!("/gateway-nodes/{index}/external-ip"));
    ward.edit("config.json", |config| {
        gateways.iter().zip(ips).for_each(|(at, ip)| *config.pointer_mut(at).unwrap() = ip.into());
    });
}

#[test]
fn each_fault_of_a_gateway_is_found_and_its_advice_mends_it() {
    let bed = Bed::take();
    let mut ward = Ward::new(&bed, USER, false);
    let own = ["gw0", "gw1"].map(|host| bed.external(host).to_string());
    let reset = "rm -f /etc/sysctl.d/60-bwvisu-*; sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.ip_local_reserved_ports= \
                 'net.ipv4.ip_local_port_range=32768 49999'";
    let _reset = Broken::by(&bed, "gw0", "sysctl -q -w net.ipv4.ip_forward=0", reset);
    let rule =
        "-A SITE-NAT -p tcp --dport 50200:50210 -m comment --comment \"site: it's ours\" -j DNAT --to-destination 172.31.255.9";
    bed.sh("gw1", &format!("iptables -t nat {rule}"));
    set_external(&ward, [&format!("{}.77", bed.get("BED_OUTSIDE")), &own[1]]);
    let lines = [
        ("ip-forward gw0 failed", "net.ipv4.ip_forward"),
        ("port-range gw1 failed", "iptables -t nat -D SITE-NAT"),
        ("external-address gw0 warning", "one of its own addresses"),
        ("return-path gw0 not-checked", ""),
    ];
    ward.finds("ip_forward off, a rule of others in the range, and an address of nobody's", &lines);
    ward.follow_all(&["ip-forward gw0", "port-range gw1"]);

    let listen = "import socket,time; s = socket.create_server((\"\", 50123)); time.sleep(600)";
    let listens = bed.spawn("gw0", &["python3", "-c", listen]);
    until("it to listen", 10, || bed.sh("gw0", "ss -Hltn 'sport = :50123'"), |text| !text.is_empty());
    let no_nc = without(&bed, "gw1", "/usr/bin", "nc nc.*");
    ward.edit("config.json", |config| config["forwarding-hostname-suffix"] = "-nope0".into());
    set_external(&ward, [&own[1], &own[0]]);
    let lines = [
        ("port-range gw0 failed", "user id 0 listens on port 50123"),
        ("nc gw1 warning", "install netcat-openbsd"),
        ("node-names gw0 failed", "write \"forwarding-hostname-suffix\": \"\" into"),
        ("node-names gw1 failed", "such as c0-nope0"),
        ("node-reach gw0 not-checked", ""),
        ("node-reach gw1 not-checked", ""),
        ("external-address gw0 failed", "exchange the external-ip"),
        ("external-address gw1 failed", "is an address of gateway"),
        ("return-path gw0 not-checked", ""),
        ("return-path gw1 not-checked", ""),
    ];
    ward.finds("a listener in the range, no nc, a suffix that names nobody, and exchanged addresses", &lines);
    ward.edit("config.json", |config| config["forwarding-hostname-suffix"] = "".into());
    set_external(&ward, [&own[0], &own[1]]);
    let told = ward.follow("port-range gw0");
    let pid = told.split("pid=").nth(1).and_then(|rest| rest.split(',').next());
    bed.sh("gw0", &format!("kill -KILL {}", pid.unwrap_or_else(|| panic!("no process in {told}"))));
    // What the package would bring.
    drop((listens, no_nc));

    bed.sh("gw0", "sysctl -q -w net.ipv4.ip_local_reserved_ports=8080 'net.ipv4.ip_local_port_range=32768 60999'");
    let no_iptables = without(&bed, "gw1", "/usr/sbin", "*tables*");
    let drops = "INPUT -i eth0 -p tcp --dport 50000:50999 -j DROP";
    let silent = Broken::by(&bed, "c2", &format!("iptables -I {drops}"), &format!("iptables -D {drops}"));
    let lines = [
        ("ephemeral-ports gw0 failed", "ip_local_reserved_ports=8080,50000-50999"),
        ("programs gw1 failed", "install iptables"),
        ("sudo gw1 not-checked", "iptables is missing"),
        ("iptables gw1 not-checked", "iptables is missing"),
        ("port-range gw1 not-checked", "cannot be read"),
        ("node-reach gw0 failed", "c2 ("),
        ("node-reach gw1 failed", "firewalls"),
    ];
    ward.finds("a range among the kernel's own, no iptables, and a compute node behind a firewall", &lines);
    ward.follow("ephemeral-ports gw0");
    drop((no_iptables, silent));
    ward.is_healthy();
}

#[test]
fn each_fault_of_the_runners_own_machine_is_found_and_its_advice_mends_it() {
    let bed = Bed::take();
    let mut ward = Ward::new(&bed, USER, false);
    let folder = ward.runner.folder().to_owned();
    let mode = |name: &str, mode: u32| fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    let key = folder.join("id_ed25519").display().to_string();
    for end in ["", ".pub"] {
        fs::copy(format!("{}{end}", bed.get("BED_SSH_KEY")), format!("{key}{end}")).unwrap();
    }
    ward.edit("config.json", |config| config["ssh"]["identity-file"] = key.clone().into());
    let down = bed.fault("stop-daemon", "runner", Some("etcd"));
    ward.edit("settings.json", |settings| settings["api-password"] = "a long random word".into());
    for (name, bits) in [("settings.json", 0o644), ("config.json", 0o666), ("state", 0o770), ("id_ed25519", 0o644)] {
        mode(name, bits);
    }
    fs::write(folder.join("templates/template_broken.txt"), "#!/bin/bash\n#SBATCH --time={{#x}}\n").unwrap();
    let good = ["certificate.pem", "key.pem"].map(|name| (name, fs::read(folder.join(name)).unwrap()));
    expired(&folder);
    let logins = ["cmd0", "cmd1", "gw0", "gw1"].map(|host| closed(host, 2, "authorized_keys"));
    let mut lines = vec![
        ("store runner failed", "systemctl start etcd"),
        ("secrets runner failed", "chmod 0600"),
        ("configuration runner failed", "chmod o-w"),
        ("password runner failed", "that of the example"),
        ("state-folder runner failed", "chmod 0700"),
        ("templates runner failed", "template_broken.txt"),
        ("certificate runner failed", "has expired at 2020-01-01"),
        ("ssh-key runner failed", "chmod 0600"),
    ];
    lines.extend(all_of(&logins));
    ward.finds("eight faults of this machine", &lines);
    down.mend();
    ward.follow_all(&["secrets runner", "configuration runner", "password runner", "state-folder runner", "ssh-key runner"]);
    fs::remove_file(folder.join("templates/template_broken.txt")).unwrap();
    good.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    until("etcd to be back", 20, || bed.exec("runner", &["etcdctl", "endpoint", "health"]).status.success(), |up| *up);
    ward.is_healthy();
    fs::write(folder.join("config.json"), "{\"command-nodes\": 7}").unwrap();
    let output = ward.run("--json");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["checks"][0]["result"]), (Some(1), &json!("failed")), "{report:#}");
    assert!(report["checks"][0]["found"].as_str().unwrap().contains("command-nodes"), "{report:#}");
}

fn expired(folder: &std::path::Path) {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    fs::write(folder.join("certificate.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

const NO_PORTS: [(&str, &str); 2] =
    [("job-available job not-checked", "see above"), ("job-connection job not-checked", "see above")];

#[test]
fn each_fault_that_only_a_job_meets_is_found_and_its_advice_mends_it() {
    let bed = Bed::take();
    let mut ward = Ward::new(&bed, WITH_JOB, true);
    let lines = |first: [(&'static str, &'static str); 2]| first.into_iter().chain(NO_PORTS).collect::<Vec<_>>();
    let _closed = Broken::by(&bed, "runner", "iptables -A INPUT -i eth0 -p tcp --dport 80 -j REJECT", "iptables -F INPUT");
    let folders = "for f in /tmp /dev/shm /var/tmp; do mount -t tmpfs -o noexec,mode=1777 none $f; done\n\
                   mount --bind /srv/home /srv/home; mount -o remount,bind,noexec /srv/home";
    let _folders = Broken::by(&bed, "c0", folders, "umount /tmp /dev/shm /var/tmp /srv/home");
    let first = [("job-keyhole job failed", "keyholed-servers"), ("job-folder job failed", "noexec")];
    ward.finds("keyhole behind a firewall, and a node without a folder for programs", &lines(first));
    assert_eq!(ward.command("job-folder job").1, "c0");
    ward.follow_all(&["job-keyhole job", "job-folder job"]);

    let tools = without(&bed, "c0", "/usr/bin", "base64 openssl busybox gzip gunzip zcat pigz");
    let full = Broken::by(&bed, "c0", "mount -t tmpfs -o size=64k,mode=1777 full /tmp", "umount /tmp");
    let mut all = lines([("job-base64 job failed", "install coreutils"), ("job-gzip job failed", "install gzip")]);
    all.push(("job-folder job failed", "must have room"));
    ward.finds("a node without base64 and gzip, whose folders are full", &all);
    drop((tools, full));

    let range = format!("-s {} -p tcp --dport 50000:50999 -j DROP", bed.external("runner"));
    let (add, remove) = (format!("iptables -t raw -I PREROUTING {range}"), format!("iptables -t raw -D PREROUTING {range}"));
    let closed = ["gw0", "gw1"].map(|host| Broken::by(&bed, host, &add, &remove));
    ward.finds("users who are kept out", &[("job-connection job failed", "open the ports for users")]);
    drop(closed);

    ward.runner.terminate();
    let unseen = ["job", "job-keyhole", "job-folder", "job-base64", "job-gzip", "job-available", "job-connection", "job-end"];
    let unseen = unseen.map(|check| format!("{check} job not-checked"));
    let mut all = vec![("service runner failed", "systemctl start bwvisu-runner")];
    all.extend(unseen.iter().map(|line| (line.as_str(), "the service does not answer")));
    ward.finds("no service", &all);
    ward.runner.start_again();
    ward.is_healthy();
    assert!(all_forwardings(&bed).is_empty() && ward.runner.api.jobs().is_empty(), "nothing is left of all these jobs");
}
