//! How much memory this process takes beside the guest's.

use std::ops::Range;

use super::{own, pagemap};

/// Gives back the pages of this program's code and constants: most of them were wanted once, at the start, and
/// will not be again. What runs on is mapped again as it is used, from the page cache, where all VMs share it.
pub fn release_code() {
    let Ok(maps) = own::maps() else { return };
    for (start, length) in maps.lines().filter_map(code) {
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: a mapping of a file that cannot be written, and was not before (see `code`), has pages that
        // hold nothing but the file's bytes, and are read in again when they are wanted.
        unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of a line of `/proc/self/maps`, if it is code of a file, or the start of one, where its
/// headers and constants are. Others that cannot be written may have been, before: what is relocated.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, access, offset) = (words.next()?, words.next()?, words.next()?);
    let file = words.nth(2)?;
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let is_code = match access {
        "r-xp" => true,
        "r--p" => offset.bytes().all(|digit| digit == b'0'),
        _ => false,
    };
    (is_code && file.starts_with('/')).then_some((start, end.checked_sub(start)?))
}

/// Bytes of memory that this process takes now, without what is mapped in `except`; of pages that it shares
/// with others, such as code, its part (the kernel's proportional set size).
pub fn resident_except(except: &[Range<u64>]) -> Option<u64> {
    let smaps = own::smaps().ok()?;
    Some(sum_resident(&smaps, except))
}

fn sum_resident(smaps: &str, except: &[Range<u64>]) -> u64 {
    let counted = |mapping: &Range<u64>| {
        !except.iter().any(|range| range.start < mapping.end && mapping.start < range.end)
    };
    pagemap::sum(smaps, counted, &["Pss"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_of_a_file_and_was_never_written() {
        for line in [
            "5000-9000 r-xp 00001000 08:01 77    /usr/bin/vmm",
            "5000-9000 r--p 00000000 08:01 77    /usr/bin/vmm",
        ] {
            assert_eq!(code(line), Some((0x5000, 0x4000)), "{line}");
        }
        for other in [
            "5000-9000 rwxp 00001000 08:01 77    /usr/bin/vmm",
            "5000-9000 r--p 00001000 08:01 77    /usr/bin/vmm",
            "5000-9000 r-xp 00000000 00:00 0     [vdso]",
            "5000-9000 r-xp 00000000 00:00 0",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
        release_code();
    }

    #[test]
    fn mappings_of_the_guest_are_not_counted() {
        let smaps = "1000-2000 r--p 0 0:0 0 vmm\nRss:      8 kB\nPss:      4 kB\n\
                     2000-4000 rw-p 0 0:0 0\nRss:      8 kB\nPss: 8 kB\n";
        assert_eq!(sum_resident(smaps, &[]), 12 << 10);
        assert_eq!(sum_resident(smaps, std::slice::from_ref(&(0x2000..0x4000))), 4 << 10);
    }
}
