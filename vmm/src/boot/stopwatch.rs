//! Measures the phases of a boot, one after the other.

use std::time::{Duration, Instant};

use super::report::Phase;

/// A boot under way.
#[derive(Debug)]
pub struct Stopwatch {
    begun: Instant,
    last: Instant,
    phases: Vec<Phase>,
}

impl Stopwatch {
    /// Begins now.
    pub fn start() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, phases: Vec::new() }
    }

    /// What came since the last call was `name`.
    pub fn phase(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push(Phase { name, ms: milliseconds(now - self.last) });
        self.last = now;
    }

    /// Milliseconds from the beginning until now, and the phases.
    pub fn end(self) -> (f64, Vec<Phase>) {
        (milliseconds(self.begun.elapsed()), self.phases)
    }
}

/// A time as reports give it: in milliseconds, to the microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
