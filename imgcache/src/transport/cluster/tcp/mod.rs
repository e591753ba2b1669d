//! Chunks by the memcached protocol, over TCP, TLS or sockets of this host.
//!
//! - [`stream`]: bytes, with patience and deadlines;
//! - [`connection`]: requests and answers;
//! - [`inbox`] and [`predicted`]: answers whose chunks land straight in guest memory;
//! - [`worker`]: a thread of a load.

pub(super) mod connection;
mod inbox;
mod predicted;
pub(super) mod stream;
pub(super) mod worker;
