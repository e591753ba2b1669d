//! Memory that somebody else fills by himself.
//!
//! Over RDMA a client writes into a reservation when it wants, until its right to do so is gone. While
//! it may, nobody here may look at the memory ([`Exposed`] shows nothing), and it must not be used for
//! anything else, however long that takes: a write that comes late would change another item. So it
//! comes back by proof only: as the reservation that it was, or, if it was given up meanwhile, as free
//! memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Cache;
use super::item::{Block, Reservation, Seen};

/// Which exposure; each of a process has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExposureId(u64);

/// That nobody can write into exposed memory any more. It is only as true as who makes it: the memory
/// window is invalidated, and that was confirmed, or its connection is gone.
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
#[derive(Debug)]
pub struct Exposed {
    id: ExposureId,
    /// Taken out when it is taken back, or dropped.
    block: Option<Block>,
    offset: usize,
    length: usize,
}

impl Reservation {
    /// Lets others write into this memory by themselves.
    pub fn expose(self) -> Exposed {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let Self { block } = self;
        block.give_back.set_seen(Seen::Writers);
        let id = ExposureId(NEXT.fetch_add(1, Ordering::Relaxed));
        let (offset, length) = (block.slot.offset(), block.slot.bytes().len());
        Exposed { id, block: Some(block), offset, length }
    }
}

impl Exposed {
    /// Which exposure this is.
    pub fn id(&self) -> ExposureId {
        self.id
    }

    /// Where it begins, in bytes from the start of the arena.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// How many bytes may be written.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The reservation again, with what was written into it.
    ///
    /// # Errors
    /// The proof is of another exposure; this one goes on.
    pub fn take_back(mut self, proof: WritesEnded) -> Result<Reservation, Self> {
        match self.block.take() {
            Some(block) if proof.0 == self.id => {
                block.give_back.set_seen(Seen::Nobody);
                Ok(Reservation { block })
            }
            block => {
                self.block = block;
                Err(self)
            }
        }
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let returns = std::sync::Arc::clone(&block.give_back.returns);
            returns.park(self.id, block);
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
