//! What becomes of a request: it is answered, held, or passed on.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Kind, Message, Node, Op, Origin, Outcome, Record, Request, Session};
use crate::{Peer, TransferId};

/// Requests that one transfer holds at most (research note, 6.15).
pub const HELD_MAX: usize = 10_000;
/// Bytes of values in the requests that one transfer holds at most.
pub const HELD_BYTES: usize = 16 << 20;
/// Forwarded requests are passed on at most so often.
pub const HOPS_MAX: u8 = 4;

/// An answer that waits for mirrors.
#[derive(Debug)]
pub(super) struct Waiting {
    /// How many writes each must have.
    pub(super) needs: BTreeMap<TransferId, u64>,
    origin: Origin,
    session: u64,
    seq: u64,
    outcome: Outcome,
}

impl Node {
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
            .filter(|(_, source)| source.range.contains(id))
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
    pub(super) fn mirrored(&mut self, transfer: TransferId, count: u64) {
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

    pub(super) fn forward(&mut self, to: Peer, mut origin: Origin, request: Request) {
        if origin.hops >= HOPS_MAX {
            return self.moved(origin, &request);
        }
        origin.hops += 1;
        self.actions.push(Action::Send(to, Message::Forward(origin, request)));
    }
}

/// Requests that wait, in their order.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) requests: Vec<(Origin, Request)>,
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
