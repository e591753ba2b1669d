//! Who gave rights on the memory of a lease away, and has to take them back before it is used again.
//!
//! Over RDMA a client reads by itself, for as long as it has a right to (a memory window that was
//! bound to its connection). When the lease ends, its contents may be the memory of something else
//! only after that right is gone. So the owner of the rights is told of the end, with no lock held,
//! and what was leased stays as it is until the owner says [`Closing::closed`].

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::held::Totals;

/// Gave rights on the memory of leases away.
pub trait Rights: fmt::Debug + Send + Sync {
    /// A lease has ended. To be called back, by [`Closing::closed`], when nobody has a right on its
    /// memory any more; without waiting for that here.
    fn close(&self, closing: Closing);
}

/// What an ended lease held: still in its place, and counted as leased. If it is dropped without
/// having been [closed](Self::closed), its memory is never used again.
#[must_use = "what is not closed is lost"]
pub struct Closing {
    held: Option<Arc<dyn Any + Send + Sync>>,
    totals: Arc<Totals>,
}

impl fmt::Debug for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closing").finish_non_exhaustive()
    }
}

impl Closing {
    pub(super) fn new(held: Arc<dyn Any + Send + Sync>, totals: Arc<Totals>) -> Self {
        totals.closing.fetch_add(1, Ordering::Relaxed);
        Self { held: Some(held), totals }
    }

    /// Nobody has a right on the memory any more.
    pub fn closed(mut self) {
        drop(self.held.take());
        self.totals.closing.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            tracing::error!(
                "rights on the memory of a lease were not closed: it is not used again"
            );
            std::mem::forget(held);
        }
    }
}
