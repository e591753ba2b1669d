//! The receiving side of a transfer.

use super::{
    Action, Chunk, Held, Kind, Message, Node, Objects, Place, Record, Step, TRANSFERS_MAX,
};
use crate::TransferId;
use crate::range::Range;
use crate::routes::{Ask, Reply};

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Receiving,
    /// All is recorded; only the routes know whose it is.
    Ready,
}

/// A range that arrives.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) kind: Kind,
    pub(super) range: Range,
    place: Place,
    /// The range's epoch at the source.
    epoch: u64,
    phase: Phase,
    round: u32,
    received: u64,
    applied: u64,
    staged: Objects,
    /// What a mirror received, but cannot use yet.
    partial: Vec<Chunk>,
    /// Requests that arrived before the commit.
    pub(super) held: Held,
    /// It was a mirror, and asked to become the owner.
    promoting: bool,
    heard: u64,
}

impl Target {
    fn new(kind: Kind, range: Range, epoch: u64, place: Place, heard: u64) -> Self {
        Self {
            kind,
            range,
            place,
            epoch,
            phase: Phase::Receiving,
            round: 0,
            received: 0,
            applied: 0,
            staged: Objects::default(),
            partial: Vec::new(),
            held: Held::default(),
            promoting: false,
            heard,
        }
    }

    /// One that was ready in an earlier life.
    pub(super) fn prepared(range: Range, epoch: u64, place: Place, staged: Objects) -> Self {
        Self { phase: Phase::Ready, staged, ..Self::new(Kind::Move, range, epoch, place, 0) }
    }

    /// Takes a chunk; whether it was the next one.
    fn take(&mut self, chunk: &Chunk, now: u64) -> bool {
        if chunk.round > self.round && chunk.number == 0 {
            self.round = chunk.round;
            (self.received, self.applied) = (0, 0);
            // What it held is sent anew.
            self.partial.clear();
        }
        if chunk.round != self.round
            || chunk.number != self.received
            || self.phase != Phase::Receiving
        {
            return false;
        }
        self.received += 1;
        self.partial.push(chunk.clone());
        // A mirror may become the owner at any moment, so its copy must be one of one moment. What is moved
        // is used when it is complete.
        if chunk.whole || self.kind == Kind::Move {
            self.applied = self.received;
            for chunk in self.partial.drain(..) {
                for (key, value) in chunk.objects {
                    // Whatever a peer sends, nothing of another range.
                    if self.range.contains(key.id()) {
                        self.staged.set(key, value);
                    }
                }
                for session in chunk.sessions {
                    self.staged.remember(session, now);
                }
            }
        }
        true
    }
}

impl Node {
    /// A mirror becomes the owner: its home is dead, and its lease has ended.
    ///
    /// # Errors
    /// When no copy of `range` is here, or it is about to be moved here.
    pub fn promote(&mut self, range: Range) -> Result<TransferId, super::StartError> {
        // Else nobody could tell by which of both it became ours, and the mirror may be the older one.
        let moving =
            self.targets.iter().find(|(_, it)| it.kind == Kind::Move && it.range.overlaps(range));
        if let Some((id, _)) = moving {
            return Err(super::StartError::Overlaps(*id, range));
        }
        let found =
            self.targets.iter_mut().find(|(_, it)| it.kind == Kind::Mirror && it.range == range);
        let Some((&transfer, target)) = found else {
            return Err(super::StartError::NoMirror(range));
        };
        target.phase = Phase::Ready;
        target.kind = Kind::Move;
        target.promoting = true;
        target.partial.clear();
        let epoch = target.epoch;
        let objects =
            target.staged.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        let sessions = target.staged.sessions().collect();
        self.record(Record::Stage(transfer, objects, sessions));
        self.record(Record::Prepared { transfer, range, epoch });
        let (from, to, life) = (transfer.source, self.me, self.life);
        self.actions.push(Action::Ask(Ask::Promote { transfer, range, from, to, life }));
        Ok(transfer)
    }

    pub(super) fn target_step(&mut self, id: TransferId, step: Step) {
        let now = self.now;
        let from = id.source;
        if let Some(target) = self.targets.get_mut(&id) {
            target.heard = now;
        }
        match (step, self.targets.get_mut(&id)) {
            (Step::Begin { .. }, Some(target)) => {
                let place = target.place;
                self.tell(from, id, Step::Begun(place));
            }
            (Step::Begin { kind, range, epoch }, None) => {
                // A home begins nothing here with what it has a mirror of here: an earlier one is over.
                self.targets.retain(|old, target| {
                    target.kind == Kind::Move
                        || old.source != from
                        || (old.life, old.number) > (id.life, id.number)
                        || !target.range.overlaps(range)
                });
                // A range that is ours, or about to be, does not come from elsewhere.
                let overlaps = self.owned.iter().any(|(own, _)| own.overlaps(range))
                    || self.sources.values().any(|source| source.range.overlaps(range))
                    || self.targets.values().any(|target| {
                        (target.kind == Kind::Move || kind == Kind::Mirror)
                            && target.range.overlaps(range)
                    });
                if overlaps || self.targets.len() >= TRANSFERS_MAX {
                    return self.tell(from, id, Step::Refuse);
                }
                let place = self.place();
                self.targets.insert(id, Target::new(kind, range, epoch, place, now));
                self.tell(from, id, Step::Begun(place));
            }
            (Step::Chunk(chunk), Some(target)) => {
                let taken = target.take(&chunk, now);
                let Target { place, round, received, applied, .. } = *target;
                if taken && target.kind == Kind::Move {
                    self.record(Record::Stage(id, chunk.objects, chunk.sessions));
                }
                self.tell(from, id, Step::Ack { place, round, received, applied });
            }
            (Step::Finish, Some(target)) if target.kind == Kind::Move => {
                let (range, epoch, place) = (target.range, target.epoch, target.place);
                if target.phase == Phase::Receiving {
                    target.phase = Phase::Ready;
                    self.record(Record::Prepared { transfer: id, range, epoch });
                }
                self.tell(from, id, Step::Ready(place));
            }
            // Only the routes say whose it is: a message may be old, or a lie.
            (Step::Committed | Step::Abort, Some(target)) if target.phase == Phase::Ready => {
                let range = target.range;
                self.actions.push(Action::Ask(Ask::Lookup { transfer: id, range }));
            }
            (Step::Abort, Some(_)) => self.forget(id),
            // It was adopted before, or came to nothing: either way there is nothing to wait for.
            (Step::Committed, None) => self.tell(from, id, Step::Adopted),
            (Step::Chunk(_) | Step::Finish, None) => self.tell(from, id, Step::Refuse),
            _ => {}
        }
    }

    pub(super) fn target_routed(&mut self, ask: &Ask, reply: Reply) {
        let id = ask.transfer();
        let Some(target) = self.targets.get(&id) else { return };
        if target.phase == Phase::Receiving {
            // Of a mirror that asks whether its home is still one.
            if let (Kind::Mirror, Reply::Is { home, .. }) = (target.kind, reply)
                && home != Some(id.source)
            {
                self.forget(id);
            }
            return;
        }
        match (ask, reply) {
            (_, Reply::Unknown) => {}
            (Ask::Promote { .. }, Reply::Done(epoch)) => self.adopt(id, Some(epoch)),
            (_, Reply::Is { home, epoch }) if home == Some(self.me) => self.adopt(id, Some(epoch)),
            // It may be from before the promotion, of which only its own answer tells.
            (Ask::Lookup { .. }, Reply::Is { .. }) if target.promoting => {}
            // As it was when the transfer began: the commit may still come, but a promotion was refused.
            (Ask::Lookup { .. }, Reply::Is { home, epoch })
                if home == Some(id.source) && epoch <= target.epoch => {}
            (Ask::Lookup { .. } | Ask::Promote { .. }, Reply::Is { .. }) => self.forget(id),
            _ => {}
        }
    }

    pub(super) fn target_tick(&mut self, id: TransferId) {
        let (now, silence) = (self.now, self.limits.silence);
        let Some(target) = self.targets.get_mut(&id).filter(|target| now >= target.heard + silence)
        else {
            return;
        };
        match (target.phase, target.kind) {
            (Phase::Receiving, Kind::Move) => self.forget(id),
            // A home that is silent is what a mirror is for, as long as it is the home.
            (Phase::Ready, _) | (Phase::Receiving, Kind::Mirror) => {
                target.heard = now;
                let range = target.range;
                if target.phase == Phase::Receiving {
                    // It may have started again without us: then it says that there is no such mirror.
                    let Target { place, round, received, applied, .. } = *target;
                    let ack = Message::Transfer(id, Step::Ack { place, round, received, applied });
                    self.actions.push(Action::Send(id.source, ack));
                }
                self.actions.push(Action::Ask(if target.promoting {
                    let (from, to, life) = (id.source, self.me, self.life);
                    Ask::Promote { transfer: id, range, from, to, life }
                } else {
                    Ask::Lookup { transfer: id, range }
                }));
            }
        }
    }

    /// The range is ours; with the epoch that the routes have, or the one that it was fenced with.
    pub(super) fn adopt(&mut self, id: TransferId, epoch: Option<u64>) {
        let Some(target) = self.targets.remove(&id) else { return };
        if let Some(epoch) = epoch {
            self.own(target.range, epoch);
        }
        self.targets
            .retain(|_, other| other.kind == Kind::Move || !other.range.overlaps(target.range));
        // Nothing of it can be here, but what an old life left.
        self.objects.leave(target.range);
        self.objects.adopt(target.staged, self.now);
        self.record(Record::Adopt(id, target.range));
        self.tell(id.source, id, Step::Adopted);
        for (origin, request) in target.held.requests {
            self.request(origin, request);
        }
    }

    /// It comes to nothing: what was held is the source's.
    fn forget(&mut self, id: TransferId) {
        let Some(target) = self.targets.remove(&id) else { return };
        if target.kind == Kind::Move {
            self.record(Record::Drop(id));
        }
        for (origin, request) in target.held.requests {
            self.forward(id.source, origin, request);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::Peer;
    use crate::node::{Limits, Recovered};

    #[test]
    fn a_lookup_from_before_a_promotion_does_not_end_it() {
        let (range, source) = (Range::ALL, Peer(1));
        let id = TransferId { source, life: 1, number: 1 };
        let mut node = Node::new(Peer(2), 2, Vec::new(), Recovered::default(), Limits::default());
        let begin = Step::Begin { kind: Kind::Mirror, range, epoch: 3 };
        node.message(source, Message::Transfer(id, begin));
        let chunk = Chunk { round: 1, whole: true, ..Chunk::default() };
        node.message(source, Message::Transfer(id, Step::Chunk(chunk)));
        node.promote(range).unwrap();
        // A part of the range has got a new epoch since.
        let before = Reply::Is { home: Some(source), epoch: 4 };
        node.routed(&Ask::Lookup { transfer: id, range }, before);
        let promote = Ask::Promote { transfer: id, range, from: source, to: Peer(2), life: 2 };
        node.routed(&promote, Reply::Done(5));
        assert_eq!(node.owned(), [(range, 5)]);
    }

    #[test]
    fn a_target_that_begins_once_more_is_not_the_one_that_had_something() {
        let (range, peer) = (Range::ALL, Peer(2));
        let mut node = Node::new(Peer(1), 1, Vec::new(), Recovered::default(), Limits::default());
        node.announced(range, 1);
        let id = node.start(Kind::Move, range, peer).unwrap();
        let place = |number| Place { life: 5, number };
        node.message(peer, Message::Transfer(id, Step::Begun(place(1))));
        let ack = |place| Step::Ack { place, round: 1, received: 0, applied: 0 };
        node.message(peer, Message::Transfer(id, ack(place(1))));
        assert_eq!(node.outgoing().count(), 1);
        node.message(peer, Message::Transfer(id, ack(place(2))));
        assert_eq!(node.outgoing().count(), 0);
        assert!(node.serves(7));
    }

    #[test]
    fn what_is_moved_to_a_mirror_is_not_promoted_there() {
        let (range, source) = (Range::ALL, Peer(1));
        let mut node = Node::new(Peer(2), 2, Vec::new(), Recovered::default(), Limits::default());
        let begin = |kind, life| {
            let id = TransferId { source, life, number: 1 };
            Message::Transfer(id, Step::Begin { kind, range, epoch: life })
        };
        node.message(source, begin(Kind::Mirror, 1));
        // The home started again, and has no mirror here any more.
        node.message(source, begin(Kind::Move, 3));
        assert!(node.promote(range).is_err());
        assert_eq!(node.incoming().count(), 1);
    }
}
