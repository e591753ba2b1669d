//! A thread that brings a disk's chunks: out of files, or over a stream, that were open when it was sealed.

use super::{Rule, is, permit};

pub(super) const RULES: &[Rule] = &[
    permit!(SYS_write, "a message").seldom("it says something only when it has failed"),
    permit!(SYS_pread64, "a chunk out of the store"),
    permit!(SYS_statx, [is(2, EMPTY_PATH)], "whether the store's file is as it was sealed"),
    permit!(SYS_recvfrom, [is(3, 0)], "a chunk over the stream"),
    permit!(SYS_sendto, [is(3, NO_SIGNAL)], "which chunks are wanted over the stream"),
];

/// Of a file that is open: there is no path to another.
const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH.cast_unsigned();
const NO_SIGNAL: u32 = libc::MSG_NOSIGNAL.cast_unsigned();
