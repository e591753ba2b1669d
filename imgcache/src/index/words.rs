//! The words of the table, where they are written and read: by the node, by a start that takes them
//! over, and by readers in the same process.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::entry::{EMPTY, ENTRY_WORDS, EntryWords};
use super::reader::{Bucket, BucketSource, EMPTY_BUCKET};
use super::table::{BUCKET_ENTRIES, TableGeometry};

/// The words of all entries, [`ENTRY_WORDS`] each.
#[derive(Debug, Clone, Copy)]
pub struct IndexWords<'a>(&'a [AtomicU64]);

impl<'a> IndexWords<'a> {
    /// The table in `words`.
    pub fn new(words: &'a [AtomicU64]) -> Self {
        Self(words)
    }

    /// How many entries.
    pub fn entries(self) -> u64 {
        (self.0.len() / ENTRY_WORDS) as u64
    }

    fn entry(self, slot: u64) -> Option<&'a [AtomicU64]> {
        let start = usize::try_from(slot).ok()?.checked_mul(ENTRY_WORDS)?;
        self.0.get(start..start.checked_add(ENTRY_WORDS)?)
    }

    /// The entry with number `slot`, whose words may be from different moments; none beyond the end.
    pub fn read(self, slot: u64) -> Option<EntryWords> {
        let mut words = EMPTY;
        for (to, from) in words.iter_mut().zip(self.entry(slot)?) {
            *to = from.load(Ordering::Relaxed);
        }
        // What an entry that is whole says is there, is there for what follows.
        fence(Ordering::Acquire);
        Some(words)
    }

    /// Writes the entry with number `slot`, the word with the checksum last.
    pub fn write(self, slot: u64, words: &EntryWords) {
        let Some(entry) = self.entry(slot) else { return };
        // What the entry says is there, is there before it.
        fence(Ordering::Release);
        for (word, value) in entry.iter().zip(words).take(ENTRY_WORDS - 1) {
            word.store(*value, Ordering::Relaxed);
        }
        entry[ENTRY_WORDS - 1].store(words[ENTRY_WORDS - 1], Ordering::Release);
    }

    /// Forgets what the entry with number `slot` said.
    pub fn clear(self, slot: u64) {
        self.write(slot, &EMPTY);
    }

    /// The bucket with this number; empty beyond the end.
    pub fn bucket(self, number: u64) -> Bucket {
        let mut bucket = EMPTY_BUCKET;
        for (place, words) in bucket.iter_mut().enumerate().take(BUCKET_ENTRIES) {
            *words = self.read(TableGeometry::slot(number, place)).unwrap_or(EMPTY);
        }
        bucket
    }
}

impl BucketSource for IndexWords<'_> {
    type Error = Infallible;

    fn read(&mut self, buckets: [u64; 2], out: &mut [Bucket; 2]) -> Result<(), Infallible> {
        *out = buckets.map(|number| self.bucket(number));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexKey;
    use crate::index::entry::{Entry, State};
    use crate::index::reader::{Exported, Lookup};

    #[test]
    fn what_is_written_is_looked_up_and_what_is_cleared_is_not() {
        let table = TableGeometry::with_buckets(4).unwrap();
        let words: Vec<AtomicU64> = (0..table.bytes() / 8).map(|_| AtomicU64::new(0)).collect();
        let mut index = IndexWords::new(&words);
        assert_eq!(index.entries(), 32);
        let exported = Exported { boot_id: 7, table, region: 0, bytes: 1 << 20, content: 8192 };
        let key = IndexKey([9; 16]);
        let entry = Entry {
            key,
            state: State::Live,
            region: 0,
            offset: 8192,
            length: 5,
            expires: 0,
            generation: 1,
            hash: 2,
            flags: 3,
        };
        let slot = TableGeometry::slot(table.candidates(key)[1], 6);
        index.write(slot, &entry.encode(7, slot));
        assert_eq!(exported.lookup(&mut index, key), Ok(Lookup::Found(entry)));
        assert_eq!(index.bucket(table.candidates(key)[1])[6], index.read(slot).unwrap());
        index.clear(slot);
        assert_eq!(exported.lookup(&mut index, key), Ok(Lookup::Absent));
        assert_eq!((index.read(32), index.bucket(4)), (None, EMPTY_BUCKET));
        index.write(32, &entry.encode(7, 32));
    }
}
