//! The node agent and its fleets, and what becomes of them when things go wrong. VMs are held before
//! their guests' first instruction, so any KVM will do.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod boots;
mod crashes;
mod cycles;
mod faults;
mod pool;
