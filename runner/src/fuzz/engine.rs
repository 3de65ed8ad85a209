//! What runs a target: the corpus as it is, then damaged inputs until the time is over.
//!
//! Stable Rust has no coverage feedback. What stands in for it: an input whose *kind* of outcome (accepted or why not, with numbers
//! and quoted text taken out) or whose order of length is new is kept, and damaged again.

use super::mutate::{Dice, mutate};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// One input may take so long, in a build without optimisation.
const SLOW: Duration = Duration::from_secs(1);
/// One input that takes so long will never end, on a machine with other things to do, too.
const HANGS: Duration = Duration::from_secs(180);
/// The longest input, and how long most of them may get: many short ones find more than few long ones.
const LONGEST: usize = 64 * 1024;
const ORDINARY: usize = 6 * 1024;
/// Inputs that are kept at most.
const MOST_KEPT: usize = 4096;
/// What the whole process may have had in memory, whatever it read: tests of other modules run beside.
const MOST_MEMORY_KB: u64 = 1024 * 1024;
/// A failing input is made smaller for so long.
const SHRINKING: Duration = Duration::from_secs(5);

/// A parser under fuzz, with its properties.
pub(super) struct Target {
    /// The name of its folder in `runner/corpus/`.
    pub(super) name: &'static str,
    /// Words of its format.
    pub(super) tokens: &'static [&'static str],
    /// Reads one input and panics when a property does not hold.
    pub(super) check: fn(&[u8]) -> Outcome,
}

/// What a parser made of one input.
#[derive(Debug)]
pub(super) struct Outcome {
    accepted: bool,
    kind: String,
}

impl Outcome {
    /// It was read; `kind` says what came out, in few words.
    pub(super) fn accepted(kind: impl fmt::Display) -> Self {
        Self { accepted: true, kind: kind.to_string() }
    }

    /// It was refused with this message.
    pub(super) fn refused(message: impl fmt::Display) -> Self {
        Self { accepted: false, kind: kind(&message.to_string()) }
    }
}

/// A message without what differs from input to input: numbers keep their length alone, and quoted text nothing.
pub(super) fn kind(message: &str) -> String {
    let (mut kind, mut digits, mut quote) = (String::new(), 0, None);
    for c in message.chars().take(400).chain(['.']) {
        if quote.is_some() {
            quote = quote.filter(|quote| *quote != c);
            continue;
        }
        if c.is_ascii_digit() {
            digits += 1;
            continue;
        }
        if digits > 0 {
            kind += &format!("#{digits}");
            digits = 0;
        }
        quote = Some(c).filter(|c| matches!(c, '"' | '`' | '\''));
        kind.push(c);
    }
    kind
}

/// How long and from which seed.
pub(super) struct Plan {
    pub(super) time: Duration,
    pub(super) seed: u64,
}

impl Plan {
    /// `FUZZ_SECONDS` (1 if it is not set) and `FUZZ_SEED` (else another one each time).
    fn from_environment() -> Self {
        let seconds = std::env::var("FUZZ_SECONDS").map_or(1.0, |text| text.parse().expect("FUZZ_SECONDS is a number"));
        let seed = std::env::var("FUZZ_SEED").map_or_else(
            |_| getrandom::u64().expect("random numbers"),
            |text| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("FUZZ_SEED is a hexadecimal number"),
        );
        Self { time: Duration::from_secs_f64(seconds), seed }
    }
}

/// Runs a target as the environment asks, and reports.
pub(super) fn run(target: &Target) {
    let plan = Plan::from_environment();
    // Told at once: should an input end the process, this is all that is left.
    println!("fuzz {}: begins with seed {:#x}", target.name, plan.seed);
    let corpus = corpus(target.name);
    assert!(!corpus.is_empty(), "runner/corpus/{} is empty", target.name);
    match fuzz(target, corpus, &plan) {
        Ok(report) => {
            println!("fuzz {}: {report}, seed {:#x}", target.name, plan.seed);
            assert_eq!(report.fault(), None);
        }
        Err(failure) => panic!("fuzz {}: seed {:#x}: {}", target.name, plan.seed, failure.told(target.name)),
    }
}

/// The folder of all corpora.
pub(super) fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The files of one target's corpus, by name.
pub(super) fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = corpora().join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a file that can be read")).collect()
}

/// What a run came to.
#[derive(Debug)]
pub(super) struct Report {
    runs: u64,
    accepted: u64,
    corpus: usize,
    kinds: usize,
    slowest: Duration,
    took: Duration,
}

impl Report {
    /// What makes the run worth nothing, or was wrong with all of it.
    fn fault(&self) -> Option<String> {
        let memory = peak_memory_kb();
        if self.accepted == 0 {
            Some("nothing was accepted: the target never got beyond the parser's door".into())
        } else if self.accepted == self.runs {
            Some("nothing was refused: the target finds fault with nothing".into())
        } else {
            (memory > MOST_MEMORY_KB).then(|| format!("the process had {memory} kB in memory"))
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, accepted, corpus, kinds, slowest, took } = self;
        let per_second = *runs as f64 / took.as_secs_f64().max(f64::EPSILON);
        let share = *accepted as f64 * 100.0 / (*runs).max(1) as f64;
        write!(
            f,
            "{runs} runs in {:.1} s ({per_second:.0}/s), {share:.1} % accepted, {kinds} kinds of outcome, slowest {:.3} s, \
             {corpus} corpus files",
            took.as_secs_f64(),
            slowest.as_secs_f64()
        )
    }
}

/// The most that this process ever had in memory.
fn peak_memory_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// An input that breaks a property.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) input: Vec<u8>,
    pub(super) why: String,
}

impl Failure {
    /// Keeps the input as a file, and says where and how to go on.
    fn told(&self, name: &str) -> String {
        let saved = save(name, &self.input);
        let shown: String = self.input.escape_ascii().to_string().chars().take(2000).collect();
        format!(
            "{}\ninput ({} bytes): {shown}\nsaved as {saved}: mend the parser and keep it in runner/corpus/{name}/",
            self.why,
            self.input.len()
        )
    }
}

fn save(name: &str, input: &[u8]) -> String {
    let path = std::env::temp_dir().join(format!("fuzz-{name}-{}", std::process::id()));
    match std::fs::write(&path, input) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("nothing ({}: {error})", path.display()),
    }
}

/// The corpus as it is, then damaged inputs until the time is over or one fails.
pub(super) fn fuzz(target: &Target, corpus: Vec<Vec<u8>>, plan: &Plan) -> Result<Report, Failure> {
    let mut session = Session::new(target, corpus, plan.seed);
    for at in 0..session.report.corpus {
        session.try_input(session.kept[at].clone())?;
    }
    while session.begin.elapsed() < plan.time {
        let input = session.next_input();
        session.try_input(input)?;
    }
    session.report.took = session.begin.elapsed();
    session.report.kinds = session.kinds.len();
    Ok(session.report)
}

struct Session<'a> {
    target: &'a Target,
    kept: Vec<Vec<u8>>,
    /// Those of them that were accepted: most damage is to be done to what is whole.
    whole: Vec<usize>,
    kinds: HashSet<(bool, String)>,
    /// Kinds with the order of their inputs' lengths.
    seen: HashSet<(String, u32)>,
    dice: Dice,
    watch: Watch,
    begin: Instant,
    report: Report,
}

impl<'a> Session<'a> {
    fn new(target: &'a Target, corpus: Vec<Vec<u8>>, seed: u64) -> Self {
        let report =
            Report { runs: 0, accepted: 0, corpus: corpus.len(), kinds: 0, slowest: Duration::ZERO, took: Duration::ZERO };
        // Each target has its own numbers.
        let seed = target.name.bytes().fold(seed, |seed, byte| seed.rotate_left(7) ^ u64::from(byte));
        Self {
            target,
            kept: corpus,
            whole: Vec::new(),
            kinds: HashSet::new(),
            seen: HashSet::new(),
            dice: Dice::new(seed),
            watch: Watch::over(target.name),
            begin: Instant::now(),
            report,
        }
    }

    /// One that was kept, damaged. Of two the shorter one is taken: short inputs are read faster.
    fn next_input(&mut self) -> Vec<u8> {
        let choice = [0; 3].map(|_| self.choose());
        let [a, b, other] = choice.map(|at| self.kept[at].as_slice());
        let mut input = if a.len() <= b.len() { a } else { b }.to_vec();
        let longest = if self.dice.below(64) == 0 { LONGEST } else { ORDINARY };
        mutate(&mut self.dice, &mut input, other, self.target.tokens, longest);
        input
    }

    fn choose(&mut self) -> usize {
        match self.whole.get(self.dice.below(self.whole.len() * 3 / 2)) {
            Some(at) => *at,
            None => self.dice.below(self.kept.len()),
        }
    }

    fn try_input(&mut self, input: Vec<u8>) -> Result<(), Failure> {
        let outcome = match self.execute(&input) {
            Ok(outcome) => outcome,
            Err(why) => return Err(Failure { input: self.shrunk(input), why }),
        };
        self.report.runs += 1;
        self.report.accepted += u64::from(outcome.accepted);
        let order = (input.len() + 1).ilog2();
        self.kinds.insert((outcome.accepted, outcome.kind.clone()));
        if self.seen.insert((outcome.kind, order)) && self.kept.len() < MOST_KEPT && input.len() <= ORDINARY {
            if outcome.accepted {
                self.whole.push(self.kept.len());
            }
            self.kept.push(input);
        }
        Ok(())
    }

    fn execute(&mut self, input: &[u8]) -> Result<Outcome, String> {
        self.watch.begins(input);
        let (outcome, mut took) = attempt(self.target.check, input);
        if took > SLOW {
            // The machine may have had other things to do: only time on a processor counts.
            let before = on_processor();
            let (_, again) = attempt(self.target.check, input);
            took = before.zip(on_processor()).map_or(again, |(before, after)| after.saturating_sub(before));
        }
        self.watch.ended();
        self.report.slowest = self.report.slowest.max(took);
        match outcome {
            Ok(_) if took > SLOW => Err(format!("it took {:.1} s", took.as_secs_f64())),
            outcome => outcome,
        }
    }

    /// The same failure with less around it.
    fn shrunk(&mut self, mut input: Vec<u8>) -> Vec<u8> {
        let begin = Instant::now();
        if attempt(self.target.check, &input).0.is_ok() {
            // Only its time was wrong.
            return input;
        }
        let mut length = input.len() / 2;
        while length > 0 {
            let mut at = 0;
            while at < input.len() && begin.elapsed() < SHRINKING {
                let mut less = input.clone();
                less.drain(at..(at + length).min(input.len()));
                if attempt(self.target.check, &less).0.is_err() { input = less } else { at += length }
            }
            length /= 2;
        }
        input
    }
}

thread_local! {
    static FUZZING: Cell<bool> = const { Cell::new(false) };
    static COMPLAINT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs a check, and catches its panic with place and message.
fn attempt(check: fn(&[u8]) -> Outcome, input: &[u8]) -> (Result<Outcome, String>, Duration) {
    hear_panics();
    FUZZING.set(true);
    let begin = Instant::now();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| check(input)));
    let took = begin.elapsed();
    FUZZING.set(false);
    (outcome.map_err(|_| COMPLAINT.take()), took)
}

/// How long this thread has been on a processor, where the kernel tells.
fn on_processor() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: u64 = text.split(' ').next()?.parse().ok()?;
    (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
}

/// While a target runs, its panics are kept instead of printed; those of all other tests are printed as ever.
fn hear_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let ordinary = panic::take_hook();
        panic::set_hook(Box::new(move |panic| if FUZZING.get() { COMPLAINT.set(panic.to_string()) } else { ordinary(panic) }));
    });
}

/// What is being read, and since when.
type Current = Option<(Instant, Vec<u8>)>;

/// Looks after the input that is being read: one that never comes to an end would end all tests without a word.
struct Watch {
    current: Arc<Mutex<Current>>,
}

impl Watch {
    fn over(name: &'static str) -> Self {
        let current = Arc::new(Mutex::new(None));
        let watched = Arc::downgrade(&current);
        thread::spawn(move || {
            while let Some(current) = watched.upgrade() {
                look(name, &current.lock().unwrap_or_else(PoisonError::into_inner));
                drop(current);
                thread::sleep(Duration::from_millis(200));
            }
        });
        Self { current }
    }

    fn begins(&self, input: &[u8]) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), input.to_vec()));
    }

    fn ended(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn look(name: &str, current: &Current) {
    if let Some((since, input)) = current
        && since.elapsed() > HANGS
    {
        let failure = Failure { input: input.clone(), why: format!("it has not ended after {HANGS:?}") };
        eprintln!("fuzz {name}: {}", failure.told(name));
        std::process::exit(101);
    }
}

#[cfg(test)]
mod tests;
