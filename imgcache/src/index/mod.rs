//! The index of a storage node: a fixed table that remote readers read while the node writes it.
//!
//! - [`announce`]: what a node tells of it;
//! - [`entry`]: one entry, 64 bytes, which carries all that is needed to verify it;
//! - [`table`]: how many buckets there are, and in which two a key may be;
//! - [`words`]: where entries are written, and read from beside the node;
//! - [`reader`]: what a reader accepts, and when it gives up and asks the node.

pub mod announce;
pub mod entry;
pub mod reader;
pub mod table;
pub mod words;

use std::fmt;

/// What the index calls an item: the first 16 bytes of the BLAKE3 hash of its memcached key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexKey(pub [u8; 16]);

impl IndexKey {
    /// The index key of the memcached key `key`.
    pub fn of(key: &[u8]) -> Self {
        let mut first = [0; 16];
        first.copy_from_slice(&blake3::hash(key).as_bytes()[..16]);
        Self(first)
    }

    /// The two halves, little-endian.
    pub(crate) fn halves(self) -> (u64, u64) {
        let value = u128::from_le_bytes(self.0);
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0);
        (half(value), half(value >> 64))
    }
}

impl fmt::Display for IndexKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for IndexKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IndexKey({self})")
    }
}
