//! The memory of a node on this host, mapped for reading.
//!
//! The node goes on writing to it. So nothing here makes a reference to it, and what is read is a copy,
//! which the caller verifies.
#![expect(unsafe_code, reason = "memory that another process writes to")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The mapping.
pub(super) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread, and nothing in it is written to from here.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Mapping {
    /// Maps the first `length` bytes of `memory`, which must be memory that cannot shrink: reading
    /// behind the end of a file kills.
    ///
    /// # Errors
    /// It is shorter, or not sealed against shrinking; the system's.
    pub(super) fn new(memory: &OwnedFd, length: usize) -> io::Result<Self> {
        if !fcntl_get_seals(memory)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::other("the memory is not sealed against shrinking"));
        }
        let found = u64::try_from(fstat(memory.as_fd())?.st_size).unwrap_or(0);
        if found < length as u64 {
            return Err(io::Error::other(format!(
                "the memory has {found} bytes instead of {length}"
            )));
        }
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, memory, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// The 64-bit word at `offset`, a multiple of 8; none outside of the mapping.
    pub(super) fn word(&self, offset: usize) -> Option<u64> {
        let inside = offset.checked_add(8).is_some_and(|end| end <= self.length);
        if !inside || !offset.is_multiple_of(8) {
            return None;
        }
        // SAFETY: the word is inside the mapping, which is page-aligned, lives as long as `self` and
        // cannot shrink. Whoever else accesses it does so by other mappings, word by word, atomically.
        let word = unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) };
        Some(u64::from_le(word.load(Ordering::Acquire)))
    }

    /// Copies what is at `offset` into `out`. Whether all of it is inside the mapping.
    ///
    /// What is copied may be of several moments.
    pub(super) fn copy(&self, offset: usize, out: &mut [u8]) -> bool {
        if offset.checked_add(out.len()).is_none_or(|end| end > self.length) {
            return false;
        }
        // SAFETY: both are valid for `out.len()` bytes, and apart: `out` is borrowed memory of this
        // process, the mapping is lent to nobody. The node may write at the same time: bytes have no
        // invalid values, nothing is assumed of these, and the compiler sees neither the other
        // process nor another access here.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.start.as_ptr().add(offset),
                out.as_mut_ptr(),
                out.len(),
            );
        }
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, of which nothing is borrowed.
        let result = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(result.is_ok(), "{result:?}");
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use rustix::io::pwrite;

    use super::*;

    fn memory(seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = memfd_create("test", flags).unwrap();
        ftruncate(&memory, 8192).unwrap();
        pwrite(&memory, &[1, 2, 3, 4, 5, 6, 7, 8, 9], 4096).unwrap();
        fcntl_add_seals(&memory, seals).unwrap();
        memory
    }

    #[test]
    fn what_is_inside_is_read_and_follows_the_writer() {
        let memory = memory(SealFlags::SHRINK);
        let mapping = Mapping::new(&memory, 8192).unwrap();
        assert_eq!(mapping.word(4096), Some(0x0807_0605_0403_0201));
        let mut out = [0; 3];
        assert!(mapping.copy(4102, &mut out));
        assert_eq!(out, [7, 8, 9]);
        pwrite(&memory, &[0xff], 4096).unwrap();
        assert_eq!(mapping.word(4096), Some(0x0807_0605_0403_02ff));
    }

    #[test]
    fn nothing_outside_is_read() {
        let mapping = Mapping::new(&memory(SealFlags::SHRINK), 8192).unwrap();
        assert!(mapping.word(8184).is_some());
        for offset in [8185, 8192, usize::MAX, usize::MAX - 7, 4] {
            assert_eq!(mapping.word(offset), None);
        }
        assert!(mapping.copy(8190, &mut [0; 2]) && !mapping.copy(8190, &mut [0; 3]));
        assert!(!mapping.copy(usize::MAX, &mut [0; 2]));
    }

    #[test]
    fn memory_that_could_shrink_or_is_too_short_is_refused() {
        assert!(Mapping::new(&memory(SealFlags::GROW), 8192).is_err());
        assert!(Mapping::new(&memory(SealFlags::SHRINK), 8193).is_err());
    }
}
