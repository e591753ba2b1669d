//! Several servers of one range, of which one serves and the others are its mirrors.
//!
//! Each change goes to a majority of the mirrors before the client hears of it. A mirror takes over when a majority
//! of the mirrors, itself among them, has heard nothing for long enough; so whoever takes over knows of every change
//! that a client has heard of. The server answers only while a majority of the mirrors has heard it within a shorter
//! time, by its own clock from when it spoke: so it is silent before another speaks, though no two clocks agree.
//! Each taking over begins an epoch, and nobody takes part in one who has promised to take part in a later.
//!
//! With one mirror its majority is itself: it takes over alone, and the server alone is silent when it cannot reach
//! it. A server that has lost its state directory's mirrors says so, and does not guess.

pub mod replica;
pub mod session;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::table::{Change, Millis};

/// The most mirrors of one server (the paper's, section V).
pub const MOST_MIRRORS: usize = 3;
/// How often a server lets its mirrors hear of it, in milliseconds.
pub const BEAT_MILLIS: Millis = 100;
/// How long a server may answer after it spoke to the mirrors that then heard it, in milliseconds.
pub const LEASE_MILLIS: Millis = 800;
/// How long a mirror has heard nothing when it lets another take over, in milliseconds. Its clock may run faster than
/// the server's by half.
pub const QUIET_MILLIS: Millis = 1300;
/// By how much longer each mirror waits than the one before it, in milliseconds: so they do not stand at once.
pub const RANK_MILLIS: Millis = 200;

/// Who a server is: a number that it has drawn at its first start.
pub type Node = u64;

/// Who serves, and who its mirrors are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The epoch in which it is so; 0 before there was any.
    pub epoch: u64,
    /// The server.
    pub server: Node,
    /// Its mirrors.
    pub mirrors: BTreeSet<Node>,
    /// Whether it may serve without any.
    pub alone: bool,
}

/// A step in the history of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Of the table.
    Change(Change),
    /// Of who serves.
    Config(Config),
}

/// All that a mirror has to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The group of servers; 0 before there was any.
    pub group: u64,
    /// Who serves.
    pub config: Config,
    /// How many steps there were.
    pub index: u64,
    /// What the table is made of.
    pub changes: Vec<Change>,
}

/// How far a server is: a later epoch is further than any number of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The epoch.
    pub epoch: u64,
    /// How many steps there were.
    pub index: u64,
}

/// What servers say to each other. `sent` is the time at which the server spoke, by its own clock; it comes back to it
/// unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The server lives.
    Beat {
        /// Its epoch.
        epoch: u64,
        /// When it spoke.
        sent: Millis,
    },
    /// There are new steps.
    Steps {
        /// The server's epoch.
        epoch: u64,
        /// How many steps there were before.
        from: u64,
        /// The steps.
        steps: Vec<Step>,
        /// When it spoke.
        sent: Millis,
    },
    /// All that there is.
    State {
        /// The server's epoch.
        epoch: u64,
        /// All.
        state: State,
        /// When it spoke.
        sent: Millis,
    },
    /// A mirror has so many steps.
    Ack {
        /// The server's epoch.
        epoch: u64,
        /// How many.
        index: u64,
        /// When the server spoke.
        sent: Millis,
    },
    /// A mirror lacks steps.
    Behind {
        /// The server's epoch.
        epoch: u64,
    },
    /// Somebody has promised not to take part in this epoch.
    Refused {
        /// The epoch that it has promised.
        promised: u64,
    },
    /// May I serve from this epoch on?
    Ask {
        /// The epoch.
        epoch: u64,
        /// How far I am.
        position: Position,
    },
    /// You may.
    Grant {
        /// The epoch.
        epoch: u64,
        /// What you do not know.
        state: Option<State>,
    },
    /// The server ends, and answers nobody any more.
    Stop {
        /// Its epoch.
        epoch: u64,
    },
}
