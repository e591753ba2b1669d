//! Chunks by the memcached protocol, over TCP, TLS or sockets of this host.
//!
//! - [`stream`]: bytes, with patience and deadlines;
//! - [`connection`]: requests and answers;
//! - [`inbox`] and [`predicted`]: answers whose chunks land straight in guest memory;
//! - [`link`]: a connection's part of a load.

pub(super) mod connection;
mod inbox;
pub(super) mod link;
mod predicted;
pub(super) mod stream;
