//! The verbs module with devices: transfers, what is refused, what is left behind. Needs two of soft-RoCE
//! (`scripts/lib/rxe.sh`): `scripts/test lab` runs it in the lab, with `--ignored`.
//!
//! What only adapters show is in `hardware`: `scripts/rdma-hardware` runs it, and the others.
//!
//! Both sides of a connection are in this process, on one device, which delivers to itself.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod devices;
mod ended;
mod ends;
mod hardware;
mod rights;
mod sides;
mod transfers;
mod windows;
