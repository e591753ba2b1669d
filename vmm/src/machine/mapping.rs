//! Memory mappings at 2 MiB boundaries: the one place that asks the kernel for them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::layout::HUGE_PAGE;
use super::memory::Backing;
use crate::host::hugepages;

/// A part of this process' address space that begins at a multiple of 2 MiB; given back when
/// dropped. Until something is put there, it cannot be accessed.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut libc::c_void,
    reserved: usize,
    start: *mut u8,
    length: usize,
}

// SAFETY: it is a range of addresses; whoever reads or writes there has rules of their own.
unsafe impl Send for Mapping {}
// SAFETY: as above; the struct itself is never changed after it was made.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `length` bytes of addresses.
    pub fn reserve(length: u64) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let length = usize::try_from(length).map_err(|_| too_large())?;
        let alignment = usize::try_from(HUGE_PAGE).map_err(|_| too_large())?;
        let reserved = length.checked_add(alignment).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes it, which nothing can access.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: at most `alignment` is added, by which the reservation is longer than `length`.
        let start = unsafe { base.cast::<u8>().add(base.align_offset(alignment)) };
        Ok(Self { base, reserved, start, length })
    }

    /// Its first address.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Puts fresh memory at `part`, in bytes from the start.
    ///
    /// # Safety
    /// Nothing refers to what is there now.
    pub unsafe fn put_anonymous(&self, part: &Range<u64>, backing: Backing) -> io::Result<()> {
        let extra = match backing {
            // Reserved at once, so that a pool too small shows here and not as a fault later.
            Backing::Hugetlb => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            Backing::Small | Backing::Thp => libc::MAP_NORESERVE,
        };
        // SAFETY: the caller's.
        let mapped = unsafe { self.put(part, libc::MAP_ANONYMOUS | extra, -1, 0) }?;
        let advice = match backing {
            Backing::Hugetlb => return Ok(()),
            Backing::Thp => libc::MADV_HUGEPAGE,
            Backing::Small => libc::MADV_NOHUGEPAGE,
        };
        advise(&mapped, advice);
        Ok(())
    }

    /// Puts `file` from `offset` on at `part`, privately, read in and in huge pages if it can be.
    ///
    /// # Safety
    /// Nothing refers to what is there now.
    pub unsafe fn put_file(&self, part: &Range<u64>, file: &File, offset: u64) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the caller's.
        let mapped = unsafe { self.put(part, libc::MAP_NORESERVE, file.as_raw_fd(), offset) }?;
        advise(&mapped, libc::MADV_HUGEPAGE);
        advise(&mapped, libc::MADV_POPULATE_READ);
        Ok(())
    }

    /// # Safety
    /// Nothing refers to what is there now.
    unsafe fn put(
        &self,
        part: &Range<u64>,
        flags: libc::c_int,
        fd: libc::c_int,
        offset: libc::off_t,
    ) -> io::Result<Mapped> {
        let number =
            |n: u64| usize::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let (from, to) = (number(part.start)?, number(part.end)?);
        if from >= to || to > self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `from` is inside the mapping.
        let address = unsafe { self.start.add(from) }.cast();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | flags;
        // SAFETY: MAP_FIXED replaces pages inside this reservation, to which the caller says that
        // nothing refers.
        let mapped = unsafe { libc::mmap(address, to - from, protection, flags, fd, offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapped { address: mapped, length: to - from })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what mmap gave, as a whole; its users keep it for as long as they use it.
        unsafe { libc::munmap(self.base, self.reserved) };
    }
}

/// Pages that were mapped just now.
struct Mapped {
    address: *mut libc::c_void,
    length: usize,
}

/// Advice that may be refused, by kernels that do not know it or cannot follow it: then pages are
/// as they are without, and whoever cares looks.
fn advise(mapped: &Mapped, advice: libc::c_int) {
    // SAFETY: none of the advice given here changes the content of pages.
    unsafe { libc::madvise(mapped.address, mapped.length, advice) };
}

/// Which parts of `length` bytes of `file`, from `offset` on, this host has in 2 MiB pages, or has
/// after reading them in; in bytes from `offset`. All numbers are multiples of 2 MiB.
///
/// # Errors
/// The kernel's refusal to map the file.
pub fn in_huge_pages(file: &File, offset: u64, length: u64) -> io::Result<Vec<Range<u64>>> {
    let scratch = Mapping::reserve(length)?;
    // SAFETY: nothing refers to a mapping that was made just now.
    unsafe { scratch.put_file(&(0..length), file, offset) }?;
    Ok(hugepages::mapped_in_huge_pages(scratch.start() as u64, length))
}
