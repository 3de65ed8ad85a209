//! Words for a remote shell: `ssh` joins its words with spaces and lets the other side's shell read them again.

/// `word`, quoted so that a POSIX shell reads it back as exactly one word.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// `text` as it stands within double quotes, or in a here-document.
pub fn within_double_quotes(text: &str) -> String {
    let escaped = |c: char| if "\"$`\\".contains(c) { format!("\\{c}") } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// Several words as one command line.
pub fn join<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_every_hostile_word_back_unchanged() {
        for word in [
            "",
            "plain",
            "a b",
            "a'; echo foo",
            "new\nline",
            r"back\slash",
            "$HOME `id` $(id)",
            "*",
            "~",
            "-n",
            "!x",
            "ä",
            "#c",
            "a=b",
        ] {
            let line = format!("printf '%s.' {}", quote(word));
            let output = Command::new("sh").arg("-c").arg(line).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{word}."), "{word:?}");
        }
    }

    #[test]
    fn words_are_joined_with_single_spaces() {
        assert_eq!(join(["sudo", "-n", "a b"]), "sudo -n 'a b'");
    }
}
