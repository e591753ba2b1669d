//! A thread of a disk: reads and writes files that were open when the VM was sealed.

use super::{NO_CODE, Rule, permit, without};

pub(super) const RULES: &[Rule] = &[
    permit!(SYS_read, "eventfds, and answers of a socket"),
    permit!(SYS_pread64, "blocks"),
    permit!(SYS_pwrite64, "blocks of an overlay"),
    permit!(SYS_fdatasync, "a flush"),
    permit!(SYS_mprotect, [without(2, NO_CODE)], "memory for the allocator"),
    permit!(SYS_exit, "the guest has ended"),
    permit!(SYS_madvise, "the stack of a thread that has ended"),
    permit!(SYS_sigaltstack, "the end of a thread"),
    permit!(SYS_rt_sigprocmask, "the end of a thread"),
];
