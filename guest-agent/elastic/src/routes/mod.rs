//! Who has which range: the one place where ownership changes hands.
//!
//! # The contract of [`Routes`]
//! - Each identifier has at most one home. Every change is atomic: all of a range, or nothing.
//! - A change names the home and the epoch that it expects. It is refused when either is another, with
//!   what they are; so a change that was late, or made twice, changes nothing.
//! - Epochs come from one counter of the whole table, and only grow.
//! - A *life* of a server begins with [`Routes::fence_all`], and has the epoch that was given then. Nothing is
//!   handed to a server in a life that is over: it may have lost what it was handed.
//! - A change that was answered is kept, whoever dies.
//! - [`Ask::Settled`] says whether every forwarding table has what a change brought, so that nothing
//!   arrives at the old home any more. Until then the old home forwards what arrives.
//! - [`Reply::Unknown`] promises nothing: the change may have been made, or may be made later. A later
//!   [`Ask::Fence`] with an answer ends that doubt.
//!
//! What makes a home that is cut off stop answering reads, before its mirror is promoted, is the lease of
//! the directory behind the trait: [`Ask::Promote`] must be refused as long as the home holds its own.

mod file;
mod table;

use std::sync::{Arc, Mutex, PoisonError};

pub use file::FileRoutes;
pub use table::{Entry, Table};

use crate::range::Range;
use crate::{Peer, TransferId};

/// A change or question of one transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// `to` becomes home of what `from` has at `epoch`: the commit. Its mirrors are none from then on.
    Commit {
        /// Whose question.
        transfer: TransferId,
        /// What is handed over.
        range: Range,
        /// Its home.
        from: Peer,
        /// Its next home.
        to: Peer,
        /// The life of `to` that is ready: it is refused when `to` started again since.
        life: u64,
        /// Its epoch as `from` knows it.
        epoch: u64,
    },
    /// The epoch grows and the home stays: what was asked with the old epoch can no more happen.
    Fence {
        /// Whose question.
        transfer: TransferId,
        /// Of what.
        range: Range,
        /// Its home.
        home: Peer,
        /// Its epoch as its home knows it.
        epoch: u64,
    },
    /// Whether all forwarding tables have what was changed by `epoch`.
    Settled {
        /// Whose question.
        transfer: TransferId,
        /// What was handed over.
        range: Range,
        /// The epoch of the change.
        epoch: u64,
    },
    /// Whose the range is.
    Lookup {
        /// Whose question.
        transfer: TransferId,
        /// Which.
        range: Range,
    },
    /// `mirror` has, or no more has, everything that `home` acknowledges. The epoch grows when it no more has.
    Mirror {
        /// Whose question.
        transfer: TransferId,
        /// Of what.
        range: Range,
        /// Its home.
        home: Peer,
        /// Its epoch as its home knows it.
        epoch: u64,
        /// Who has a copy.
        mirror: Peer,
        /// Whether it is complete.
        complete: bool,
    },
    /// A mirror that is complete becomes the home, because the home is dead and its lease has ended.
    Promote {
        /// Whose question.
        transfer: TransferId,
        /// Of what.
        range: Range,
        /// Who was home.
        from: Peer,
        /// The mirror.
        to: Peer,
        /// The life of the mirror that has the copy.
        life: u64,
    },
}

impl Ask {
    /// The transfer that asks.
    pub fn transfer(&self) -> TransferId {
        match self {
            Self::Commit { transfer, .. }
            | Self::Fence { transfer, .. }
            | Self::Settled { transfer, .. }
            | Self::Lookup { transfer, .. }
            | Self::Mirror { transfer, .. }
            | Self::Promote { transfer, .. } => *transfer,
        }
    }
}

/// What became of an [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It is so, with this epoch.
    Done(u64),
    /// Nothing was changed.
    Is {
        /// Who has all of the range; none if nobody has, or several have a part.
        home: Option<Peer>,
        /// The highest epoch in it.
        epoch: u64,
    },
    /// No answer yet. Ask again.
    Unknown,
}

/// The directory and the forwarding tables, as this crate needs them. See the module for the contract.
pub trait Routes: Send + Sync {
    /// Does what is asked, or answers.
    fn ask(&self, ask: &Ask) -> Reply;

    /// All that `peer` is home of, with new epochs: what an earlier life of it asked can no more happen.
    /// None when the directory does not answer; a server must not serve then.
    fn fence_all(&self, peer: Peer) -> Option<(u64, Vec<(Range, u64)>)>;

    /// Who is home of `id`, with the epoch.
    fn home(&self, id: u64) -> Option<(Peer, u64)>;

    /// What `peer` is home of.
    fn ranges(&self, peer: Peer) -> Vec<Range>;

    /// Gives what nobody has to `peer`.
    ///
    /// # Errors
    /// [`Reply::Is`] when any of it has a home, [`Reply::Unknown`] when there was no answer.
    fn announce(&self, range: Range, peer: Peer) -> Result<u64, Reply>;

    /// Where `peer` listens, as it said; the form is for the service to know.
    fn address(&self, peer: Peer) -> Option<String>;

    /// Says where `peer` listens.
    fn set_address(&self, peer: Peer, address: &str);
}

/// Routes in the memory of one process. Every change is in every table at once.
#[derive(Debug, Clone, Default)]
pub struct MemoryRoutes(Arc<Mutex<Table>>);

impl MemoryRoutes {
    fn table<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Routes for MemoryRoutes {
    fn ask(&self, ask: &Ask) -> Reply {
        self.table(|table| table.ask(ask))
    }

    fn fence_all(&self, peer: Peer) -> Option<(u64, Vec<(Range, u64)>)> {
        Some(self.table(|table| table.fence_all(peer)))
    }

    fn home(&self, id: u64) -> Option<(Peer, u64)> {
        self.table(|table| table.home(id))
    }

    fn ranges(&self, peer: Peer) -> Vec<Range> {
        self.table(|table| table.ranges(peer))
    }

    fn announce(&self, range: Range, peer: Peer) -> Result<u64, Reply> {
        self.table(|table| table.announce(range, peer))
    }

    fn address(&self, peer: Peer) -> Option<String> {
        self.table(|table| table.addresses.get(&peer).cloned())
    }

    fn set_address(&self, peer: Peer, address: &str) {
        self.table(|table| table.addresses.insert(peer, address.to_owned()));
    }
}
