//! Virtual endpoints: services that are reached by an identifier, never by where they run.
//!
//! - [`vid`], [`name`], [`range`](mod@range): the identifiers, 48-bit locally administered addresses; the names of services,
//!   whose hashes are in them; ranges of them;
//! - [`record`], [`table`], [`directory`]: where each range is, for one host or many;
//! - [`keeper`]: who keeps what a host has alive, and mutes it before others may take it over;
//! - [`moving`]: the states of a move;
//! - [`rights`]: what a VM may do;
//! - [`frames`], [`socket`]: servers and clients that talk by identifiers.
//!
//! (Kulkarni et al., "Virtualized, elastic system services", sections II to IV.)
#![forbid(unsafe_code)]

pub mod directory;
pub mod frames;
pub mod keeper;
pub mod moving;
pub mod name;
pub mod range;
pub mod record;
pub mod rights;
pub mod socket;
pub mod table;
pub mod vid;
