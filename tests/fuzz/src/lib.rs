//! What every import must hold to, whatever the file: no panic, and only sound results.

use imgcache::image::import::{ImportOptions, ImportedKernel, import_initrd, import_kernel};

/// Limits that keep a run fast and small.
fn options(as_is: bool) -> ImportOptions {
    ImportOptions {
        as_is,
        max_kernel_size: 8 << 20,
        max_initrd_size: 8 << 20,
        ..ImportOptions::default()
    }
}

/// Imports `file` as a kernel, unpacked and as it is, and checks the plans.
pub fn kernel(file: &[u8]) {
    for options in [options(false), options(true)] {
        if let Ok(kernel) = import_kernel(&file, &options) {
            check_kernel(&kernel, options.max_kernel_size);
        }
    }
}

fn check_kernel(kernel: &ImportedKernel, limit: u64) {
    let mut end = 1_u64 << 20;
    let mut total = 0_u64;
    for segment in &kernel.segments {
        assert!(segment.address >= end, "overlap or unsorted: {kernel:?}");
        assert!(segment.data.len() as u64 <= segment.memory_length, "{kernel:?}");
        end = segment.address.checked_add(segment.memory_length).expect("the end overflows");
        total += segment.memory_length;
    }
    assert!(total <= limit, "beyond the limit: {kernel:?}");
    let entries: Vec<u64> =
        [kernel.entries.linux64, kernel.entries.pvh32].into_iter().flatten().collect();
    assert!(!entries.is_empty(), "no entry: {kernel:?}");
    for entry in entries {
        let is_loaded = kernel.segments.iter().any(|s| (s.address..s.end()).contains(&entry));
        assert!(is_loaded, "entry {entry:#x} outside: {kernel:?}");
    }
}

/// Imports `file` as a ramdisk and checks that the result imports to itself.
pub fn initrd(file: &[u8]) {
    let options = options(false);
    let mut unpacked = Vec::new();
    let Ok(initrd) = import_initrd(&file, &options, &mut unpacked) else { return };
    assert_eq!(initrd.length, unpacked.len() as u64);
    assert!(initrd.length <= options.max_initrd_size);
    let mut again = Vec::new();
    import_initrd(&unpacked, &options, &mut again).expect("the result is no ramdisk");
    assert!(again == unpacked, "the result imports to something else");
}
