//! What the cache counts, and snapshots of it for statistics and metrics.

use std::time::Duration;

use super::key::PerKind;
use crate::node::arena::Backing;

/// Counts since the start. Kinds of misses are told by the key, those of items by their flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Gets that found an item.
    pub hits: PerKind,
    /// Gets that found none.
    pub misses: PerKind,
    /// Bytes of content of the items found.
    pub hit_bytes: PerKind,
    /// Items stored.
    pub stored: PerKind,
    /// Bytes of content stored.
    pub stored_bytes: PerKind,
    /// Stores of what was there already, byte by byte; among those stored.
    pub stored_same: u64,
    /// Touches that found an item, those of gets among them.
    pub touch_hits: u64,
    /// Touches that found none.
    pub touch_misses: u64,
    /// Deletes that found an item.
    pub delete_hits: u64,
    /// Deletes that found none.
    pub delete_misses: u64,
    /// Increments that found an item.
    pub increment_hits: u64,
    /// Increments that found none.
    pub increment_misses: u64,
    /// Decrements that found an item.
    pub decrement_hits: u64,
    /// Decrements that found none.
    pub decrement_misses: u64,
    /// Compared CAS values that were equal.
    pub cas_hits: u64,
    /// Compared CAS values that were not.
    pub cas_mismatches: u64,
    /// CAS values for which there was no item.
    pub cas_misses: u64,
    /// Gets that found an expired item.
    pub get_expired: u64,
    /// Gets that found a flushed item.
    pub get_flushed: u64,
    /// Flushes.
    pub flushes: u64,
    /// Items that were removed after they had expired or been flushed.
    pub reclaimed: u64,
    /// Those of them that were never fetched.
    pub expired_unfetched: u64,
    /// Items evicted for memory.
    pub evictions: u64,
    /// Items evicted because the index had no entry left for another key; not among `evictions`.
    pub table_evictions: u64,
    /// Evicted items that were never fetched, of both.
    pub evicted_unfetched: u64,
    /// Evicted items by kind, of both.
    pub evicted: PerKind,
    /// Sum over evicted items of the seconds since they were stored.
    pub evicted_age_seconds: u64,
    /// Seconds since the item evicted last was stored.
    pub last_eviction_age: u32,
    /// Slabs that were taken from one size class for another.
    pub slabs_moved: u64,
    /// Reservations refused for want of memory.
    pub out_of_memory: u64,
    /// Reservations put off because all memory for them was in quarantine.
    pub quarantine_refusals: u64,
    /// Reservations put off because others filled as much as may be filled at once.
    pub reservations_refused: u64,
    /// Stores refused for want of an index entry.
    pub table_full: u64,
    /// Chunks refused because their content is not what their key says.
    pub hash_mismatches: u64,
    /// Leases given or renewed.
    pub leases_granted: u64,
    /// Leases refused.
    pub leases_refused: u64,
    /// Leases that ended because their time was up.
    pub leases_expired: u64,
    /// Leases that were released.
    pub leases_released: u64,
    /// Bytes read, as those who released leases said.
    pub leased_bytes_read: u64,
}

/// A snapshot of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    /// Counts since the start.
    pub counts: Counts,
    /// Items now, those among them that expired but were not yet found to be.
    pub items: u64,
    /// Items by kind.
    pub items_by_kind: PerKind,
    /// Bytes of their content.
    pub content_bytes: PerKind,
    /// Bytes that all content may take.
    pub capacity: u64,
    /// Bytes of slots in use, by items, reservations, readers or the quarantine.
    pub used: u64,
    /// Bytes of slots of removed items that wait before they are used again.
    pub quarantined: u64,
    /// Bytes of slots that are being filled.
    pub reserved: u64,
    /// Slots that nobody uses and into which somebody may still be writing from afar.
    pub parked: u64,
    /// Bytes of content that at least one lease holds.
    pub leased: u64,
    /// Bytes of content that at least one pin holds.
    pub pinned: u64,
    /// Leases now.
    pub leases: u64,
    /// Leases that ended and on whose memory somebody still has rights.
    pub closing_leases: u64,
    /// Images pinned now.
    pub pins: u64,
    /// Entries of the index in use.
    pub table_used: u64,
    /// Entries of the index.
    pub table_entries: u64,
    /// Slabs that belong to no size class.
    pub free_slabs: u64,
    /// Slabs.
    pub slabs: u64,
    /// Bytes taken beside the arena, but for what grows with leases and pins.
    pub overhead_bytes: u64,
    /// Items found in the file at the start.
    pub restored: u64,
    /// Entries of the file that were not whole, or whose content was not.
    pub dropped_damaged: u64,
    /// Items of the file that had expired.
    pub dropped_expired: u64,
    /// Pages of the arena.
    pub backing: Backing,
    /// Whether new leases are refused.
    pub draining: bool,
}

impl Counters {
    /// How full the index is, in thousandths.
    pub fn table_load_permille(&self) -> u64 {
        self.table_used * 1000 / self.table_entries.max(1)
    }
}

/// What there is of one size class (`stats slabs`, `stats items`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassStats {
    /// Number of the class, from 1 on.
    pub class: u8,
    /// Bytes of a slot.
    pub slot_bytes: u64,
    /// Slots of a slab.
    pub slots_per_slab: u64,
    /// Slabs.
    pub slabs: u64,
    /// Slots in use, by items, reservations, readers or the quarantine.
    pub used_slots: u64,
    /// Slots that are free.
    pub free_slots: u64,
    /// Items.
    pub items: u64,
    /// Bytes of their content.
    pub content_bytes: u64,
    /// Seconds since the oldest item was stored.
    pub age: u32,
    /// Items evicted.
    pub evicted: u64,
    /// Those of them that were never fetched.
    pub evicted_unfetched: u64,
    /// Seconds since the item evicted last had been accessed, when it was evicted.
    pub evicted_idle: u32,
    /// Items removed after they had expired or been flushed.
    pub reclaimed: u64,
    /// Reservations refused.
    pub out_of_memory: u64,
}

/// What clients that place items need to know of a node (`stats placement`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Which start of the node.
    pub boot_id: u64,
    /// The CAS value that was given last.
    pub generation: u64,
    /// Bytes that all content may take.
    pub capacity: u64,
    /// Bytes of slots in use.
    pub used: u64,
    /// Bytes that leases hold.
    pub leased: u64,
    /// Bytes that pins hold.
    pub pinned: u64,
    /// Bytes that wait before they are used again.
    pub quarantined: u64,
    /// Whether new leases are refused.
    pub draining: bool,
}

/// A lease that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// How long it holds.
    pub ttl: Duration,
    /// Keys of this request whose items are held now.
    pub held: u64,
    /// Keys of this request for which there is no item.
    pub missing: u64,
    /// How busy the node is, in thousandths of what leases may take.
    pub busy_permille: u16,
}

/// Items among those asked for that are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// How many.
    pub items: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// How many are not here.
    pub missing: u64,
}

/// What maintenance did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Maintained {
    /// Expired and flushed items that were removed.
    pub reclaimed: u64,
    /// Items that were evicted to have free memory ready.
    pub evicted: u64,
    /// Leases whose time was up.
    pub leases_ended: u64,
    /// Bytes that came out of the quarantine.
    pub released: u64,
}
