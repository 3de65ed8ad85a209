//! Whatever options, traps, functions and aliases a script has: it gets its ports, and finds its shell as it left it.

use crate::job::{Job, TOKEN};
use std::path::Path;

/// Functions or aliases by the names of all that the bash for ports calls.
const CALLED: [&str; 31] = [
    "base64", "busybox", "chmod", "command", "exit", "export", "gunzip", "gzip", "local", "mktemp", "openssl", "pigz", "printf",
    "read", "return", "rm", "set", "shopt", "trap", "type", "umask", "uname", "unset", "zcat", "true", "eval", "sh", "env",
    "sort", "grep", "[",
];

fn odd_settings() -> Vec<String> {
    let functions = CALLED.map(|name| format!("function {name} {{ echo evil; }}")).join("\n");
    let aliases = CALLED.map(|name| format!("alias {name}='echo evil;'")).join("\n");
    let plain = [
        "",
        "set -euo pipefail",
        "set -x",
        "set -v",
        "set -euxvo pipefail",
        "set -C",
        "set -f",
        "set -a",
        "set -k",
        "set -o posix",
        "set -euxo posix",
        "set -E; trap 'echo \"$BASH_COMMAND\" >&2' ERR",
        "trap 'echo \"$BASH_COMMAND\" >&2' DEBUG",
        "set -ET; trap 'echo \"$BASH_COMMAND\"; echo \"$BASH_COMMAND\" >&2' DEBUG",
        "shopt -s extdebug; trap 'echo \"$BASH_COMMAND\" >&2' DEBUG",
        "PS4='$(date) '; set -x",
        "exec 7>&2; BASH_XTRACEFD=7; set -x",
        "IFS=",
        "IFS=_k1e0",
        "umask 0277",
        "unset TMPDIR HOME",
        "shopt -s extglob nullglob failglob nocasematch lastpipe dotglob xpg_echo",
        "shopt -s nocasematch expand_aliases; set -a",
        "shopt -s inherit_errexit; set -e",
        "exec </dev/null",
        "exec <&-",
        "KEYHOLE_TOKEN=old; export KEYHOLE_TOKEN",
        "export GZIP=-v BASH_ENV=/nonexistent ENV=/nonexistent POSIXLY_CORRECT=1 LC_ALL=C.UTF-8",
        "export SHELLOPTS; set -x",
        "set -- a b c",
        "folder=/ machine=z lines=export why=1 place=2 tried=3",
    ];
    let mut settings: Vec<String> = plain.map(str::to_owned).to_vec();
    settings.push(functions);
    settings.push(format!("shopt -s expand_aliases\n{aliases}"));
    settings.push(format!("set -o posix\n{aliases}"));
    settings
}

/// All that a script could notice of its shell, but for what each command changes.
const LOOK: &str = r#"
    \builtin set +o; \builtin shopt; \builtin trap; \builtin alias; \builtin declare -F; \builtin umask; \builtin printf '%s|' "$IFS" "$@"
    \builtin compgen -v | command -p grep -Ev '^(_|KEYHOLE_.*|BASH_.*|PIPESTATUS|LINENO|RANDOM|SECONDS|EPOCH.*|SRANDOM|FUNCNAME|COLUMNS|LINES)$'
    command -p ls "/proc/$$/fd"
"#;

#[test]
fn whatever_a_script_has_set_it_gets_its_ports_and_stays_as_it_was() {
    for setting in odd_settings() {
        let mut job = Job::new();
        let look = |name: &str| format!("{{ {LOOK} }} >|\"$RECORD/{name}\" 2>/dev/null");
        let look_for_token =
            "{ \\builtin set; command -p env; \\builtin declare -p; \\builtin declare -f; } >|\"$RECORD/all\" 2>/dev/null";
        let values = r#""$KEYHOLE_PORT0" "$KEYHOLE_GATEWAY0" "$KEYHOLE_EXTERNAL_PORT0" "$KEYHOLE_NUM_PORTS""#;
        let ports = format!("\\builtin printf '%s %s %s %s' {values} >|\"$RECORD/ports\"");
        job.before = format!("{setting}\n{}", look("before"));
        job.after = format!("{}\n{look_for_token}\n{ports}", look("after"));
        let run = job.run();
        let told = format!("with:\n{setting}\n{}", run.told());
        assert_eq!(job.record("ports"), "50000 192.0.2.0 60000 1", "{told}");
        assert_eq!(run.status, Some(0), "{told}");
        assert!(job.record("before").len() > 1000, "{told}");
        assert_eq!(job.record("after"), job.record("before"), "{told}");
        assert_eq!(job.record("token"), TOKEN, "{told}");
        assert!(job.record("all").contains("KEYHOLE_PORT0") && !job.record("all").contains("KEYHOLE_TOKEN="), "{told}");
        for (place, text) in [("output", &run.stdout), ("errors", &run.stderr), ("shell", &job.record("all"))] {
            assert!(!text.contains(TOKEN), "the token is in the {place}, {told}");
        }
        assert_eq!(job.leftovers(), [] as [&Path; 0], "{told}");
    }
}
