//! Memory that stays where it is.
//!
//! The device is told guest-physical addresses, so a page must not move. `mlock(2)` does not see to
//! that: the kernel's compaction moves locked pages, and the device would go on to write where they
//! were. What does is a long-term pin, as the kernel takes for the buffers of an `io_uring(7)` instance
//! (`IORING_REGISTER_BUFFERS`), and a huge page of hugetlbfs, which compaction leaves alone.
#![expect(unsafe_code, reason = "mappings, and their registration with the kernel")]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{NonNull, null_mut};
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io_uring::{
    IoringRegisterOp, io_uring_params, io_uring_register, io_uring_setup, iovec,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::memory::{Memory, PAGE, Words};
use crate::pagemap::{self, PagemapError};

/// Bytes of a huge page.
pub const HUGE_PAGE: usize = 2 << 20;

/// Why there is no memory that stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Nothing holds memory in its place. Locking it would not.
    #[error(
        "no memory can be held in its place. By io_uring: {ring}{}. In huge pages: {huge}{}",
        ring_advice(ring),
        huge_advice(huge)
    )]
    NoWay {
        /// Why not by `io_uring`.
        ring: io::Error,
        /// Why not in huge pages.
        huge: io::Error,
    },
    /// It is not known where the memory is.
    #[error(transparent)]
    Where(#[from] PagemapError),
}

fn ring_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => " (this kernel has no CONFIG_IO_URING)",
        Some(libc::EPERM) => " (see the sysctl kernel.io_uring_disabled)",
        Some(libc::ENOMEM) => " (see ulimit -l)",
        _ => "",
    }
}

fn huge_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => " (none is free: echo 1 >/proc/sys/vm/nr_hugepages)",
        Some(libc::EINVAL | libc::ENOSYS) => " (this kernel has no CONFIG_HUGETLBFS)",
        _ => "",
    }
}

/// `count` pages, each somewhere.
///
/// # Errors
/// If nothing holds them there, or the kernel does not tell where they are.
pub fn pages(count: usize) -> Result<Memory, PinError> {
    let length = count * PAGE;
    let registered = Mapping::new(length, MapFlags::SHARED | MapFlags::POPULATE)
        .and_then(|mapping| mapping.register(0, length));
    match registered {
        Ok(mapping) => mapping.into_memory("io_uring"),
        Err(ring) => {
            let mapping = huge_page().map_err(|huge| PinError::NoWay { ring, huge })?;
            mapping.into_memory("a huge page")
        }
    }
}

/// 2 MiB in one piece: a transparent huge page where there is one, else one of hugetlbfs.
///
/// # Errors
/// As [`pages`], or if there is no such piece.
pub fn contiguous() -> Result<Memory, PinError> {
    let ring = match transparent() {
        Ok(mapping) => {
            let memory = mapping.into_memory("io_uring, a transparent huge page")?;
            if memory.address(0, HUGE_PAGE).is_some() {
                return Ok(memory);
            }
            io::Error::other("there is no transparent huge page")
        }
        Err(error) => error,
    };
    huge_page().map_err(|huge| PinError::NoWay { ring, huge })?.into_memory("a huge page")
}

fn huge_page() -> io::Result<Mapping> {
    let flags = MapFlags::SHARED | MapFlags::POPULATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
    Mapping::new(HUGE_PAGE, flags)
}

/// 2 MiB that the kernel was asked to put into a huge page, and that are pinned.
fn transparent() -> io::Result<Mapping> {
    let mapping = Mapping::new(2 * HUGE_PAGE, MapFlags::PRIVATE)?;
    let start = mapping.start.addr().get();
    let first = start.next_multiple_of(HUGE_PAGE) - start;
    // SAFETY: the second half of the huge page that begins at `first` ends within the mapping, which
    // is of 4 MiB; what is advised changes no content.
    unsafe {
        let aligned = mapping.start.byte_add(first).as_ptr().cast();
        madvise(aligned, HUGE_PAGE, Advice::LinuxHugepage)?;
        // A child would make the parent's next write go to another page.
        madvise(aligned, HUGE_PAGE, Advice::LinuxDontFork)?;
    }
    let mapping = mapping.register(first, HUGE_PAGE)?;
    for word in mapping.words().iter().step_by(PAGE / 4) {
        word.store(0, Ordering::Relaxed);
    }
    Ok(mapping)
}

/// A mapping of this process's own, and the part of it that is used.
#[derive(Debug)]
struct Mapping {
    start: NonNull<AtomicU32>,
    length: usize,
    /// First byte that is used, and how many are.
    used: (usize, usize),
    /// Holds the pages as long as it is open.
    ring: Option<OwnedFd>,
}

// SAFETY: the mapping is of the process, not of a thread; what can be reached through a reference to it
// is atomic words.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(length: usize, flags: MapFlags) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(null_mut(), length, protection, flags) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length, used: (0, length), ring: None })
    }

    /// Pins `length` bytes from `first` on; from now on only they are used. They are populated by it.
    fn register(mut self, first: usize, length: usize) -> io::Result<Self> {
        self.used = (first, length);
        let mut parameters = io_uring_params::default();
        // SAFETY: the parameters are the kernel's structure, with nothing asked for.
        let ring = unsafe { io_uring_setup(1, &mut parameters) }?;
        let buffer =
            iovec { iov_base: self.words().as_ptr().cast_mut().cast(), iov_len: self.used.1 };
        // SAFETY: one buffer, within the mapping, which outlives the instance: `drop` closes it first.
        // No request is ever submitted, so the kernel does nothing with the buffer but hold it.
        unsafe {
            let buffers = (&raw const buffer).cast();
            io_uring_register(&ring, IoringRegisterOp::RegisterBuffers, buffers, 1)?;
        }
        self.ring = Some(ring);
        Ok(self)
    }

    /// Pages can move while they are being pinned, so it is only now that addresses count.
    fn into_memory(self, way: &'static str) -> Result<Memory, PinError> {
        let words = self.words();
        let pages = pagemap::addresses(words.as_ptr().addr(), self.used.1 / PAGE)?;
        Ok(Memory::new(Box::new(self), pages, way))
    }
}

impl Words for Mapping {
    fn words(&self) -> &[AtomicU32] {
        let (first, length) = self.used;
        // SAFETY: `first` and `length` are within the mapping and multiples of a page. Any content is a
        // word, and all access to the memory is atomic, the device's included, as it is aligned.
        unsafe { slice::from_raw_parts(self.start.byte_add(first).as_ptr(), length / 4) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.ring = None;
        // SAFETY: the mapping is this object's own, and what borrows from it borrows from the object.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neither addresses nor pins are to be had everywhere; where they are, they must be right.
    fn check(memory: Result<Memory, PinError>, bytes: usize) {
        match memory {
            Ok(memory) => {
                assert!(memory.bytes() >= bytes);
                for offset in (0..memory.bytes()).step_by(PAGE) {
                    memory.write(offset, &offset.to_le_bytes());
                    assert!(memory.address(offset, PAGE).unwrap().is_multiple_of(PAGE as u64));
                }
                let start = memory.words().as_ptr().addr();
                let again = pagemap::addresses(start, memory.bytes() / PAGE).unwrap();
                assert_eq!(again, memory.pages());
                assert_eq!(memory.load(PAGE), 4096);
            }
            Err(error) => assert!(
                matches!(error, PinError::NoWay { .. } | PinError::Where(PagemapError::Hidden(_))),
                "{error}"
            ),
        }
    }

    #[test]
    fn pages_are_held_or_it_is_said_why_not() {
        check(pages(3), 3 * PAGE);
    }

    #[test]
    fn huge_pages_are_in_one_piece_or_it_is_said_why_not() {
        if let Ok(memory) = contiguous() {
            assert_eq!(memory.address(0, HUGE_PAGE), Some(memory.pages()[0]));
        }
        check(contiguous(), HUGE_PAGE);
    }

    #[test]
    fn the_reasons_come_with_what_to_do() {
        let error = |code| io::Error::from_raw_os_error(code);
        let both = PinError::NoWay { ring: error(libc::EPERM), huge: error(libc::ENOMEM) };
        let text = both.to_string();
        assert!(text.contains("io_uring_disabled") && text.contains("nr_hugepages"), "{text}");
    }
}
