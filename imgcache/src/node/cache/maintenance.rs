//! What time brings, and what goes on beside the service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::Cache;
use super::counters::Maintained;
use super::time::Now;
use crate::node::arena::Arena;

/// How many parts of the table one call goes through in search of what has expired.
const SWEEP_PARTS: usize = 64;
/// How many items one call evicts ahead, and how many before others get their turn.
const EVICT_AHEAD: (usize, usize) = (4096, 256);

impl Cache {
    /// Does what time brings: ends leases and quarantines, removes some of the items that have
    /// expired and all that were flushed, and evicts ahead. To be called about once a second.
    pub fn maintenance(&self, now: Now) -> Maintained {
        let mut done = Maintained { leases_ended: self.end_leases(now), ..Maintained::default() };
        let mut state = self.lock();
        state.tick(now);
        done.released = state.settle();
        let flushing = state.flushing;
        drop(state);
        done.reclaimed =
            if flushing { self.sweep_all(now) } else { self.sweep_some(now, SWEEP_PARTS) };
        let (most, at_once) = EVICT_AHEAD;
        for _ in 0..most / at_once {
            let evicted = self.lock().evict_ahead(at_once, now);
            done.evicted += evicted as u64;
            if evicted < at_once {
                break;
            }
        }
        done
    }
}

/// A thread that takes all pages from the system, so that no load has to wait for one.
#[derive(Debug)]
pub(super) struct Populating {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Populating {
    /// Starts it. Without a thread, pages are taken when they are used.
    pub fn start(arena: &Arc<Arena>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (arena, stopped) = (Arc::clone(arena), Arc::clone(&stop));
        let populate = move || {
            let started = Instant::now();
            let milliseconds = || started.elapsed().as_millis();
            match arena.populate(&stopped, |bytes| {
                tracing::info!(bytes, milliseconds = milliseconds(), "taking memory");
            }) {
                Ok(bytes) => {
                    tracing::info!(bytes, milliseconds = milliseconds(), "memory is taken");
                }
                Err(error) => tracing::warn!(
                    %error,
                    "cannot take all memory ahead; it is taken when it is used"
                ),
            }
        };
        let thread = thread::Builder::new().name("populate".into()).spawn(populate);
        if let Err(error) = &thread {
            tracing::warn!(%error, "no thread to take memory ahead");
        }
        Self { stop, thread: thread.ok() }
    }
}

impl Drop for Populating {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic but by a bug, which its own message tells.
            let _ = thread.join();
        }
    }
}
