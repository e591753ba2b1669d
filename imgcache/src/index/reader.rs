//! How a reader that is not the node looks a key up, while the node writes.
//!
//! An entry is accepted if and only if its checksum fits (for the boot id that the node announced and
//! the place at which it was read), its key is the one that was looked for, and its content lies
//! inside the region that the node exports. Nothing else is ever followed: an offset that was not
//! checked would, over RDMA, destroy the connection. What is not accepted is read again, after 0, 10
//! and 100 microseconds; then the node has to be asked.
//!
//! The absence of a key is believed only after two looks in a row at whole entries without a trace of
//! the key: between two reads the node may have moved it from the bucket that is read second to the
//! one that was read first. A tombstone of the key is such a trace.

use std::time::Duration;

use super::IndexKey;
use super::entry::{ENTRY_WORDS, Entry, EntryWords, State};
use super::table::{BUCKET_ENTRIES, TableGeometry};

/// A bucket as it was read, perhaps while it was written.
pub type Bucket = [EntryWords; BUCKET_ENTRIES];

/// A bucket of which nothing was read yet.
pub const EMPTY_BUCKET: Bucket = [[0; ENTRY_WORDS]; BUCKET_ENTRIES];

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
enum Look {
    Found(Entry),
    /// All entries are whole, none has ever had the key.
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
        let mut clean = false;
        let mut pauses = PAUSES.iter();
        loop {
            source.read(numbers, &mut buckets)?;
            match self.look(numbers, &buckets, key) {
                Look::Found(entry) => return Ok(Lookup::Found(entry)),
                Look::Clean if clean => return Ok(Lookup::Absent),
                look => clean = look == Look::Clean,
            }
            let Some(pause) = pauses.next() else { return Ok(Lookup::AskNode) };
            source.pause(if clean { Duration::ZERO } else { *pause });
        }
    }

    /// One look. Of two entries of the key, which there are while it is moved, the newer one.
    fn look(&self, numbers: [u64; 2], buckets: &[Bucket; 2], key: IndexKey) -> Look {
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
