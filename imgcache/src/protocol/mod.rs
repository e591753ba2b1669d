//! The memcached text protocol, classic and meta: bytes to commands and replies to bytes. No I/O.
//!
//! Specification: `protocol.txt` of memcached 1.6.18, where it is silent the behaviour of that
//! version; what differs on purpose is listed in `docs/cache-protocol.md`. The binary protocol is
//! not spoken.
//!
//! - [`decoder`]: lines out of a stream that arrives in pieces, and what is to be skipped;
//! - [`command`]: what a client may ask, and the encoding of it;
//! - [`classic`], [`meta`], [`extension`]: one command line each;
//! - [`refusal`]: the error lines;
//! - [`reply`]: everything else that is answered.

mod classic;
pub mod command;
pub mod decoder;
mod encode;
mod extension;
mod meta;
pub mod refusal;
pub mod reply;
#[cfg(test)]
mod tests;
mod token;

pub use command::{Command, Expiry};
pub use decoder::{Decoder, Step, Violation};
pub use extension::{push_record, push_records};
pub use refusal::Refusal;

/// Bytes of the longest key, decoded or not.
pub const MAX_KEY: usize = 250;

/// Bytes of the longest command line, without its end; a line that is longer ends the connection.
pub const MAX_LINE: usize = 2048;

/// The same of `get`, `gets`, `gat` and `gats`, which may name many keys.
pub const MAX_KEYS_LINE: usize = 1 << 20;

/// Bytes of the longest opaque token of a meta command.
pub const MAX_OPAQUE: usize = 31;

/// The most words of a meta command: its name, the key, for `ms` the length, and flags.
pub const MAX_META_WORDS: usize = 19;

/// The largest length that a data block can claim: what memcached's own arithmetic can hold.
pub const MAX_DATA: u32 = i32::MAX as u32 - 2;

/// Bytes of an index key, of which `lease` and `pin` send lists.
pub const INDEX_KEY: usize = 16;

/// Bytes of a chunk in the list of `push`: its key, and its length as 4 bytes, the highest first.
pub const PUSH_RECORD: usize = 36;

/// Chunks of one `push`, at most.
pub const MAX_PUSH_RECORDS: usize = 256;

/// Bytes of the longest list of index keys: 262,144 items, 1 GiB in chunks of 4 KiB.
pub const MAX_KEY_LIST: u32 = 4 << 20;
