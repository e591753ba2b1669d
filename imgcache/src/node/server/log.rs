//! Log lines that clients can cause: at most one a second, with how many were left out.

use std::fmt::Display;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::parallel::lock;

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct RateLimited(Mutex<Past>);

#[derive(Debug, Default)]
struct Past {
    last: Option<Instant>,
    left_out: u64,
}

impl RateLimited {
    /// Logs `line` as a warning, or leaves it out.
    pub fn warn<T: Display>(&self, line: impl FnOnce() -> T) {
        if let Some(left_out) = self.take_turn(Instant::now()) {
            let line = line();
            if left_out == 0 {
                tracing::warn!("{line}");
            } else {
                tracing::warn!(left_out, "{line}");
            }
        }
    }

    /// Whether a line may be written now, and how many were left out before it.
    fn take_turn(&self, now: Instant) -> Option<u64> {
        let mut past = lock(&self.0);
        if past.last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            past.left_out += 1;
            return None;
        }
        past.last = Some(now);
        Some(std::mem::take(&mut past.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_left_out_and_counted() {
        let (log, start) = (RateLimited::default(), Instant::now());
        assert_eq!(log.take_turn(start), Some(0));
        assert_eq!(log.take_turn(start), None);
        assert_eq!(log.take_turn(start + PAUSE / 2), None);
        assert_eq!(log.take_turn(start + PAUSE), Some(2));
        assert_eq!(log.take_turn(start + PAUSE * 2), Some(0));
    }
}
