//! What a document shows, compared with what came.

/// Stands for anything within a line; alone in a line, for any number of lines.
const ANYTHING: char = '…';

/// Whether `shown` describes all of `printed`.
pub fn matches(shown: &str, printed: &str) -> bool {
    lines_match(&lines(shown), &lines(printed))
}

/// A word of hexadecimal digits that has so many is all digits.
const RANDOM: usize = 16;

/// Whether `printed` is like `shown` but for its digits.
pub fn resembles(shown: &str, printed: &str) -> bool {
    matches(&without_digits(shown), &without_digits(printed))
}

fn without_digits(text: &str) -> String {
    let mut plain = String::new();
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let random = word.bytes().take_while(u8::is_ascii_hexdigit).count() >= RANDOM;
        for letter in word.chars() {
            match letter.is_ascii_digit() || random && letter.is_ascii_hexdigit() {
                true if plain.ends_with('0') => {}
                true => plain.push('0'),
                false => plain.push(letter),
            }
        }
    }
    plain
}

/// The lines of `shown` that left something open, each with the line that it stood for. `shown` describes `printed`.
pub fn meant(shown: &str, printed: &str) -> Vec<(String, String)> {
    let printed = lines(printed);
    let open = lines(shown).into_iter().filter(|line| line.contains(ANYTHING) && line.chars().count() > 1);
    open.filter_map(|line| Some((line.clone(), printed.iter().find(|printed| line_matches(&line, printed))?.clone()))).collect()
}

/// Lines with blanks counted as one, without empty ones at the end.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

fn lines_match(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if *first == ANYTHING.to_string() => {
            (0..=printed.len()).any(|skip| lines_match(rest, &printed[skip..]))
        }
        Some((first, rest)) => {
            printed.split_first().is_some_and(|(line, left)| line_matches(first, line) && lines_match(rest, left))
        }
    }
}

fn line_matches(shown: &str, line: &str) -> bool {
    let mut pieces = shown.split(ANYTHING);
    let first = pieces.next().unwrap_or_default();
    let Some(mut left) = line.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return left.is_empty() };
    for piece in pieces {
        let Some(at) = left.find(piece) else { return false };
        left = &left[at + piece.len()..];
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_stands_for_what_has_its_form() {
        for (shown, printed, expected) in [
            ("203.0.113.1:58800", "198.18.0.5:50001", true),
            ("203.0.113.1:58800", "198.18.0.5", false),
            ("job 1", "job 17", true),
            ("job 1", "job", false),
            ("5d41402abc4b2a76b9719d", "a9f0e61a2c3d4e5f77aabb", true),
            ("added", "faded", false),
        ] {
            assert_eq!(resembles(shown, printed), expected, "{shown:?} {printed:?}");
        }
    }

    #[test]
    fn what_was_left_open_is_told() {
        let told = meant("…\nkey AAAA… me\nend", "x\ny\nkey AAAABBBB me\nend");
        assert_eq!(told, [("key AAAA… me".to_owned(), "key AAAABBBB me".to_owned())]);
    }

    #[test]
    fn an_ellipsis_stands_for_anything_and_nothing_else_does() {
        let cases = [
            ("a b", "a   b\n\n", true),
            ("a", "a\nb", false),
            ("a…", "abc", true),
            ("a…c…e", "abcde", true),
            ("a…c…e", "abde", false),
            ("…", "", true),
            ("a\n…\nd", "a\nb\nc\nd", true),
            ("a\n…\nd", "a\nd", true),
            ("a\n…", "b\na", false),
            ("ab…ba", "aba", false),
            ("{\"job-id\":\"1\"}", "{\"job-id\":\"2\"}", false),
        ];
        for (shown, printed, expected) in cases {
            assert_eq!(matches(shown, printed), expected, "{shown:?} {printed:?}");
        }
    }
}
