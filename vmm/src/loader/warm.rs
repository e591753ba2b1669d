//! Brings an image into the page cache in 2 MiB pages.
//!
//! What writing or plain reading leaves in the page cache is in small pages, which a guest would
//! have to fault in one by one. They are dropped and read back here through a mapping that asks
//! for huge pages: on file systems with large folios (ext4 and XFS on recent kernels) the next boot
//! maps them as they are. Elsewhere this is a read-ahead and no more.

use std::os::fd::AsRawFd;

use imgcache::client::Image;
use imgcache::transport::MappableExtent;
use rustix::fs::{Advice, fadvise};

use crate::host::hugepages;
use crate::machine::layout::HUGE_PAGE;

/// Brings what can be mapped of `image` into 2 MiB pages; returns how many bytes that should be,
/// and how many it is.
pub fn warm(image: &Image) -> (u64, u64) {
    let extents = image.mappable();
    let wanted = extents.iter().map(|extent| extent.length).sum();
    (wanted, extents.iter().map(warm_extent).sum())
}

fn warm_extent(extent: &MappableExtent) -> u64 {
    let huge = map_extent(extent);
    if huge == extent.length {
        return huge;
    }
    // Pages that a guest has mapped stay, and a file system may have none to drop.
    let length = std::num::NonZero::new(extent.length);
    match fadvise(&extent.file, extent.file_offset, length, Advice::DontNeed) {
        Ok(()) => map_extent(extent),
        Err(_) => huge,
    }
}

/// Maps an extent once; returns how many bytes are in 2 MiB pages.
fn map_extent(extent: &MappableExtent) -> u64 {
    let (Ok(length), Ok(huge)) = (usize::try_from(extent.length), usize::try_from(HUGE_PAGE))
    else {
        return 0;
    };
    let (Some(reserved), Ok(offset)) =
        (length.checked_add(huge), libc::off_t::try_from(extent.file_offset))
    else {
        return 0;
    };
    // SAFETY: a new mapping at an address of the kernel's choice, to find an aligned one in.
    let base = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0)
    };
    if base == libc::MAP_FAILED {
        return 0;
    }
    // SAFETY: the aligned address and `length` behind it lie in the reservation, which nothing
    // else uses and which is unmapped as a whole at the end. Nothing is read through a reference.
    unsafe {
        let aligned = base.cast::<u8>().add(base.align_offset(huge)).cast();
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        let fd = extent.file.as_raw_fd();
        let mapped = libc::mmap(aligned, length, libc::PROT_READ, flags, fd, offset);
        let mut bytes = 0;
        if mapped != libc::MAP_FAILED {
            libc::madvise(mapped, length, libc::MADV_HUGEPAGE);
            libc::madvise(mapped, length, libc::MADV_POPULATE_READ);
            bytes = hugepages::mapped_in_huge_pages(mapped as u64, extent.length)
                .iter()
                .map(|part| part.end - part.start)
                .sum();
        }
        libc::munmap(base, reserved);
        bytes
    }
}
