//! Tests that boot guests. They need a KVM that runs stock kernels: `scripts/test` runs them in
//! the lab where the host's does not, with `--ignored`, because a plain `cargo test` has neither.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod cluster;
mod console;
mod control;
mod cost;
mod dhcp;
mod disk;
mod endpoint;
mod ends;
mod jail;
mod matrix;
mod net;
mod node;
mod payload;
mod settle;
mod signals;
mod vmgenid;
mod vsock;
