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

mod objects;
mod source;
mod target;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

pub use objects::{Objects, SESSION_IDLE, SESSIONS_MAX, Session};
use source::Source;
use target::Target;

use crate::range::{Key, Range};
use crate::routes::{Ask, Reply};
use crate::{Peer, TransferId};

/// Requests that one transfer holds at most (research note, 6.15).
pub const HELD_MAX: usize = 10_000;
/// Bytes of values in the requests that one transfer holds at most.
pub const HELD_BYTES: usize = 16 << 20;
/// Forwarded requests are passed on at most so often.
pub const HOPS_MAX: u8 = 4;
/// Transfers that a server takes part in at once, in each direction.
pub const TRANSFERS_MAX: usize = 16;

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

/// An answer that waits for mirrors.
#[derive(Debug)]
struct Waiting {
    /// How many writes each must have.
    needs: BTreeMap<TransferId, u64>,
    origin: Origin,
    session: u64,
    seq: u64,
    outcome: Outcome,
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
        self.sources.iter().map(|(id, source)| (*id, source.kind(), source.range(), source.peer()))
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

    /// A request of a client, or one that was forwarded.
    pub fn request(&mut self, origin: Origin, request: Request) {
        let id = request.key.id();
        if self.owner(id).is_some() {
            match self.sources.values_mut().find(|source| source.holds(id)) {
                Some(source) => {
                    if let Err((origin, request)) = source.held.push(origin, request) {
                        self.answer(origin, &request, Outcome::Busy);
                    }
                }
                None => self.serve(origin, request),
            }
            return;
        }
        // Limbo: what was sent to us before the tables changed.
        if let Some(to) = self.sources.values().find_map(|source| source.forwards(id)) {
            return self.forward(to, origin, request);
        }
        let target = self
            .targets
            .values_mut()
            .find(|target| target.kind == Kind::Move && target.range.contains(id));
        if let Some(target) = target {
            if let Err((origin, request)) = target.held.push(origin, request) {
                self.answer(origin, &request, Outcome::Busy);
            }
            return;
        }
        self.moved(origin, &request);
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

    fn serve(&mut self, origin: Origin, request: Request) {
        let Request { session, seq, key, op } = request;
        let id = key.id();
        let value = match op {
            Op::Get => {
                let value = self.objects.get(&key).cloned();
                return self.answer_when_mirrored(id, origin, session, seq, Outcome::Value(value));
            }
            Op::Put(value) => Some(value),
            Op::Delete => None,
        };
        let existed = match self.objects.session(session) {
            // An old request that the network kept: its client has its answer.
            Some(last) if last.is_past(seq) => return,
            Some(last) if seq == last.seq => last.existed,
            _ if !self.objects.admits(session, self.now) => {
                return self.send_answer(origin, session, seq, Outcome::Busy);
            }
            _ => {
                let existed = self.objects.set(key.clone(), value.clone());
                let written = Session { id: session, seq, existed, wrote: Some(id) };
                self.objects.remember(written, self.now);
                for source in self.sources.values_mut() {
                    source.wrote(&key, session);
                }
                self.record(Record::Write(key, value, written));
                existed
            }
        };
        self.answer_when_mirrored(id, origin, session, seq, Outcome::Done { existed });
        self.pump_mirrors(id);
    }

    fn pump_mirrors(&mut self, id: u64) {
        if self.sources.is_empty() {
            return;
        }
        let ids: BTreeSet<_> = self
            .sources
            .iter()
            .filter(|(_, source)| source.range().contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.pump(id);
        }
    }

    fn answer_when_mirrored(
        &mut self,
        id: u64,
        origin: Origin,
        session: u64,
        seq: u64,
        outcome: Outcome,
    ) {
        self.served += 1;
        let needs: BTreeMap<_, _> = self
            .sources
            .iter()
            .filter_map(|(transfer, source)| Some((*transfer, source.missing(id)?)))
            .collect();
        if needs.is_empty() {
            self.send_answer(origin, session, seq, outcome);
        } else {
            self.waiting.push_back(Waiting { needs, origin, session, seq, outcome });
        }
    }

    /// A mirror has the first `count` writes; all of them counts for one that is no more.
    fn mirrored(&mut self, transfer: TransferId, count: u64) {
        for mut waiting in std::mem::take(&mut self.waiting) {
            if waiting.needs.get(&transfer).is_some_and(|need| *need <= count) {
                waiting.needs.remove(&transfer);
            }
            if waiting.needs.is_empty() {
                self.send_answer(waiting.origin, waiting.session, waiting.seq, waiting.outcome);
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    fn answer(&mut self, origin: Origin, request: &Request, outcome: Outcome) {
        self.send_answer(origin, request.session, request.seq, outcome);
    }

    fn send_answer(&mut self, origin: Origin, session: u64, seq: u64, outcome: Outcome) {
        self.actions.push(if origin.peer == self.me {
            Action::Answer(origin, session, seq, outcome)
        } else {
            Action::Send(origin.peer, Message::Answer { origin, session, seq, outcome })
        });
    }

    fn moved(&mut self, origin: Origin, request: &Request) {
        let id = request.key.id();
        let hint = self.gone.iter().rev().find(|(range, _, _)| range.contains(id));
        let (home, epoch) = hint.map_or((None, 0), |(_, home, epoch)| (Some(*home), *epoch));
        self.answer(origin, request, Outcome::Moved { home, epoch });
    }

    fn forward(&mut self, to: Peer, mut origin: Origin, request: Request) {
        if origin.hops >= HOPS_MAX {
            return self.moved(origin, &request);
        }
        origin.hops += 1;
        self.actions.push(Action::Send(to, Message::Forward(origin, request)));
    }

    fn record(&mut self, record: Record) {
        self.actions.push(Action::Record(record));
    }

    fn tell(&mut self, to: Peer, id: TransferId, step: Step) {
        self.actions.push(Action::Send(to, Message::Transfer(id, step)));
    }
}

/// Requests that wait, in their order.
#[derive(Debug, Default)]
struct Held {
    requests: Vec<(Origin, Request)>,
    bytes: usize,
}

impl Held {
    fn push(&mut self, origin: Origin, request: Request) -> Result<(), (Origin, Request)> {
        let bytes = if let Op::Put(value) = &request.op { value.len() } else { 0 };
        if self.requests.len() >= HELD_MAX || self.bytes + bytes > HELD_BYTES {
            return Err((origin, request));
        }
        self.bytes += bytes;
        self.requests.push((origin, request));
        Ok(())
    }
}
