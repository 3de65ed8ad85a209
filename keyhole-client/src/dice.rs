//! Chance for manners, not for secrets: which server comes first, how long a pause is.

/// A xorshift generator.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Starts from a random seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Dice(seed | 1)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.checked_rem(bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_comes_up() {
        for seed in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            let mut dice = Dice::new(seed);
            let mut counts = [0; 6];
            for _ in 0..6000 {
                counts[dice.below(6) as usize] += 1;
            }
            assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn below_nothing_is_nothing() {
        assert_eq!(Dice::new(7).below(0), 0);
        assert_eq!(Dice::new(7).below(1), 0);
    }
}
