//! Damage: repeatable, and of the kinds that parsers have stumbled over.

/// Random numbers that a seed repeats (SplitMix64). Not for secrets.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % (end.max(1) as u64)).unwrap_or(0)
    }
}

/// Bytes that end, quote, escape or mean something somewhere.
const BYTES: &[u8] = b"\0\t\n\r\x1b \"#$%&'()*+,-./0123456789:;<=>?@[\\]^_`{|}~\x7f\x80\xa0\xc0\xfe\xff";

/// Broken UTF-8, and characters that are not what they look like.
const TEXTS: &[&[u8]] = &[
    b"\xc3",
    b"\xe2\x82",
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
    "\u{202e}".as_bytes(),
    "\u{85}".as_bytes(),
    "\u{2028}".as_bytes(),
    "\u{663}".as_bytes(),
    "ä".as_bytes(),
    "😀".as_bytes(),
];

/// Numbers on both sides of what some type holds.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "00",
    "+1",
    "127",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999999999",
    "1e308",
    "1e999",
    "0.0000001",
    "0x10",
];

/// Damages `input` mostly once or twice. `other` is an input to take pieces from, `tokens` are words of the
/// format. It never gets longer than `longest`.
pub fn mutate(dice: &mut Dice, input: &mut Vec<u8>, other: &[u8], tokens: &[&str], longest: usize) {
    loop {
        once(dice, input, other, tokens);
        input.truncate(longest);
        if dice.below(9) < 5 {
            return;
        }
    }
}

fn once(dice: &mut Dice, input: &mut Vec<u8>, other: &[u8], tokens: &[&str]) {
    match dice.below(16) {
        0 => flip(dice, input),
        1 => replace_byte(dice, input),
        2 => {
            let byte = BYTES[dice.below(BYTES.len())];
            insert(dice, input, &[byte]);
        }
        3 => remove(dice, input),
        4 => repeat(dice, input),
        5 => input.truncate(dice.below(input.len() + 1)),
        6 => splice(dice, input, other),
        7 => piece(dice, input, other),
        8..=10 => token(dice, input, tokens),
        11 | 12 => number(dice, input),
        13 => {
            let text = TEXTS[dice.below(TEXTS.len())];
            insert(dice, input, text);
        }
        14 => lines(dice, input),
        _ => exchange(dice, input),
    }
}

fn flip(dice: &mut Dice, input: &mut [u8]) {
    let at = dice.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << dice.below(8);
    }
}

fn replace_byte(dice: &mut Dice, input: &mut [u8]) {
    let at = dice.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte = if dice.below(4) == 0 { dice.roll() as u8 } else { BYTES[dice.below(BYTES.len())] };
    }
}

fn insert(dice: &mut Dice, input: &mut Vec<u8>, what: &[u8]) {
    let at = dice.below(input.len() + 1);
    input.splice(at..at, what.iter().copied());
}

/// A piece of `input`, mostly short.
fn range(dice: &mut Dice, length: usize) -> std::ops::Range<usize> {
    let start = dice.below(length + 1);
    let most = if dice.below(4) == 0 { length - start } else { (length - start).min(16) };
    start..start + dice.below(most + 1)
}

fn remove(dice: &mut Dice, input: &mut Vec<u8>) {
    let piece = range(dice, input.len());
    input.drain(piece);
}

/// Twice as a rule, now and then thousands of times: nesting bombs, endless lists, long words.
fn repeat(dice: &mut Dice, input: &mut Vec<u8>) {
    let piece = range(dice, input.len());
    let times = [1, 1, 2, 8, 60, 300, 5000][dice.below(7)];
    let times = times.min(64 * 1024 / piece.len().max(1));
    let copies = input[piece.clone()].repeat(times);
    input.splice(piece.end..piece.end, copies);
}

/// The beginning of one and the end of the other.
fn splice(dice: &mut Dice, input: &mut Vec<u8>, other: &[u8]) {
    input.truncate(dice.below(input.len() + 1));
    input.extend_from_slice(&other[dice.below(other.len() + 1)..]);
}

/// A piece of the other one somewhere in this one.
fn piece(dice: &mut Dice, input: &mut Vec<u8>, other: &[u8]) {
    let piece = range(dice, other.len());
    insert(dice, input, &other[piece]);
}

fn token(dice: &mut Dice, input: &mut Vec<u8>, tokens: &[&str]) {
    let Some(token) = tokens.get(dice.below(tokens.len())) else { return };
    insert(dice, input, token.as_bytes());
}

/// Another number in the place of one that is there.
fn number(dice: &mut Dice, input: &mut Vec<u8>) {
    let starts: Vec<usize> = (0..input.len())
        .filter(|&at| input[at].is_ascii_digit() && !at.checked_sub(1).is_some_and(|before| input[before].is_ascii_digit()))
        .collect();
    let other = NUMBERS[dice.below(NUMBERS.len())];
    let Some(&start) = starts.get(dice.below(starts.len())) else { return insert(dice, input, other.as_bytes()) };
    let length = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    input.splice(start..start + length, other.bytes());
}

/// A line twice, or not at all, or in another place.
fn lines(dice: &mut Dice, input: &mut Vec<u8>) {
    let mut lines: Vec<Vec<u8>> = input.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    if lines.is_empty() {
        return;
    }
    let (from, to) = (dice.below(lines.len()), dice.below(lines.len()));
    match dice.below(3) {
        0 => lines.insert(to, lines[from].clone()),
        1 => drop(lines.remove(from)),
        _ => lines.swap(from, to),
    }
    *input = lines.concat();
}

/// Two bytes change places.
fn exchange(dice: &mut Dice, input: &mut [u8]) {
    let (a, b) = (dice.below(input.len()), dice.below(input.len()));
    if a < input.len() && b < input.len() {
        input.swap(a, b);
    }
}
