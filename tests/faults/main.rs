//! Faults of the distributed cache: real nodes, real loads, and a network that fails between them.
//!
//! Every load here ends with the right bytes (the loader hashes each chunk before it says "ready"),
//! or in time with an error that says what is wrong.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod cluster;
mod content;
mod membership;
mod memory;
mod network;
mod nodes;
mod proxy;
mod shared;
