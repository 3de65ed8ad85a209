//! The program's own page and completion, from its command line.

use super::roff::{escaped, paragraphs};
use bwvisu_runner::cli::Cli;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

/// What clap_mangen writes for an apostrophe.
const APOSTROPHE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

/// What no command line tells.
const REST: &str = r#".SH FILES
.TP
.I /etc/runner/config.json
the configuration, see
.BR bwvisu\-runner\-config (5).
.TP
.I /etc/runner/settings.json
the secrets, mode 0600.
.TP
.I /opt/runner/templates
batch script templates, see
.BR bwvisu\-runner\-templates (5).
.TP
.I /opt/runner/share
the keyhole\-clients, one for each kind of processor.
.TP
.I /var/lib/runner
what is kept: the embedded store, the ssh key, host keys, the certificate.
.SH EXIT STATUS
0 if all went well, 1 if not (with one line on standard error that says what to do), 2 if the command line is wrong.
.SH SIGNALS
.B SIGTERM
and
.B SIGINT
end
.B serve
when the requests in flight are answered, after 20 seconds at most.
.B SIGHUP
makes it read its configuration again.
.SH SEE ALSO
.BR bwvisu\-runner\-config (5),
.BR bwvisu\-runner\-templates (5),
.BR keyhole\-client (1),
.BR sbatch (1).
The documents are in
.IR /usr/share/doc/bwvisu\-runner .
"#;

/// Calls `what` with each command that does something, and its whole name.
pub fn each(mut what: impl FnMut(&str, &Command)) {
    walk("bwvisu-runner", &Cli::command(), &mut what);
}

fn walk(path: &str, command: &Command, what: &mut impl FnMut(&str, &Command)) {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        let path = format!("{path} {}", inner.get_name());
        if inner.has_subcommands() { walk(&path, inner, what) } else { what(&path, inner) }
    }
}

fn rendered(render: impl Fn(&Man, &mut dyn std::io::Write) -> std::io::Result<()>, command: &Command) -> String {
    let mut text = Vec::new();
    render(&Man::new(command.clone()), &mut text).unwrap();
    // A blank line is a break already.
    String::from_utf8(text).unwrap().replace(".br\n\n.br\n", ".sp\n")
}

/// A section without its heading.
fn body(section: &str) -> &str {
    section.find(".SH ").map_or(section, |at| section[at..].split_once('\n').map_or("", |(_, rest)| rest))
}

/// `bwvisu-runner(1)`, all commands on one page.
pub fn page() -> String {
    let root = Cli::command();
    let mut page = format!(
        "{APOSTROPHE}.TH bwvisu\\-runner 1 \"\" \"bwvisu\\-runner {version}\" \"bwVisu runner\"\n.SH NAME\nbwvisu\\-runner \\- {about}\n\
         .SH SYNOPSIS\n.B bwvisu\\-runner\n[\\fB\\-\\-config\\fR \\fIFILE\\fR]\n.I COMMAND\n[\\fIARGUMENTS\\fR]\n.SH DESCRIPTION\n{long}.SH OPTIONS\n{options}.SH COMMANDS\n",
        version = env!("CARGO_PKG_VERSION"),
        about = escaped(&root.get_about().unwrap().to_string()),
        long = paragraphs(&root.get_long_about().unwrap().to_string()),
        options = body(&rendered(Man::render_options_section, &root)),
    );
    each(|path, command| page += &described(path, command));
    let examples = root.get_after_help().unwrap().to_string();
    let examples = examples.lines().skip(1).map(|line| escaped(line) + "\n").collect::<String>();
    page + ".SH EXAMPLES\n.nf\n" + &examples + ".fi\n" + REST
}

fn described(path: &str, command: &Command) -> String {
    let usage = command.clone().bin_name(path).render_usage().to_string();
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let options = match command.get_arguments().next() {
        Some(_) => body(&rendered(Man::render_options_section, command)).to_owned(),
        None => String::new(),
    };
    let usage = escaped(usage.trim_start_matches("Usage: "));
    format!(".SS \"{path}\"\n.nf\n{usage}\n.fi\n.PP\n{}{options}", paragraphs(&about))
}

/// Completion for bash.
pub fn completion() -> String {
    let mut text = Vec::new();
    clap_complete::generate(clap_complete::Shell::Bash, &mut Cli::command(), "bwvisu-runner", &mut text);
    // clap_complete 4.6 takes the dash in the name for a step to a sub-command, though not everywhere.
    String::from_utf8(text).unwrap().replace("bwvisu__subcmd__runner", "bwvisu__runner")
}
