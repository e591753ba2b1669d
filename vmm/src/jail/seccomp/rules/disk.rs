//! The thread of a disk: it reads and writes the overlay, a file that was open when it was sealed.

use super::{Rule, permit};

pub(super) const RULES: &[Rule] = &[
    permit!(SYS_pread64, "sectors of the overlay"),
    permit!(SYS_pwrite64, "sectors of the overlay, and the map of them"),
    permit!(SYS_fallocate, "sectors that the guest gives back"),
    permit!(SYS_fdatasync, "a flush"),
];
