//! Memory that somebody else fills by himself.
//!
//! Over RDMA a client writes into a reservation when it wants, until its right to do so is gone. While
//! it may, nobody here may look at the memory ([`Exposed`] shows nothing), and it must not be used for
//! anything else, however long that takes: a write that comes late would change another item. So it
//! comes back by proof only: as the reservation that it was, or, if it was given up meanwhile, as free
//! memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Cache;
use super::item::{Block, GiveBack, Reservation, Seen};
use crate::node::arena::Blind;

/// Which exposure; each of a process has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExposureId(u64);

/// That nobody can write into exposed memory any more. It is only as true as who makes it: the queue
/// through which it could be written is destroyed, and that was confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WritesEnded(ExposureId);

impl WritesEnded {
    /// Of this exposure.
    pub fn of(id: ExposureId) -> Self {
        Self(id)
    }
}

/// Memory into which somebody may be writing. If it is dropped, its memory is left alone until
/// [`Cache::free_exposed`].
pub type Exposed = Blind<Exposure>;

/// What becomes of the place of exposed memory.
#[derive(Debug)]
pub struct Exposure {
    id: ExposureId,
    /// Taken out when it is taken back, or dropped.
    give_back: Option<GiveBack>,
}

impl Reservation {
    /// Lets others write into this memory by themselves.
    pub fn expose(self) -> Exposed {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let Block { slot, give_back } = self.block;
        give_back.set_seen(Seen::Writers);
        let id = ExposureId(NEXT.fetch_add(1, Ordering::Relaxed));
        Blind::new(slot, Exposure { id, give_back: Some(give_back) })
    }
}

impl Exposed {
    /// Which exposure this is.
    pub fn id(&self) -> ExposureId {
        self.owner().id
    }

    /// The reservation again, with what was written into it.
    ///
    /// # Errors
    /// The proof is of another exposure; this one goes on.
    pub fn take_back(self, proof: WritesEnded) -> Result<Reservation, Self> {
        if proof.0 != self.id() {
            return Err(self);
        }
        let (slot, mut owner) = self.into_parts();
        match owner.give_back.take() {
            Some(give_back) => {
                give_back.set_seen(Seen::Nobody);
                Ok(Reservation { block: Block { slot, give_back } })
            }
            None => Err(Self::new(slot, owner)),
        }
    }
}

impl Drop for Exposure {
    fn drop(&mut self) {
        if let Some(give_back) = self.give_back.take() {
            let returns = std::sync::Arc::clone(&give_back.returns);
            returns.park(self.id, &give_back);
        }
    }
}

impl Cache {
    /// Lets memory be used again that was exposed and then given up. Returns whether there was any; if
    /// not, its [`Exposed`] is still there, and has to be taken back or dropped first.
    pub fn free_exposed(&self, proof: WritesEnded) -> bool {
        // The allocator looks at what came back when it needs something.
        self.lock().returns.unpark(proof.0)
    }
}
