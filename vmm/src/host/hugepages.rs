//! Huge pages on this host: the pool, and the modes of transparent ones.

use std::fs;
use std::path::{Path, PathBuf};

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
}
