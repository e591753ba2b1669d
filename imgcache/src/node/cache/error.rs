//! What can go wrong in a cache.

use std::time::Duration;

use crate::index::table::GeometryError;
use crate::key::ChunkKey;
use crate::node::arena::ArenaError;

/// Why a cache could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The memory could not be had, or the file is not fit.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// There is no index of the size that was asked for.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Items of this size cannot be kept.
    #[error("items of {0} bytes cannot be kept: 1 to {max} bytes", max = super::config::MAX_ITEM_BYTES)]
    ItemSize(usize),
    /// Whoever watched the opening did not want it any more. What a file holds is still there.
    #[error("opening was stopped")]
    Stopped,
    /// More than all memory.
    #[error("{setting} is {permille} thousandths of the memory: at most 1000")]
    Permille {
        /// Which setting.
        setting: &'static str,
        /// Its value.
        permille: u16,
    },
}

/// Why no memory was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// The content is larger than any item may be.
    #[error("object too large for cache: {length} bytes, at most {limit}")]
    TooLarge {
        /// Bytes asked for.
        length: usize,
        /// The most there may be.
        limit: usize,
    },
    /// All memory is in use and nothing can be evicted.
    #[error(
        "out of memory storing object: {length} bytes; {leased} leased, {pinned} pinned, \
         {quarantined} quarantined of {capacity}"
    )]
    NoMemory {
        /// Bytes asked for.
        length: usize,
        /// Bytes of content that leases hold.
        leased: u64,
        /// Bytes of content that pins hold.
        pinned: u64,
        /// Bytes that are free soon.
        quarantined: u64,
        /// Bytes of all.
        capacity: u64,
    },
    /// Others are filling as much as may be filled at once.
    #[error(
        "busy: retry after {} ms: {length} bytes on top of {reserved} of {limit} that are being filled",
        retry_after.as_millis()
    )]
    Reserved {
        /// Bytes asked for.
        length: usize,
        /// Bytes that are being filled.
        reserved: u64,
        /// The most.
        limit: u64,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Memory is removed items' and not to be touched yet.
    #[error("busy: retry after {} ms: memory for {length} bytes is in quarantine", retry_after.as_millis())]
    Waiting {
        /// Bytes asked for.
        length: usize,
        /// When there is some.
        retry_after: Duration,
    },
}

/// Why an item was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no memory for it.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// All entries where the key can be are in use by items that must stay.
    #[error("out of index entries storing object: all {entries} candidates are in use")]
    TableFull {
        /// How many there are for each key.
        entries: usize,
    },
    /// The content of a chunk is not what its key says.
    #[error("chunk is damaged: its content has the hash {found}, its key is {key}")]
    HashMismatch {
        /// What it was to be.
        key: ChunkKey,
        /// What it is.
        found: ChunkKey,
    },
    /// Others changed the item each time that this change of it was ready.
    #[error("item was changed by others {attempts} times in a row")]
    Contended {
        /// How often it was tried.
        attempts: u32,
    },
}
