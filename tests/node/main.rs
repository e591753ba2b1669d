//! The node agent as a program: its API under bad clients, TLS, the commands that ask it, what is to be
//! watched. VMs are held before their guests' first instruction, so any KVM will do.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod agent;
mod commands;
mod endpoints;
mod http;
mod service;
mod tls;
mod watching;
