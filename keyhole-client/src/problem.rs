//! The one member of a JSON problem body that people should read.

use crate::failure::printable;
use alloc::string::String;
use core::str::Chars;

/// The most letters that are kept of it.
const MAX_LETTERS: usize = 300;

/// The member `detail` of a JSON object, in printable ASCII, if there is a string of that name at its top.
///
/// This is no JSON reader: of a body that is not JSON it may find something or nothing.
#[must_use]
pub fn detail(body: &str) -> Option<String> {
    let mut letters = body.chars();
    let mut depth = 0_usize;
    while let Some(letter) = letters.next() {
        match letter {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.checked_sub(1)?,
            '"' if string(&mut letters)? == "detail" && depth == 1 && next_is(&mut letters, ':') => {
                return if next_is(&mut letters, '"') { string(&mut letters) } else { None };
            }
            _ => {}
        }
    }
    None
}

/// Whether this letter comes next, but for blanks; if so, it is taken.
fn next_is(letters: &mut Chars<'_>, letter: char) -> bool {
    let rest = letters.as_str().trim_ascii_start();
    match rest.strip_prefix(letter) {
        Some(rest) => {
            *letters = rest.chars();
            true
        }
        None => false,
    }
}

/// A string, behind its opening quote; `None` if it does not end.
fn string(letters: &mut Chars<'_>) -> Option<String> {
    let mut text = String::new();
    let mut length = 0;
    loop {
        let letter = match letters.next()? {
            '"' => return Some(text),
            '\\' => escaped(letters)?,
            letter => letter,
        };
        length += 1;
        if length <= MAX_LETTERS {
            text.push(printable(letter));
        }
    }
}

fn escaped(letters: &mut Chars<'_>) -> Option<char> {
    Some(match letters.next()? {
        'b' | 'f' | 'n' | 'r' | 't' => ' ',
        'u' => {
            let mut code = 0;
            for _ in 0..4 {
                code = code << 4 | letters.next()?.to_digit(16)?;
            }
            char::from_u32(code).unwrap_or('?')
        }
        letter => letter,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use proptest::prelude::*;

    #[test]
    fn the_detail_is_found() {
        for (body, expected) in [
            (r#"{"status":409,"title":"Conflict","detail":"the token was used"}"#, "the token was used"),
            ("{ \"detail\" :\n\t\"a\" , \"detail\": \"b\" }", "a"),
            (r#"{"a":{"detail":"inner"},"b":["detail"],"detail":"outer"}"#, "outer"),
            (r#"{"title":"detail","detail":"d"}"#, "d"),
            (r#"{"detail":""}"#, ""),
            (r#"{"detail":"a \"b\" \\ \/ c\nd \u0041 \u00fc \ud83d\ude00 ü {["}"#, "a \"b\" \\ / c d A ? ?? ? {["),
            ("{\"detail\":\"\u{1b}[31mred\u{7f}\"}", "?[31mred?"),
        ] {
            assert_eq!(detail(body).as_deref(), Some(expected), "{body}");
        }
    }

    #[test]
    fn a_body_without_a_detail_has_none() {
        for body in [
            "",
            "no such job",
            "\"detail\":\"x\"",
            "[\"detail\",\"x\"]",
            "{}",
            "}{\"detail\":\"x\"}",
            r#"{"detail":7}"#,
            r#"{"detail":null,"detail":"x"}"#,
            r#"{"detail":"never ends"#,
            r#"{"detail":"\u00g0"}"#,
            r#"{"detail":"\"#,
            r#"{"a":{"detail":"inner"}}"#,
            "<html>{\"detail\"</html>",
        ] {
            assert_eq!(detail(body), None, "{body}");
        }
    }

    #[test]
    fn a_long_detail_is_cut() {
        let body = format!("{{\"detail\":\"{}\"}}", "ü".repeat(1000));
        assert_eq!(detail(&body), Some("?".repeat(MAX_LETTERS)));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_shown_in_printable_letters(body in "(\\{\"detail\":\")?\\PC*[\"\\\\u{}a-f0-9]{0,9}\"?\\}?") {
            if let Some(detail) = detail(&body) {
                prop_assert!(detail.len() <= MAX_LETTERS);
                prop_assert!(detail.bytes().all(|letter| (b' '..=b'~').contains(&letter)));
            }
        }
    }
}
