//! TCP connections that move between machines, with the state of the service behind them.
//!
//! The client needs no change and sees no reset, no lost and no doubled byte (Migratory TCP with service
//! continuations; the order of steps is that of the eight steps with END-MARKs of transparent network
//! connectivity, on today's kernel):
//!
//! - [`repair`] takes one end of a connection out of a kernel and puts it into another;
//! - [`state`] is what is taken, and its bytes between machines;
//! - [`helper`] is the small part that has the privilege, `CAP_NET_ADMIN`;
//! - [`service`] moves a server's own state with its connection: create, export, import;
//! - [`errand`] moves a server's connections as its host asks, through the control device;
//! - [`mover`] does a whole move, over any stream of bytes, with a way back at every step until it is
//!   committed, and forward after.
#![deny(unsafe_code)]

mod diag;
pub mod errand;
pub mod helper;
pub mod mover;
pub mod privilege;
pub mod repair;
pub mod service;
pub mod state;
mod sys;
mod wire;
