//! What all threads of a soak share: what was accepted, what was seen, what was wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Listens until it is cancelled.
    Service,
    /// The same, but waits until it is released.
    Held,
    /// Ends by itself.
    Short,
    /// Ends with an exit code.
    Failing,
}

/// A job that was answered with 200.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key of its request.
    pub key: String,
    /// What was asked for.
    pub body: String,
    /// What it does.
    pub kind: Kind,
    /// Somebody wants to be rid of it.
    pub cancelled: bool,
    /// Somebody is doing something to it.
    pub busy: bool,
    /// As the API last showed it.
    pub state: String,
    /// Since when.
    pub since: Instant,
    /// When the last answer about it was noted.
    pub noted: Instant,
    /// Slurm's id.
    pub slurm: Option<String>,
    /// How it ended by the API.
    pub outcome: Option<String>,
}

impl Entry {
    /// A job that was accepted a moment ago.
    pub fn new(key: &str, body: &str, kind: Kind) -> Self {
        let (key, body, state) = (key.to_owned(), body.to_owned(), "submitted".to_owned());
        let now = Instant::now();
        Self { key, body, kind, cancelled: false, busy: false, state, since: now, noted: now, slurm: None, outcome: None }
    }

    /// Whether the API called it finished.
    pub fn finished(&self) -> bool {
        self.state == "finished"
    }
}

/// What all share.
pub struct Tally {
    begun: Instant,
    ended: OnceLock<Instant>,
    waiting: AtomicUsize,
    jobs: Mutex<BTreeMap<u64, Entry>>,
    wrongs: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    longest: Mutex<BTreeMap<&'static str, Duration>>,
}

/// Whoever panicked with a lock has failed already; the others go on.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            ended: OnceLock::new(),
            waiting: AtomicUsize::new(0),
            jobs: Mutex::default(),
            wrongs: Mutex::default(),
            counts: Mutex::default(),
            longest: Mutex::default(),
        }
    }

    /// A line with the time since the beginning.
    pub fn say(&self, words: &str) {
        println!("{:7.2} {words}", self.begun.elapsed().as_secs_f64());
    }

    /// Something is as it must never be. All ends, and what there is to see is kept.
    pub fn wrong(&self, words: String) {
        self.say(&format!("WRONG: {words}"));
        lock(&self.wrongs).push(words);
        self.stop();
    }

    /// All that was wrong.
    pub fn wrongs(&self) -> Vec<String> {
        lock(&self.wrongs).clone()
    }

    /// No new job and no new fault from now on.
    pub fn stop(&self) {
        self.ended.get_or_init(Instant::now);
    }

    /// Whether that was said.
    pub fn stopped(&self) -> bool {
        self.ended.get().is_some()
    }

    /// How long it is since everything was mended, or nothing before.
    pub fn mended_for(&self) -> Duration {
        self.ended.get().map(Instant::elapsed).unwrap_or_default()
    }

    /// Does something that may bring one more job.
    pub fn expecting(&self, work: impl FnOnce()) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        work();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Sleeps, but not after the end; whether it has come.
    pub fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while !self.stopped() && Instant::now() < until {
            thread::sleep((until - Instant::now().min(until)).min(Duration::from_millis(100)));
        }
        self.stopped()
    }

    /// One more of these.
    pub fn count(&self, what: &'static str) {
        *lock(&self.counts).entry(what).or_default() += 1;
    }

    /// This took so long; the longest time is kept.
    pub fn took(&self, what: &'static str, time: Duration) {
        let mut longest = lock(&self.longest);
        let kept = longest.entry(what).or_default();
        *kept = time.max(*kept);
    }

    /// The jobs that were accepted.
    pub fn jobs(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        lock(&self.jobs)
    }

    /// How many were not finished when they were last seen, or are being asked for.
    pub fn live(&self) -> usize {
        self.waiting.load(Ordering::SeqCst) + self.jobs().values().filter(|job| !job.finished()).count()
    }

    /// All figures, a line each.
    pub fn figures(&self) -> String {
        let counts = lock(&self.counts).iter().map(|(what, count)| format!("  {what}: {count}\n")).collect::<String>();
        let longest = lock(&self.longest);
        let times = longest.iter().map(|(what, time)| format!("  longest {what}: {:.2} s\n", time.as_secs_f64()));
        counts + &times.collect::<String>()
    }
}
