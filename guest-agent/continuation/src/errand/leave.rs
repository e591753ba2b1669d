//! The source's errands: connections stand still and are sent, go on, or end without a word.

use guest_agent::calls::endpoint::{Errand, ErrandKind};
use guest_agent::driver::DriverError;

use super::{CLOSED, Errands, Host, Move, Outcome, Service, blob, drain};
use crate::mover::Still;
use crate::repair::RepairError;
use crate::service::{Continuation, ServiceError};

pub(super) struct Frozen {
    pub(super) connections: Vec<Still<Continuation>>,
    blob: Vec<u8>,
    /// Bytes of it that were sent.
    sent: usize,
}

impl Errands {
    /// The source's part: all stand still and are sent, or all go on.
    pub(super) fn stop<H: Host>(
        &mut self,
        host: &mut H,
        service: &mut impl Service,
        errand: &Errand,
    ) -> Result<Outcome, DriverError> {
        if !self.moves.contains_key(&errand.number) {
            let connections = match service.stop(errand) {
                Ok(connections) => connections,
                Err(why) => return Ok(Outcome::Refused(why)),
            };
            match self.freeze(service, connections) {
                Ok(frozen) => self.note(errand.number, Move::Frozen(Box::new(frozen))),
                Err((left, why)) => {
                    service.go_on(left);
                    return Ok(Outcome::Refused(why));
                }
            }
        }
        let Some(Move::Frozen(frozen)) = self.moves.get_mut(&errand.number) else {
            return Ok(Outcome::Refused("this move is not one that leaves here".into()));
        };
        // A piece of which it is not known whether it has arrived is sent again.
        let piece = host.piece().max(1);
        while let Some(rest) = frozen.blob.get(frozen.sent..).filter(|rest| !rest.is_empty()) {
            let bytes = rest.get(..piece).unwrap_or(rest);
            host.send(errand.number, frozen.sent as u64, bytes)?;
            frozen.sent += bytes.len();
        }
        Ok(Outcome::Prepared)
    }

    /// All that had arrived is processed first, see [`drain`]; then each is silenced and read.
    fn freeze(
        &self,
        service: &mut impl Service,
        connections: Vec<Continuation>,
    ) -> Result<Frozen, (Vec<Continuation>, String)> {
        if !connections.is_empty()
            && let Err(error) = drain()
        {
            let text = format!("it is not known whether all was processed that has come: {error}");
            return Err((connections, text));
        }
        let mut frozen = Vec::with_capacity(connections.len());
        let mut rest = connections.into_iter();
        let mut failed = None;
        for one in rest.by_ref() {
            match one.freeze(&self.privilege) {
                Ok(still) => frozen.push(still),
                // There is nothing of it to move; its program would have seen it next.
                Err((_, ServiceError::Repair(RepairError::NotEstablished(CLOSED)))) => {
                    service.tell("a connection has ended, and does not move");
                }
                Err((one, error)) => {
                    failed = Some((one, error.to_string()));
                    break;
                }
            }
        }
        let encoded = if let Some((one, why)) = failed {
            Err((Some(one), why))
        } else {
            let parts = frozen.iter().map(|(frozen, bytes)| (&frozen.state, &bytes[..]));
            blob::encode(parts).map_err(|error| (None, error.to_string()))
        };
        match encoded {
            Ok(blob) => Ok(Frozen { connections: frozen, blob, sent: 0 }),
            Err((one, why)) => {
                let mut left = thaw(service, frozen);
                left.extend(one);
                left.extend(rest);
                Err((left, why))
            }
        }
    }

    pub(super) fn go_on(&mut self, service: &mut impl Service, number: u64) -> Outcome {
        match self.moves.remove(&number) {
            Some(Move::Frozen(frozen)) => {
                let left = thaw(service, frozen.connections);
                service.go_on(left);
            }
            // Nothing stands still here.
            Some(Move::Over(ErrandKind::Continue)) | None => {}
            other => return self.lost(number, other, "this move is not one that leaves here"),
        }
        self.note_again(number, ErrandKind::Continue);
        Outcome::Done
    }

    pub(super) fn free(&mut self, number: u64) -> Outcome {
        match self.moves.remove(&number) {
            Some(Move::Frozen(frozen)) => close(frozen.connections),
            Some(Move::Over(ErrandKind::Free)) | None => {}
            other => return self.lost(number, other, "this move is not one that leaves here"),
        }
        self.note_again(number, ErrandKind::Free);
        Outcome::Done
    }
}

pub(super) fn close(connections: Vec<Still<Continuation>>) {
    for (frozen, _) in connections {
        frozen.close();
    }
}

/// All go on here, as far as they can.
fn thaw(service: &mut impl Service, connections: Vec<Still<Continuation>>) -> Vec<Continuation> {
    let mut left = Vec::with_capacity(connections.len());
    for (frozen, _) in connections {
        let peer = frozen.state.peer;
        match frozen.thaw() {
            Ok(one) => left.extend(one),
            Err(error) => service.tell(&format!("the connection to {peer} is lost: {error}")),
        }
    }
    left
}
