//! Memory that is shared with the device, which reads and writes it behind the program's back: so it is
//! only ever accessed as atomic words.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a page.
pub const PAGE: usize = 4096;
const WORD: usize = size_of::<u32>();

/// Owns memory that others may write to at any time.
pub trait Words: Debug + Send + Sync {
    /// All of it.
    fn words(&self) -> &[AtomicU32];
}

impl Words for Arc<[AtomicU32]> {
    fn words(&self) -> &[AtomicU32] {
        self
    }
}

/// Memory whose guest-physical addresses are known, and stay.
#[derive(Debug)]
pub struct Memory {
    words: Box<dyn Words>,
    /// Guest-physical address of each page.
    pages: Vec<u64>,
    way: &'static str,
}

impl Memory {
    /// `words`, whose pages are at these guest-physical addresses and are held there in this `way`.
    ///
    /// # Panics
    /// If there are not as many pages as addresses.
    pub fn new(words: Box<dyn Words>, pages: Vec<u64>, way: &'static str) -> Self {
        assert_eq!(words.words().len() * WORD, pages.len() * PAGE, "an address for each page");
        Self { words, pages, way }
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// What holds it where it is.
    pub const fn way(&self) -> &'static str {
        self.way
    }

    /// All its words.
    pub fn words(&self) -> &[AtomicU32] {
        self.words.words()
    }

    /// Guest-physical address of each page.
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// The guest-physical address of `length` bytes from `offset` on; none if they are not all there in
    /// one piece.
    pub fn address(&self, offset: usize, length: usize) -> Option<u64> {
        let last = offset.checked_add(length.max(1) - 1)? / PAGE;
        let pages = self.pages.get(offset / PAGE..=last)?;
        let mut expected = *pages.first()?;
        for page in pages {
            if *page != expected {
                return None;
            }
            expected = expected.checked_add(PAGE as u64)?;
        }
        pages[0].checked_add(u64::try_from(offset % PAGE).ok()?)
    }

    /// The word at `offset`, a multiple of 4. What the device wrote before it is seen after it.
    ///
    /// # Panics
    /// If there is none.
    pub fn load(&self, offset: usize) -> u32 {
        self.words()[offset / WORD].load(Ordering::Acquire)
    }

    /// The same of 64 bits, which may be torn while the device writes it.
    ///
    /// # Panics
    /// If there is none.
    pub fn load_u64(&self, offset: usize) -> u64 {
        u64::from(self.load(offset)) | u64::from(self.load(offset + WORD)) << 32
    }

    /// Changes the word at `offset`, a multiple of 4.
    ///
    /// # Panics
    /// If there is none.
    pub fn store(&self, offset: usize, value: u32) {
        self.words()[offset / WORD].store(value, Ordering::Release);
    }

    /// Copies `bytes` to `offset`, a multiple of 4; the last word is filled up with zeros.
    ///
    /// # Panics
    /// If they are more than there is room for.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let words = &self.words()[offset / WORD..][..bytes.len().div_ceil(WORD)];
        for (word, bytes) in words.iter().zip(bytes.chunks(WORD)) {
            let mut whole = [0; WORD];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u32::from_le_bytes(whole), Ordering::Relaxed);
        }
    }

    /// Fills `bytes` with what is at `offset`, a multiple of 4, and on.
    ///
    /// # Panics
    /// If there is less.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let words = &self.words()[offset / WORD..][..bytes.len().div_ceil(WORD)];
        for (word, bytes) in words.iter().zip(bytes.chunks_mut(WORD)) {
            let whole = word.load(Ordering::Relaxed).to_le_bytes();
            bytes.copy_from_slice(&whole[..bytes.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn memory(pages: &[u64]) -> Memory {
        let words: Arc<[AtomicU32]> =
            (0..pages.len() * PAGE / WORD).map(|_| AtomicU32::new(0)).collect();
        Memory::new(Box::new(words), pages.to_vec(), "a test")
    }

    #[test]
    fn only_pages_in_a_row_are_one_piece() {
        let memory = memory(&[0x5000, 0x6000, 0x9000]);
        assert_eq!(memory.address(0, 8192), Some(0x5000));
        assert_eq!(memory.address(4092, 8), Some(0x5ffc));
        assert_eq!(memory.address(8188, 8), None);
        assert_eq!(memory.address(8192, 4096), Some(0x9000));
        assert_eq!(memory.address(8192, 4097), None);
        assert_eq!(memory.address(12287, 0), Some(0x9fff));
        assert_eq!(memory.address(12288, 0), None);
        assert_eq!(memory.address(usize::MAX, 2), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(at in 0usize..1000, bytes in prop::collection::vec(any::<u8>(), 0..90)) {
            let memory = memory(&[0x1000]);
            memory.write(at * 4, &bytes);
            let mut read = vec![0xff; bytes.len()];
            memory.read(at * 4, &mut read);
            prop_assert_eq!(&read, &bytes);
            // Nothing else was touched.
            prop_assert_eq!(memory.words().iter().take(at).map(|w| w.load(Ordering::Relaxed)).max().unwrap_or(0), 0);
            prop_assert_eq!(memory.load(at * 4 + bytes.len().next_multiple_of(4)), 0);
        }
    }
}
