//! Limits that this process runs under.

use rustix::process::{Resource, getrlimit};

/// How much memory this process may lock, in bytes; `None` is without limit.
pub fn memlock() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// Whether the limit on locked memory does not bind this process (`capabilities(7)`, `CAP_IPC_LOCK`).
pub fn may_lock_memory() -> bool {
    const IPC_LOCK: u64 = 1 << 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits & IPC_LOCK != 0)
}
