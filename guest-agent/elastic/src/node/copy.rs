//! A range that is sent: what of it the peer has, and what it is sent next.

use std::collections::{BTreeSet, VecDeque};

use super::{Chunk, Held, Kind, Objects, Place};
use crate::Peer;
use crate::range::{Key, Range};

/// Entries of one chunk.
const CHUNK_ENTRIES: usize = 4096;
/// Bytes that a frame has for a chunk apart from what is in it, for each session, and for each object apart
/// from name and value.
const CHUNK: usize = 64;
const SESSION: usize = 26;
const OBJECT: usize = 9;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The peer is to make room.
    Beginning,
    /// Objects are sent while requests are answered.
    Copying,
    /// Nothing changes any more, since then.
    Frozen { since: u64, finished: bool },
    /// The routes were asked to hand the range over.
    Committing { since: u64 },
    /// The routes were asked to refuse that, if they did not do it yet.
    Fencing,
    /// The peer is the owner with this epoch, since then.
    Forwarding { epoch: u64, since: u64, adopted: bool },
    /// A mirror's copy is complete, and is being listed.
    Listing,
    /// A mirror is listed.
    Live,
    /// A mirror is being taken from the list.
    Leaving,
}

/// A chunk that was not acknowledged: what was in it.
#[derive(Debug)]
pub(super) struct Sent {
    keys: Vec<Key>,
    sessions: Vec<u64>,
    /// How many writes the copy has with it, if it is whole.
    whole: Option<u64>,
}

/// A range that is sent.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) range: Range,
    pub(super) peer: Peer,
    pub(super) epoch: u64,
    /// Where the peer keeps what it receives.
    pub(super) place: Option<Place>,
    pub(super) phase: Phase,
    /// Objects up to this key were sent once.
    cursor: Option<Key>,
    /// All were.
    pub(super) passed: bool,
    pub(super) dirty: BTreeSet<Key>,
    dirty_sessions: BTreeSet<u64>,
    round: u32,
    /// The number of the first chunk in flight.
    first: u64,
    pub(super) flight: VecDeque<Sent>,
    /// Chunks below this one were received.
    received: u64,
    /// Writes to the range since the beginning.
    pub(super) writes: u64,
    /// How many of them the peer's copy has.
    pub(super) safe: u64,
    /// Requests that arrived while it was frozen.
    pub(super) held: Held,
    /// When the peer last got on.
    pub(super) progress: u64,
    /// When something was last sent.
    pub(super) sent: u64,
}

impl Source {
    /// One that begins now. All `sessions` are sent.
    pub(super) fn new(
        kind: Kind,
        range: Range,
        peer: Peer,
        epoch: u64,
        sessions: BTreeSet<u64>,
        now: u64,
    ) -> Self {
        Self {
            kind,
            range,
            peer,
            epoch,
            place: None,
            phase: Phase::Beginning,
            cursor: None,
            passed: false,
            dirty: BTreeSet::new(),
            dirty_sessions: sessions,
            round: 1,
            first: 0,
            flight: VecDeque::new(),
            received: 0,
            writes: 0,
            safe: 0,
            held: Held::default(),
            progress: now,
            sent: now,
        }
    }

    /// Whether requests for `id` must wait.
    pub(super) fn holds(&self, id: u64) -> bool {
        let frozen =
            matches!(self.phase, Phase::Frozen { .. } | Phase::Committing { .. } | Phase::Fencing);
        frozen && self.range.contains(id)
    }

    /// Where requests for `id` go that still arrive here.
    pub(super) fn forwards(&self, id: u64) -> Option<Peer> {
        (matches!(self.phase, Phase::Forwarding { .. }) && self.range.contains(id))
            .then_some(self.peer)
    }

    /// An object was written, by `session`.
    pub(super) fn wrote(&mut self, key: &Key, session: u64) {
        if !self.range.contains(key.id()) || matches!(self.phase, Phase::Forwarding { .. }) {
            return;
        }
        self.writes += 1;
        // What the copy did not reach yet is sent when it does.
        if self.passed || self.cursor.as_ref().is_some_and(|cursor| key <= cursor) {
            self.dirty.insert(key.clone());
        }
        self.dirty_sessions.insert(session);
    }

    /// How many writes the mirror must have before the present state of `id` is told to anybody; none if
    /// it has them.
    pub(super) fn missing(&self, id: u64) -> Option<u64> {
        let listed = matches!(self.phase, Phase::Listing | Phase::Live | Phase::Leaving);
        (listed && self.range.contains(id) && self.safe < self.writes).then_some(self.writes)
    }

    pub(super) fn behind(&self) -> bool {
        !self.passed || !self.dirty.is_empty() || !self.dirty_sessions.is_empty()
    }

    /// The next chunk, if there is something to be sent.
    pub(super) fn chunk(&mut self, objects: &Objects, bytes: usize) -> Option<Chunk> {
        if !self.behind() {
            return None;
        }
        let mut chunk = Chunk {
            round: self.round,
            number: self.first + self.flight.len() as u64,
            ..Chunk::default()
        };
        let mut sent = Sent { keys: Vec::new(), sessions: Vec::new(), whole: None };
        while sent.sessions.len() < CHUNK_ENTRIES {
            let Some(id) = self.dirty_sessions.pop_first() else { break };
            chunk.sessions.extend(objects.session(id).map(|session| session.with(self.range)));
            sent.sessions.push(id);
        }
        // The limit is for all of the frame, so that it fills pages and does not just begin one.
        let mut room = bytes.saturating_sub(sent.sessions.len() * SESSION + CHUNK);
        while sent.keys.len() < CHUNK_ENTRIES {
            let key = match self.dirty.first() {
                Some(key) => key.clone(),
                None if self.passed => break,
                None => {
                    let Some(key) = objects.next(self.range, self.cursor.as_ref()) else {
                        self.passed = true;
                        break;
                    };
                    key.clone()
                }
            };
            let value = objects.get(&key).cloned();
            let size = value.as_ref().map_or(0, bytes::Bytes::len) + key.name().len() + OBJECT;
            if size > room && !sent.keys.is_empty() {
                break;
            }
            room = room.saturating_sub(size);
            if !self.dirty.remove(&key) {
                self.cursor = Some(key.clone());
            }
            chunk.objects.push((key.clone(), value));
            sent.keys.push(key);
        }
        chunk.whole = !self.behind();
        sent.whole = chunk.whole.then_some(self.writes);
        self.flight.push_back(sent);
        Some(chunk)
    }

    /// What is in flight is sent anew, in a new round.
    pub(super) fn rewind(&mut self) {
        for sent in self.flight.drain(..) {
            self.dirty.extend(sent.keys);
            self.dirty_sessions.extend(sent.sessions);
        }
        self.round += 1;
        self.first = 0;
        self.received = 0;
    }

    /// The peer has these chunks; whether that is news.
    pub(super) fn acknowledged(&mut self, round: u32, received: u64, applied: u64) -> bool {
        let next = self.first + self.flight.len() as u64;
        if round != self.round || received > next || applied > received {
            return false;
        }
        // What is received and not applied stays in flight: the peer forgets it when a round begins.
        let mut news = false;
        while self.first < applied {
            let Some(sent) = self.flight.pop_front() else { break };
            self.first += 1;
            news = true;
            if let Some(writes) = sent.whole {
                self.safe = self.safe.max(writes);
            }
        }
        if received > self.received {
            self.received = received;
            news = true;
        }
        news
    }

    /// Chunks that the peer has not received.
    pub(super) fn in_flight(&self) -> u64 {
        (self.first + self.flight.len() as u64).saturating_sub(self.received.max(self.first))
    }
}
