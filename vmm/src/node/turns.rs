//! Turns: so many VMs are made ready at a time, and the others wait. All at once would each take
//! as long as all of them together.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Gives out turns.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Mutex<u32>,
    changed: Condvar,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn(Arc<Inner>);

impl Turns {
    /// So many at a time.
    pub fn new(count: u32) -> Self {
        Self(Arc::new(Inner { free: Mutex::new(count.max(1)), changed: Condvar::new() }))
    }

    /// Waits for a turn.
    pub fn take(&self) -> Turn {
        let free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.changed.wait_while(free, |free| *free == 0);
        *waited.unwrap_or_else(PoisonError::into_inner) -= 1;
        Turn(self.0.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_one();
    }
}
