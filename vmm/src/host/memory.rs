//! How much memory the host has.

use std::fs;

/// Memory of the host, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
}

/// What `/proc/meminfo` says; zeros where it does not.
pub fn read() -> HostMemory {
    parse(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn parse(text: &str) -> HostMemory {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    };
    HostMemory { total: value("MemTotal"), available: value("MemAvailable") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24684080 kB\nMemFree: 1 kB\nMemAvailable:    2 kB\n";
        let expected = HostMemory { total: 24_684_080 << 10, available: 2 << 10 };
        assert_eq!(parse(text), expected);
        assert!(read().total > 0);
    }
}
