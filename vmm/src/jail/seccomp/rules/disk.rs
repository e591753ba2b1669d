//! A thread of a disk: reads and writes files, and asks a socket, that were open when it was sealed.

use super::{Rule, permit};

pub(super) const RULES: &[Rule] = &[
    permit!(SYS_read, "eventfds, and answers of a socket"),
    permit!(SYS_pread64, "blocks"),
    permit!(SYS_pwrite64, "blocks of an overlay"),
    permit!(SYS_fdatasync, "a flush"),
];
