//! The sending side of a transfer.

use std::collections::{BTreeSet, VecDeque};

use super::{
    Action, Chunk, End, Held, Kind, Node, Objects, Place, Record, StartError, Step, TRANSFERS_MAX,
};
use crate::range::{Key, Range};
use crate::routes::{Ask, Reply};
use crate::{Peer, TransferId};

/// With so many keys left to be sent the range is frozen: they are sent in less than a round trip or two.
const FEW: usize = 512;
/// And with so many chunks on their way: nobody is to wait for more than a part of the window.
const FEW_CHUNKS: u64 = 2;
/// Entries of one chunk.
const CHUNK_ENTRIES: usize = 4096;
/// Bytes that a frame has for a chunk apart from what is in it, for each session, and for each object apart
/// from name and value.
const CHUNK: usize = 64;
const SESSION: usize = 26;
const OBJECT: usize = 9;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
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
struct Sent {
    keys: Vec<Key>,
    sessions: Vec<u64>,
    /// How many writes the copy has with it, if it is whole.
    whole: Option<u64>,
}

/// A range that is sent.
#[derive(Debug)]
pub(super) struct Source {
    kind: Kind,
    range: Range,
    peer: Peer,
    epoch: u64,
    /// Where the peer keeps what it receives.
    place: Option<Place>,
    phase: Phase,
    /// Objects up to this key were sent once.
    cursor: Option<Key>,
    /// All were.
    passed: bool,
    dirty: BTreeSet<Key>,
    dirty_sessions: BTreeSet<u64>,
    round: u32,
    /// The number of the first chunk in flight.
    first: u64,
    flight: VecDeque<Sent>,
    /// Chunks below this one were received.
    received: u64,
    /// Writes to the range since the beginning.
    writes: u64,
    /// How many of them the peer's copy has.
    safe: u64,
    /// Requests that arrived while it was frozen.
    pub(super) held: Held,
    /// When the peer last got on.
    progress: u64,
    /// When something was last sent.
    sent: u64,
}

impl Source {
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn range(&self) -> Range {
        self.range
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer
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

    fn behind(&self) -> bool {
        !self.passed || !self.dirty.is_empty() || !self.dirty_sessions.is_empty()
    }

    /// The next chunk, if there is something to be sent.
    fn chunk(&mut self, objects: &Objects, bytes: usize) -> Option<Chunk> {
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
    fn rewind(&mut self) {
        for sent in self.flight.drain(..) {
            self.dirty.extend(sent.keys);
            self.dirty_sessions.extend(sent.sessions);
        }
        self.round += 1;
        self.first = 0;
        self.received = 0;
    }

    /// The peer has these chunks; whether that is news.
    fn acknowledged(&mut self, round: u32, received: u64, applied: u64) -> bool {
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
    fn in_flight(&self) -> u64 {
        (self.first + self.flight.len() as u64).saturating_sub(self.received.max(self.first))
    }
}

impl Node {
    /// Begins to hand `range` over to `peer`, or to mirror it there.
    ///
    /// # Errors
    /// When it is not ours, or a transfer has a part of it.
    pub fn start(
        &mut self,
        kind: Kind,
        range: Range,
        peer: Peer,
    ) -> Result<TransferId, StartError> {
        if peer == self.me {
            return Err(StartError::Ourselves(peer));
        }
        let epoch = self.epoch_of(range).ok_or(StartError::NotOurs(range))?;
        let sources = self.sources.iter().filter(|(_, source)| source.range.overlaps(range));
        // A range may have several mirrors, each at another peer.
        let mut overlaps = sources.filter(|(_, source)| {
            (kind, source.kind) != (Kind::Mirror, Kind::Mirror) || source.peer == peer
        });
        if let Some((id, _)) = overlaps.next() {
            return Err(StartError::Overlaps(*id, range));
        }
        if self.sources.len() >= TRANSFERS_MAX {
            return Err(StartError::Many);
        }
        self.started += 1;
        let id = TransferId { source: self.me, life: self.life, number: self.started };
        let source = Source {
            kind,
            range,
            peer,
            epoch,
            place: None,
            phase: Phase::Beginning,
            cursor: None,
            passed: false,
            dirty: BTreeSet::new(),
            dirty_sessions: self.objects.sessions().map(|session| session.id).collect(),
            round: 1,
            first: 0,
            flight: VecDeque::new(),
            received: 0,
            writes: 0,
            safe: 0,
            held: Held::default(),
            progress: self.now,
            sent: self.now,
        };
        self.sources.insert(id, source);
        self.tell(peer, id, Step::Begin { kind, range, epoch });
        Ok(id)
    }

    /// Ends a transfer with everything as it was; one that is committed goes on to its end. Ends a mirror.
    pub fn abort(&mut self, id: TransferId) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        match source.phase {
            Phase::Beginning | Phase::Copying | Phase::Frozen { finished: false, .. } => {
                self.give_up(id);
            }
            // The peer may be ready, and then asks nobody but the routes: they must tell it.
            Phase::Frozen { finished: true, .. } | Phase::Committing { .. } => {
                source.phase = Phase::Fencing;
                self.fence(id);
            }
            Phase::Listing | Phase::Live => {
                source.phase = Phase::Leaving;
                self.list(id, false);
            }
            Phase::Fencing | Phase::Forwarding { .. } | Phase::Leaving => {}
        }
    }

    pub(super) fn source_step(&mut self, from: Peer, id: TransferId, step: Step) {
        let now = self.now;
        let Some(source) = self.sources.get_mut(&id).filter(|source| source.peer == from) else {
            // A target that waits for what is over here.
            if matches!(step, Step::Ready(_) | Step::Begun(_) | Step::Ack { .. }) {
                self.tell(from, id, Step::Abort);
            }
            return;
        };
        match (step, source.phase) {
            // It began once more, without what was sent before.
            (Step::Ack { place, .. } | Step::Ready(place), _) if source.place != Some(place) => {
                self.abort(id);
            }
            (Step::Begun(place), Phase::Beginning) => {
                source.phase = Phase::Copying;
                source.place = Some(place);
                source.progress = now;
                self.pump(id);
            }
            (Step::Refuse, Phase::Committing { .. }) => {}
            (Step::Refuse, _) => self.abort(id),
            (Step::Ack { round, received, applied, .. }, _) => {
                if source.acknowledged(round, received, applied) {
                    source.progress = now;
                    let safe = source.safe;
                    self.mirrored(id, safe);
                }
                self.pump(id);
            }
            (Step::Ready(_), Phase::Frozen { finished: true, .. }) => {
                source.phase = Phase::Committing { since: now };
                self.commit(id);
            }
            (Step::Adopted, Phase::Forwarding { epoch, since, .. }) => {
                source.phase = Phase::Forwarding { epoch, since, adopted: true };
                let range = source.range;
                self.actions.push(Action::Ask(Ask::Settled { transfer: id, range, epoch }));
            }
            _ => {}
        }
    }

    pub(super) fn source_routed(&mut self, ask: &Ask, reply: Reply) {
        let (id, me) = (ask.transfer(), self.me);
        let Some(source) = self.sources.get_mut(&id) else { return };
        let (range, peer) = (source.range, source.peer);
        match (source.phase, ask, reply) {
            (_, _, Reply::Unknown) => {}
            (Phase::Committing { .. } | Phase::Fencing, Ask::Commit { .. }, Reply::Done(epoch)) => {
                self.committed(id, epoch);
            }
            (
                Phase::Committing { .. } | Phase::Fencing,
                Ask::Commit { .. } | Ask::Fence { .. },
                reply,
            ) => match reply {
                Reply::Is { home: Some(home), epoch } if home == peer => self.committed(id, epoch),
                // A commit that is refused because of its epoch can no more be made.
                Reply::Is { home: Some(home), epoch } if home == me && epoch > source.epoch => {
                    self.resume(id, epoch);
                }
                Reply::Done(epoch) => self.resume(id, epoch),
                // The peer started again since it was ready.
                Reply::Is { home: Some(home), .. } if home == me => self.abort(id),
                Reply::Is { .. } | Reply::Unknown => self.lose(id),
            },
            // A peer that does not say that it adopted looked up the commit, or will when it starts again.
            (Phase::Forwarding { adopted, since, .. }, Ask::Settled { .. }, Reply::Done(_))
                if adopted || self.now >= since + self.limits.patience =>
            {
                self.sources.remove(&id);
                self.actions.push(Action::Ended(id, End::Done));
            }
            (Phase::Listing, Ask::Mirror { complete: true, .. }, Reply::Done(_)) => {
                source.phase = Phase::Live;
                self.actions.push(Action::Ended(id, End::Done));
            }
            (Phase::Leaving, Ask::Mirror { complete: false, .. }, Reply::Done(epoch)) => {
                self.sources.remove(&id);
                self.own(range, epoch);
                for other in self.sources.values_mut().filter(|other| other.range.overlaps(range)) {
                    other.epoch = other.epoch.max(epoch);
                }
                self.mirrored(id, u64::MAX);
                self.tell(peer, id, Step::Abort);
                self.actions.push(Action::Ended(id, End::Aborted));
            }
            // We are no more the home: the mirror was promoted, because we seemed dead.
            (Phase::Listing | Phase::Leaving, Ask::Mirror { .. }, Reply::Is { home, .. })
                if home != Some(me) =>
            {
                self.lose(id);
            }
            // Of an earlier answer that did not arrive.
            (Phase::Listing | Phase::Leaving, Ask::Mirror { .. }, Reply::Is { epoch, .. }) => {
                source.epoch = source.epoch.max(epoch);
                self.own(range, epoch);
            }
            _ => {}
        }
    }

    pub(super) fn source_tick(&mut self, id: TransferId) {
        let (now, limits) = (self.now, self.limits);
        let Some(source) = self.sources.get_mut(&id) else { return };
        let (peer, range, kind, epoch) = (source.peer, source.range, source.kind, source.epoch);
        let overdue = now >= source.progress + limits.patience;
        let again = now >= source.sent + limits.repeat;
        if again {
            source.sent = now;
        }
        match source.phase {
            Phase::Beginning | Phase::Copying if overdue => self.give_up(id),
            Phase::Frozen { since, .. } | Phase::Committing { since }
                if now >= since + limits.freeze =>
            {
                self.abort(id);
            }
            Phase::Live | Phase::Listing if overdue && source.safe < source.writes => {
                self.abort(id);
            }
            _ if !again => {}
            Phase::Beginning => self.tell(peer, id, Step::Begin { kind, range, epoch }),
            Phase::Copying | Phase::Frozen { .. } | Phase::Live => {
                // Nothing arrived in the time since the last repetition, or too little of it.
                if !source.flight.is_empty() && now >= source.progress + limits.repeat {
                    source.rewind();
                }
                if let Phase::Frozen { since, .. } = source.phase {
                    source.phase = Phase::Frozen { since, finished: false };
                }
                self.pump(id);
            }
            Phase::Committing { .. } => self.commit(id),
            Phase::Fencing => self.fence(id),
            Phase::Listing => self.list(id, true),
            Phase::Leaving => self.list(id, false),
            Phase::Forwarding { epoch, adopted, .. } => {
                if !adopted {
                    self.tell(peer, id, Step::Committed);
                }
                self.actions.push(Action::Ask(Ask::Settled { transfer: id, range, epoch }));
            }
        }
    }

    /// Sends what the window has room for, and goes on when all was.
    pub(super) fn pump(&mut self, id: TransferId) {
        let (now, limits) = (self.now, self.limits);
        let Some(source) = self.sources.get_mut(&id) else { return };
        let peer = source.peer;
        let sending = matches!(
            source.phase,
            Phase::Copying | Phase::Frozen { .. } | Phase::Listing | Phase::Live
        );
        if !sending {
            return;
        }
        while source.in_flight() < limits.window {
            let Some(chunk) = source.chunk(&self.objects, limits.chunk) else { break };
            if source.flight.len() == 1 {
                // Nothing was in flight, so nothing was overdue.
                source.progress = now;
            }
            source.sent = now;
            self.actions.push(Action::Send(peer, super::Message::Transfer(id, Step::Chunk(chunk))));
        }
        match (source.kind, source.phase) {
            (Kind::Move, Phase::Copying)
                if source.passed
                    && source.dirty.len() <= FEW
                    && source.in_flight() <= FEW_CHUNKS =>
            {
                source.phase = Phase::Frozen { since: now, finished: false };
                self.pump(id);
            }
            (Kind::Move, Phase::Frozen { since, finished: false })
                if !source.behind() && source.flight.is_empty() =>
            {
                source.phase = Phase::Frozen { since, finished: true };
                self.tell(peer, id, Step::Finish);
            }
            (Kind::Mirror, Phase::Copying) if !source.behind() && source.flight.is_empty() => {
                source.phase = Phase::Listing;
                self.list(id, true);
            }
            _ => {}
        }
    }

    fn commit(&mut self, id: TransferId) {
        let Some(source) = self.sources.get(&id) else { return };
        let (range, epoch, to, from) = (source.range, source.epoch, source.peer, self.me);
        let Some(Place { life, .. }) = source.place else { return };
        self.actions.push(Action::Ask(Ask::Commit { transfer: id, range, from, to, life, epoch }));
    }

    fn fence(&mut self, id: TransferId) {
        let Some(source) = self.sources.get(&id) else { return };
        let (range, epoch, home) = (source.range, source.epoch, self.me);
        self.actions.push(Action::Ask(Ask::Fence { transfer: id, range, home, epoch }));
    }

    fn list(&mut self, id: TransferId, complete: bool) {
        let Some(source) = self.sources.get(&id) else { return };
        let (range, epoch, mirror, home) = (source.range, source.epoch, source.peer, self.me);
        self.actions.push(Action::Ask(Ask::Mirror {
            transfer: id,
            range,
            home,
            epoch,
            mirror,
            complete,
        }));
    }

    /// The peer is the owner: what was held, and what still comes, goes there.
    fn committed(&mut self, id: TransferId, epoch: u64) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        let (range, peer) = (source.range, source.peer);
        source.phase = Phase::Forwarding { epoch, since: self.now, adopted: false };
        source.dirty.clear();
        let held = std::mem::take(&mut source.held);
        self.leave(range);
        if self.gone.len() >= 64 {
            self.gone.pop_front();
        }
        self.gone.push_back((range, peer, epoch));
        self.tell(peer, id, Step::Committed);
        for (origin, request) in held.requests {
            self.forward(peer, origin, request);
        }
        self.actions.push(Action::Ask(Ask::Settled { transfer: id, range, epoch }));
    }

    /// Nothing was committed, and nothing will be: the range is served as before.
    fn resume(&mut self, id: TransferId, epoch: u64) {
        let Some(source) = self.sources.remove(&id) else { return };
        self.own(source.range, epoch);
        self.end(id, source);
    }

    /// Before the commit was asked for, nobody but us knows of the transfer.
    fn give_up(&mut self, id: TransferId) {
        if let Some(source) = self.sources.remove(&id) {
            self.end(id, source);
        }
    }

    fn end(&mut self, id: TransferId, source: Source) {
        self.tell(source.peer, id, Step::Abort);
        self.actions.push(Action::Ended(id, End::Aborted));
        for (origin, request) in source.held.requests {
            self.request(origin, request);
        }
    }

    /// The routes say that the range is another's, without us: what we have of it is worth nothing.
    fn lose(&mut self, id: TransferId) {
        let Some(source) = self.sources.remove(&id) else { return };
        self.leave(source.range);
        // Their writes may be in no copy: who asked hears nothing, and asks the new home.
        self.waiting.retain(|waiting| !waiting.needs.contains_key(&id));
        self.end(id, source);
    }

    fn leave(&mut self, range: Range) {
        self.disown(range);
        self.objects.leave(range);
        self.record(Record::Discard(range));
    }
}
