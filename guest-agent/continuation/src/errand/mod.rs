//! Moves that the hosts carry out: a server does what its host asks of it, errand by errand.
//!
//! The hosts lead the network, ship the state and decide; the server stands still, sends its connections as one
//! piece ([`blob`]), takes one up without a voice, and lets it speak. Of a move that is not decided each step can
//! go back. Errands may be repeated, and what was done is not done twice: the host asks until it has heard the
//! answer.
//!
//! A server that ends leaves its sockets to the kernel, which closes silent ones without a word. The next server
//! of the service knows nothing of the move, and says so where that matters.

pub mod blob;
mod drain;
mod host;
mod leave;
mod left_behind;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use control_abi::status::Error;
use guest_agent::calls::endpoint::{Errand, ErrandKind};
use guest_agent::driver::DriverError;

pub use drain::drain;
pub use host::Host;
pub use left_behind::left_behind;

use self::leave::{Frozen, close};
use crate::mover::Arrived;
use crate::privilege::Privilege;
use crate::repair::{Restored, restore};
use crate::service::Continuation;
use crate::state::ConnectionState;

/// Between looks for errands of which no event told, should that get lost.
const LOOK: Duration = Duration::from_secs(1);
/// Until an errand that could not be answered is looked at again.
const AGAIN: Duration = Duration::from_millis(50);
/// Moves that are remembered when they are over.
const MOST_REMEMBERED: usize = 256;
/// A connection that has ended (`TCP_CLOSE`): its program was not told yet.
const CLOSED: u8 = 7;

/// A server whose connections move.
pub trait Service {
    /// Connections may come soon. There must be a listener for those that begin when they are here.
    ///
    /// # Errors
    /// Why they may not.
    fn prepare(&mut self, errand: &Errand) -> Result<(), String>;

    /// Hands over the connections of what moves, on which nobody works from now on.
    ///
    /// # Errors
    /// Why they cannot go.
    fn stop(&mut self, errand: &Errand) -> Result<Vec<Continuation>, String>;

    /// Connections that were handed over go on here, as they were.
    fn go_on(&mut self, connections: Vec<Continuation>);

    /// Whether this connection may come here: it is of the service, and at its address.
    ///
    /// # Errors
    /// Why not.
    fn takes(&self, state: &ConnectionState) -> Result<(), String>;

    /// Connections have come, and go on here.
    fn arrive(&mut self, connections: Vec<Arrived>);

    /// Something is to be told to people.
    fn tell(&mut self, _text: &str) {}
}

/// What an errand comes to.
enum Outcome {
    Prepared,
    Done,
    Refused(String),
}

/// What is known of a move.
enum Move {
    /// Connections may come.
    Prepared,
    /// They stand still, and are sent.
    Frozen(Box<Frozen>),
    /// They are here, and silent.
    Restored(Vec<(Restored, Vec<u8>)>),
    /// It was decided, and this was done.
    Over(ErrandKind),
}

/// Whether there was an errand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// One was answered.
    Answered,
    /// There is one of another service, for another process.
    Another,
    /// There is none.
    Nothing,
}

/// Carries out the errands of a service.
pub struct Errands {
    service: String,
    privilege: Arc<dyn Privilege>,
    moves: HashMap<u64, Move>,
    /// Moves by age.
    order: Vec<u64>,
}

impl std::fmt::Debug for Errands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Errands")
            .field("service", &self.service)
            .field("moves", &self.order)
            .finish_non_exhaustive()
    }
}

impl Errands {
    /// Of the service of this name.
    pub fn new(service: &str, privilege: Arc<dyn Privilege>) -> Self {
        Self { service: service.to_owned(), privilege, moves: HashMap::new(), order: Vec::new() }
    }

    /// Carries out errands until `stop` is set, which is seen within a second.
    ///
    /// # Errors
    /// The device cannot be used any more, or does not have errands. What the device refuses of a single errand is
    /// told to the service, and the host asks again.
    pub fn run<H: Host, S: Service>(
        &mut self,
        host: &mut H,
        service: &mut S,
        stop: &AtomicBool,
    ) -> Result<(), DriverError> {
        while !stop.load(Ordering::Acquire) {
            match self.turn(host, service) {
                Ok(Turn::Answered) => {}
                Ok(Turn::Another) => thread::sleep(AGAIN),
                Ok(Turn::Nothing) => host.wait(LOOK)?,
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    service.tell(&error.to_string());
                    thread::sleep(AGAIN);
                }
            }
        }
        Ok(())
    }

    /// Carries out the next errand, if there is one.
    ///
    /// # Errors
    /// The device's refusal. Nothing that was done is undone, and it is not done again when the errand comes again.
    pub fn turn<H: Host, S: Service>(
        &mut self,
        host: &mut H,
        service: &mut S,
    ) -> Result<Turn, DriverError> {
        let Some(errand) = host.next_errand(&self.service)? else { return Ok(Turn::Nothing) };
        if errand.service != self.service {
            return Ok(Turn::Another);
        }
        let (number, kind) = (errand.number, errand.errand);
        let outcome = match kind {
            ErrandKind::Prepare => self.prepare(service, &errand),
            ErrandKind::Stop => self.stop(host, service, &errand)?,
            ErrandKind::Resume => self.resume(host, service, &errand)?,
            ErrandKind::Open => self.open(service, number),
            ErrandKind::Continue => self.go_on(service, number),
            ErrandKind::Free => self.free(number),
            ErrandKind::Discard => self.discard(number),
            ErrandKind::Other(other) => {
                Outcome::Refused(format!("the errand {other} is not known here"))
            }
        };
        match outcome {
            Outcome::Prepared => host.prepared(number, kind)?,
            Outcome::Done => host.done(number, kind)?,
            Outcome::Refused(why) => host.abort(number, kind, &why)?,
        }
        Ok(Turn::Answered)
    }

    fn note(&mut self, number: u64, what: Move) {
        if self.moves.insert(number, what).is_none() {
            self.order.push(number);
        }
        // What is not over is in the host's hands, so there are few of it.
        let is_over = |this: &Self, number: &u64| {
            matches!(this.moves.get(number), None | Some(Move::Over(_) | Move::Prepared))
        };
        while self.order.len() > MOST_REMEMBERED {
            let Some(at) = self.order.iter().position(|number| is_over(self, number)) else {
                break;
            };
            let oldest = self.order.remove(at);
            self.moves.remove(&oldest);
        }
    }

    fn prepare(&mut self, service: &mut impl Service, errand: &Errand) -> Outcome {
        match self.moves.get(&errand.number) {
            Some(Move::Prepared | Move::Restored(_)) => Outcome::Prepared,
            Some(_) => Outcome::Refused("this move is not one that begins here".into()),
            None => match service.prepare(errand) {
                Ok(()) => {
                    self.note(errand.number, Move::Prepared);
                    Outcome::Prepared
                }
                Err(why) => Outcome::Refused(why),
            },
        }
    }

    /// The destination's part: the state is taken up, all of it, without a voice.
    fn resume<H: Host>(
        &mut self,
        host: &mut H,
        service: &mut impl Service,
        errand: &Errand,
    ) -> Result<Outcome, DriverError> {
        match self.moves.get(&errand.number) {
            Some(Move::Restored(_)) => return Ok(Outcome::Prepared),
            // One that has begun before this process was there is taken up as well.
            Some(Move::Prepared) | None => {}
            Some(_) => {
                return Ok(Outcome::Refused("this move is not one that comes here".into()));
            }
        }
        let blob = match receive(host, errand)? {
            Ok(blob) => blob,
            Err(why) => return Ok(Outcome::Refused(why)),
        };
        Ok(match self.restore(service, &blob) {
            Ok(restored) => {
                self.note(errand.number, Move::Restored(restored));
                Outcome::Prepared
            }
            Err(why) => Outcome::Refused(why),
        })
    }

    fn restore(
        &self,
        service: &impl Service,
        blob: &[u8],
    ) -> Result<Vec<(Restored, Vec<u8>)>, String> {
        let travellers = blob::decode(blob).map_err(|error| error.to_string())?;
        travellers.iter().try_for_each(|one| service.takes(&one.state))?;
        let restored = travellers.into_iter().map(|one| {
            let restored = restore(&one.state, &self.privilege);
            restored.map(|restored| (restored, one.continuation)).map_err(|e| e.to_string())
        });
        restored.collect()
    }

    fn open(&mut self, service: &mut impl Service, number: u64) -> Outcome {
        let restored = match self.moves.remove(&number) {
            Some(Move::Restored(restored)) => restored,
            // A service that brings its state over by itself.
            Some(Move::Prepared) => Vec::new(),
            Some(Move::Over(ErrandKind::Open)) => {
                self.note_again(number, ErrandKind::Open);
                return Outcome::Done;
            }
            other => return self.lost(number, other, "what was to come here is not here"),
        };
        let mut arrived = Vec::with_capacity(restored.len());
        for (one, continuation) in restored {
            let peer = one.peer();
            match one.start() {
                Ok(socket) => arrived.push(arrival(socket, continuation)),
                // Its peer sees a reset; the others go on.
                Err(error) => service.tell(&format!("the connection to {peer} is lost: {error}")),
            }
        }
        service.arrive(arrived);
        self.note_again(number, ErrandKind::Open);
        Outcome::Done
    }

    fn discard(&mut self, number: u64) -> Outcome {
        match self.moves.remove(&number) {
            // They end without a word.
            Some(Move::Restored(_) | Move::Prepared | Move::Over(ErrandKind::Discard)) | None => {}
            other => return self.lost(number, other, "this move is not one that comes here"),
        }
        self.note_again(number, ErrandKind::Discard);
        Outcome::Done
    }

    fn note_again(&mut self, number: u64, kind: ErrandKind) {
        self.order.retain(|known| *known != number);
        self.note(number, Move::Over(kind));
    }

    /// An errand that does not fit what is known of its move, which stays as it is.
    fn lost(&mut self, number: u64, known: Option<Move>, why: &str) -> Outcome {
        if let Some(known) = known {
            self.moves.insert(number, known);
        }
        Outcome::Refused(why.into())
    }
}

impl Drop for Errands {
    fn drop(&mut self) {
        // It is not known whether they go on elsewhere, so they must not go on here.
        for (_, what) in self.moves.drain() {
            if let Move::Frozen(frozen) = what {
                close(frozen.connections);
            }
        }
    }
}

fn arrival(socket: OwnedFd, continuation: Vec<u8>) -> Arrived {
    Arrived { socket, continuation }
}

/// The whole state, or why there is none.
fn receive<H: Host>(host: &mut H, errand: &Errand) -> Result<Result<Vec<u8>, String>, DriverError> {
    let length = usize::try_from(errand.bytes).ok().filter(|length| *length <= blob::MOST_BYTES);
    let Some(length) = length else {
        return Ok(Err(format!("a state of {} bytes is too large", errand.bytes)));
    };
    let piece = host.piece().max(1);
    let mut blob = Vec::new();
    while blob.len() < length {
        // As much as has come, and not as much as it is said to be, is allocated.
        let at = blob.len();
        blob.resize(at + piece.min(length - at), 0);
        let found = host.receive(errand.number, at as u64, &mut blob[at..])?;
        blob.truncate(at + found);
        if found == 0 {
            return Ok(Err(format!("the state has {at} bytes, and is said to have {length}")));
        }
    }
    Ok(Ok(blob))
}

/// Whether nothing more comes of this device.
fn is_final(error: &DriverError) -> bool {
    match error {
        DriverError::Refused { error, .. } => {
            matches!(error, Error::NotPermitted | Error::NotSupported | Error::BadOperation)
        }
        DriverError::Lost { .. } | DriverError::Malformed { .. } => false,
        _ => true,
    }
}
