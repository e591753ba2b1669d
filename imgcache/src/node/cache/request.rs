//! What operations are asked with, and what they answer, beyond keys and content.

use super::item::Item;
use super::time::Expires;

/// What storing does when there is an item, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreMode {
    /// Stores in any case.
    Set,
    /// Stores if there is none.
    Add,
    /// Stores if there is one.
    Replace,
    /// Stores if there is one and its CAS value is this.
    Cas(u64),
    /// Puts the content after that of the item there is; flags and expiry stay.
    Append,
    /// Puts the content before that of the item there is; flags and expiry stay.
    Prepend,
}

/// What an item is stored with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Client flags.
    pub flags: u32,
    /// When it expires.
    pub expires: Expires,
    /// Stores only if the CAS value of the item there is is this (meta `C`), whatever the mode.
    pub compare: Option<u64>,
    /// The CAS value to give it (meta `E`) instead of the next one.
    pub cas: Option<u64>,
    /// With `compare` smaller than the CAS value there is: stores, as a stale item (meta `I`).
    pub invalidate: bool,
    /// For append and prepend: makes the item, expiring so, if there is none (meta `N`).
    pub vivify: Option<Expires>,
}

/// What storing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It is stored, with this CAS value.
    Stored {
        /// The item's CAS value.
        cas: u64,
    },
    /// There is an item, or none, against the mode.
    NotStored,
    /// The item has another CAS value.
    Exists,
    /// There is no item whose CAS value could be compared.
    NotFound,
}

/// What a get does beside getting (meta `mg`); the default is a plain get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GetRequest {
    /// Sets when it expires (`T`).
    pub touch: Option<Expires>,
    /// Makes an empty placeholder that expires so if there is none, and wins (`N`).
    pub vivify: Option<Expires>,
    /// Wins if fewer seconds than this are left (`R`).
    pub recache: Option<u32>,
    /// The CAS value of a placeholder that is made (`E`).
    pub cas: Option<u64>,
    /// Leaves access time, the mark of having been fetched, the order of eviction and the counts of
    /// hits and misses as they are.
    pub quiet: bool,
    /// Leaves it to others to win: what is not `mg`.
    pub no_win: bool,
}

/// Which way a number goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Up; from 2^64 - 1 to 0.
    Increment,
    /// Down; not below 0.
    Decrement,
}

/// Arithmetic on an item whose content is a decimal number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arithmetic {
    /// Which way.
    pub direction: Direction,
    /// By how much.
    pub delta: u64,
    /// Makes the item with this number, expiring so, if there is none (meta `N` and `J`).
    pub initial: Option<(u64, Expires)>,
    /// Sets when it expires (meta `T`).
    pub touch: Option<Expires>,
    /// Only if the CAS value is this (meta `C`).
    pub compare: Option<u64>,
    /// The CAS value to give it (meta `E`).
    pub cas: Option<u64>,
}

/// What arithmetic did.
#[derive(Debug, Clone)]
pub enum ArithmeticOutcome {
    /// The number after it.
    Value {
        /// The number.
        value: u64,
        /// The item as it is now.
        item: Item,
        /// There was none before.
        created: bool,
    },
    /// There is no item.
    NotFound,
    /// The item has another CAS value.
    Exists,
    /// The content is no decimal number below 2^64.
    NonNumeric,
}

/// What a delete does; the default removes the item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeleteRequest {
    /// Only if the CAS value is this.
    pub compare: Option<u64>,
    /// Marks the item stale, with a new CAS value, instead of removing it (meta `I`).
    pub invalidate: bool,
    /// With `invalidate`: sets when it expires (meta `T`).
    pub expires: Option<Expires>,
    /// With `invalidate` or `clear`: the CAS value to give it (meta `E`).
    pub cas: Option<u64>,
    /// Empties the content and the flags, and keeps the item (meta `x`).
    pub clear: bool,
}

/// What a delete did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// It is removed, marked or emptied.
    Deleted,
    /// There is no item.
    NotFound,
    /// The item has another CAS value.
    Exists,
}
