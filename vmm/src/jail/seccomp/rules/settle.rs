//! Copies a mapped ramdisk out of its file, batch by batch.

use super::{NO_CODE, Rule, permit, without};

pub(super) const RULES: &[Rule] = &[
    permit!(SYS_pread64, "the ramdisk is read"),
    permit!(SYS_madvise, "memory for it in huge pages, and the stack of a thread that has ended"),
    permit!(SYS_mprotect, [without(2, NO_CODE)], "memory for the allocator"),
    permit!(SYS_close, "the file of the ramdisk"),
    permit!(SYS_exit, "all is copied"),
    permit!(SYS_sigaltstack, "the end of a thread"),
    permit!(SYS_rt_sigprocmask, "the end of a thread"),
];
