//! What bash says before it can write to the job's log. A pipe takes it, since the user has a hold of its other end: of a file, the
//! user could write as much as he likes into the spool.

use std::io::Read;
use std::sync::mpsc::{self, Receiver};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// How many bytes are kept.
const MOST: u64 = 4096;
/// How many characters a reason has at most.
const SHOWN: usize = 300;

/// The end at which it is heard.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    said: Option<Receiver<Vec<u8>>>,
}

impl Trouble {
    /// Listens to the pipe until it ends or has said too much; then it is closed.
    pub(super) fn listen(pipe: impl Read + Send + 'static) -> std::io::Result<Self> {
        let (send, said) = mpsc::channel();
        let listen = move || {
            let mut pipe = pipe.take(MOST);
            let mut chunk = [0; 1024];
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                let _ = send.send(chunk[..count].to_vec());
            }
        };
        Builder::new().spawn(listen)?;
        Ok(Self { said: Some(said) })
    }

    /// The last line of what was said. Who holds the pipe open without a word is not waited for longer than this.
    pub(super) fn last_line(&self, patience: Duration) -> Option<String> {
        let until = Instant::now() + patience;
        let next = |said: &Receiver<Vec<u8>>| said.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
        let pieces: Vec<Vec<u8>> = std::iter::from_fn(|| self.said.as_ref().and_then(next)).collect();
        let text = String::from_utf8_lossy(&pieces.concat()).into_owned();
        text.lines().last().map(str::to_owned)
    }
}

/// The beginning of a text that may be a stranger's, without what terminals and browsers obey instead of showing it.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::new();
    let mut length = 0;
    for found in text.chars() {
        let plain = matches!(found, '\'' | '"' | '\\');
        let form: String = if plain { found.into() } else { found.escape_debug().collect() };
        length += form.chars().count();
        if length > SHOWN {
            shown.push('…');
            break;
        }
        shown.push_str(&form);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_last_line_is_heard_and_too_much_is_not() {
        let cases = [
            (b"".to_vec(), None),
            (b"one\ntwo\n".to_vec(), Some("two".to_owned())),
            (b"\xff\n".to_vec(), Some("\u{fffd}".to_owned())),
            (vec![b'x'; 9000], Some("x".repeat(4096))),
        ];
        for (said, expected) in cases {
            let trouble = Trouble::listen(std::io::Cursor::new(said)).unwrap();
            assert_eq!(trouble.last_line(Duration::from_secs(10)), expected);
        }
        assert_eq!(Trouble::default().last_line(Duration::from_secs(10)), None);
    }

    #[test]
    fn a_pipe_that_says_too_much_is_closed_and_one_that_stays_open_is_not_waited_for() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let trouble = Trouble::listen(reader).unwrap();
        writer.write_all(b"word\n").unwrap();
        assert_eq!(trouble.last_line(Duration::from_secs(3)).unwrap(), "word");
        assert_eq!(writer.write_all(&[b'x'; 1 << 20]).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_reason_is_short_and_obeyed_by_nothing() {
        let cases = [
            ("batch-script: line 1: 'ä' \"x\": C:\\", "batch-script: line 1: 'ä' \"x\": C:\\"),
            ("\u{1b}[2J\u{7}\r\0\u{9b}", "\\u{1b}[2J\\u{7}\\r\\0\\u{9b}"),
            ("a\u{202e}b\u{200b}\u{feff}\u{2028}", "a\\u{202e}b\\u{200b}\\u{feff}\\u{2028}"),
        ];
        for (text, expected) in cases {
            assert_eq!(printable(text), expected);
        }
        assert_eq!(printable(&"y".repeat(300)), "y".repeat(300));
        assert_eq!(printable(&"y".repeat(20_000_000)), format!("{}…", "y".repeat(300)));
        assert!(printable(&"\u{1b}".repeat(5000)).chars().count() <= 301);
    }
}
