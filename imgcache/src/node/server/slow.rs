//! Work that takes too long for an event loop: it is done by another thread, and what it gives is sent
//! as if it had been done at once.

use std::io;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Shared;
use super::output::Output;

/// Works of all connections at once, those that stand alone not counted.
const AT_ONCE: usize = 4;

/// Gives a reply.
type Work = Box<dyn FnOnce(&Shared, &mut Output) + Send>;

/// A work that is to be done.
pub(super) struct Slow {
    work: Work,
    is_alone: bool,
}

/// How many works go on.
#[derive(Debug)]
pub(super) struct Lanes {
    some: Semaphore,
    /// For works that take much memory each.
    one: Semaphore,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { some: Semaphore::new(AT_ONCE), one: Semaphore::new(1) }
    }
}

impl std::fmt::Debug for Slow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slow").field("is_alone", &self.is_alone).finish_non_exhaustive()
    }
}

impl Slow {
    /// Beside a few others.
    pub fn new(work: impl FnOnce(&Shared, &mut Output) + Send + 'static) -> Self {
        Self { work: Box::new(work), is_alone: false }
    }

    /// While no other one of these goes on.
    pub fn alone(work: impl FnOnce(&Shared, &mut Output) + Send + 'static) -> Self {
        Self { work: Box::new(work), is_alone: true }
    }

    /// Does it, when it is its turn.
    ///
    /// # Errors
    /// It panicked, or the runtime ends: there is no reply, so the connection cannot go on.
    pub async fn run(self, shared: Arc<Shared>) -> io::Result<Output> {
        let lanes = &shared.slow;
        let lane = if self.is_alone { &lanes.one } else { &lanes.some };
        // Never closed.
        let _turn = lane.acquire().await.map_err(io::Error::other)?;
        let (work, for_work) = (self.work, Arc::clone(&shared));
        let done = tokio::task::spawn_blocking(move || {
            let mut output = Output::default();
            work(&for_work, &mut output);
            output
        });
        done.await.map_err(io::Error::other)
    }
}
