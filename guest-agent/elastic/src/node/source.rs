//! The sending side of a transfer.

use super::copy::{Phase, Source};
use super::{Action, End, Kind, Node, Place, Record, StartError, Step, TRANSFERS_MAX};
use crate::range::Range;
use crate::routes::{Ask, Reply};
use crate::{Peer, TransferId};

/// With so many keys left to be sent the range is frozen: they are sent in less than a round trip or two.
const FEW: usize = 512;
/// And with so many chunks on their way: nobody is to wait for more than a part of the window.
const FEW_CHUNKS: u64 = 2;

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
        let sessions = self.objects.sessions().map(|session| session.id).collect();
        let source = Source::new(kind, range, peer, epoch, sessions, self.now);
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
