//! Frames from bytes that are believed in nothing.

use bytes::{Buf, Bytes};

use super::{FRAME_MAX, Frame, HEADER, KEPT, MAGIC, VALUE_MAX, WireError};
use crate::node::{Chunk, Kind, Message, Op, Origin, Outcome, Place, Request, Session, Step};
use crate::range::{Key, NAME_MAX, Range};
use crate::{Peer, TransferId};

/// Kind and length of the body that follows.
///
/// # Errors
/// When the length is above [`FRAME_MAX`].
pub fn header(bytes: [u8; HEADER]) -> Result<(u8, usize), WireError> {
    let [kind, length @ ..] = bytes;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_MAX {
        return Err(WireError::Large(length, "a frame", FRAME_MAX));
    }
    Ok((kind, length))
}

/// The frame of this kind with this body.
///
/// # Errors
/// When it is not exactly one frame.
pub fn decode(kind: u8, body: Bytes) -> Result<Frame, WireError> {
    let mut reader = Reader { least: body.len() / KEPT, rest: body };
    let frame = match kind {
        1 => {
            if reader.array::<8>("the protocol").ok() != Some(MAGIC) {
                return Err(WireError::Protocol);
            }
            let known = reader.flag("a peer")?;
            let peer = Peer(reader.u32("a peer")?);
            Frame::Hello { peer: known.then_some(peer), secret: reader.array("a secret")? }
        }
        2 => Frame::Request(reader.request()?),
        3 => {
            let (session, seq) = (reader.u64("a session")?, reader.u64("a number")?);
            let outcome = reader.outcome()?;
            let address = reader.bytes("an address", 256)?;
            let address = String::from_utf8(address.to_vec()).map_err(|_| WireError::Text)?;
            Frame::Answer { session, seq, outcome, address }
        }
        4 => {
            let source = Peer(reader.u32("a transfer")?);
            let (life, number) = (reader.u64("a transfer")?, reader.u32("a transfer")?);
            Frame::Peer(Message::Transfer(TransferId { source, life, number }, reader.step()?))
        }
        5 => Frame::Peer(Message::Forward(reader.origin()?, reader.request()?)),
        6 => {
            let origin = reader.origin()?;
            let (session, seq) = (reader.u64("a session")?, reader.u64("a number")?);
            Frame::Peer(Message::Answer { origin, session, seq, outcome: reader.outcome()? })
        }
        7 => Frame::Command(reader.bytes("a command", 1 << 20)?),
        _ => return Err(WireError::Kind(kind, "frame")),
    };
    match reader.rest.len() {
        0 => Ok(frame),
        rest => Err(WireError::Long(rest)),
    }
}

/// What was not yet read of a body.
struct Reader {
    rest: Bytes,
    /// Values below this are copied.
    least: usize,
}

impl Reader {
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let array = *self.rest.first_chunk::<N>().ok_or(WireError::Short(what))?;
        self.rest.advance(N);
        Ok(array)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        self.array(what).map(|[byte]| byte)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn flag(&mut self, what: &'static str) -> Result<bool, WireError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(WireError::Kind(other, what)),
        }
    }

    /// How many follow, each of which has at least `least` bytes.
    fn count(&mut self, what: &'static str, least: usize) -> Result<usize, WireError> {
        let count = usize::try_from(self.u32(what)?).unwrap_or(usize::MAX);
        if count > self.rest.len() / least { Err(WireError::Short(what)) } else { Ok(count) }
    }

    fn bytes(&mut self, what: &'static str, max: usize) -> Result<Bytes, WireError> {
        let length = usize::try_from(self.u32(what)?).unwrap_or(usize::MAX);
        if length > max {
            return Err(WireError::Large(length, what, max));
        }
        if length > self.rest.len() {
            return Err(WireError::Short(what));
        }
        let bytes = self.rest.split_to(length);
        Ok(if length < self.least { Bytes::copy_from_slice(&bytes) } else { bytes })
    }

    fn option(&mut self) -> Result<Option<Bytes>, WireError> {
        if self.flag("a value")? { self.bytes("a value", VALUE_MAX).map(Some) } else { Ok(None) }
    }

    fn key(&mut self) -> Result<Key, WireError> {
        let length = usize::try_from(self.u32("a name")?).unwrap_or(usize::MAX);
        if length > NAME_MAX {
            return Err(WireError::Large(length, "a name", NAME_MAX));
        }
        // The identifier is computed, not believed.
        let key = Key::of(self.rest.get(..length).ok_or(WireError::Short("a name"))?);
        self.rest.advance(length);
        Ok(key)
    }

    fn origin(&mut self) -> Result<Origin, WireError> {
        let peer = Peer(self.u32("an origin")?);
        Ok(Origin { peer, connection: self.u64("an origin")?, hops: self.u8("an origin")? })
    }

    fn request(&mut self) -> Result<Request, WireError> {
        let (session, seq, key) = (self.u64("a session")?, self.u64("a number")?, self.key()?);
        let op = match self.u8("a request")? {
            0 => Op::Get,
            1 => Op::Put(self.bytes("a value", VALUE_MAX)?),
            2 => Op::Delete,
            other => return Err(WireError::Kind(other, "request")),
        };
        Ok(Request { session, seq, key, op })
    }

    fn outcome(&mut self) -> Result<Outcome, WireError> {
        Ok(match self.u8("an answer")? {
            0 => Outcome::Value(self.option()?),
            1 => Outcome::Done { existed: self.flag("an answer")? },
            2 => {
                let known = self.flag("a home")?;
                let home = Peer(self.u32("a home")?);
                Outcome::Moved { home: known.then_some(home), epoch: self.u64("an epoch")? }
            }
            3 => Outcome::Busy,
            other => return Err(WireError::Kind(other, "answer")),
        })
    }

    fn place(&mut self) -> Result<Place, WireError> {
        Ok(Place { life: self.u64("a place")?, number: self.u32("a place")? })
    }

    fn step(&mut self) -> Result<Step, WireError> {
        Ok(match self.u8("a step")? {
            0 => {
                let kind = if self.flag("a kind")? { Kind::Mirror } else { Kind::Move };
                let range = Range::new(self.u64("a range")?, self.u64("a range")?)?;
                Step::Begin { kind, range, epoch: self.u64("an epoch")? }
            }
            1 => Step::Begun(self.place()?),
            2 => Step::Refuse,
            3 => {
                let (round, number) = (self.u32("a chunk")?, self.u64("a chunk")?);
                let whole = self.flag("a chunk")?;
                let count = self.count("sessions", 26)?;
                let mut sessions = Vec::with_capacity(count);
                for _ in 0..count {
                    let (id, seq) = (self.u64("a session")?, self.u64("a session")?);
                    let (existed, known) = (self.flag("a session")?, self.flag("a session")?);
                    let wrote = Some(self.u64("a session")?).filter(|_| known);
                    sessions.push(Session { id, seq, existed, wrote });
                }
                let count = self.count("objects", 5)?;
                // An entry in memory is larger than the least on the wire.
                let mut objects = Vec::with_capacity(count.min(4096));
                for _ in 0..count {
                    objects.push((self.key()?, self.option()?));
                }
                Step::Chunk(Chunk { round, number, objects, sessions, whole })
            }
            4 => {
                let place = self.place()?;
                let round = self.u32("an acknowledgement")?;
                let (received, applied) =
                    (self.u64("an acknowledgement")?, self.u64("an acknowledgement")?);
                Step::Ack { place, round, received, applied }
            }
            5 => Step::Finish,
            6 => Step::Ready(self.place()?),
            7 => Step::Committed,
            8 => Step::Adopted,
            9 => Step::Abort,
            other => return Err(WireError::Kind(other, "step")),
        })
    }
}
