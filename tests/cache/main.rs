//! Tests of the storage node as a program: `imgcached` is started and spoken to over its sockets.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod classic;
mod client;
mod connections;
mod crate_client;
mod differential;
mod differs;
mod drain;
mod framing;
mod holds;
mod http;
mod limits;
mod many;
mod meta;
mod node;
mod opening;
mod program;
mod stats;
mod tls;
