//! A DHCP server that commits every lease to a mirror before it answers, and the mirror that takes over.
//!
//! What clients ask is decided without input or output: [`wire`] reads and writes messages, [`engine`] says
//! what is answered and what of the [`table`] of leases changes. The table is kept by a [`journal`] on this host
//! and by [`mirror`]s on others; [`serve`] is the process that joins them.

#![deny(unsafe_code)]

pub mod engine;
pub mod journal;
pub mod mac;
pub mod mirror;
pub mod record;
pub mod serve;
pub mod settings;
pub mod table;
pub mod wire;
