//! The cache: memcached's operations on items that lie in the arena and are listed in the index.

mod config;
mod counters;
mod error;
mod item;
mod key;
mod request;
mod time;

use std::time::Duration;

pub use config::{Backing, BackingChoice, CacheConfig, MAX_ITEM_BYTES, OpenReport};
pub use counters::{
    ClassStats, Counters, Counts, Granted, Held, LeaseInfo, Maintained, PinInfo, Placement,
};
pub use error::{CacheError, HoldError, ReserveError, StoreError};
pub use item::{Item, Reservation, Win};
pub use key::{CHUNK_FLAGS, Key, Kind, MANIFEST_FLAGS, NAME_FLAGS, PerKind};
pub use request::{
    Arithmetic, ArithmeticOutcome, Attributes, DeleteOutcome, DeleteRequest, Direction, GetRequest,
    StoreMode, StoreOutcome,
};
pub use time::{Expires, Now};

use crate::index::IndexKey;

/// The cache. Any number of threads may use it at once: each operation takes one lock, for a short
/// time, and copies and hashes content outside of it.
#[derive(Debug)]
pub struct Cache {}

impl Cache {
    /// Takes the memory, and what a file holds from before.
    ///
    /// # Errors
    /// The memory cannot be had, the file is not fit, or the configuration makes no sense.
    pub fn open(config: &CacheConfig) -> Result<(Self, OpenReport), CacheError> {
        Err(CacheError::ItemSize(config.max_item_bytes))
    }

    /// Memory for `length` bytes of content; evicts for it what is needed.
    ///
    /// # Errors
    /// Too large, or all memory is in use.
    pub fn reserve(&self, length: usize, _now: Now) -> Result<Reservation, ReserveError> {
        Err(ReserveError::TooLarge { length, limit: 0 })
    }

    /// The item of `key`.
    pub fn get(&self, _key: &Key, _now: Now) -> Option<Item> {
        None
    }

    /// The item of `key`, with what meta gets do beside.
    ///
    /// # Errors
    /// There is no room for a placeholder that was to be made.
    pub fn get_with(
        &self,
        _key: &Key,
        _request: &GetRequest,
        _now: Now,
    ) -> Result<Option<Item>, StoreError> {
        Ok(None)
    }

    /// Sets when the item of `key` expires. Returns whether there is one.
    pub fn touch(&self, _key: &Key, _expires: Expires, _now: Now) -> bool {
        false
    }

    /// Sets when the item of `key` expires, and gets it.
    pub fn get_and_touch(&self, _key: &Key, _expires: Expires, _now: Now) -> Option<Item> {
        None
    }

    /// Stores what was filled in.
    ///
    /// # Errors
    /// No room, or the content of a chunk is not what its key says.
    pub fn store(
        &self,
        _key: &Key,
        _mode: StoreMode,
        _content: Reservation,
        _attributes: &Attributes,
        _now: Now,
    ) -> Result<StoreOutcome, StoreError> {
        Ok(StoreOutcome::NotStored)
    }

    /// Stores a copy of `content`.
    ///
    /// # Errors
    /// As [`Cache::reserve`] and [`Cache::store`].
    pub fn store_bytes(
        &self,
        _key: &Key,
        _mode: StoreMode,
        _content: &[u8],
        _attributes: &Attributes,
        _now: Now,
    ) -> Result<StoreOutcome, StoreError> {
        Ok(StoreOutcome::NotStored)
    }

    /// Adds to or subtracts from the number that the item of `key` is.
    ///
    /// # Errors
    /// There is no room for the result.
    pub fn arithmetic(
        &self,
        _key: &Key,
        _request: &Arithmetic,
        _now: Now,
    ) -> Result<ArithmeticOutcome, StoreError> {
        Ok(ArithmeticOutcome::NotFound)
    }

    /// Removes the item of `key`, or marks it stale, or empties it.
    ///
    /// # Errors
    /// There is no room for the emptied item.
    pub fn delete(
        &self,
        _key: &Key,
        _request: &DeleteRequest,
        _now: Now,
    ) -> Result<DeleteOutcome, StoreError> {
        Ok(DeleteOutcome::NotFound)
    }

    /// Removes all items that there are `delay` seconds from now.
    pub fn flush_all(&self, _delay: u32, _now: Now) {}

    /// Holds the items of `keys` until `ttl` is over, or the lease is released. The same id again
    /// renews the lease, and adds what it does not hold yet; without keys it only renews.
    ///
    /// # Errors
    /// Over the limits, or draining.
    pub fn lease(
        &self,
        _id: u64,
        _ttl: Duration,
        _keys: &[IndexKey],
        _now: Now,
    ) -> Result<Granted, HoldError> {
        Err(HoldError::Draining)
    }

    /// Ends a lease, whose holder read this many bytes. Returns whether there was one.
    pub fn release(&self, _id: u64, _bytes_read: u64) -> bool {
        false
    }

    /// Holds the items of `keys` for an image until it is unpinned; in place of what was held for it
    /// before. Pins end with the process.
    ///
    /// # Errors
    /// Over the limits.
    pub fn pin(&self, _image: [u8; 32], _keys: &[IndexKey], _now: Now) -> Result<Held, HoldError> {
        Err(HoldError::Draining)
    }

    /// Ends the pin of an image. Returns whether there was one.
    pub fn unpin(&self, _image: [u8; 32]) -> bool {
        false
    }

    /// Refuses new leases, or gives them again. Leases that there are can be renewed.
    pub fn set_draining(&self, _draining: bool) {}

    /// Does what time brings: ends leases and quarantines, removes some expired items, and evicts
    /// ahead. To be called about once a second.
    pub fn maintenance(&self, _now: Now) -> Maintained {
        Maintained::default()
    }

    /// All counters.
    pub fn counters(&self) -> Counters {
        Counters {
            counts: Counts::default(),
            items: 0,
            items_by_kind: PerKind::default(),
            content_bytes: PerKind::default(),
            capacity: 0,
            used: 0,
            quarantined: 0,
            leased: 0,
            pinned: 0,
            leases: 0,
            pins: 0,
            table_used: 0,
            table_entries: 0,
            free_slabs: 0,
            slabs: 0,
            overhead_bytes: 0,
            restored: 0,
            dropped_damaged: 0,
            dropped_expired: 0,
            backing: Backing::Small,
            draining: false,
        }
    }

    /// The size classes that have slabs, by size.
    pub fn class_stats(&self, _now: Now) -> Vec<ClassStats> {
        Vec::new()
    }

    /// What clients that place items need to know.
    pub fn placement(&self) -> Placement {
        Placement {
            boot_id: 0,
            generation: 0,
            capacity: 0,
            used: 0,
            leased: 0,
            pinned: 0,
            quarantined: 0,
            draining: false,
        }
    }

    /// The leases.
    pub fn leases(&self, _now: Now) -> Vec<LeaseInfo> {
        Vec::new()
    }

    /// The pins.
    pub fn pins(&self) -> Vec<PinInfo> {
        Vec::new()
    }

    /// The items whose flags say that they are names of images.
    pub fn images(&self, _now: Now) -> Vec<Item> {
        Vec::new()
    }

    /// How many of the items of `keys` are here. Counts as no access.
    pub fn held(&self, keys: &[IndexKey], _now: Now) -> Held {
        Held { missing: keys.len() as u64, ..Held::default() }
    }
}
