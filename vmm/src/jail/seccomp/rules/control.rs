//! The control device's worker: what the guest says, noted.

use super::{NO_CODE, Rule, permit, without};

pub(super) const RULES: &[Rule] = &[
    permit!(SYS_mprotect, [without(2, NO_CODE)], "memory for the allocator"),
    permit!(SYS_exit, "the guest has ended"),
    permit!(SYS_madvise, "the stack of a thread that has ended"),
    permit!(SYS_sigaltstack, "the end of a thread"),
    permit!(SYS_rt_sigprocmask, "the end of a thread"),
];
