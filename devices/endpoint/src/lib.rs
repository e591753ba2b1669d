//! Virtual endpoints: services that are reached by an identifier, never by where they run.
//!
//! - [`vid`]: the identifiers, 48-bit locally administered addresses.
//!
//! (Kulkarni et al., "Virtualized, elastic system services", sections II to IV.)
#![forbid(unsafe_code)]

pub mod vid;
