//! Shared memory of which every part has one owner. All unsafe code of the node is here.
//!
//! Invariants:
//! 1. `start..start + length` is one mapping, readable and writable, from `new` to `drop`; nobody
//!    else unmaps or remaps it.
//! 2. Of the first `control` bytes (header and index) this process makes atomic references only
//!    ([`Mapping::words`]).
//! 3. Of the rest, only a [`Slot`] makes references, to its own bytes. Each granule has a bit in
//!    `claims`; a slot sets the bits of all its granules, each from 0 to 1, before it exists, and
//!    clears them after it can no longer be used. So no two slots have a byte in common, and Rust's
//!    borrow of the slot is the borrow of its bytes.
//! 4. No other process writes: anonymous memory is sealed against it before its descriptor is handed
//!    to anybody ([`Mapping::seal`]), and a file was locked ([`super::open`]) and stays so for as long
//!    as there is the mapping, which owns it.
//!    Remote readers read by DMA, which is no access in the sense of the language; they verify.
//! 5. Remote writers write by DMA into memory of which there is no reference: a slot is exposed to
//!    them without one (`cache::Exposed`), and there is none until it is proved that they cannot write
//!    any more.
#![expect(unsafe_code, reason = "memory that is shared with devices and outlives the process")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::transport::verbs::{Memory, Part, Span};

/// What slots are multiples of, in bytes.
pub const GRANULE: usize = 256;

/// The mapping.
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    control: usize,
    claims: Box<[AtomicU64]>,
    /// Closed, and with that unlocked, after it is unmapped.
    file: OwnedFd,
}

// SAFETY: the mapping belongs to no thread; who may access which part is invariants 2 and 3.
unsafe impl Send for Mapping {}
// SAFETY: as above; the fields are never changed, but for `claims`, which is atomic.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Mapping {
    /// Maps `length` bytes of `file`, of which the first `control` are words and the others slots.
    /// `file` is at least so long, and stays so.
    ///
    /// # Errors
    /// The kernel's; for huge pages, that there are not enough.
    pub fn new(file: OwnedFd, length: usize, control: usize) -> io::Result<Self> {
        if control > length || !control.is_multiple_of(GRANULE) || !length.is_multiple_of(GRANULE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start =
            unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let words = (length - control).div_ceil(GRANULE * 64);
        let claims = (0..words).map(|_| AtomicU64::new(0)).collect();
        let mapping = Self { start, length, control, claims, file };
        // An arena in a core dump would be of no use; kernels without the advice dump it.
        let _ = mapping.advise(0, length, Advice::LinuxDontDump);
        Ok(mapping)
    }

    /// Seals an anonymous file: from now on it keeps its length, and nobody can write to it but through
    /// mappings that there are, which is this one. Seals are for good.
    ///
    /// # Errors
    /// The kernel (before 5.1), or the file, knows no seals.
    pub fn seal(&self) -> io::Result<()> {
        let write = SealFlags::FUTURE_WRITE;
        let seals = write | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        Ok(fcntl_add_seals(&self.file, seals)?)
    }

    /// What is mapped.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Asks for huge pages, or for none.
    ///
    /// # Errors
    /// The kernel does not know the advice.
    pub fn want_huge_pages(&self, wanted: bool) -> io::Result<()> {
        let advice = if wanted { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        self.advise(0, self.length, advice)
    }

    /// Takes the pages of a part from the system, content untouched; for writing where `write`.
    ///
    /// # Errors
    /// There is no memory, or the kernel (before 5.14) cannot.
    pub fn populate(&self, offset: usize, length: usize, write: bool) -> io::Result<()> {
        let advice = if write { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
        self.advise(offset, length, advice)
    }

    fn advise(&self, offset: usize, length: usize, advice: Advice) -> io::Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: inside the mapping, and none of the advice given in this file changes content.
        unsafe { madvise(self.start.as_ptr().add(offset).cast(), length, advice) }?;
        Ok(())
    }

    /// Header and index, as words.
    pub fn words(&self) -> &[AtomicU64] {
        let (start, words) = (self.start.cast::<AtomicU64>().as_ptr(), self.control / 8);
        // SAFETY: the mapping is page-aligned, initialised by the kernel, lives as long as `self`
        // (invariant 1), and is accessed through such atomics only (invariant 2).
        unsafe { std::slice::from_raw_parts(start, words) }
    }

    /// Takes `capacity` bytes at `offset` as a slot that shows the first `length` of them; none if
    /// they are not all free, or not inside, or not at granules.
    pub fn claim(self: &Arc<Self>, offset: usize, capacity: usize, length: usize) -> Option<Slot> {
        let end = offset.checked_add(capacity)?;
        let fits = offset >= self.control && end <= self.length && length <= capacity;
        if !fits || !offset.is_multiple_of(GRANULE) || !capacity.is_multiple_of(GRANULE) {
            return None;
        }
        let bits = Bits::of(offset - self.control, capacity);
        for (taken, (word, mask)) in bits.clone().enumerate() {
            // Acquire: after the slot's last user. Release: after its entry was taken back.
            let before = self.claims[word].fetch_or(mask, Ordering::AcqRel);
            if before & mask != 0 {
                // What this call set, and nothing else, is taken back.
                self.claims[word].fetch_and(!(mask & !before), Ordering::Release);
                bits.take(taken).for_each(|(word, mask)| {
                    self.claims[word].fetch_and(!mask, Ordering::Release);
                });
                return None;
            }
        }
        Some(Slot { mapping: Arc::clone(self), offset, capacity, length })
    }
}

// SAFETY: one mapping, readable and writable, which nobody unmaps or remaps before it is dropped
// (invariant 1). Readers from afar verify what they read (invariant 4).
unsafe impl Memory for Mapping {
    fn span(&self) -> Span {
        Span { address: self.start.as_ptr().expose_provenance(), length: self.length }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped; slots keep the mapping alive, and words borrow it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "a mapping can be unmapped: {unmapped:?}");
    }
}

/// The words of `claims`, and the bits of each, that stand for a part of the slots' bytes.
#[derive(Clone)]
struct Bits {
    next: usize,
    end: usize,
}

impl Bits {
    fn of(start: usize, length: usize) -> Self {
        Self { next: start / GRANULE, end: (start + length) / GRANULE }
    }
}

impl Iterator for Bits {
    type Item = (usize, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.next;
        if first >= self.end {
            return None;
        }
        let count = (64 - first % 64).min(self.end - first);
        self.next = first + count;
        Some((first / 64, u64::MAX >> (64 - count) << (first % 64)))
    }
}

/// A slot of whose bytes there is no reference, so that devices may write to them; and what has to be told
/// when it goes, which is dropped after the slot.
#[derive(Debug)]
pub struct Blind<T> {
    slot: Slot,
    owner: T,
}

impl<T> Blind<T> {
    /// Lets nobody look at `slot` until [`Blind::into_parts`].
    pub fn new(slot: Slot, owner: T) -> Self {
        Self { slot, owner }
    }

    /// Where it begins, in bytes from the start of the mapping.
    pub fn offset(&self) -> usize {
        self.slot.offset
    }

    /// Bytes that may be written.
    pub fn length(&self) -> usize {
        self.slot.length
    }

    /// Bytes that it takes.
    pub fn capacity(&self) -> usize {
        self.slot.capacity
    }

    /// What is told.
    pub fn owner(&self) -> &T {
        &self.owner
    }

    /// The slot, to which no device writes any more.
    pub fn into_parts(self) -> (Slot, T) {
        (self.slot, self.owner)
    }
}

// SAFETY: the slot's own span, which stays as it is while it is in here; no reference to its bytes is made.
unsafe impl<T: fmt::Debug + Send + 'static> Part for Blind<T> {
    fn span(&self) -> Span {
        self.slot.span()
    }
}

/// Part of the mapping, which nobody else has.
#[derive(Debug)]
pub struct Slot {
    mapping: Arc<Mapping>,
    offset: usize,
    capacity: usize,
    length: usize,
}

impl Slot {
    /// Where it begins, in bytes from the start of the mapping.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes that it takes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Its content.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: inside the mapping (checked in `claim`), initialised by the kernel, and nobody
        // else's (invariant 3); borrowed from `self`, so nobody writes meanwhile.
        unsafe {
            std::slice::from_raw_parts(self.mapping.start.as_ptr().add(self.offset), self.length)
        }
    }

    /// Its content, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `self` is borrowed for writing, so nobody else reads or writes.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.mapping.start.as_ptr().add(self.offset),
                self.length,
            )
        }
    }
}

// SAFETY: at the same place for as long as it lives, as it keeps the mapping (invariant 1); references
// to its bytes are made through it only (invariant 3).
unsafe impl Part for Slot {
    fn span(&self) -> Span {
        let address = self.mapping.start.as_ptr().expose_provenance() + self.offset;
        Span { address, length: self.length }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        for (word, mask) in Bits::of(self.offset - self.mapping.control, self.capacity) {
            self.mapping.claims[word].fetch_and(!mask, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const SLOTS: usize = 1 << 16;

    fn mapping() -> Arc<Mapping> {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4096 + SLOTS as u64).unwrap();
        Arc::new(Mapping::new(file, 4096 + SLOTS, 4096).unwrap())
    }

    #[test]
    fn nothing_outside_or_between_granules_is_given_out() {
        let mapping = mapping();
        for (offset, capacity, length) in [
            (0, 256, 1),
            (3840, 512, 1),
            (4096, 255, 1),
            (4097, 256, 1),
            (4096, 256, 257),
            (4096, SLOTS + 256, 1),
            (usize::MAX - 255, 256, 1),
        ] {
            assert!(mapping.claim(offset, capacity, length).is_none(), "{offset} {capacity}");
        }
        assert!(mapping.claim(4096, SLOTS, SLOTS).is_some());
        assert!(mapping.claim(4096, SLOTS, SLOTS).is_some(), "given back");
    }

    #[test]
    fn words_and_slots_are_kept() {
        let mapping = mapping();
        mapping.populate(0, 4096, true).unwrap();
        mapping.words()[511].store(5, Ordering::Relaxed);
        let mut slot = mapping.claim(4096, 512, 300).unwrap();
        slot.bytes_mut().fill(7);
        assert_eq!(slot.bytes(), [7; 300]);
        assert_eq!(mapping.words().len(), 512);
        assert_eq!(mapping.words()[511].load(Ordering::Relaxed), 5);
        assert!(mapping.populate(4096, SLOTS + 1, false).is_err());
    }

    proptest! {
        /// Against a list of what is taken: a claim succeeds exactly if it overlaps none.
        #[test]
        fn no_two_slots_overlap(
            claims in prop::collection::vec((0..256_usize, 1..200_usize, any::<bool>()), 1..60),
        ) {
            let mapping = mapping();
            let mut held: Vec<Slot> = Vec::new();
            for (first, count, release) in claims {
                if release && !held.is_empty() {
                    held.swap_remove(first % held.len());
                }
                let (offset, capacity) = (4096 + first * GRANULE, count * GRANULE);
                let end = offset + capacity;
                let free = end <= 4096 + SLOTS
                    && held.iter().all(|s| s.offset + s.capacity <= offset || end <= s.offset);
                let slot = mapping.claim(offset, capacity, capacity);
                prop_assert_eq!(slot.is_some(), free);
                held.extend(slot);
            }
        }
    }
}
