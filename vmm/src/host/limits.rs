//! Limits that this process runs under.

use rustix::process::{Resource, getrlimit};

/// How much memory this process may lock, in bytes; `None` is without limit.
pub fn memlock() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}
