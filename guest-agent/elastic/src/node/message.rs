//! What clients ask, and what servers say to each other.

use bytes::Bytes;

use super::Session;
use crate::range::{Key, Range};
use crate::{Peer, TransferId};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The client's number for itself, by chance: it makes one request at a time.
    pub session: u64,
    /// Its number for the request, each higher than the last. The same request has the same when repeated.
    pub seq: u64,
    /// Of which object.
    pub key: Key,
    /// What.
    pub op: Op,
}

/// What is to be done with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Read it.
    Get,
    /// Write it.
    Put(Bytes),
    /// Remove it.
    Delete,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// What was read; none if there is no such object.
    Value(Option<Bytes>),
    /// It was written or removed.
    Done {
        /// Whether there was an object before.
        existed: bool,
    },
    /// Another server has the range.
    Moved {
        /// Which, if this one knows.
        home: Option<Peer>,
        /// Since which epoch.
        epoch: u64,
    },
    /// Too much is held, or too many sessions are known: nothing was done, ask again later.
    Busy,
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The server that has the client's connection.
    pub peer: Peer,
    /// That server's number for the connection.
    pub connection: u64,
    /// How often the request was forwarded.
    pub hops: u8,
}

/// What a transfer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Hands a range over.
    Move,
    /// Copies a range and keeps the copy up to date.
    Mirror,
}

/// What a source sends of its state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunk {
    /// Begins with 1, and grows whenever acknowledgements stay away.
    pub round: u32,
    /// Counts the chunks of a round, from 0.
    pub number: u64,
    /// Objects; none for a value says that there is no object.
    pub objects: Vec<(Key, Option<Bytes>)>,
    /// Sessions.
    pub sessions: Vec<Session>,
    /// With this, the copy is what the source has at one moment.
    pub whole: bool,
}

/// What a target made for a transfer. It makes another one when the transfer begins for it once more, because it
/// started again or gave up: then it has nothing of what was sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The target's life.
    pub life: u64,
    /// Counts the places of that life.
    pub number: u32,
}

/// How a message concerns a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Source: make room.
    Begin {
        /// What for.
        kind: Kind,
        /// Of what.
        range: Range,
        /// The range's epoch at the source.
        epoch: u64,
    },
    /// Target: there is room.
    Begun(Place),
    /// Target: it cannot, or it knows of no such transfer.
    Refuse,
    /// Source: a part of the state.
    Chunk(Chunk),
    /// Target: what has arrived.
    Ack {
        /// Where.
        place: Place,
        /// Of this round.
        round: u32,
        /// All chunks below this one were received.
        received: u64,
        /// All chunks below this one are in the copy.
        applied: u64,
    },
    /// Source: that was all, be ready.
    Finish,
    /// Target: all of it is kept as long as it keeps anything.
    Ready(Place),
    /// Source: it was committed; see for yourself.
    Committed,
    /// Target: it serves.
    Adopted,
    /// Source: it comes to nothing.
    Abort,
}

/// What servers say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Of a transfer.
    Transfer(TransferId, Step),
    /// A request that reached the wrong server.
    Forward(Origin, Request),
    /// The answer to one, for the server with the client's connection.
    Answer {
        /// Where to.
        origin: Origin,
        /// The request's session.
        session: u64,
        /// The request's number.
        seq: u64,
        /// The answer.
        outcome: Outcome,
    },
}
