//! Jails, on any host that has namespaces: what is left to the process of a VM, and what kills it. No
//! guest runs; where there is no KVM either, less of it is seen, and the tests say so.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod boot;
mod cgroup;
mod cost;
mod inside;
mod process;
