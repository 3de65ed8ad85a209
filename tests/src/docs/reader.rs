//! Follows a document from its first block to its last.

use super::machines::NewMachines;
use super::markdown::{Block, Part};
use super::pattern;
use super::places::{Words, hosts};
use super::session::{Ended, Session};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What `template check` is fed with where the documents show a mistake.
const MISTAKEN: &str = "template_mine.txt";

/// Who follows documents.
pub struct Reader<'m> {
    machines: &'m NewMachines<'m>,
    words: Words,
    sessions: BTreeMap<String, Session>,
    /// What the block before printed, until it was compared.
    printed: Option<String>,
    /// How long the commands below each heading took, in their order.
    pub times: Vec<(String, Duration)>,
    /// Blocks that are typed by nobody here, and why.
    pub not_run: Vec<String>,
    /// How many commands were run.
    pub commands: usize,
    /// What was otherwise than the documents say.
    pub faults: Vec<String>,
}

impl<'m> Reader<'m> {
    /// Who has done nothing yet.
    pub fn new(machines: &'m NewMachines<'m>) -> Self {
        let words = Words::of(machines.bed());
        Self {
            machines,
            words,
            sessions: BTreeMap::new(),
            printed: None,
            times: Vec::new(),
            not_run: Vec::new(),
            commands: 0,
            faults: Vec::new(),
        }
    }

    /// Follows these blocks.
    pub fn follow(&mut self, blocks: &[Block]) {
        for block in blocks {
            let begun = Instant::now();
            self.block(block);
            let title = format!("{}: {}", block.document, block.heading);
            match self.times.last_mut().filter(|(last, _)| *last == title) {
                Some((_, time)) => *time += begun.elapsed(),
                None => self.times.push((title, begun.elapsed())),
            }
        }
        self.sessions.clear();
        self.words.forget_jobs();
    }

    fn block(&mut self, block: &Block) {
        match &block.part {
            Part::Typed { at, answers } => self.typed(block, at, answers),
            Part::Written { at, file } => self.written(block, at, file),
            Part::Printed { example } => self.compare(block, *example),
            Part::Mistake { at } => self.mistake(block, at),
            Part::NotRun { reason } => self.not_run.push(format!("{}: {reason}", block.place())),
            Part::Shown => {}
        }
    }

    fn typed(&mut self, block: &Block, at: &str, answers: &[String]) {
        let mut printed = String::new();
        for command in commands(&block.text) {
            for ended in self.everywhere(block, at, &command.text, answers) {
                let what = format!("{}\n  {}", block.place(), command.text);
                if ended.status != command.exits {
                    let Ended { status, output } = &ended;
                    self.faults.push(format!("{what}\nends with {status}, not {}, and prints\n{output}", command.exits));
                }
                if let Some(shown) = &command.prints {
                    let (shown, example) = shown.strip_prefix("e.g. ").map_or((shown.as_str(), false), |shown| (shown, true));
                    self.shown(&what, shown, example, &ended.output);
                }
                printed += &ended.output;
            }
            self.commands += 1;
        }
        self.printed = Some(printed);
    }

    /// On each of the place's hosts.
    fn everywhere(&mut self, block: &Block, at: &str, command: &str, answers: &[String]) -> Vec<Ended> {
        let (hosts, user) = hosts(at).unwrap_or_else(|words| panic!("{}: {words}", block.place()));
        let command = self.words.replace(command);
        let run = |host: &&str| {
            let key = format!("{host} as {user}");
            self.sessions.entry(key).or_insert_with(|| Session::open(self.machines, host, user)).run(&command, answers)
        };
        hosts.iter().map(run).collect()
    }

    fn written(&mut self, block: &Block, at: &str, file: &str) {
        for ended in self.everywhere(block, at, &format!("cat >{file} <<'END-OF-BLOCK'\n{}END-OF-BLOCK", block.text), &[]) {
            if ended.status != 0 {
                self.faults.push(format!("{}: {file} cannot be written: {}", block.place(), ended.output));
            }
        }
    }

    fn compare(&mut self, block: &Block, example: bool) {
        let printed = self.printed.take().unwrap_or_else(|| panic!("{}: nothing was typed before it", block.place()));
        self.shown(&block.place(), &block.text, example, &printed);
    }

    /// Compares what is shown with what was printed, and keeps in mind what it stood for.
    fn shown(&mut self, what: &str, shown: &str, example: bool, printed: &str) {
        // As it is shown, or with what it stood for before.
        let candidates = [self.words.with_known(shown), self.words.replace(shown)];
        let fits = |there: &&String| if example { pattern::resembles(there, printed) } else { pattern::matches(there, printed) };
        let found = candidates.iter().find(fits);
        let there = found.unwrap_or(&candidates[1]).clone();
        let fits = found.is_some();
        if !fits {
            self.faults.push(format!("{what}\nshould print\n{there}\nand prints\n{printed}"));
        } else if example {
            self.example(shown.trim(), printed.trim());
        } else {
            pattern::meant(&there, printed).iter().for_each(|(shown, printed)| self.words.remember(shown, printed));
        }
    }

    /// The whole line stands for what was printed; and where it names a job, so does the job's number.
    fn example(&mut self, shown: &str, printed: &str) {
        if shown.contains('\n') {
            return;
        }
        let number = |text: &str| text.trim_start_matches("{\"job-id\":\"").trim_end_matches("\"}").to_owned();
        let (id, given) = (number(shown), number(printed));
        if id.len() > 1 && id.bytes().all(|byte| byte.is_ascii_digit()) {
            self.words.remember(&id, &given);
        }
        self.words.remember(shown, printed);
    }

    fn mistake(&mut self, block: &Block, at: &str) {
        self.written(block, at, MISTAKEN);
        let check = format!("bwvisu-runner template check --templates . {MISTAKEN}");
        let ended = self.everywhere(block, at, &check, &[]).remove(0);
        if ended.status != 1 {
            self.faults.push(format!("{}: nothing is wrong with it: {}", block.place(), ended.output));
        }
        self.printed = Some(ended.output);
        self.commands += 1;
    }
}

impl Drop for Reader<'_> {
    /// What went wrong before is why it ends.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.faults.iter().for_each(|fault| eprintln!("{fault}\n"));
        }
    }
}

/// A command of a block.
#[derive(Debug, PartialEq, Eq)]
struct Typed {
    text: String,
    prints: Option<String>,
    exits: i32,
}

/// The commands of a block. What one is, bash knows.
fn commands(block: &str) -> Vec<Typed> {
    let mut commands: Vec<Typed> = Vec::new();
    let mut open = String::new();
    for line in block.lines() {
        if open.is_empty() && (line.trim().is_empty() || line.starts_with('#')) {
            let last = commands.last_mut().filter(|_| line.starts_with('#'));
            last.into_iter().for_each(|command| command.notice(line));
            continue;
        }
        open += &format!("{line}\n");
        if is_complete(&open) {
            let mut command = Typed { text: std::mem::take(&mut open).trim_end().to_owned(), prints: None, exits: 0 };
            command.text.clone().lines().for_each(|line| command.notice(line));
            commands.push(command);
        }
    }
    assert!(open.is_empty(), "bash finds no end of {open}");
    commands
}

impl Typed {
    /// What the comment in a line says about the command.
    fn notice(&mut self, line: &str) {
        if let Some((_, shown)) = line.split_once("# prints ") {
            let before = self.prints.take().map(|before| before + "\n").unwrap_or_default();
            self.prints = Some(before + shown.trim());
        } else if let Some((_, code)) = line.split_once("# exits ") {
            self.exits = code.trim().parse().expect("an exit code");
        } else if let (Some(shown), Some(more)) = (&mut self.prints, line.strip_prefix("#        ")) {
            shown.push('\n');
            shown.push_str(more.trim());
        }
    }
}

/// Whether bash would begin with it, and not wait for more. A document that ends within its own text is a warning to bash.
fn is_complete(text: &str) -> bool {
    if text.trim_end().ends_with('\\') {
        return false;
    }
    let mut bash = Command::new("bash");
    let mut bash = bash.arg("-n").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = bash.wait_with_output().unwrap();
    output.status.success() && output.stderr.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str, prints: Option<&str>, exits: i32) -> Typed {
        Typed { text: text.into(), prints: prints.map(str::to_owned), exits }
    }

    #[test]
    fn a_block_falls_into_commands() {
        let block = "\
# why
first --word \\
    --other        # prints {\"a\":1}
second 'of two
lines'
third <<'END'      # exits 2
text
END
fourth # remark
# prints one
#        two
for i in 1 2; do
    echo \"$i\"
done
";
        let found = commands(block);
        let expected = [
            typed("first --word \\\n    --other        # prints {\"a\":1}", Some("{\"a\":1}"), 0),
            typed("second 'of two\nlines'", None, 0),
            typed("third <<'END'      # exits 2\ntext\nEND", None, 2),
            typed("fourth # remark", Some("one\ntwo"), 0),
            typed("for i in 1 2; do\n    echo \"$i\"\ndone", None, 0),
        ];
        assert_eq!(found, expected);
    }
}
