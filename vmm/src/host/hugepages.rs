//! Huge pages on this host: what there is, and whether a mapping got them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::{fs, io};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage";
const OF_2_MIB: &str = "hugepages-2048kB/enabled";
const OF_ALL_SIZES: &str = "enabled";

/// The host's pool of 2 MiB hugetlb pages. All zero where the kernel has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct HugeTlbPool {
    /// Pages in the pool.
    pub total: u64,
    /// Pages that nobody uses.
    pub free: u64,
    /// Free pages that are promised to mappings already made.
    pub reserved: u64,
}

impl HugeTlbPool {
    /// Reads the pool's state now.
    pub fn read() -> Self {
        let value = |file: &str| {
            fs::read_to_string(format!("{POOL}/{file}"))
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0)
        };
        Self {
            total: value("nr_hugepages"),
            free: value("free_hugepages"),
            reserved: value("resv_hugepages"),
        }
    }

    /// Pages that a new mapping can have.
    pub fn available(self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }
}

/// The chosen word of a file such as `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

/// The mode of transparent huge pages of 2 MiB for anonymous memory: `always`, `madvise` or
/// `never`.
pub fn transparent_mode() -> Option<String> {
    transparent_mode_in(Path::new(TRANSPARENT))
}

/// Kernels from 6.8 on have a mode for each size, which may be to `inherit` the one for all
/// (Linux, Documentation/admin-guide/mm/transhuge.rst).
fn transparent_mode_in(folder: &Path) -> Option<String> {
    mode(&folder.join(OF_2_MIB))
        .filter(|mode| mode != "inherit")
        .or_else(|| mode(&folder.join(OF_ALL_SIZES)))
}

/// The file with the mode that decides over transparent huge pages of 2 MiB for anonymous memory.
pub fn transparent_switch() -> PathBuf {
    transparent_switch_in(Path::new(TRANSPARENT))
}

fn transparent_switch_in(folder: &Path) -> PathBuf {
    let own = folder.join(OF_2_MIB);
    if own.exists() { own } else { folder.join(OF_ALL_SIZES) }
}

/// The mode of transparent huge pages for shared memory.
pub fn transparent_shared_mode() -> Option<String> {
    mode(&Path::new(TRANSPARENT).join("shmem_enabled"))
}

fn mode(file: &Path) -> Option<String> {
    chosen(&fs::read_to_string(file).ok()?).map(str::to_owned)
}

/// Whether anonymous memory can have transparent huge pages.
pub fn transparent_enabled() -> bool {
    transparent_mode().is_some_and(|mode| mode != "never")
}

/// Which parts of the `length` bytes mapped at `address` in this process are mapped in 2 MiB pages;
/// in bytes from `address`, ascending, both ends multiples of 2 MiB.
///
/// How a page is mapped, not how it was allocated, is what KVM goes by. Kernels from 6.7 on tell it
/// page by page (`PAGEMAP_SCAN`); of older ones `/proc/self/smaps` is asked, all or nothing.
pub fn mapped_in_huge_pages(address: u64, length: u64) -> Vec<Range<u64>> {
    if let Ok(ranges) = scan(address, length) {
        return ranges;
    }
    let all = fs::read_to_string("/proc/self/smaps")
        .is_ok_and(|text| mapped_huge(&text, address..address + length) == length);
    if all { std::iter::once(0..length).collect() } else { Vec::new() }
}

mod request {
    //! The macro makes a public function, which only this file is to have.
    vmm_sys_util::ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, super::PageMapScan);
}

/// `PAGE_IS_HUGE` of the pagemap categories.
const PAGE_IS_HUGE: u64 = 1 << 6;
/// Results fetched at once.
const BATCH: usize = 64;

/// `struct pm_scan_arg` (Linux, include/uapi/linux/fs.h).
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

fn scan(address: u64, length: u64) -> io::Result<Vec<Range<u64>>> {
    let pagemap = fs::File::open("/proc/self/pagemap")?;
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
            category_mask: PAGE_IS_HUGE,
            return_mask: PAGE_IS_HUGE,
            ..Default::default()
        };
        // SAFETY: the kernel reads and writes `arg`, and writes at most `vec_len` regions to the
        // array that `vec` points at; both live until it returns.
        let count = unsafe {
            vmm_sys_util::ioctl::ioctl_with_mut_ref(&pagemap, request::PAGEMAP_SCAN(), &mut arg)
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let region = |region: &PageRegion| region.start - address..region.end - address;
        found.extend(regions.iter().take(count).map(region));
        if arg.walk_end <= start {
            break; // a kernel that does not advance
        }
        start = arg.walk_end;
    }
    Ok(found)
}

/// Sums what is mapped in 2 MiB pages by the mappings of `smaps` that lie inside `range`.
fn mapped_huge(smaps: &str, range: Range<u64>) -> u64 {
    let mut inside = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        if let Some((start, end)) = mapping_header(line) {
            inside = range.start <= start && end <= range.end;
        } else if inside && let Some(kib) = huge_count(line) {
            bytes += kib << 10;
        }
    }
    bytes
}

pub(super) fn mapping_header(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

fn huge_count(line: &str) -> Option<u64> {
    let (name, value) = line.split_once(':')?;
    if !matches!(name, "FilePmdMapped" | "ShmemPmdMapped") {
        return None;
    }
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_is_the_bracketed_one() {
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("nothing"), None);
    }

    #[test]
    fn the_mode_of_2_mib_pages_goes_before_the_one_of_all_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(transparent_mode_in(path), None);
        fs::write(path.join("enabled"), "always [madvise] never\n").unwrap();
        assert_eq!(transparent_mode_in(path).as_deref(), Some("madvise"));
        assert_eq!(transparent_switch_in(path), path.join("enabled"));
        fs::create_dir(path.join("hugepages-2048kB")).unwrap();
        let own = path.join("hugepages-2048kB/enabled");
        for (text, mode) in [
            ("always inherit madvise [never]\n", "never"),
            ("[always] inherit madvise never\n", "always"),
            ("always [inherit] madvise never\n", "madvise"),
        ] {
            fs::write(&own, text).unwrap();
            assert_eq!(transparent_mode_in(path).as_deref(), Some(mode), "{text}");
            assert_eq!(transparent_switch_in(path), own);
        }
    }

    #[test]
    fn huge_mappings_are_counted_inside_the_range_only() {
        let smaps = "200000-600000 rw-p 00000000 00:00 0\n\
                     Size:  4096 kB\nFilePmdMapped:     2048 kB\nShmemPmdMapped: 2048 kB\n\
                     600000-800000 rw-p 00000000 00:00 0\nFilePmdMapped:     2048 kB\n";
        assert_eq!(mapped_huge(smaps, 0x20_0000..0x60_0000), 4 << 20);
        assert_eq!(mapped_huge(smaps, 0x20_0000..0x80_0000), 6 << 20);
        assert_eq!(mapped_huge(smaps, 0x30_0000..0x80_0000), 2 << 20);
    }
}
