//! Services that split, merge, mirror and move ranges of identifiers, with their state.
//!
//! After "Dynamic Adaptation for Elastic System Services using Virtual Servers", sections II, III and VI:
//! Table I's operations by Algorithm 1. [`node`] is the protocol as a state machine without input and
//! output; [`server`] runs it over TCP; [`routes`] is where ownership changes hands; [`policy`] decides
//! when to split and merge, and nothing else does.
#![forbid(unsafe_code)]

pub mod client;
pub mod journal;
pub mod node;
pub mod policy;
pub mod range;
pub mod routes;
pub mod server;
pub mod wire;

use std::fmt;

use serde::{Deserialize, Serialize};

/// A server, by the number that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Peer(pub u32);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A transfer of a range; no other ever has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId {
    /// Who sends.
    pub source: Peer,
    /// The epoch with which this life of the source began.
    pub life: u64,
    /// Counts the transfers of that life.
    pub number: u32,
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.source, self.life, self.number)
    }
}
