//! The storage node: memory in which items are kept so that remote readers can read them.
//!
//! - [`arena`]: the memory, and the one place with unsafe code of the node;
//! - [`slab`]: which parts of it belong to which size of item;
//! - [`sieve`]: which item goes when there is no room;
//! - [`lease`]: what keeps items from going;
//! - [`cache`]: all of it behind memcached's operations, for any number of threads;
//! - [`rdma`]: how clients read it without its processor, [`push`]: how they write to it;
//! - [`server`]: what clients reach it by.

pub mod arena;
pub mod cache;
pub mod lease;
pub mod push;
pub mod rdma;
pub mod server;
pub mod sieve;
pub mod slab;
