//! Things on a host that are otherwise than they should be, for as long as a value lives.

use crate::bed::Bed;

/// How long a program hangs that is told to. No other process of the bed has these words.
pub const HANG: &str = "exec sleep 3611";

/// Something broken; dropped, it is mended, also when the test failed.
pub struct Broken<'b> {
    bed: &'b Bed,
    host: String,
    mend: String,
}

impl<'b> Broken<'b> {
    /// Breaks something by one script on a host, and mends it by another.
    pub fn by(bed: &'b Bed, host: &str, breaks: &str, mends: &str) -> Self {
        // Made first: a script that failed half-way has broken something, too.
        let broken = Self { bed, host: host.to_owned(), mend: mends.to_owned() };
        bed.sh(host, breaks);
        broken
    }

    /// A script instead of a program (named by its path), which it finds as `$real`. What it left hanging is killed in the end.
    pub fn stub(bed: &'b Bed, host: &str, program: &str, script: &str) -> Self {
        let name = program.rsplit('/').next().unwrap_or_default();
        let breaks = format!(
            "set -e; mkdir -p /run/real; cp {program} /run/real/{name}\n\
             cat >/run/real/{name}.stub <<'END-OF-STUB'\n#!/bin/bash\nreal=/run/real/{name}\n{script}\nEND-OF-STUB\n\
             chmod 755 /run/real/{name}.stub; mount --bind /run/real/{name}.stub {program}"
        );
        Self::by(
            bed,
            host,
            &breaks,
            &format!("umount --lazy {program}; pkill -KILL -x -f '{}'", HANG.trim_start_matches("exec ")),
        )
    }

    /// Other values in Slurm's configuration, which its commands read whenever they start; its daemons when they are told to.
    pub fn slurm_conf(bed: &'b Bed, lines: &str, daemons_too: bool) -> Self {
        let file = "/etc/slurm/slurm.conf";
        let reread = if daemons_too { "scontrol reconfigure" } else { "true" };
        // A name must not stand there twice.
        let names = lines.lines().filter_map(|line| line.split('=').next());
        let without: String = names.map(|name| format!("/^{name}=/d;")).collect();
        let breaks =
            format!("set -e; cp {file} {file}.whole; {{ sed '{without}' {file}.whole; echo '{lines}'; }} >{file}; {reread}");
        Self::by(bed, "cmd0", &breaks, &format!("mv {file}.whole {file}; {reread}"))
    }

    /// Mends it.
    pub fn mend(self) {}
}

impl Drop for Broken<'_> {
    fn drop(&mut self) {
        // A host that was down meanwhile came back whole, so there may be nothing to mend.
        self.bed.exec(&self.host, &["bash", "-c", &self.mend]);
    }
}
