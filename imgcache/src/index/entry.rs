//! One entry of the index: 64 bytes, one cache line, little-endian.
//!
//! ```text
//! 0   16  key        IndexKey
//! 16   8  location   state (8 bits, the highest) | region (8 bits) | offset in bytes (48 bits)
//! 24   4  length     of the content in bytes
//! 28   4  expires    unix seconds, 0 for never
//! 32   8  generation the memcached CAS value
//! 40  16  hash       XXH3-128 of the content, little-endian
//! 56   4  flags      the client's
//! 60   4  crc        CRC-32C over boot id (8), slot number (8), bytes 0..60
//! ```
//! The checksum depends on who wrote the entry and where it stands: bytes of another entry, of an
//! earlier start of the node, or of two writes at once do not pass.

use super::IndexKey;

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 64;
/// 64-bit words of an entry.
pub const ENTRY_WORDS: usize = ENTRY_BYTES / 8;
/// The first offset, in bytes, that the location cannot hold.
pub const OFFSET_END: u64 = 1 << 48;

/// An entry as words in the order of the table, each the little-endian value of its 8 bytes.
pub type EntryWords = [u64; ENTRY_WORDS];

/// Nothing was ever here, or what was here is forgotten.
pub const EMPTY: EntryWords = [0; ENTRY_WORDS];

/// What an entry says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The content is at the location.
    Live,
    /// The content was removed, or moved to another entry: whoever looks for the key reads again.
    Tombstone,
}

impl State {
    fn code(self) -> u64 {
        match self {
            Self::Live => 1,
            Self::Tombstone => 2,
        }
    }
}

/// The content of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Whose entry.
    pub key: IndexKey,
    /// Whether the content is there.
    pub state: State,
    /// Which of the node's memory regions; 0 is the only one so far.
    pub region: u8,
    /// Where the content begins in the region, in bytes; below [`OFFSET_END`].
    pub offset: u64,
    /// Bytes of content.
    pub length: u32,
    /// When it expires, in unix seconds; 0 for never.
    pub expires: u32,
    /// The CAS value: grows with each change of the node.
    pub generation: u64,
    /// XXH3-128 of the content.
    pub hash: u128,
    /// The client's flags.
    pub flags: u32,
}

/// Why the words of an entry are not to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The checksum does not fit the words, the boot id or the slot number.
    #[error("index entry {slot}: checksum {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// The number of the entry in the table.
        slot: u64,
        /// What the entry says.
        found: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// The checksum fits, but the state is none that is known.
    #[error("index entry {slot}: unknown state {state}")]
    State {
        /// The number of the entry in the table.
        slot: u64,
        /// The state byte.
        state: u64,
    },
}

impl Entry {
    /// The words of this entry at number `slot` of the table of the node started as `boot_id`.
    ///
    /// An offset of [`OFFSET_END`] or more loses its upper bits; nodes have no regions of that size.
    pub fn encode(&self, boot_id: u64, slot: u64) -> EntryWords {
        let (key_low, key_high) = self.key.halves();
        let [hash_low, hash_high] = split_u128(self.hash);
        let location =
            (self.state.code() << 56) | (u64::from(self.region) << 48) | (self.offset % OFFSET_END);
        let mut words = [
            key_low,
            key_high,
            location,
            u64::from(self.length) | (u64::from(self.expires) << 32),
            self.generation,
            hash_low,
            hash_high,
            u64::from(self.flags),
        ];
        words[7] |= u64::from(checksum(&words, boot_id, slot)) << 32;
        words
    }

    /// What `words` say, read at number `slot` of the table of the node started as `boot_id`; none
    /// if nothing is there.
    ///
    /// # Errors
    /// The words were not written as one, not for this place, or not in this start of the node.
    pub fn verify(words: &EntryWords, boot_id: u64, slot: u64) -> Result<Option<Self>, EntryError> {
        if *words == EMPTY {
            return Ok(None);
        }
        let (_, found) = split_u64(words[7]);
        let expected = checksum(words, boot_id, slot);
        if found != expected {
            return Err(EntryError::Checksum { slot, found, expected });
        }
        Self::decode(words).map(Some).map_err(|state| EntryError::State { slot, state })
    }

    /// The fields, unchecked; the state's code when it is none that is known.
    fn decode(words: &EntryWords) -> Result<Self, u64> {
        let state = match words[2] >> 56 {
            1 => State::Live,
            2 => State::Tombstone,
            other => return Err(other),
        };
        let mut key = [0; 16];
        key[..8].copy_from_slice(&words[0].to_le_bytes());
        key[8..].copy_from_slice(&words[1].to_le_bytes());
        let (length, expires) = split_u64(words[3]);
        let (flags, _) = split_u64(words[7]);
        let [region, ..] = (words[2] >> 48).to_le_bytes();
        Ok(Self {
            key: IndexKey(key),
            state,
            region,
            offset: words[2] % OFFSET_END,
            length,
            expires,
            generation: words[4],
            hash: (u128::from(words[6]) << 64) | u128::from(words[5]),
            flags,
        })
    }

    /// The entry that takes this one's place when it is removed or was moved.
    #[must_use]
    pub fn tombstone(self) -> Self {
        Self { state: State::Tombstone, region: 0, offset: 0, length: 0, hash: 0, flags: 0, ..self }
    }
}

/// CRC-32C over boot id, slot number and the first 60 bytes.
fn checksum(words: &EntryWords, boot_id: u64, slot: u64) -> u32 {
    let mut bytes = [0; 16 + ENTRY_BYTES];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip([boot_id, slot].iter().chain(words)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    crc32c::crc32c(&bytes[..16 + ENTRY_BYTES - 4])
}

/// The lower and the upper half.
fn split_u64(word: u64) -> (u32, u32) {
    let half = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or(0);
    (half(word), half(word >> 32))
}

/// The lower and the upper half.
fn split_u128(value: u128) -> [u64; 2] {
    let (low, high) = IndexKey(value.to_le_bytes()).halves();
    [low, high]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Entry> {
        let place = (any::<bool>(), any::<u8>(), 0..OFFSET_END);
        let numbers = (any::<u32>(), any::<u32>(), any::<u64>(), any::<u128>(), any::<u32>());
        (any::<[u8; 16]>(), place, numbers).prop_map(
            |(key, (live, region, offset), (length, expires, generation, hash, flags))| Entry {
                key: IndexKey(key),
                state: if live { State::Live } else { State::Tombstone },
                region,
                offset,
                length,
                expires,
                generation,
                hash,
                flags,
            },
        )
    }

    #[test]
    fn the_layout_is_as_documented() {
        let entry = Entry {
            key: IndexKey(*b"0123456789abcdef"),
            state: State::Live,
            region: 0x22,
            offset: 0x6655_4433_2211,
            length: 0x0102_0304,
            expires: 0x0506_0708,
            generation: 0x1112_1314_1516_1718,
            hash: (0xff_u128 << 120) | 1,
            flags: 0x766d_6301,
        };
        let bytes: Vec<u8> =
            entry.encode(7, 9).iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(&bytes[..16], b"0123456789abcdef");
        assert_eq!(bytes[16..24], [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x22, 1]);
        assert_eq!(bytes[24..32], [4, 3, 2, 1, 8, 7, 6, 5]);
        assert_eq!(bytes[32..40], [0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]);
        assert_eq!((bytes[40], bytes[55]), (1, 0xff));
        assert_eq!(bytes[56..60], [1, 0x63, 0x6d, 0x76]);
        let mut covered = Vec::from(7u64.to_le_bytes());
        covered.extend(9u64.to_le_bytes());
        covered.extend(&bytes[..60]);
        assert_eq!(bytes[60..], crc32c::crc32c(&covered).to_le_bytes());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entry in entries(), boot: u64, slot: u64) {
            let words = entry.encode(boot, slot);
            prop_assert_eq!(Entry::verify(&words, boot, slot), Ok(Some(entry)));
            let gone = entry.tombstone().encode(boot, slot);
            let gone = Entry::verify(&gone, boot, slot).unwrap().unwrap();
            prop_assert_eq!((gone.key, gone.state), (entry.key, State::Tombstone));
        }

        #[test]
        fn a_changed_bit_another_boot_or_place_is_refused(
            entry in entries(), boot: u64, slot: u64, bit in 0..512_usize,
        ) {
            let words = entry.encode(boot, slot);
            prop_assert!(Entry::verify(&words, boot ^ 1, slot).is_err());
            prop_assert!(Entry::verify(&words, boot, slot ^ 1).is_err());
            let mut changed = words;
            changed[bit / 64] ^= 1 << (bit % 64);
            prop_assert!(Entry::verify(&changed, boot, slot).is_err());
        }

        #[test]
        fn words_of_two_entries_are_refused(a in entries(), b in entries(), cut in 1..8_usize) {
            let (a, b) = (a.encode(1, 2), b.encode(1, 2));
            prop_assume!(a[..cut] != b[..cut] && a[cut..] != b[cut..]);
            let mut torn = a;
            torn[cut..].copy_from_slice(&b[cut..]);
            prop_assert!(Entry::verify(&torn, 1, 2).is_err());
        }
    }

    #[test]
    fn an_unknown_state_is_named() {
        let entry = Entry {
            key: IndexKey([1; 16]),
            state: State::Live,
            region: 0,
            offset: 0,
            length: 0,
            expires: 0,
            generation: 0,
            hash: 0,
            flags: 0,
        };
        let mut words = entry.encode(1, 2);
        words[2] = 3 << 56;
        words[7] = u64::from(checksum(&words, 1, 2)) << 32;
        assert_eq!(Entry::verify(&words, 1, 2), Err(EntryError::State { slot: 2, state: 3 }));
        assert_eq!(Entry::verify(&EMPTY, 1, 2), Ok(None));
    }
}
