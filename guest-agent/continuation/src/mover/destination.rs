//! The new home's side of a move.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::MoverError;
use super::message::{Id, Message};
use crate::privilege::Privilege;
use crate::repair::{Restored, restore};
use crate::service::{Continuation, MOST_LOGGED, MOST_STATE};
use crate::state::{ConnectionState, MOST_BYTES};

/// Whether a connection may come here; why not otherwise.
pub type Policy = dyn Fn(&ConnectionState) -> Result<(), String> + Send + Sync;

/// What a source can make this side hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections in a move.
    pub connections: u16,
    /// Bytes of all connections in a move.
    pub bytes: usize,
    /// Moves that wait for their decision, or are remembered.
    pub moves: usize,
    /// How long a move waits for its decision. Then it is given up.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, bytes: 256 << 20, moves: 256, patience: Duration::from_secs(30) }
    }
}

/// A connection that goes on here.
#[derive(Debug)]
pub struct Arrived {
    /// Its socket; it blocks.
    pub socket: OwnedFd,
    /// What its service has exported ([`Continuation::import`]); empty if it had no continuation.
    pub continuation: Vec<u8>,
}

/// What has become of a move.
#[derive(Debug)]
enum Move {
    /// It waits for its decision.
    Ready(Vec<(Restored, Vec<u8>)>),
    /// Its connections go on here.
    Done,
    /// They were to, and are broken.
    Failed(String),
}

/// The side that connections come to. Moves over many streams at once can share it.
pub struct Destination {
    privilege: Arc<dyn Privilege>,
    policy: Box<Policy>,
    limits: Limits,
    /// Of this life: what it does not know, it never had, or has given up.
    life: Id,
    moves: Mutex<HashMap<Id, (Move, Instant)>>,
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination")
            .field("life", &self.life)
            .field("limits", &self.limits)
            .field("moves", &self.moves)
            .finish_non_exhaustive()
    }
}

impl Destination {
    /// To which connections come that `policy` allows: it knows which addresses and ports move here.
    pub fn new(privilege: Arc<dyn Privilege>, limits: Limits, policy: Box<Policy>) -> Self {
        let moves = Mutex::default();
        Self { privilege, policy, limits, life: Id::random(), moves }
    }

    /// Does what a source asks, until it closes the stream; hands over connections that go on here. What waits
    /// for its decision when a stream breaks, waits on, and this with it: it returns when that was taken, over
    /// another stream, or has been given up.
    ///
    /// # Errors
    /// The stream's, or a source that does not keep to the protocol.
    pub fn serve<C: Read + Write + ?Sized>(
        &self,
        channel: &mut C,
        arrive: &mut dyn FnMut(Vec<Arrived>),
    ) -> Result<(), MoverError> {
        let mut offered = Vec::new();
        let result = self.talk(channel, arrive, &mut offered);
        let ready = |moves: &HashMap<Id, (Move, Instant)>, id: &Id| {
            moves.get(id).is_some_and(|(what, _)| matches!(what, Move::Ready(_)))
        };
        // A silent connection of which nobody knows is not to stay.
        while offered.iter().any(|id| ready(&self.lock(), id)) {
            thread::sleep(self.limits.patience / 20);
        }
        result
    }

    fn talk<C: Read + Write + ?Sized>(
        &self,
        channel: &mut C,
        arrive: &mut dyn FnMut(Vec<Arrived>),
        offered: &mut Vec<Id>,
    ) -> Result<(), MoverError> {
        loop {
            let message = match Message::receive(channel, MOST_BYTES) {
                Ok(message) => message,
                Err(MoverError::Stream(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let answer = match message {
                Message::Offer(id, count) => {
                    offered.push(id);
                    let answer = self.offered(id, count, channel)?;
                    let moves = self.lock();
                    offered.retain(|id| moves.contains_key(id));
                    answer
                }
                Message::Commit(id) => self.commit(id, arrive),
                Message::Abort(id) => self.abort(id),
                other => return Err(MoverError::Unexpected(format!("{:?}", other.id()))),
            };
            answer.send(channel)?;
        }
    }

    /// The moves, without those whose decision did not come in time.
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, (Move, Instant)>> {
        let mut moves = self.moves.lock().unwrap_or_else(PoisonError::into_inner);
        // What is done is remembered as long again as a source may ask.
        moves.retain(|_, (what, since)| match what {
            Move::Ready(_) => since.elapsed() < self.limits.patience,
            Move::Done | Move::Failed(_) => since.elapsed() < self.limits.patience * 10,
        });
        moves
    }

    fn offered<C: Read + ?Sized>(
        &self,
        id: Id,
        count: u16,
        channel: &mut C,
    ) -> Result<Message, MoverError> {
        if count > self.limits.connections {
            let most = self.limits.connections;
            return Err(MoverError::Unexpected(format!("{count} connections, of {most} at most")));
        }
        let (mut offers, mut left) = (Vec::new(), self.limits.bytes);
        for _ in 0..count {
            let longest = (MOST_BYTES + MOST_STATE + 2 * MOST_LOGGED + 1024).min(left);
            let Message::Connection(state, continuation) = Message::receive(channel, longest)?
            else {
                return Err(MoverError::Unexpected("something else than a connection".into()));
            };
            left = left.saturating_sub(state.len() + continuation.len());
            offers.push((state, continuation));
        }
        // Nobody is waited for from here on: of two offers of one move the second finds what the first has made.
        let mut moves = self.lock();
        if let Some((what, _)) = moves.get(&id) {
            return Ok(match what {
                Move::Ready(_) => Message::Ready(id, self.life),
                Move::Done => Message::Done(id),
                Move::Failed(why) => Message::Refused(id, why.clone()),
            });
        }
        if moves.len() >= self.limits.moves {
            let why = "too many moves at once; wait for some to end";
            return Ok(Message::Refused(id, why.into()));
        }
        let mut restored = Vec::new();
        for (state, continuation) in offers {
            match self.restore(&mut moves, &state, &continuation) {
                Ok(one) => restored.push((one, continuation)),
                Err(why) => return Ok(Message::Refused(id, why)),
            }
        }
        moves.insert(id, (Move::Ready(restored), Instant::now()));
        Ok(Message::Ready(id, self.life))
    }

    fn restore(
        &self,
        moves: &mut HashMap<Id, (Move, Instant)>,
        state: &[u8],
        continuation: &[u8],
    ) -> Result<Restored, String> {
        let state = ConnectionState::decode(state).map_err(|error| error.to_string())?;
        (self.policy)(&state)?;
        if !continuation.is_empty() {
            Continuation::check_import(continuation).map_err(|error| error.to_string())?;
        }
        // Its source offers it anew, so it has not committed: what it offered before is void.
        moves.retain(|_, (what, _)| {
            !matches!(what, Move::Ready(restored) if restored.iter().any(|(one, _)| {
                (one.local(), one.peer()) == (state.local, state.peer)
            }))
        });
        restore(&state, &self.privilege).map_err(|error| error.to_string())
    }

    fn commit(&self, id: Id, arrive: &mut dyn FnMut(Vec<Arrived>)) -> Message {
        // Locked until it is done: of two that ask at once the second hears what has become of it.
        let mut moves = self.lock();
        let Some((what, _)) = moves.remove(&id) else { return Message::Unknown(id, self.life) };
        let (what, answer) = match what {
            Move::Ready(restored) => {
                let (mut arrived, mut broken) = (Vec::new(), None);
                for (one, continuation) in restored {
                    match one.start() {
                        Ok(socket) => arrived.push(Arrived { socket, continuation }),
                        // Its peer sees a reset; the others go on.
                        Err(error) => broken = Some(error.to_string()),
                    }
                }
                let none = arrived.is_empty();
                arrive(arrived);
                match broken {
                    Some(why) if none => (Move::Failed(why.clone()), Message::Refused(id, why)),
                    _ => (Move::Done, Message::Done(id)),
                }
            }
            Move::Done => (Move::Done, Message::Done(id)),
            Move::Failed(why) => (Move::Failed(why.clone()), Message::Refused(id, why)),
        };
        moves.insert(id, (what, Instant::now()));
        answer
    }

    fn abort(&self, id: Id) -> Message {
        let mut moves = self.lock();
        match moves.get(&id) {
            // A source that says so after it has committed lies, or has lost its mind.
            Some((Move::Done | Move::Failed(_), _)) => Message::Done(id),
            Some((Move::Ready(_), _)) | None => {
                moves.remove(&id);
                Message::Aborted(id)
            }
        }
    }
}
