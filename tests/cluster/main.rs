//! The distributed cache with real memcached servers: loads, failures of every kind, the origin, TLS.
//! What is loaded is compared byte for byte, always.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod failures;
mod hostile;
mod loads;
mod members;
mod origin;
mod publishing;
mod servers;
mod support;
mod tls;
