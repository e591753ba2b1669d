//! The geometry of the index: a power of two of buckets, and the two in which a key may be.
//!
//! There are no chains: a lookup is two reads of one bucket each that do not depend on one another,
//! so they are one round trip. A full pair of buckets makes the node evict.

use super::IndexKey;
use super::entry::ENTRY_BYTES;

/// Entries of a bucket.
pub const BUCKET_ENTRIES: usize = 8;
/// Bytes of a bucket.
pub const BUCKET_BYTES: usize = BUCKET_ENTRIES * ENTRY_BYTES;
/// The largest number of entries: they are numbered with 32 bits, and one number means none.
pub const MAX_ENTRIES: u64 = 1 << 31;
/// Content that one entry is expected to have, in bytes, when nobody says how many entries.
const BYTES_PER_ENTRY: u64 = 4096;

/// How large a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableGeometry {
    /// The exponent of the number of buckets.
    bits: u32,
}

/// A number of entries or buckets of which there can be no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Too many entries for one table.
    #[error("an index of {0} entries is too large: at most {MAX_ENTRIES}")]
    TooLarge(u64),
    /// Not a power of two, or zero.
    #[error("an index cannot have {0} buckets: a power of two is needed")]
    Buckets(u64),
}

impl TableGeometry {
    /// The smallest table of at least `entries` entries.
    ///
    /// # Errors
    /// More than [`MAX_ENTRIES`].
    pub fn with_entries(entries: u64) -> Result<Self, GeometryError> {
        if entries > MAX_ENTRIES {
            return Err(GeometryError::TooLarge(entries));
        }
        let buckets = entries.div_ceil(BUCKET_ENTRIES as u64).max(1).next_power_of_two();
        Ok(Self { bits: buckets.trailing_zeros() })
    }

    /// The table for `bytes` bytes of content: an entry for each 4 KiB.
    ///
    /// # Errors
    /// More than [`MAX_ENTRIES`] would be needed.
    pub fn for_content(bytes: u64) -> Result<Self, GeometryError> {
        Self::with_entries(bytes.div_ceil(BYTES_PER_ENTRY))
    }

    /// The table of `buckets` buckets.
    ///
    /// # Errors
    /// Not a power of two, or too many.
    pub fn with_buckets(buckets: u64) -> Result<Self, GeometryError> {
        if !buckets.is_power_of_two() {
            return Err(GeometryError::Buckets(buckets));
        }
        if buckets > MAX_ENTRIES / BUCKET_ENTRIES as u64 {
            return Err(GeometryError::TooLarge(buckets.saturating_mul(BUCKET_ENTRIES as u64)));
        }
        Ok(Self { bits: buckets.trailing_zeros() })
    }

    /// How many buckets.
    pub fn buckets(self) -> u64 {
        1 << self.bits
    }

    /// How many entries.
    pub fn entries(self) -> u64 {
        self.buckets() * BUCKET_ENTRIES as u64
    }

    /// Bytes of the whole table.
    pub fn bytes(self) -> u64 {
        self.buckets() * BUCKET_BYTES as u64
    }

    /// The two buckets in which `key` may be: by bits of its first and of its second half, so they
    /// do not depend on one another. They may be the same.
    pub fn candidates(self, key: IndexKey) -> [u64; 2] {
        let mask = self.buckets() - 1;
        let (first, second) = key.halves();
        [first & mask, second & mask]
    }

    /// The number of the entry at `place` of `bucket`.
    pub fn slot(bucket: u64, place: usize) -> u64 {
        bucket * BUCKET_ENTRIES as u64 + place as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_round_up() {
        let geometry = TableGeometry::for_content(512 << 20).unwrap();
        assert_eq!((geometry.entries(), geometry.bytes()), (131_072, 8 << 20));
        assert_eq!(TableGeometry::with_entries(0).unwrap().entries(), 8);
        assert_eq!(TableGeometry::with_entries(9).unwrap().buckets(), 2);
        assert_eq!(TableGeometry::with_entries(MAX_ENTRIES).unwrap().entries(), MAX_ENTRIES);
        let most = MAX_ENTRIES + 1;
        assert_eq!(TableGeometry::with_entries(most), Err(GeometryError::TooLarge(most)));
        assert_eq!(TableGeometry::with_buckets(0), Err(GeometryError::Buckets(0)));
        assert_eq!(TableGeometry::with_buckets(12), Err(GeometryError::Buckets(12)));
        assert!(TableGeometry::with_buckets(1 << 63).is_err());
    }

    proptest! {
        #[test]
        fn candidates_are_inside_and_independent(key: [u8; 16], bits in 0..28_u32, other: [u8; 8]) {
            let geometry = TableGeometry::with_buckets(1 << bits).unwrap();
            let [first, second] = geometry.candidates(IndexKey(key));
            prop_assert!(first < geometry.buckets() && second < geometry.buckets());
            let mut changed = key;
            changed[8..].copy_from_slice(&other);
            prop_assert_eq!(geometry.candidates(IndexKey(changed))[0], first);
        }
    }

    /// Without moving entries, how full a table gets before a key finds no place.
    #[test]
    fn two_buckets_fill_a_table_well() {
        let geometry = TableGeometry::with_entries(1 << 16).unwrap();
        let mut fill = vec![0_usize; 1 << 13];
        let placed = (0..1_u64 << 16)
            .take_while(|n| {
                let [a, b] = geometry
                    .candidates(IndexKey::of(&n.to_le_bytes()))
                    .map(|bucket| usize::try_from(bucket).unwrap());
                let bucket = if fill[b] < fill[a] { b } else { a };
                fill[bucket] += 1;
                fill[bucket] <= BUCKET_ENTRIES
            })
            .count();
        assert!(placed > (1 << 16) * 3 / 4, "{placed}");
    }
}
