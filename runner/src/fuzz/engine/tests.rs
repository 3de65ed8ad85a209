//! The engine finds what it is there to find.

use super::*;

fn plan(seed: u64) -> Plan {
    Plan { time: Duration::from_secs(20), seed }
}

const NUMBER: &[&str] = &["max=", "7"];

#[test]
fn a_planted_fault_is_found_and_told_with_its_smallest_input() {
    let check = |input: &[u8]| {
        let found = input.windows(5).any(|five| five == b"max=6");
        assert!(!found, "the planted fault");
        if input.starts_with(b"max=") { Outcome::accepted("number") } else { Outcome::refused("no number") }
    };
    let target = Target { name: "planted", tokens: NUMBER, check };
    let failure = fuzz(&target, vec![b"max=1".to_vec(), b"something else".to_vec()], &plan(7)).unwrap_err();
    assert_eq!(failure.input, b"max=6");
    assert!(failure.why.contains("the planted fault") && failure.why.contains("engine"), "{}", failure.why);
}

#[test]
fn an_input_that_takes_too_long_is_a_failure() {
    static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let check = |input: &[u8]| {
        let now = || on_processor().unwrap_or_else(|| BEGIN.elapsed());
        let begin = now();
        while input.len() > 20 && now() - begin < SLOW + Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        Outcome::accepted("")
    };
    let target = Target { name: "slow", tokens: &[], check };
    let failure = fuzz(&target, vec![b"0123456789012345".to_vec()], &plan(1)).unwrap_err();
    assert!(failure.why.starts_with("it took 1."), "{}", failure.why);
}

#[test]
fn a_seed_repeats_a_run() {
    let check = |input: &[u8]| {
        thread_local!(static SUM: Cell<(u64, u32)> = const { Cell::new((0, 0)) });
        let (sum, count) = SUM.get();
        // What follows is made smaller for a time that depends on the machine.
        assert!(count < 3000, "after 3000 inputs: {sum}");
        let sum = input.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        SUM.set((sum, count + 1));
        Outcome::refused(format!("{:?}", input.first()))
    };
    let told = |seed: u64| {
        let target = Target { name: "sum", tokens: NUMBER, check };
        // Each in a thread of its own, where the sum begins anew.
        let run = move || fuzz(&target, vec![b"max=1".to_vec()], &plan(seed)).unwrap_err().why;
        thread::spawn(run).join().unwrap()
    };
    assert_eq!(told(1), told(1));
    assert_ne!(told(1), told(2));
}

#[test]
fn messages_are_of_one_kind_if_only_numbers_and_quoted_texts_differ() {
    assert_eq!(kind("line 17: \"abc\" is odd, at 3"), kind("line 42: \"xyz\" is odd, at 9"));
    assert_ne!(kind("line 17: odd"), kind("line 7: odd"));
    assert_ne!(kind("line 17: odd"), kind("line 17: even"));
}

#[test]
fn a_target_that_accepts_or_refuses_everything_is_a_fault() {
    let target = |check| Target { name: "one-sided", tokens: &[], check };
    let all = |_: &[u8]| Outcome::accepted("all");
    let none = |_: &[u8]| Outcome::refused("none");
    for (check, words) in [(all as fn(&[u8]) -> Outcome, "nothing was refused"), (none, "nothing was accepted")] {
        let plan = Plan { time: Duration::from_millis(10), seed: 1 };
        let report = fuzz(&target(check), vec![b"x".to_vec()], &plan).unwrap();
        assert!(report.fault().is_some_and(|fault| fault.starts_with(words)), "{report}");
    }
}
