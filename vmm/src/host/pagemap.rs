//! How pages of this process are mapped: in which size, and whose they are.
//!
//! Kernels from 6.7 on tell it page by page (`PAGEMAP_SCAN`; Linux,
//! Documentation/admin-guide/mm/pagemap.rst). Of older ones `/proc/self/smaps` is asked, which has
//! sums for each mapping: bit 61 of `/proc/self/pagemap` is no help there, since before 6.11 it is
//! not set for files in 2 MiB pages.

use std::io;
use std::ops::Range;

use super::own;

/// Which parts of the `length` bytes mapped at `address` in this process are mapped in 2 MiB pages;
/// in bytes from `address`, ascending, both ends multiples of 2 MiB.
///
/// How a page is mapped, not how it was allocated, is what KVM goes by. An older kernel answers for
/// all or nothing.
pub fn mapped_in_huge_pages(address: u64, length: u64) -> Vec<Range<u64>> {
    let huge = Question { required: PAGE_IS_HUGE, ..Question::default() };
    if let Ok(ranges) = scan(address, length, huge) {
        return ranges;
    }
    let all = own::smaps().is_ok_and(|text| {
        let range = address..address + length;
        sum(&text, |mapping| range.start <= mapping.start && mapping.end <= range.end, &PMD_MAPPED)
            == length
    });
    if all { whole(length) } else { Vec::new() }
}

/// Which parts of the `length` bytes at `address`, where a file is mapped privately, have pages of
/// their own by now because they were written; in bytes from `address`, ascending.
///
/// An older kernel, and one that does not answer, gives all of them if there may be any.
pub fn written_privately(address: u64, length: u64) -> Vec<Range<u64>> {
    let own = Question {
        forbidden: PAGE_IS_FILE,
        any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        ..Question::default()
    };
    if let Ok(ranges) = scan(address, length, own) {
        return ranges;
    }
    let none = own::smaps().is_ok_and(|text| {
        let overlaps =
            |mapping: &Range<u64>| mapping.start < address + length && address < mapping.end;
        sum(&text, overlaps, &["Size"]) >= length && sum(&text, overlaps, &OWN) == 0
    });
    if none { Vec::new() } else { whole(length) }
}

fn whole(length: u64) -> Vec<Range<u64>> {
    std::iter::once(0..length).collect()
}

mod request {
    //! The macro makes a public function, which only this file is to have.
    vmm_sys_util::ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, super::PageMapScan);
}

/// Categories of pages (Linux, include/uapi/linux/fs.h).
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_HUGE: u64 = 1 << 6;
/// Results fetched at once.
const BATCH: usize = 64;

/// Which pages are asked for, by their categories.
#[derive(Debug, Clone, Copy, Default)]
struct Question {
    required: u64,
    forbidden: u64,
    any_of: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PageMapScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

fn scan(address: u64, length: u64, question: Question) -> io::Result<Vec<Range<u64>>> {
    let pagemap = own::pagemap()?;
    let end = address + length;
    let mut start = address;
    let mut found: Vec<Range<u64>> = Vec::new();
    while start < end {
        let mut regions = [PageRegion::default(); BATCH];
        let mut arg = PageMapScan {
            size: size_of::<PageMapScan>() as u64,
            start,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: BATCH as u64,
            category_inverted: question.forbidden,
            category_mask: question.required | question.forbidden,
            category_anyof_mask: question.any_of,
            return_mask: question.required | question.any_of,
            ..Default::default()
        };
        // SAFETY: the kernel reads and writes `arg`, and writes at most `vec_len` regions to the
        // array that `vec` points at; both live until it returns.
        let count = unsafe {
            vmm_sys_util::ioctl::ioctl_with_mut_ref(&*pagemap, request::PAGEMAP_SCAN(), &mut arg)
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let region = |region: &PageRegion| region.start - address..region.end - address;
        found.extend(regions.iter().take(count).map(region));
        if arg.walk_end <= start {
            return Err(io::ErrorKind::InvalidData.into()); // a kernel that does not advance
        }
        start = arg.walk_end;
    }
    Ok(found)
}

/// The lines of `smaps` with what is mapped in 2 MiB pages.
const PMD_MAPPED: [&str; 3] = ["AnonHugePages", "FilePmdMapped", "ShmemPmdMapped"];
/// Those with what a private mapping has of its own.
const OWN: [&str; 2] = ["Anonymous", "Swap"];

/// Sums the lines with one of `names` of those mappings of `smaps` that are `wanted`, in bytes.
pub(super) fn sum(smaps: &str, wanted: impl Fn(&Range<u64>) -> bool, names: &[&str]) -> u64 {
    let mut counted = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        if let Some(mapping) = mapping_header(line) {
            counted = wanted(&mapping);
        } else if counted
            && let Some((name, value)) = line.split_once(':')
            && names.contains(&name)
        {
            let kib = value.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok());
            bytes += kib.unwrap_or(0u64) << 10;
        }
    }
    bytes
}

fn mapping_header(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_summed_over_the_wanted_mappings_only() {
        let smaps = "200000-600000 rw-p 00000000 00:00 0\n\
                     Size:  4096 kB\nFilePmdMapped:     2048 kB\nShmemPmdMapped: 2048 kB\n\
                     600000-800000 rw-p 00000000 00:00 0\nFilePmdMapped:     2048 kB\n";
        let inside = |range: Range<u64>| {
            move |mapping: &Range<u64>| range.start <= mapping.start && mapping.end <= range.end
        };
        assert_eq!(sum(smaps, inside(0x20_0000..0x60_0000), &PMD_MAPPED), 4 << 20);
        assert_eq!(sum(smaps, inside(0x20_0000..0x80_0000), &PMD_MAPPED), 6 << 20);
        assert_eq!(sum(smaps, inside(0x30_0000..0x80_0000), &PMD_MAPPED), 2 << 20);
        assert_eq!(sum(smaps, |_| true, &["Size"]), 4 << 20);
        assert_eq!(sum(smaps, |_| true, &OWN), 0);
    }
}
