//! Loads by RDMA, with the real programs, over a soft-RoCE device (`scripts/lib/rxe.sh`): `scripts/test lab`
//! runs them in the lab, with `--ignored`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod cache;
mod devices;
mod eviction;
mod faults;
mod hostile;
mod hosts;
mod index;
mod links;
mod loading;
mod loads;
mod moments;
mod push;
mod reader;
mod writer;
