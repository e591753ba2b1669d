//! How long the guest has run.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Time since the guest's first instruction; zero before.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<OnceLock<Instant>>);

impl Clock {
    /// The guest starts now.
    pub fn start(&self) {
        let _ = self.0.set(Instant::now());
    }

    /// How long it has run.
    pub fn elapsed(&self) -> Duration {
        self.0.get().map_or(Duration::ZERO, Instant::elapsed)
    }
}
