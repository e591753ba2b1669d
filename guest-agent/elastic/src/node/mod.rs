//! The protocol as a state machine: what a server does with requests, messages of its peers, answers of the
//! routes and the passing of time. It reads and writes nothing itself: it says what is to be done as
//! [`Action`]s, which are to be done in their order.
//!
//! # A transfer (Algorithm 1)
//! 1. *begin*: the peer makes room and holds every request for the range that reaches it from now on.
//! 2. *copy*: objects are streamed while the source still answers; what is written meanwhile is sent again.
//! 3. *freeze*: the source holds requests, the rest is sent, and the peer records all of it durably.
//! 4. *commit*: one change of the routes. Before it the source is the owner, after it the peer is.
//! 5. *forward*: the source passes on what it held and what still arrives, until every table is settled;
//!    the peer looks the commit up by itself, answers what it held and serves.
//!
//! Whatever fails before the commit, the source goes on; when it cannot know whether the commit was made, it
//! stays frozen and fences it, and the answer tells. A server that starts again fences all that it has, so
//! that nothing that it asked in its earlier life happens later; what it prepared to receive, it looks up.
//!
//! A mirror is a copy that goes on: an answer waits until every mirror that is listed as complete has the
//! write, or is no more listed.
//!
//! Messages may be lost, repeated and reordered: chunks are numbered in rounds, a new round begins when
//! acknowledgements stay away, and what was not acknowledged is read and sent anew. A source keeps the keys
//! of what is in flight, never the objects.

mod copy;
mod message;
mod objects;
mod requests;
mod source;
mod target;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use copy::Source;
pub use message::{Chunk, Kind, Message, Op, Origin, Outcome, Place, Request, Step};
pub use objects::{Objects, SESSION_IDLE, SESSIONS_MAX, Session};
pub use requests::{HELD_BYTES, HELD_MAX, HOPS_MAX};
use requests::{Held, Waiting};
use target::Target;

use crate::range::{Key, Range};
use crate::routes::{Ask, Reply};
use crate::{Peer, TransferId};

/// Transfers that a server takes part in at once, in each direction.
pub const TRANSFERS_MAX: usize = 16;

/// What must outlive the process, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An object was written, or removed.
    Write(Key, Option<Bytes>, Session),
    /// A part of what is received.
    Stage(TransferId, Vec<(Key, Option<Bytes>)>, Vec<Session>),
    /// All was received.
    Prepared {
        /// Which transfer.
        transfer: TransferId,
        /// Of what.
        range: Range,
        /// Its epoch at the source.
        epoch: u64,
    },
    /// What was received is now ours.
    Adopt(TransferId, Range),
    /// What was received is to be forgotten.
    Drop(TransferId),
    /// What is here of this range is now another's.
    Discard(Range),
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer is the owner, or the mirror is complete (which goes on).
    Done,
    /// Everything is as it was before.
    Aborted,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send it.
    Send(Peer, Message),
    /// Answer a client of this server.
    Answer(Origin, u64, u64, Outcome),
    /// Keep it, before anything behind it is done.
    Record(Record),
    /// Ask the routes and tell [`Node::routed`] what they said.
    Ask(Ask),
    /// A transfer that began here ended.
    Ended(TransferId, End),
}

/// Why a transfer cannot begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The range is not all ours: the assertion of Algorithm 1.
    #[error("{0} is not all at this server: name a part of what it has")]
    NotOurs(Range),
    /// The peer is this server itself.
    #[error("server {0} is this one: name another")]
    Ourselves(Peer),
    /// Another transfer has a part of it.
    #[error("transfer {0} has a part of {1}: abort it, or wait for its end")]
    Overlaps(TransferId, Range),
    /// There are [`TRANSFERS_MAX`] already.
    #[error("{TRANSFERS_MAX} transfers are under way: wait for the end of one")]
    Many,
    /// No complete copy of the range is here.
    #[error("no copy of {0} is here: only its mirror can be promoted")]
    NoMirror(Range),
}

/// How patient a server is, in milliseconds, and how much it has in flight.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Without an acknowledgement for so long, a message is repeated.
    pub repeat: u64,
    /// A source that gets nowhere for so long gives up. Mirrors that do not acknowledge are dropped.
    pub patience: u64,
    /// A range is frozen for at most so long before its transfer is aborted.
    pub freeze: u64,
    /// A target that hears nothing for so long forgets what it has, or looks up whose it is.
    pub silence: u64,
    /// Bytes of a chunk on the wire; one object may be more.
    pub chunk: usize,
    /// Chunks in flight.
    pub window: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            repeat: 1000,
            patience: 10_000,
            freeze: 2000,
            silence: 5000,
            chunk: 2 << 20,
            window: 8,
        }
    }
}

/// What a server kept from its earlier life.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Its objects and sessions.
    pub objects: Objects,
    /// What it received to the end without having seen the commit: with range and epoch at the source.
    pub prepared: Vec<(TransferId, Range, u64, Objects)>,
}

/// A server.
#[derive(Debug)]
pub struct Node {
    me: Peer,
    limits: Limits,
    life: u64,
    started: u32,
    /// Places made in this life.
    places: u32,
    now: u64,
    /// What it answers for, with epochs. None overlaps another.
    owned: Vec<(Range, u64)>,
    objects: Objects,
    sources: BTreeMap<TransferId, Source>,
    targets: BTreeMap<TransferId, Target>,
    waiting: VecDeque<Waiting>,
    /// Where ranges went, the last ones only: a hint for clients.
    gone: VecDeque<(Range, Peer, u64)>,
    actions: Vec<Action>,
    /// Requests that were answered here.
    served: u64,
}

impl Node {
    /// Server `me`, which owns `owned` with epochs that were fenced for this life, the first of them being
    /// `life`.
    pub fn new(
        me: Peer,
        life: u64,
        owned: Vec<(Range, u64)>,
        recovered: Recovered,
        limits: Limits,
    ) -> Self {
        let mut node = Self {
            me,
            limits,
            life,
            started: 0,
            places: 0,
            now: 0,
            owned,
            objects: recovered.objects,
            sources: BTreeMap::new(),
            targets: BTreeMap::new(),
            waiting: VecDeque::new(),
            gone: VecDeque::new(),
            actions: Vec::new(),
            served: 0,
        };
        let prepared = recovered.prepared;
        // What a commit took away is another's, however much of it is still recorded here. What is not yet
        // adopted is in no object yet.
        let mut others = vec![Range::ALL];
        for (own, _) in &node.owned {
            others = others
                .into_iter()
                .flat_map(|range| <[_; 2]>::from(range.without(*own)))
                .flatten()
                .collect();
        }
        for range in others {
            if node.objects.leave(range) {
                node.record(Record::Discard(range));
            }
        }
        for (transfer, range, epoch, staged) in prepared {
            let mine = node.owned.iter().any(|(own, _)| own.covers(range));
            let place = node.place();
            node.targets.insert(transfer, Target::prepared(range, epoch, place, staged));
            if mine {
                // The commit was made, since a target has nothing of the range before.
                node.adopt(transfer, None);
            } else {
                node.actions.push(Action::Ask(Ask::Lookup { transfer, range }));
            }
        }
        node
    }

    /// What it owns, with epochs.
    pub fn owned(&self) -> &[(Range, u64)] {
        &self.owned
    }

    /// Whether it answers requests for `id` at this moment: of all servers at most one does.
    pub fn serves(&self, id: u64) -> bool {
        self.owner(id).is_some() && !self.sources.values().any(|source| source.holds(id))
    }

    /// What it keeps.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Requests that were answered here.
    pub fn served(&self) -> u64 {
        self.served
    }

    /// Transfers under way that began here.
    pub fn outgoing(&self) -> impl Iterator<Item = (TransferId, Kind, Range, Peer)> {
        self.sources.iter().map(|(id, source)| (*id, source.kind, source.range, source.peer))
    }

    /// Transfers under way to here.
    pub fn incoming(&self) -> impl Iterator<Item = (TransferId, Kind, Range)> {
        self.targets.iter().map(|(id, target)| (*id, target.kind, target.range))
    }

    /// What is to be done; nothing is left.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// A range that nobody had was announced as ours.
    pub fn announced(&mut self, range: Range, epoch: u64) {
        self.own(range, epoch);
    }

    /// A message of a peer.
    pub fn message(&mut self, from: Peer, message: Message) {
        match message {
            Message::Forward(origin, request) => self.request(origin, request),
            Message::Answer { origin, session, seq, outcome } => {
                if origin.peer == self.me {
                    self.actions.push(Action::Answer(origin, session, seq, outcome));
                }
            }
            Message::Transfer(id, step) if id.source == self.me => self.source_step(from, id, step),
            // Nobody else speaks for a source.
            Message::Transfer(id, step) if id.source == from => self.target_step(id, step),
            Message::Transfer(..) => {}
        }
    }

    /// The routes answered.
    pub fn routed(&mut self, ask: &Ask, reply: Reply) {
        if ask.transfer().source == self.me && self.sources.contains_key(&ask.transfer()) {
            self.source_routed(ask, reply);
        } else {
            self.target_routed(ask, reply);
        }
    }

    /// It is `now`, in milliseconds since any moment.
    pub fn tick(&mut self, now: u64) {
        self.now = self.now.max(now);
        let ids: Vec<_> = self.sources.keys().copied().collect();
        for id in ids {
            self.source_tick(id);
        }
        let ids: Vec<_> = self.targets.keys().copied().collect();
        for id in ids {
            self.target_tick(id);
        }
    }

    fn place(&mut self) -> Place {
        self.places += 1;
        Place { life: self.life, number: self.places }
    }

    fn owner(&self, id: u64) -> Option<u64> {
        self.owned.iter().find(|(range, _)| range.contains(id)).map(|(_, epoch)| *epoch)
    }

    /// The epoch of a range that is all ours; it may be in several pieces.
    fn epoch_of(&self, range: Range) -> Option<u64> {
        let mut rest = Some(range);
        let mut epoch = 0;
        while let Some(left) = rest {
            let (piece, its) = self.owned.iter().find(|(piece, _)| piece.contains(left.first()))?;
            epoch = epoch.max(*its);
            rest = left.without(*piece).1;
        }
        Some(epoch)
    }

    /// Owns `range` with `epoch`, as the routes say.
    fn own(&mut self, range: Range, epoch: u64) {
        self.disown(range);
        self.owned.push((range, epoch));
        self.gone.retain(|(gone, _, _)| !gone.overlaps(range));
    }

    fn disown(&mut self, range: Range) {
        let mut left = Vec::with_capacity(self.owned.len() + 1);
        for (own, epoch) in self.owned.drain(..) {
            let (below, above) = own.without(range);
            left.extend([below, above].into_iter().flatten().map(|part| (part, epoch)));
        }
        self.owned = left;
    }

    fn record(&mut self, record: Record) {
        self.actions.push(Action::Record(record));
    }

    fn tell(&mut self, to: Peer, id: TransferId, step: Step) {
        self.actions.push(Action::Send(to, Message::Transfer(id, step)));
    }
}
