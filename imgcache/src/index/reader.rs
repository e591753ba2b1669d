//! How a reader that is not the node looks a key up, while the node writes.
//!
//! An entry is accepted if and only if its checksum fits (for the boot id that the node announced and
//! the place at which it was read), its key is the one that was looked for, and its content lies
//! inside the region that the node exports. Nothing else is ever followed: an offset that was not
//! checked would, over RDMA, destroy the connection. What is not accepted is read again, after 0, 10
//! and 100 microseconds; then the node has to be asked.
//!
//! The absence of a key is believed only if no look, the repeated ones among them, found a trace of
//! it: between two reads the node may have moved it from the bucket that is read second to the one
//! that was read first. A tombstone of the key is such a trace, and so is an entry that is not whole.

use std::time::Duration;

use super::IndexKey;
use super::entry::{ENTRY_WORDS, Entry, EntryWords, State};
use super::table::{BUCKET_BYTES, BUCKET_ENTRIES, TableGeometry};

/// A bucket as it was read, perhaps while it was written.
pub type Bucket = [EntryWords; BUCKET_ENTRIES];

/// A bucket of which nothing was read yet.
pub const EMPTY_BUCKET: Bucket = [[0; ENTRY_WORDS]; BUCKET_ENTRIES];

/// The words of a bucket, from its bytes.
pub fn bucket_of(bytes: &[u8; BUCKET_BYTES]) -> Bucket {
    let mut bucket = EMPTY_BUCKET;
    for (word, bytes) in bucket.iter_mut().flatten().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    bucket
}

/// How long to wait before each time a bucket is read again.
pub const PAUSES: [Duration; 3] =
    [Duration::ZERO, Duration::from_micros(10), Duration::from_micros(100)];

/// Reads buckets of a node's table.
pub trait BucketSource {
    /// Why reading fails.
    type Error;

    /// Reads the buckets of these numbers, which are below the number of buckets, into `out`. Words
    /// may be from different moments.
    ///
    /// # Errors
    /// Nothing could be read.
    fn read(&mut self, buckets: [u64; 2], out: &mut [Bucket; 2]) -> Result<(), Self::Error>;

    /// Waits before the next read.
    fn pause(&mut self, time: Duration) {
        if !time.is_zero() {
            std::thread::sleep(time);
        }
    }
}

/// What a node announces of its table and of the memory behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Which start of the node.
    pub boot_id: u64,
    /// The table.
    pub table: TableGeometry,
    /// The region's number.
    pub region: u8,
    /// Bytes of the region; all content is inside.
    pub bytes: u64,
    /// The first byte of the region at which content can be.
    pub content: u64,
}

/// What a look at two buckets, or several, gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The entry; its content still has to be read and compared with its hash.
    Found(Entry),
    /// The node does not have the key.
    Absent,
    /// Only the node itself can tell.
    AskNode,
}

/// What one look at the two buckets gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The entry.
    Found(Entry),
    /// All entries are whole, and none is of the key.
    Clean,
    /// Something was being written, or was moved or removed.
    Disturbed,
}

impl Exported {
    /// Whether the content of `entry` is inside the region.
    pub fn holds(&self, entry: &Entry) -> bool {
        let end = entry.offset.checked_add(u64::from(entry.length));
        entry.region == self.region
            && entry.offset >= self.content
            && end.is_some_and(|end| end <= self.bytes)
    }

    /// Looks `key` up.
    ///
    /// # Errors
    /// Those of the source; nothing was found until then.
    pub fn lookup<S: BucketSource>(
        &self,
        source: &mut S,
        key: IndexKey,
    ) -> Result<Lookup, S::Error> {
        let numbers = self.table.candidates(key);
        let mut buckets = [EMPTY_BUCKET; 2];
        let mut clean = true;
        let mut pauses = PAUSES.iter();
        loop {
            source.read(numbers, &mut buckets)?;
            match self.look(&buckets, key) {
                Look::Found(entry) => return Ok(Lookup::Found(entry)),
                look => clean &= look == Look::Clean,
            }
            match pauses.next() {
                Some(pause) => source.pause(*pause),
                None if clean => return Ok(Lookup::Absent),
                None => return Ok(Lookup::AskNode),
            }
        }
    }

    /// One look at the two buckets of `key`, for those who read many at once. Of two entries of the
    /// key, which there are while it is moved, it finds the newer one.
    pub fn look(&self, buckets: &[Bucket; 2], key: IndexKey) -> Look {
        let numbers = self.table.candidates(key);
        let mut found: Option<Entry> = None;
        let mut disturbed = false;
        for (number, bucket) in numbers.into_iter().zip(buckets) {
            for (place, words) in bucket.iter().enumerate() {
                match Entry::verify(words, self.boot_id, TableGeometry::slot(number, place)) {
                    Ok(Some(entry)) if entry.key == key => {
                        let live = entry.state == State::Live && self.holds(&entry);
                        let newer = found.is_none_or(|old| old.generation <= entry.generation);
                        if live && newer {
                            found = Some(entry);
                        }
                        disturbed |= !live;
                    }
                    Ok(_) => (),
                    Err(_) => disturbed = true,
                }
            }
        }
        match (found, disturbed) {
            (Some(entry), _) => Look::Found(entry),
            (None, true) => Look::Disturbed,
            (None, false) => Look::Clean,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::index::entry::EMPTY;

    /// What each read gives, the last one again and again; and the pauses between them.
    #[derive(Default)]
    struct Script {
        reads: Vec<HashMap<u64, EntryWords>>,
        read: usize,
        pauses: Vec<Duration>,
    }

    impl BucketSource for Script {
        type Error = Infallible;

        fn read(&mut self, buckets: [u64; 2], out: &mut [Bucket; 2]) -> Result<(), Infallible> {
            let table = &self.reads[self.read.min(self.reads.len() - 1)];
            self.read += 1;
            for (number, bucket) in buckets.into_iter().zip(out) {
                for (place, words) in bucket.iter_mut().enumerate() {
                    let slot = TableGeometry::slot(number, place);
                    *words = table.get(&slot).copied().unwrap_or(EMPTY);
                }
            }
            Ok(())
        }

        fn pause(&mut self, time: Duration) {
            self.pauses.push(time);
        }
    }

    const KEY: IndexKey = IndexKey([3; 16]);

    fn exported() -> Exported {
        let table = TableGeometry::with_buckets(16).unwrap();
        Exported { boot_id: 7, table, region: 0, bytes: 1 << 20, content: 8192 }
    }

    fn entry(generation: u64) -> Entry {
        Entry {
            key: KEY,
            state: State::Live,
            region: 0,
            offset: 8192,
            length: 100,
            expires: 0,
            generation,
            hash: 1,
            flags: 0,
        }
    }

    /// A table with these entries at these places of the key's first bucket.
    fn table(entries: &[(usize, Entry)]) -> HashMap<u64, EntryWords> {
        let bucket = exported().table.candidates(KEY)[0];
        let words = entries.iter().map(|(place, entry)| {
            let slot = TableGeometry::slot(bucket, *place);
            (slot, entry.encode(7, slot))
        });
        words.collect()
    }

    fn lookup(reads: Vec<HashMap<u64, EntryWords>>) -> (Lookup, usize) {
        let mut script = Script { reads, ..Script::default() };
        let Ok(found) = exported().lookup(&mut script, KEY);
        assert_eq!(script.pauses, PAUSES[..script.read - 1]);
        (found, script.read)
    }

    #[test]
    fn what_is_whole_is_found_at_once_and_the_newer_of_two() {
        assert_eq!(lookup(vec![table(&[(2, entry(5))])]), (Lookup::Found(entry(5)), 1));
        let two = table(&[(2, entry(5)), (7, entry(6))]);
        assert_eq!(lookup(vec![two]), (Lookup::Found(entry(6)), 1));
    }

    #[test]
    fn what_is_not_accepted_is_read_three_times_more() {
        let mut torn = table(&[(2, entry(5))]);
        for words in torn.values_mut() {
            words[4] = 9;
        }
        let whole = table(&[(2, entry(9))]);
        assert_eq!(lookup(vec![torn.clone()]), (Lookup::AskNode, 4));
        let late = vec![torn.clone(), torn.clone(), torn, whole];
        assert_eq!(lookup(late), (Lookup::Found(entry(9)), 4));
        let removed = table(&[(2, entry(5).tombstone())]);
        assert_eq!(lookup(vec![removed]), (Lookup::AskNode, 4));
        assert_eq!(lookup(vec![HashMap::new()]), (Lookup::Absent, 4));
    }

    #[test]
    fn a_place_outside_the_region_is_never_followed() {
        for (offset, length, region) in [
            (8191, 1, 0),
            (0, 0, 0),
            ((1 << 20) - 99, 100, 0),
            (1 << 20, 1, 0),
            ((1 << 48) - 1, u32::MAX, 0),
            (8192, 100, 1),
        ] {
            let outside = Entry { region, offset, length, ..entry(5) };
            assert_eq!(lookup(vec![table(&[(0, outside)])]), (Lookup::AskNode, 4), "{outside:?}");
        }
    }

    #[test]
    fn the_failure_of_the_source_comes_back() {
        struct Failing;
        impl BucketSource for Failing {
            type Error = u8;
            fn read(&mut self, _: [u64; 2], _: &mut [Bucket; 2]) -> Result<(), u8> {
                Err(5)
            }
        }
        assert_eq!(exported().lookup(&mut Failing, KEY), Err(5));
    }

    proptest! {
        /// Any words in any bucket: nothing but an entry of the key that was written for its place
        /// comes out.
        #[test]
        fn garbage_is_never_accepted(words: [[u64; 8]; 16], place in 0..8_usize, put: bool) {
            let exported = exported();
            let mut buckets = [EMPTY_BUCKET; 2];
            for (to, from) in buckets.iter_mut().flatten().zip(words) {
                *to = from;
            }
            if put {
                let slot = TableGeometry::slot(exported.table.candidates(KEY)[1], place);
                buckets[1][place] = entry(5).encode(7, slot);
            }
            let expected = if put { Look::Found(entry(5)) } else { Look::Disturbed };
            prop_assert_eq!(exported.look(&buckets, KEY), expected);
        }
    }
}
