//! Guest-physical addresses of this process's pages, from `/proc/self/pagemap`
//! (`Documentation/admin-guide/mm/pagemap.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::memory::PAGE;

const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// Why addresses are not known.
#[derive(Debug, thiserror::Error)]
pub enum PagemapError {
    /// The table cannot be read.
    #[error("cannot read '/proc/self/pagemap': {0}")]
    Read(#[from] io::Error),
    /// A page is in no memory.
    #[error("the page at {0:#x} is not in memory")]
    Absent(usize),
    /// The kernel does not tell.
    #[error(
        "the kernel does not tell where the page at {0:#x} is: that needs CAP_SYS_ADMIN, as root has"
    )]
    Hidden(usize),
}

/// The guest-physical addresses of the `count` pages from the virtual address `start` on. They are of
/// use only as long as the pages are held where they are.
///
/// # Errors
/// If a page is in no memory, or the kernel does not tell.
pub fn addresses(start: usize, count: usize) -> Result<Vec<u64>, PagemapError> {
    let table = File::open("/proc/self/pagemap")?;
    let mut entries = vec![0; count * size_of::<u64>()];
    let offset = start / PAGE * size_of::<u64>();
    table.read_exact_at(&mut entries, u64::try_from(offset).map_err(io::Error::other)?)?;
    let entries = entries.as_chunks().0.iter().copied().map(u64::from_le_bytes);
    entries.enumerate().map(|(index, entry)| address(entry, start + index * PAGE)).collect()
}

fn address(entry: u64, page: usize) -> Result<u64, PagemapError> {
    if entry & PRESENT == 0 {
        return Err(PagemapError::Absent(page));
    }
    let frame = Some(entry & FRAME).filter(|frame| *frame != 0);
    frame.and_then(|frame| frame.checked_mul(PAGE as u64)).ok_or(PagemapError::Hidden(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_say_where_a_page_is_or_why_not() {
        assert_eq!(address(PRESENT | 1 << 61 | 0x1234, 0).unwrap(), 0x0123_4000);
        assert!(matches!(address(0x1234, 7), Err(PagemapError::Absent(7))));
        assert!(matches!(address(PRESENT, 7), Err(PagemapError::Hidden(7))));
        assert!(matches!(address(u64::MAX, 7), Err(PagemapError::Hidden(7))));
    }

    #[test]
    fn this_process_has_pages() {
        let page = vec![1_u8; 2 * PAGE];
        match addresses(page.as_ptr().addr(), 1) {
            Ok(addresses) => assert!(addresses[0] >= PAGE as u64 && addresses.len() == 1),
            Err(error) => assert!(matches!(error, PagemapError::Hidden(_)), "{error}"),
        }
    }
}
