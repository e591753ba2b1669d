//! How a cache is set up.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::node::arena::{Backing, BackingChoice};

/// The largest content of an item, in bytes.
pub const MAX_ITEM_BYTES: usize = 1 << 20;

/// The quarantine of memory that is exported, where nobody says how long: twice the longest time that
/// one read from afar takes.
pub const EXPORTED_QUARANTINE: Duration = Duration::from_secs(2);

/// What a cache is to be like.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Memory for content, in bytes; rounded up to whole slabs of 2 MiB. The index comes on top.
    pub memory_bytes: u64,
    /// Entries of the index, rounded up to a power of two; without, one for each 4 KiB.
    pub index_entries: Option<u64>,
    /// In which pages.
    pub backing: BackingChoice,
    /// The file that holds the memory and survives the process; without, anonymous memory.
    pub file: Option<PathBuf>,
    /// The largest content that is taken, at most [`MAX_ITEM_BYTES`].
    pub max_item_bytes: usize,
    /// How long memory is left alone after its item was removed, for remote readers without a
    /// lease.
    pub quarantine: Duration,
    /// Whether remote readers can reach the memory by themselves: then there is always a quarantine,
    /// of [`EXPORTED_QUARANTINE`] where none is said.
    pub exported: bool,
    /// How much of the memory leases may hold, in thousandths.
    pub max_leased_permille: u16,
    /// How much of the memory pins may hold, in thousandths.
    pub max_pinned_permille: u16,
    /// How much of the memory may be reserved at once, and not filled yet, in thousandths.
    pub max_reserved_permille: u16,
    /// How many leases there may be at once.
    pub max_leases: usize,
    /// How many images may be pinned at once.
    pub max_pins: usize,
    /// Whether all memory is taken at once, in a thread beside the service, and not page by page as
    /// it is used.
    pub populate: bool,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            index_entries: None,
            backing: BackingChoice::Auto,
            file: None,
            max_item_bytes: MAX_ITEM_BYTES,
            quarantine: Duration::ZERO,
            exported: false,
            max_leased_permille: 500,
            max_pinned_permille: 500,
            max_reserved_permille: 1000,
            max_leases: 4096,
            max_pins: 4096,
            populate: true,
        }
    }
}

impl CacheConfig {
    /// How long memory is left alone.
    pub(super) fn effective_quarantine(&self) -> Duration {
        match self.quarantine {
            Duration::ZERO if self.exported => EXPORTED_QUARANTINE,
            quarantine => quarantine,
        }
    }
}

/// What opening a file is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenStep {
    /// Looking through the index, in entries.
    Scan,
    /// Hashing content, in items.
    Verify,
}

/// How far opening a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// With what.
    pub step: OpenStep,
    /// How much of it is done.
    pub done: u64,
    /// How much it is.
    pub all: u64,
}

/// Is told again and again how far opening is, and may stop it.
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// What opening gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReport {
    /// The pages that were got.
    pub backing: Backing,
    /// Why there are no better ones, each step of the way; empty when nothing better was wanted.
    pub fallbacks: Vec<String>,
    /// Content that fits, in bytes.
    pub memory_bytes: u64,
    /// Entries of the index.
    pub index_entries: u64,
    /// Which start of the node this is; random.
    pub boot_id: u64,
    /// Items found in the file, whole.
    pub restored: u64,
    /// Items of the file that had expired.
    pub expired: u64,
    /// Entries of the file that were not whole, or whose content was not.
    pub damaged: u64,
}
