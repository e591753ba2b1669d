//! Chunks by RDMA READ: the node's index and its content are read without its processor, and land where
//! the guest will find them.
//!
//! - [`link`]: one thread's part of a load, over one queue to one node;
//! - `job`: one chunk on its way: looked up, read, verified;
//! - [`table`]: the whole index, read at once;
//! - [`answer`]: what the node has to say first: where its memory is, and the key to it;
//! - `rights`: asking for that, and keeping it.

pub(super) mod answer;
mod job;
pub(super) mod link;
mod rights;
pub(super) mod table;
