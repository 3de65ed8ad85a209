//! Blocks of a document, and the comments that say what to do with them.

use std::path::Path;

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The document's path from the root of the project.
    pub document: String,
    /// The line of its fence.
    pub line: usize,
    /// The heading above it.
    pub heading: String,
    /// What stands behind the fence.
    pub language: String,
    /// Its text, with a newline at its end.
    pub text: String,
    /// What becomes of it.
    pub part: Part,
}

/// What becomes of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Its commands are typed.
    Typed {
        /// Where and by whom.
        at: String,
        /// What is answered to questions.
        answers: Vec<String>,
    },
    /// It goes into a file.
    Written {
        /// Where and by whom.
        at: String,
        /// The file.
        file: String,
    },
    /// It is what the commands before it print.
    Printed {
        /// But for its digits.
        example: bool,
    },
    /// It is a template with a mistake.
    Mistake {
        /// Where and by whom it is checked.
        at: String,
    },
    /// Nobody types it here.
    NotRun {
        /// Why.
        reason: String,
    },
    /// It is looked at by people.
    Shown,
}

impl Block {
    /// Where it stands, for people.
    pub fn place(&self) -> String {
        format!("{}:{} ({})", self.document, self.line, self.heading)
    }
}

/// Languages that a fence may name. Commands in another one would be overlooked.
const LANGUAGES: [&str; 7] = ["sh", "text", "json", "ini", "nginx", "yaml", "sudoers"];

/// The blocks of a document.
pub fn blocks(document: &str, text: &str) -> Result<Vec<Block>, String> {
    let mut walk = Walk { document, heading: String::new(), notes: Notes::default(), from_here_on: None, blocks: Vec::new() };
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let inner: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            walk.block(index + 1, language, &inner)?;
        } else {
            walk.line(line).map_err(|words| format!("{document}:{}: {words}", index + 1))?;
        }
    }
    Ok(walk.blocks)
}

/// What the comments since the last block say.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Notes {
    on: Option<String>,
    answers: Vec<String>,
    file: Option<String>,
    prints: Option<bool>,
    mistake: bool,
    not_run: Option<String>,
}

struct Walk<'d> {
    document: &'d str,
    heading: String,
    notes: Notes,
    from_here_on: Option<String>,
    blocks: Vec<Block>,
}

impl Walk<'_> {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if line.trim_start().starts_with("```") {
            return Err("a fence that is indented would be overlooked".into());
        }
        if let Some(note) = line.strip_prefix("<!-- ") {
            let note = note.strip_suffix(" -->").ok_or("a comment that does not end in its line")?;
            return self.notes.add(note);
        }
        if !line.trim().is_empty() {
            self.paragraph(line)?;
        }
        Ok(())
    }

    /// Text: what was said before it counts from here on.
    fn paragraph(&mut self, line: &str) -> Result<(), String> {
        let notes = std::mem::take(&mut self.notes);
        let place = notes.on.clone();
        if notes != (Notes { on: place.clone(), ..Notes::default() }) {
            return Err("the comment before this line belongs to no block".into());
        }
        self.from_here_on = place.or(self.from_here_on.take());
        if line.starts_with('#') {
            self.heading = line.trim_start_matches('#').trim().to_owned();
        }
        Ok(())
    }

    fn block(&mut self, line: usize, language: &str, lines: &[&str]) -> Result<(), String> {
        let fault = |words: &str| Err(format!("{}:{line}: {words}", self.document));
        if !LANGUAGES.contains(&language) {
            return fault(&format!("the fence names {language:?}; there are {LANGUAGES:?}"));
        }
        let notes = std::mem::take(&mut self.notes);
        let at = notes.on.clone().or_else(|| self.from_here_on.clone());
        let part = match (notes, at) {
            (Notes { not_run: Some(reason), .. }, _) => Part::NotRun { reason },
            (Notes { prints: Some(example), .. }, _) => Part::Printed { example },
            (Notes { file: Some(file), .. }, Some(at)) => Part::Written { at, file },
            (Notes { mistake: true, .. }, Some(at)) => Part::Mistake { at },
            (Notes { answers, .. }, Some(at)) if language == "sh" => Part::Typed { at, answers },
            (notes, None) if language == "sh" || notes != Notes::default() => {
                return fault("nothing says where this is typed: <!-- on: PLACE --> or <!-- not run: REASON -->");
            }
            (notes, Some(_)) if !notes.answers.is_empty() || notes.on.is_some() => return fault("nothing of this is typed"),
            _ => Part::Shown,
        };
        let (document, heading) = (self.document.to_owned(), self.heading.clone());
        let text = lines.iter().map(|line| format!("{line}\n")).collect();
        self.blocks.push(Block { document, line, heading, language: language.to_owned(), text, part });
        Ok(())
    }
}

impl Notes {
    fn add(&mut self, note: &str) -> Result<(), String> {
        let (word, rest) = note.split_once(':').unwrap_or((note, ""));
        let rest = rest.trim().to_owned();
        match word {
            "on" => self.on = Some(rest),
            "typed" => self.answers = rest.split_whitespace().map(str::to_owned).collect(),
            "write" => self.file = Some(rest),
            "prints" | "prints e.g." => self.prints = Some(word != "prints"),
            "mistake" => self.mistake = true,
            "not run" if !rest.is_empty() => self.not_run = Some(rest),
            // Marks for whoever writes a part of the page.
            _ if rest == "begin" || rest == "end" => {}
            _ => return Err(format!("the comment {note:?} means nothing here")),
        }
        Ok(())
    }
}

/// All documents for people, with their texts: the README and what lies in `docs/`.
pub fn documents(root: &Path) -> Vec<(String, String)> {
    let below = std::fs::read_dir(root.join("docs")).expect("docs/ is there").map(|entry| entry.unwrap().file_name());
    let mut paths: Vec<String> = below.map(|name| format!("docs/{}", name.to_string_lossy())).collect();
    paths.retain(|path| path.ends_with(".md"));
    paths.push("README.md".into());
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(root.join(&path)).expect("a document"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<Part> {
        blocks("x.md", text).unwrap().into_iter().map(|block| block.part).collect()
    }

    #[test]
    fn what_becomes_of_a_block_stands_before_it() {
        let typed =
            |at: &str, answers: &[&str]| Part::Typed { at: at.into(), answers: answers.iter().map(|&a| a.into()).collect() };
        let cases = [
            ("<!-- on: runner -->\n```sh\ntrue\n```\n", typed("runner", &[])),
            ("<!-- on: runner -->\n# Head\nText\n\n```sh\ntrue\n```\n", typed("runner", &[])),
            (
                "<!-- on: runner -->\n# Head\n<!-- on: gw as bob -->\n<!-- typed: y n -->\n```sh\ntrue\n```\n",
                typed("gw as bob", &["y", "n"]),
            ),
            ("<!-- not run: too long: a day -->\n\n```sh\ntrue\n```\n", Part::NotRun { reason: "too long: a day".into() }),
            ("<!-- on: r -->\n<!-- write: /a/b -->\n```json\n{}\n```\n", Part::Written { at: "r".into(), file: "/a/b".into() }),
            ("<!-- prints -->\n```text\nx\n```\n", Part::Printed { example: false }),
            ("<!-- prints e.g. -->\n```text\nx\n```\n", Part::Printed { example: true }),
            ("<!-- on: r -->\n<!-- mistake -->\n```text\nx\n```\n", Part::Mistake { at: "r".into() }),
            ("```text\nx\n```\n", Part::Shown),
            ("<!-- table: begin -->\n```text\nx\n```\n", Part::Shown),
        ];
        for (text, part) in cases {
            assert_eq!(parts(text), [part], "{text}");
        }
    }

    #[test]
    fn a_block_that_would_be_overlooked_is_an_error() {
        for text in [
            "```sh\ntrue\n```\n",
            "```bash\ntrue\n```\n",
            "```\ntrue\n```\n",
            "- a\n  ```sh\n  true\n  ```\n",
            "<!-- on: runner\n-->\n",
            "<!-- not run: -->\n```sh\ntrue\n```\n",
            "<!-- write: /a/b -->\n```text\nx\n```\n",
            "<!-- prints -->\nText\n",
            "<!-- on: runner -->\n```text\nx\n```\n",
            "<!-- anything -->\n",
        ] {
            blocks("x.md", text).expect_err(text);
        }
    }

    #[test]
    fn no_block_of_commands_in_the_documents_would_be_overlooked() {
        let documents = documents(&crate::bed::repository());
        assert!(documents.len() > 6, "{:?}", documents.iter().map(|(path, _)| path).collect::<Vec<_>>());
        let faults: Vec<String> = documents.iter().filter_map(|(path, text)| blocks(path, text).err()).collect();
        assert!(faults.is_empty(), "{faults:#?}");
    }
}
