//! Tests of the program that run no guest: any host will do. Where it has no KVM at all, boots up
//! to the guest's first instruction are only seen to be refused, and the tests say so.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../cluster/servers.rs"]
mod memcached;

mod boot;
mod cache;
mod concurrent;
mod exit_codes;
mod fresh;
mod generated;
mod hostile;
mod images;
mod interrupted;
mod support;
