//! Brings an image into the page cache in 2 MiB pages.
//!
//! What writing or plain reading leaves in the page cache is in small pages, which a guest would
//! have to fault in one by one. They are dropped and read back here through a mapping that asks
//! for huge pages: on file systems with large folios (ext4 and XFS on recent kernels) the next boot
//! maps them as they are. Elsewhere this is a read-ahead and no more.

use imgcache::client::Image;
use imgcache::transport::MappableExtent;
use rustix::fs::{Advice, fadvise};

use crate::machine::mapping;

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

/// Reads an extent in, asking for huge pages; returns how many bytes are in 2 MiB pages.
fn map_extent(extent: &MappableExtent) -> u64 {
    let parts = mapping::in_huge_pages(&extent.file, extent.file_offset, extent.length);
    // Without mappings there is nothing to warm up for.
    parts.unwrap_or_default().iter().map(|part| part.end - part.start).sum()
}
