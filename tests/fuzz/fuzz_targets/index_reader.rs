//! The index of a storage node as a remote reader sees it: entries that are whole, entries that are
//! not, and words that change between one read and the next. What is accepted was written as one,
//! for its place, for the key that was looked for, and points into the exported region.
#![no_main]

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use imgcache::index::IndexKey;
use imgcache::index::entry::{EMPTY, Entry, EntryWords, State};
use imgcache::index::reader::{Bucket, BucketSource, Exported, Lookup};
use imgcache::index::table::TableGeometry;

const BOOT: u64 = 0x1122_3344_5566_7788;

/// The input, from which numbers are taken until it ends, then zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn number(&mut self, bytes: usize) -> u64 {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Few keys, so that entries meet.
    fn key(&mut self) -> IndexKey {
        let [a, b] = [self.number(1) % 4, self.number(1) % 4];
        let mut key = [0; 16];
        key[..8].copy_from_slice(&a.to_le_bytes());
        key[8..].copy_from_slice(&b.to_le_bytes());
        IndexKey(key)
    }
}

struct Table<'a> {
    words: HashMap<u64, EntryWords>,
    input: Input<'a>,
}

impl BucketSource for Table<'_> {
    type Error = Infallible;

    fn read(&mut self, buckets: [u64; 2], out: &mut [Bucket; 2]) -> Result<(), Infallible> {
        for (number, bucket) in buckets.into_iter().zip(out) {
            for (place, words) in bucket.iter_mut().enumerate() {
                let slot = TableGeometry::slot(number, place);
                *words = self.words.get(&slot).copied().unwrap_or(EMPTY);
            }
        }
        // The node writes on.
        let [slot, word, value] = [1, 1, 8].map(|bytes| self.input.number(bytes));
        self.words.entry(slot % 32).or_insert(EMPTY)[(word % 8) as usize] ^= value;
        Ok(())
    }

    fn pause(&mut self, _: Duration) {}
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(words) = data.first_chunk::<64>() {
        let (words, _) = words.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let words: EntryWords = words.try_into().expect("eight words");
        if let Ok(Some(entry)) = Entry::verify(&words, BOOT, 3) {
            assert_eq!(entry.encode(BOOT, 3), words);
        }
    }
    let mut input = Input(data);
    let table = TableGeometry::with_buckets(4).expect("a power of two");
    let exported = Exported { boot_id: BOOT, table, region: 0, bytes: 1 << 20, content: 4096 };
    let key = input.key();
    let mut words = HashMap::new();
    let mut written = Vec::new();
    for _ in 0..input.number(1) % 40 {
        let slot = input.number(1) % 32;
        let entry = Entry {
            key: input.key(),
            state: if input.number(1) % 4 == 0 { State::Tombstone } else { State::Live },
            region: (input.number(1) / 250) as u8,
            offset: input.number(6) >> (input.number(1) % 48),
            length: (input.number(4) >> (input.number(1) % 32)) as u32,
            expires: 0,
            generation: input.number(2),
            hash: input.number(8).into(),
            flags: 0,
        };
        // Some for another start of the node, or another place.
        let boot = BOOT ^ (input.number(1) / 250);
        let place = slot ^ (input.number(1) / 250);
        words.insert(slot, entry.encode(boot, place));
        if (boot, place) == (BOOT, slot) {
            written.push(entry);
        }
    }
    let mut table = Table { words, input };
    let Ok(found) = exported.lookup(&mut table, key);
    if let Lookup::Found(entry) = found {
        assert!(entry.key == key && entry.state == State::Live, "{entry:?}");
        assert!(entry.offset >= 4096 && entry.offset + u64::from(entry.length) <= 1 << 20);
        assert!(written.contains(&entry), "never written: {entry:?}");
    }
});
