//! What a server does when it hears something of another.

use super::{Replica, Role};
use crate::journal::Record;
use crate::mirror::{Message, Node, Position, QUIET_MILLIS, State};
use crate::table::Millis;

impl Replica {
    /// `from` has said `message`.
    pub fn receive(&mut self, from: Node, message: Message, now: Millis) {
        match message {
            Message::Beat { epoch, sent } => {
                if self.follow(from, epoch, now) {
                    self.answer(from, epoch, sent);
                }
            }
            Message::Steps { epoch, from: first, steps, sent } => {
                if !self.follow(from, epoch, now) {
                    return;
                }
                if self.config.epoch != epoch || self.index < first {
                    return self.send(from, Message::Behind { epoch });
                }
                if self.index == first {
                    for step in &steps {
                        self.apply(step, now);
                    }
                    self.keep(Record::Steps(steps));
                }
                self.answer(from, epoch, sent);
            }
            Message::State { epoch, state, sent } => {
                if state.config.epoch == epoch && self.follow(from, epoch, now) {
                    self.keep(Record::State(state.clone()));
                    self.restore(state, now);
                    self.answer(from, epoch, sent);
                }
            }
            Message::Ack { epoch, index, sent } => self.acked(from, epoch, index, sent, now),
            Message::Behind { epoch } => {
                if matches!(self.role, Role::Server(_)) && epoch == self.config.epoch {
                    self.send_state(from, now);
                }
            }
            Message::Refused { promised } => self.refused(promised, now),
            Message::Ask { epoch, position } => self.asked(from, epoch, position, now),
            Message::Grant { epoch, state } => self.granted(from, epoch, state, now),
            Message::Stop { epoch } => {
                if epoch == self.config.epoch && from == self.config.server {
                    self.quiet_until = now;
                }
            }
        }
    }

    /// Whether `from` is to be followed, who serves in `epoch`; then this is its mirror.
    fn follow(&mut self, from: Node, epoch: u64, now: Millis) -> bool {
        self.highest = self.highest.max(epoch);
        if epoch < self.promised {
            self.send(from, Message::Refused { promised: self.promised });
            // It has been away: it is told what has happened.
            if matches!(self.role, Role::Server(_)) {
                self.send_state(from, now);
            }
            return false;
        }
        if epoch == self.promised && matches!(self.role, Role::Server(_)) {
            log::error!("server {from:016x} claims the epoch {epoch} of this one; it is not heard");
            return false;
        }
        self.promise(epoch);
        self.role = Role::Mirror;
        self.quiet_until = now + QUIET_MILLIS;
        true
    }

    fn answer(&mut self, server: Node, epoch: u64, sent: Millis) {
        let message = if self.config.epoch == epoch {
            Message::Ack { epoch, index: self.index, sent }
        } else {
            Message::Behind { epoch }
        };
        self.send(server, message);
    }

    fn acked(&mut self, from: Node, epoch: u64, index: u64, sent: Millis, now: Millis) {
        let Role::Server(serving) = &mut self.role else { return };
        // What was sent in the time to come, or acknowledged that is not there, is no answer.
        if epoch != self.config.epoch || sent > now || index > self.index {
            return;
        }
        let progress = serving.progress.entry(from).or_default();
        progress.acked = progress.acked.max(Some(index));
        progress.heard = progress.heard.max(Some(sent));
        self.commit(now);
        self.take_in(now);
    }

    fn refused(&mut self, promised: u64, now: Millis) {
        self.highest = self.highest.max(promised);
        // A mirror could not be reached and has tried to take over: a later epoch unites them.
        let outdone = match &self.role {
            Role::Server(_) => promised > self.config.epoch,
            // Of several that ask, the one that served asks again at once; the others wait, each its own time.
            Role::Asking { epoch, .. } => promised >= *epoch && self.rank().is_none(),
            Role::Mirror => false,
        };
        if outdone {
            self.role = Role::Mirror;
            self.stand_if_due(now);
        }
    }

    fn asked(&mut self, from: Node, epoch: u64, position: Position, now: Millis) {
        self.highest = self.highest.max(epoch);
        if matches!(self.role, Role::Server(_)) {
            if position.epoch < self.config.epoch {
                self.send_state(from, now);
            }
            return;
        }
        if epoch <= self.promised {
            return self.send(from, Message::Refused { promised: self.promised });
        }
        // The server of the time itself has ended since, or it would not ask.
        if now < self.quiet_until && from != self.config.server {
            return;
        }
        self.promise(epoch);
        self.role = Role::Mirror;
        self.quiet_until = now + QUIET_MILLIS;
        let state = (position < self.position()).then(|| self.state(now));
        self.send(from, Message::Grant { epoch, state });
    }

    fn granted(&mut self, from: Node, epoch: u64, state: Option<State>, now: Millis) {
        let Role::Asking { epoch: asked, .. } = self.role else { return };
        if asked != epoch {
            return;
        }
        if let Some(state) = state {
            let before = self.config.clone();
            let position = Position { epoch: state.config.epoch, index: state.index };
            if position > self.position() {
                self.keep(Record::State(state.clone()));
                self.restore(state, now);
            }
            // Others may have a say now.
            if self.config != before {
                self.role = Role::Mirror;
                return;
            }
        }
        if let Role::Asking { grants, .. } = &mut self.role {
            grants.insert(from);
        }
        self.serve_if_granted(now);
    }
}
