//! Leaves a node alone for a while after it has failed several times in a row.
//!
//! Closed: the node is asked. Open: it is not, until a time that doubles with each further failure
//! and is spread at random, lest all clients come back at once. Then one asks as a probe: its success
//! closes the breaker, its failure opens it again.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::error::NodeError;
use crate::parallel::lock;

/// Failures in a row that open it.
const FAILURES: u32 = 3;
/// For how long it opens at first.
const SHORTEST: Duration = Duration::from_millis(100);
/// For how long at most.
const LONGEST: Duration = Duration::from_secs(30);
/// A probe that is not heard of for so long is taken for lost.
const PROBE: Duration = Duration::from_secs(5);

/// The breaker of one node, shared by all connections of this process to it.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Failures in a row.
    failures: u32,
    /// Nobody asks before.
    until: Option<Instant>,
    last: String,
}

impl Breaker {
    /// Asks to use the node now. In the half-open state the first who asks is the probe.
    pub(super) fn admit(&self, now: Instant) -> Result<(), NodeError> {
        let mut state = lock(&self.0);
        let Some(until) = state.until else { return Ok(()) };
        if now < until {
            return Err(NodeError::LeftAlone { wait: until - now, last: state.last.clone() });
        }
        state.until = Some(now + PROBE);
        Ok(())
    }

    /// Whether the node would be asked, without being the probe.
    pub(super) fn is_closed(&self, now: Instant) -> bool {
        lock(&self.0).until.is_none_or(|until| now >= until)
    }

    /// The node did what it was asked for.
    pub(super) fn succeeded(&self) {
        let mut state = lock(&self.0);
        state.failures = 0;
        state.until = None;
    }

    /// The node failed; whether that has opened the breaker.
    pub(super) fn failed(&self, now: Instant, error: &NodeError) -> bool {
        self.failed_with(now, error, random_fraction())
    }

    fn failed_with(&self, now: Instant, error: &NodeError, random: f64) -> bool {
        let mut state = lock(&self.0);
        state.failures = state.failures.saturating_add(1);
        state.last = error.to_string();
        let Some(beyond) = state.failures.checked_sub(FAILURES) else { return false };
        let pause = SHORTEST.saturating_mul(1 << beyond.min(16)).min(LONGEST);
        let opened = state.until.is_none();
        state.until = Some(now + pause.mul_f64(0.5 + random));
        opened
    }
}

/// A number in [0, 1).
fn random_fraction() -> f64 {
    let random = u32::try_from(super::random() >> 32).unwrap_or(0);
    f64::from(random) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_lets_one_probe_through() {
        let breaker = Breaker::default();
        let start = Instant::now();
        let fail = |now| breaker.failed_with(now, &NodeError::Closed, 0.5);
        assert!(!fail(start) && !fail(start));
        breaker.succeeded();
        assert!(!fail(start) && !fail(start) && breaker.is_closed(start));
        assert!(fail(start), "the third in a row opens it");
        let error = breaker.admit(start).unwrap_err().to_string();
        assert!(error.contains("100 ms") && error.contains("closed the connection"), "{error}");
        let later = start + SHORTEST;
        assert!(breaker.is_closed(later));
        breaker.admit(later).unwrap();
        assert!(breaker.admit(later).is_err(), "one probe at a time");
        assert!(breaker.admit(later + PROBE).is_ok(), "unless it was lost");
        breaker.succeeded();
        assert!(breaker.admit(later).is_ok() && breaker.admit(later).is_ok());
    }

    #[test]
    fn the_pause_grows_to_a_limit_and_is_spread() {
        let pause = |failures: u32, random| {
            let breaker = Breaker::default();
            let now = Instant::now();
            for _ in 0..failures {
                breaker.failed_with(now, &NodeError::Closed, random);
            }
            let Err(NodeError::LeftAlone { wait, .. }) = breaker.admit(now) else { panic!() };
            wait
        };
        assert_eq!(pause(4, 0.5), SHORTEST * 2);
        assert_eq!(pause(6, 0.5), SHORTEST * 8);
        assert_eq!(pause(1000, 0.5), LONGEST);
        assert_eq!((pause(3, 0.0), pause(3, 1.0)), (SHORTEST / 2, SHORTEST * 3 / 2));
        assert!((0.0..1.0).contains(&random_fraction()));
    }
}
