//! A document as a man page: as much of Markdown as docs/ uses.

use std::fmt::Write;

/// Text in which nothing is taken for a request or an escape.
pub fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('`', "\\(ga").replace('^', "\\(ha").replace('~', "\\(ti");
    let lines = text.lines().map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\n")
}

/// Paragraphs that blank lines part.
pub fn paragraphs(text: &str) -> String {
    let parts: Vec<String> = text.split("\n\n").map(|part| escaped(part.trim()) + "\n").collect();
    parts.join(".PP\n")
}

/// Text with code, emphasis and links in it.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in text.split('`').enumerate() {
        if i % 2 == 1 {
            let _ = write!(out, "\\fB{}\\fR", escaped(part));
            continue;
        }
        for (i, part) in unlinked(part).split("**").enumerate() {
            let plain = escaped(&part.replace("&lt;", "<").replace("&gt;", ">").replace("\\|", "|"));
            out += &if i % 2 == 1 { format!("\\fB{plain}\\fR") } else { plain };
        }
    }
    let guarded = out.starts_with(['.', '\'']);
    if guarded { format!("\\&{out}") } else { out }
}

/// `[words](place)` is just the words.
fn unlinked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, (words, after))) = link(rest) {
        out += before;
        out += words;
        rest = after;
    }
    out + rest
}

fn link(text: &str) -> Option<(&str, (&str, &str))> {
    let middle = text.find("](")?;
    let begin = text[..middle].rfind('[')?;
    let end = middle + text[middle..].find(')')?;
    let image = text[..begin].ends_with('!');
    let before = if image { begin - 1 } else { begin };
    Some((&text[..before], (&text[begin + 1..middle], &text[end + 1..])))
}

/// Cells of one row. A pipe in code is escaped there.
fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_start_matches('|').replace("\\|", "\u{1}");
    let row = row.trim_end().trim_end_matches('|');
    row.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
}

/// The first cell is what is spoken of; the others are told with their headings.
fn table(rows: &[&str], out: &mut String) {
    let headings = cells(rows[0]);
    for row in rows.iter().skip(2) {
        let cells = cells(row);
        let rest = cells.iter().zip(&headings).skip(1).filter(|(cell, _)| !cell.is_empty());
        let told = rest.enumerate().map(|(i, (cell, heading))| match (i, heading.as_str()) {
            (0, _) | (_, "") => inline(cell),
            (_, heading) => format!("{}: {}", inline(heading), inline(cell)),
        });
        let _ = writeln!(out, ".TP\n{}\n{}", inline(&cells[0]), told.collect::<Vec<_>>().join("\n.br\n"));
    }
}

fn code(lines: &[&str], out: &mut String) {
    *out += ".PP\n.RS 2\n.nf\n";
    lines.iter().for_each(|line| *out += &(escaped(line) + "\n"));
    *out += ".fi\n.RE\n";
}

/// How many of `lines` belong together, from the first on.
fn run(lines: &[&str], belongs: impl Fn(&str) -> bool) -> usize {
    lines.iter().position(|line| !belongs(line)).unwrap_or(lines.len())
}

fn plain(line: &str) -> bool {
    !line.is_empty() && !["#", "|", "```", "- "].iter().any(|begin| line.starts_with(begin)) && !numbered(line)
}

fn numbered(line: &str) -> bool {
    line.split_once(". ").is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Writes the block that begins here, and returns how many lines it has.
fn block(lines: &[&str], out: &mut String) -> usize {
    let first = lines[0];
    if let Some(heading) = first.strip_prefix("## ") {
        let _ = writeln!(out, ".SH {}", inline(heading).to_uppercase().replace("\\FB", "").replace("\\FR", ""));
    } else if first.starts_with('#') {
        let _ = writeln!(out, ".SS {}", inline(first.trim_start_matches('#').trim()));
    } else if first.starts_with("```") {
        let length = run(&lines[1..], |line| !line.starts_with("```"));
        code(&lines[1..=length], out);
        return length + 2;
    } else if first.starts_with('|') {
        let length = run(lines, |line| line.starts_with('|'));
        table(&lines[..length], out);
        return length;
    } else if !first.is_empty() {
        let (mark, text) = match first.split_once(' ') {
            Some(("-", text)) => (".IP \\(bu 2\n".to_owned(), text),
            Some((number, text)) if numbered(first) => (format!(".IP {number} 4\n"), text),
            _ => (".PP\n".to_owned(), first),
        };
        let length = 1 + run(&lines[1..], plain);
        let words: Vec<&str> = std::iter::once(text).chain(lines[1..length].iter().map(|line| line.trim())).collect();
        let _ = writeln!(out, "{mark}{}", inline(&words.join(" ")));
        return length;
    }
    1
}

/// The page of a document. Its title is left out; what follows it is the description.
pub fn page(name: &str, section: &str, about: &str, text: &str) -> String {
    let title = name.replace('-', "\\-");
    let version = env!("CARGO_PKG_VERSION");
    let mut out = format!(
        ".TH {title} {section} \"\" \"bwvisu\\-runner {version}\" \"bwVisu runner\"\n.SH NAME\n{title} \\- {about}\n.SH DESCRIPTION\n"
    );
    let lines: Vec<&str> = text.lines().skip(1).collect();
    let mut at = 0;
    while at < lines.len() {
        at += block(&lines[at..], &mut out);
    }
    // A heading begins a paragraph by itself.
    let out = out.split(".PP\n").fold(String::new(), |text, part| {
        let heads = text.lines().last().is_none_or(|line| line.starts_with(".SH ") || line.starts_with(".SS "));
        if text.is_empty() || heads { text + part } else { text + ".PP\n" + part }
    });
    out + ".SH SEE ALSO\n.BR bwvisu\\-runner (1)\n"
}

#[test]
fn markdown_becomes_what_man_shows() {
    let text = "# Title\n\nSome `code-x` and [words](there.md#a),\nin **two** lines.\n\n## A `key`\n\n| key | meaning | default |\n| --- | --- | --- |\n\
                | `a` | one \\| two | `b` |\n\n- an item\n  of two lines\n- another\n\n```json\n.x \\n\n```\n\n### Below\n1. first\n";
    let expected = "Some \\fBcode\\-x\\fR and words, in \\fBtwo\\fR lines.\n.SH A KEY\n.TP\n\\fBa\\fR\none | two\n.br\ndefault: \\fBb\\fR\n\
                    .IP \\(bu 2\nan item of two lines\n.IP \\(bu 2\nanother\n.PP\n.RS 2\n.nf\n\\&.x \\en\n.fi\n.RE\n.SS Below\n.IP 1. 4\nfirst\n";
    let page = page("name", "5", "about", text);
    let shown = page.split(".SH DESCRIPTION\n").nth(1).unwrap().split(".SH SEE ALSO").next().unwrap();
    assert_eq!(shown, expected);
}
