//! How much memory this process takes beside the guest's.

use std::fs;
use std::ops::Range;

use super::pagemap;

/// Bytes of this process' memory that are resident now, without those mapped in `except`.
pub fn resident_except(except: &[Range<u64>]) -> Option<u64> {
    let smaps = fs::read_to_string("/proc/self/smaps").ok()?;
    Some(sum_resident(&smaps, except))
}

fn sum_resident(smaps: &str, except: &[Range<u64>]) -> u64 {
    let counted = |mapping: &Range<u64>| {
        !except.iter().any(|range| range.start < mapping.end && mapping.start < range.end)
    };
    pagemap::sum(smaps, counted, &["Rss"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_the_guest_are_not_counted() {
        let smaps = "1000-2000 r--p 0 0:0 0 vmm\nRss:      4 kB\n\
                     2000-4000 rw-p 0 0:0 0\nRss:      8 kB\nPss: 8 kB\n";
        assert_eq!(sum_resident(smaps, &[]), 12 << 10);
        assert_eq!(sum_resident(smaps, std::slice::from_ref(&(0x2000..0x4000))), 4 << 10);
    }
}
