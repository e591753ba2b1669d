//! The first page: what the memory is, so that a later start of the node knows it again.
//!
//! ```text
//! 0    8  magic "imgcache"
//! 8    8  version
//! 16   8  sequence: of two headers that are whole the larger one holds
//! 24   8  boot id
//! 32   8  boot id before: entries may still have this one while a start rewrites them; 0 for none
//! 40   8  buckets of the index
//! 48   8  slabs
//! 56   8  CRC-32C over bytes 0..56
//! ```
//! There are two, at 0 and at 2048, written in turns: a node that is killed while it writes one
//! leaves the other.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bytes of the page in front of the index.
pub const HEADER_BYTES: usize = 4096;
/// The version of the layout of header, index and slabs that this code writes.
pub const VERSION: u64 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"imgcache");
const WORDS: usize = 8;
const COPIES: [usize; 2] = [0, 2048 / 8];

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Version of the layout.
    pub version: u64,
    /// Counts headers.
    pub sequence: u64,
    /// Which start of the node wrote the entries.
    pub boot_id: u64,
    /// Which start wrote those that were not yet rewritten; 0 for none.
    pub previous: u64,
    /// Buckets of the index.
    pub buckets: u64,
    /// Slabs of 2 MiB behind it.
    pub slabs: u64,
}

/// What the first page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Zeros only: nothing was ever written.
    Nothing,
    /// A header.
    Header(Header),
    /// Something else, or damage.
    Foreign,
}

impl Header {
    fn words(&self) -> [u64; WORDS] {
        let mut words = [
            MAGIC,
            self.version,
            self.sequence,
            self.boot_id,
            self.previous,
            self.buckets,
            self.slabs,
            0,
        ];
        words[7] = checksum(&words);
        words
    }

    fn decode(words: &[u64; WORDS]) -> Option<Self> {
        let [MAGIC, version, sequence, boot_id, previous, buckets, slabs, crc] = *words else {
            return None;
        };
        (crc == checksum(words)).then_some(Self {
            version,
            sequence,
            boot_id,
            previous,
            buckets,
            slabs,
        })
    }

    /// Writes this as the header that follows on `self.sequence - 1`.
    pub fn write(&self, page: &[AtomicU64]) {
        let copy = COPIES[usize::from(self.sequence % 2 == 1)];
        // Nothing of the content that this header is about is written after it.
        fence(Ordering::Release);
        for (to, from) in page[copy..].iter().zip(self.words()) {
            to.store(from, Ordering::Release);
        }
    }
}

/// Reads the header of the memory that begins with `page`.
pub fn read(page: &[AtomicU64]) -> Found {
    let load = |word: &AtomicU64| word.load(Ordering::Acquire);
    let copies = COPIES.iter().filter_map(|copy| {
        let words: Vec<u64> = page.get(*copy..copy + WORDS)?.iter().map(load).collect();
        Header::decode(words.as_slice().try_into().ok()?)
    });
    match copies.max_by_key(|header| header.sequence) {
        Some(header) => Found::Header(header),
        None if page.iter().take(HEADER_BYTES / 8).all(|word| load(word) == 0) => Found::Nothing,
        None => Found::Foreign,
    }
}

fn checksum(words: &[u64; WORDS]) -> u64 {
    let bytes: Vec<u8> = words[..7].iter().flat_map(|word| word.to_le_bytes()).collect();
    u64::from(crc32c::crc32c(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<AtomicU64> {
        (0..512).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn the_newest_whole_header_holds() {
        let page = page();
        assert_eq!(read(&page), Found::Nothing);
        let mut header =
            Header { version: 1, sequence: 1, boot_id: 5, previous: 0, buckets: 8, slabs: 3 };
        for sequence in 1..5 {
            header.sequence = sequence;
            header.write(&page);
            assert_eq!(read(&page), Found::Header(header));
        }
        // The next one is cut short at any word: the one before it holds.
        let next = Header { sequence: 5, boot_id: 6, ..header };
        let copy = COPIES[1];
        for (cut, word) in next.words().into_iter().enumerate().take(WORDS - 1) {
            page[copy + cut].store(word, Ordering::Relaxed);
            assert_eq!(read(&page), Found::Header(header), "{cut}");
        }
        page[0].store(1, Ordering::Relaxed);
        assert_eq!(read(&page), Found::Foreign);
    }
}
