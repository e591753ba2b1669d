//! The index of a node as RDMA brings it: any bytes, and copies of the table that are of two moments, cut at any
//! byte. What is accepted was written as one, for its place, and points into the exported region.
#![no_main]

use imgcache::index::IndexKey;
use imgcache::index::entry::{ENTRY_BYTES, Entry, State};
use imgcache::index::reader::{EMPTY_BUCKET, Exported, Look, bucket_of};
use imgcache::index::table::{BUCKET_BYTES, TableGeometry};

const BOOT: u64 = 0x1122_3344_5566_7788;
const BUCKETS: usize = 4;
const TABLE_BYTES: usize = BUCKETS * BUCKET_BYTES;
const SLOTS: u64 = (TABLE_BYTES / ENTRY_BYTES) as u64;

/// The input, from which numbers are taken until it ends, then zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn number(&mut self, bytes: usize) -> u64 {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// One of few, so that entries meet.
    fn key(&mut self) -> IndexKey {
        let mut key = [0; 16];
        key[0] = (self.number(1) % 4) as u8;
        key[8] = (self.number(1) % 4) as u8;
        IndexKey(key)
    }

    fn entry(&mut self) -> Entry {
        Entry {
            key: self.key(),
            state: if self.number(1) % 8 == 0 { State::Tombstone } else { State::Live },
            region: (self.number(1) / 250) as u8,
            offset: self.number(6) >> (self.number(1) % 48),
            length: (self.number(4) >> (self.number(1) % 32)) as u32,
            expires: 0,
            generation: self.number(2),
            hash: self.number(8).into(),
            flags: 0,
        }
    }
}

/// What a reader finds for `key` in a copy of the table, as it was read.
fn look(exported: &Exported, table: &[u8; TABLE_BYTES], key: IndexKey) -> Option<Entry> {
    let buckets = table.as_chunks::<BUCKET_BYTES>().0;
    let mut two = [EMPTY_BUCKET; 2];
    for (number, bucket) in exported.table.candidates(key).into_iter().zip(&mut two) {
        *bucket = bucket_of(&buckets[usize::try_from(number).expect("there are four")]);
    }
    match exported.look(&two, key) {
        Look::Found(entry) => {
            assert!(entry.key == key && entry.state == State::Live, "{entry:?}");
            assert!(exported.holds(&entry), "{entry:?}");
            Some(entry)
        }
        Look::Clean | Look::Disturbed => None,
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let table = TableGeometry::with_buckets(BUCKETS as u64).expect("a power of two");
    let exported = Exported { boot_id: BOOT, table, region: 0, bytes: 1 << 20, content: 4096 };
    let mut input = Input(data);
    let key = input.key();

    // Anything at all: what is found is in the bytes, for its place.
    let mut bytes = [0; TABLE_BYTES];
    bytes.iter_mut().zip(input.0.iter().cycle()).for_each(|(to, from)| *to = *from);
    if let Some(entry) = look(&exported, &bytes, key) {
        let is_there = (0..SLOTS).any(|slot| {
            let words = entry.encode(BOOT, slot).map(u64::to_le_bytes);
            let from = usize::try_from(slot).expect("there are few") * ENTRY_BYTES;
            bytes[from..from + ENTRY_BYTES] == *words.as_flattened()
        });
        assert!(is_there, "{entry:?}");
    }

    // A table that is written while it is copied.
    let mut now = [0; TABLE_BYTES];
    let mut copy = [0; TABLE_BYTES];
    let mut written = Vec::new();
    let mut copied = 0;
    for _ in 0..input.number(1) % 32 {
        let until = copied + usize::try_from(input.number(2)).unwrap_or(0) % 300;
        let until = until.min(TABLE_BYTES);
        copy[copied..until].copy_from_slice(&now[copied..until]);
        copied = until;
        let (entry, slot) = (input.entry(), input.number(1) % SLOTS);
        // Now and then of another start of the node, or for another place.
        let (boot, place) = (BOOT ^ (input.number(1) / 250), slot ^ (input.number(1) / 250));
        let words = entry.encode(boot, place).map(u64::to_le_bytes);
        let from = usize::try_from(slot).expect("there are few") * ENTRY_BYTES;
        // So far it had come when it was interrupted.
        let bytes = match input.number(1) {
            few @ 0..64 => usize::try_from(few).expect("a byte"),
            _ => ENTRY_BYTES,
        };
        now[from..from + bytes].copy_from_slice(&words.as_flattened()[..bytes]);
        if (boot, place) == (BOOT, slot) {
            written.push(entry);
        }
    }
    copy[copied..].copy_from_slice(&now[copied..]);
    if let Some(entry) = look(&exported, &copy, key) {
        assert!(written.contains(&entry), "never written: {entry:?}");
    }
});
