//! The cache: memcached's operations on items that lie in the arena and are listed in the index.
//!
//! One lock guards everything but content. It is held for as long as a lookup takes; content is
//! copied, hashed and compared outside of it, which memory with one owner ([`Reservation`]) or with
//! any number of readers and no writer ([`Item`]) allows. What an item takes beside the arena is said
//! in `table.rs`.

mod arithmetic;
mod config;
mod counters;
mod error;
mod evict;
mod expose;
mod hold;
mod item;
mod key;
mod maintenance;
mod memory;
mod open;
mod quarantine;
mod read;
mod remove;
mod report;
mod request;
mod restore;
mod state;
mod table;
mod time;
mod write;

#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

pub use config::{
    Backing, BackingChoice, CacheConfig, EXPORTED_QUARANTINE, MAX_ITEM_BYTES, OpenReport, OpenStep,
    Progress, Watch,
};
pub use counters::{ClassStats, Counters, Counts, Granted, Held, Maintained, Placement};
pub use error::{CacheError, ReserveError, StoreError};
pub use expose::{Exposed, Exposure, ExposureId, WritesEnded};
use item::Content;
pub use item::{Item, Reservation, Win};
pub use key::{Key, Kind, PerKind};
pub use request::{
    Arithmetic, ArithmeticOutcome, Attributes, DeleteOutcome, DeleteRequest, Direction, GetRequest,
    StoreMode, StoreOutcome,
};
pub use time::{Expires, Now};

use crate::node::arena::Arena;
use crate::node::lease::Holds;
pub use crate::node::lease::{HoldError, LeaseInfo, PinInfo};
use crate::parallel::lock;
use maintenance::Populating;
use state::State;

/// The cache. Any number of threads may use it at once: each operation takes one lock, for a short
/// time, and copies and hashes content outside of it.
#[derive(Debug)]
pub struct Cache {
    state: Mutex<State>,
    holds: Arc<Holds<Content>>,
    is_draining: AtomicBool,
    arena: Arc<Arena>,
    report: OpenReport,
    max_item_bytes: usize,
    /// Bytes that may be reserved at once.
    max_reserved: u64,
    /// Ends when the cache is dropped.
    _populating: Option<Populating>,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
