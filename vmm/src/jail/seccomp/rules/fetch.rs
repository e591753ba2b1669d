//! A thread that brings a disk's chunks: out of files, or over a stream, that were open when it was sealed.

use super::{Rule, is, permit};

pub(super) const RULES: &[Rule] = &[
    permit!(SYS_pread64, "a chunk out of the store"),
    permit!(SYS_recvfrom, [is(3, 0)], "a chunk over the stream"),
    permit!(SYS_sendto, [is(3, NO_SIGNAL)], "which chunks are wanted over the stream"),
];

const NO_SIGNAL: u32 = libc::MSG_NOSIGNAL.cast_unsigned();
