//! A token bucket: how often something may be done, with bursts.

use std::time::Duration;

/// How often something may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Times a second, on the average.
    pub per_second: u32,
    /// Times at once.
    pub burst: u32,
}

const NANOS: u128 = 1_000_000_000;

/// The bucket; full at first.
#[derive(Debug)]
pub struct TokenBucket {
    rate: Rate,
    /// Tokens, each of them a billion.
    level: u128,
    filled: Duration,
}

impl TokenBucket {
    /// A full one.
    pub fn new(rate: Rate) -> Self {
        Self { rate, level: u128::from(rate.burst) * NANOS, filled: Duration::ZERO }
    }

    /// Takes a token if there is one. `now` never goes back.
    pub fn take(&mut self, now: Duration) -> bool {
        self.fill(now);
        let (level, taken) = match self.level.checked_sub(NANOS) {
            Some(level) => (level, true),
            None => (self.level, false),
        };
        self.level = level;
        taken
    }

    /// Tokens that there are.
    pub fn left(&mut self, now: Duration) -> u32 {
        self.fill(now);
        u32::try_from(self.level / NANOS).unwrap_or(u32::MAX)
    }

    fn fill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.filled);
        let fresh = elapsed.as_nanos().saturating_mul(u128::from(self.rate.per_second));
        self.level = self.level.saturating_add(fresh).min(u128::from(self.rate.burst) * NANOS);
        self.filled = self.filled.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut bucket = TokenBucket::new(Rate { per_second: 10, burst: 3 });
        let at = Duration::from_millis;
        assert_eq!((0..5).filter(|_| bucket.take(at(0))).count(), 3);
        assert!(!bucket.take(at(99)));
        assert!(bucket.take(at(100)));
        assert!(!bucket.take(at(100)));
        assert_eq!(bucket.left(at(300)), 2);
        assert_eq!(bucket.left(Duration::MAX), 3);
        // A clock that goes back gives nothing, and takes nothing.
        assert_eq!(bucket.left(at(0)), 3);
    }
}
