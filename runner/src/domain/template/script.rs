//! What must hold for the lines of a batch script, whether it is an outline with gaps or a rendered one.

use std::ops::Range;

/// Stands in an outline where a variable will stand. No template may hold it itself.
pub(super) const GAP: char = '\0';

const PORTS_WORD: &str = "#KEYHOLE-REQUEST-PORTS";

/// The line that asks for ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortsLine {
    /// Where it stands in the script, in bytes, without its newline.
    pub range: Range<usize>,
    /// What it asks for.
    pub ports: RequestedPorts,
}

/// How many ports a job asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestedPorts {
    /// There is no ports line.
    None,
    /// So many.
    Number(u32),
    /// As many as variables say; known once it is rendered.
    FromVariables,
}

impl RequestedPorts {
    /// The number, where one is known.
    pub fn number(self) -> Option<u32> {
        match self {
            Self::Number(number) => Some(number),
            Self::None | Self::FromVariables => None,
        }
    }
}

/// Finds the one ports line of a script. Two are an error, and so is a number that is none or not within 1 to `max_ports`.
/// A line counts wherever it stands, also in a comment's or a heredoc's lines.
pub fn find_ports_line(script: &str, max_ports: u32) -> Result<Option<PortsLine>, String> {
    let mut found: Option<PortsLine> = None;
    let mut start = 0;
    for line in script.split_inclusive('\n') {
        let range = start..start + line.trim_end_matches('\n').len();
        start += line.len();
        let Some(ports) = ports_of_line(&script[range.clone()], max_ports)? else { continue };
        if let Some(first) = &found {
            let (first, second) = (script[first.range.clone()].trim(), script[range].trim());
            return Err(format!("there may be one ports line, and here are two: \"{}\" and \"{}\"", show(first), show(second)));
        }
        found = Some(PortsLine { range, ports });
    }
    Ok(found)
}

fn ports_of_line(line: &str, max_ports: u32) -> Result<Option<RequestedPorts>, String> {
    let Some(number) = line.trim_matches([' ', '\t']).strip_prefix(PORTS_WORD) else { return Ok(None) };
    let wrong = |rule: &str| Err(format!("\"{}\": {rule}", show(line.trim())));
    if number.contains(GAP) {
        return Ok(Some(RequestedPorts::FromVariables));
    }
    if !number.is_empty() && !number.starts_with([' ', '\t']) {
        return wrong(&format!("a blank and a number must follow {PORTS_WORD}"));
    }
    let number = number.trim();
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return wrong(&format!("a whole number must follow {PORTS_WORD}, and nothing else"));
    }
    match number.parse() {
        Ok(number) if (1..=max_ports).contains(&number) => Ok(Some(RequestedPorts::Number(number))),
        _ => wrong(&format!("a job may ask for 1 to {max_ports} ports")),
    }
}

/// Checks the lines of a script and says how many ports it asks for.
pub(super) fn check(script: &str, max_ports: u32) -> Result<RequestedPorts, String> {
    let first = script.lines().next().unwrap_or_default();
    if !first.starts_with("#!") && !first.starts_with(GAP) {
        return Err(format!("the first line must begin with \"#!\", as in \"#!/bin/bash\"; it is \"{}\"", show(first)));
    }
    if let Some(line) = script.lines().find(|line| makes_several_jobs(line)) {
        return Err(format!("\"{}\" makes several jobs of one, and here a job is one job: submit it several times", show(line)));
    }
    let Some(line) = find_ports_line(script, max_ports)? else { return Ok(RequestedPorts::None) };
    if !is_bash(first) {
        return Err(format!("a ports line becomes bash, so the first line must name bash; it is \"{}\"", show(first)));
    }
    if let Some(late) = script[line.range.end..].lines().find(|line| line.starts_with("#SBATCH")) {
        return Err(format!("\"{}\" stands after the ports line, where Slurm ignores it: move it up", show(late)));
    }
    Ok(line.ports)
}

/// Arrays and heterogeneous jobs: several jobs of Slurm's under one name.
fn makes_several_jobs(line: &str) -> bool {
    let Some(options) = line.strip_prefix("#SBATCH") else { return false };
    // What follows a `#` is a comment.
    let words = options.split_whitespace().take_while(|word| !word.starts_with('#'));
    words.into_iter().any(|word| {
        let short = word.starts_with("-a") && !word.starts_with("--");
        short || word == "hetjob" || word == "packjob" || word.split('=').next() == Some("--array")
    })
}

/// Whether `#!` names bash: itself, or as what `env` looks for.
fn is_bash(first: &str) -> bool {
    first.contains(GAP) || first.trim_start_matches("#!").split_whitespace().any(|word| word.rsplit('/').next() == Some("bash"))
}

/// What a template's source may not hold at all.
pub(super) fn check_characters(source: &str) -> Result<(), String> {
    if let Some((before, _)) = source.split_once('\r') {
        let line = before.matches('\n').count() + 1;
        return Err(format!(
            "line {line} has a Windows line end (CR LF), which bash takes for part of the command: use dos2unix"
        ));
    }
    if source.contains(GAP) {
        return Err("it holds a NUL byte, so it is no text".into());
    }
    Ok(())
}

/// A line as it may be shown: printable, not long, gaps as dots.
fn show(line: &str) -> String {
    let shown: String = line.chars().take(80).map(|c| if c == GAP { '…' } else { c }).collect();
    shown.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(line: &str) -> Result<RequestedPorts, String> {
        check(&format!("#!/bin/bash\n{line}\ntrue\n"), 100)
    }

    #[test]
    fn what_would_become_several_jobs_is_refused() {
        for line in ["#SBATCH --array=1-3", "#SBATCH -a 1-3", "#SBATCH -a1-3", "#SBATCH -N1 --array 1-3", "#SBATCH hetjob"] {
            assert!(ports(line).is_err_and(|message| message.contains("several jobs")), "{line}");
        }
        for line in ["#SBATCH --account=x", "#SBATCH -A x", "#SBATCH -N1 # not --array", "# SBATCH --array=1-3"] {
            assert_eq!(ports(line), Ok(RequestedPorts::None), "{line}");
        }
    }

    #[test]
    fn one_ports_line_counts_wherever_blanks_are() {
        for line in [
            "#KEYHOLE-REQUEST-PORTS 2",
            "  #KEYHOLE-REQUEST-PORTS 2",
            "\t#KEYHOLE-REQUEST-PORTS\t2 \t",
            "#KEYHOLE-REQUEST-PORTS   002",
        ] {
            assert_eq!(ports(line), Ok(RequestedPorts::Number(2)), "{line:?}");
        }
        assert_eq!(ports("#KEYHOLE-REQUEST-PORTS 100"), Ok(RequestedPorts::Number(100)));
        assert_eq!(ports("#KEYHOLE-REQUEST-PORTS \0"), Ok(RequestedPorts::FromVariables));
        for line in [
            "",
            "# KEYHOLE-REQUEST-PORTS 2",
            "##KEYHOLE-REQUEST-PORTS 2",
            "echo #KEYHOLE-REQUEST-PORTS 2",
            "#keyhole-request-ports 2",
        ] {
            assert_eq!(ports(line), Ok(RequestedPorts::None), "{line:?}");
        }
    }

    #[test]
    fn a_wrong_ports_line_is_quoted_with_the_rule() {
        let cases = [
            ("#KEYHOLE-REQUEST-PORTS", "a whole number must follow"),
            ("#KEYHOLE-REQUEST-PORTS two", "a whole number must follow"),
            ("#KEYHOLE-REQUEST-PORTS +2", "a whole number must follow"),
            ("#KEYHOLE-REQUEST-PORTS -1", "a whole number must follow"),
            ("#KEYHOLE-REQUEST-PORTS 1.5", "a whole number must follow"),
            ("#KEYHOLE-REQUEST-PORTS 1 2", "a whole number must follow"),
            ("#KEYHOLE-REQUEST-PORTS ١", "a whole number must follow"),
            ("#KEYHOLE-REQUEST-PORTS=2", "a blank and a number must follow"),
            ("#KEYHOLE-REQUEST-PORTS2", "a blank and a number must follow"),
            ("#KEYHOLE-REQUEST-PORTS 0", "a job may ask for 1 to 100 ports"),
            ("#KEYHOLE-REQUEST-PORTS 101", "a job may ask for 1 to 100 ports"),
            ("#KEYHOLE-REQUEST-PORTS 99999999999999999999", "a job may ask for 1 to 100 ports"),
            (
                "#KEYHOLE-REQUEST-PORTS 1\n#KEYHOLE-REQUEST-PORTS 2",
                "here are two: \"#KEYHOLE-REQUEST-PORTS 1\" and \"#KEYHOLE-REQUEST-PORTS 2\"",
            ),
            ("#KEYHOLE-REQUEST-PORTS 1\necho\n#KEYHOLE-REQUEST-PORTS \0", "and \"#KEYHOLE-REQUEST-PORTS …\""),
            ("#KEYHOLE-REQUEST-PORTS 1\n#SBATCH --time=1", "\"#SBATCH --time=1\" stands after the ports line"),
        ];
        for (line, message) in cases {
            let error = ports(line).expect_err(line);
            assert!(error.contains(message), "{line:?}: {error}");
        }
    }

    #[test]
    fn the_range_is_the_line_without_its_newline() {
        for script in ["#!/bin/bash\n #KEYHOLE-REQUEST-PORTS 1\nx", "#!/bin/bash\n #KEYHOLE-REQUEST-PORTS 1"] {
            let line = find_ports_line(script, 1).expect("valid").expect("there");
            assert_eq!(&script[line.range], " #KEYHOLE-REQUEST-PORTS 1");
        }
    }

    #[test]
    fn the_first_line_names_an_interpreter_and_with_ports_it_is_bash() {
        let with_ports = |first: &str| check(&format!("{first}\n#KEYHOLE-REQUEST-PORTS 1\n"), 9);
        for first in ["#!/bin/bash", "#! /usr/bin/env bash", "#!/usr/bin/bash -l", "\0"] {
            assert_eq!(with_ports(first), Ok(RequestedPorts::Number(1)), "{first:?}");
        }
        for first in ["#!/bin/sh", "#!/usr/bin/python3", "#!/bin/rbash"] {
            assert!(with_ports(first).is_err_and(|error| error.contains("must name bash")), "{first:?}");
            assert_eq!(check(&format!("{first}\ntrue\n"), 9), Ok(RequestedPorts::None));
        }
        for script in ["", "\n#!/bin/bash", " #!/bin/bash", "echo"] {
            assert!(check(script, 9).is_err_and(|error| error.contains("must begin with \"#!\"")), "{script:?}");
        }
    }

    #[test]
    fn windows_line_ends_and_binary_files_are_refused() {
        assert!(check_characters("#!/bin/bash\nx\r\n").is_err_and(|error| error.starts_with("line 2 has a Windows line end")));
        assert!(check_characters("\0").is_err());
        assert_eq!(check_characters("#!/bin/bash\n\tä\n"), Ok(()));
    }
}
