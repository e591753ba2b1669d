//! What clients and servers say to each other over a stream: frames of a kind, a length and fields.
//!
//! Numbers are little-endian. A stream begins with [`Frame::Hello`], whose first bytes name the protocol and
//! its version. Everything is checked against what has arrived before anything is allocated for it: no
//! length is believed beyond the bytes that are there, and a frame's own length has a bound.

mod decode;

use bytes::{BufMut, Bytes, BytesMut};

pub use decode::{decode, header};

use crate::Peer;
use crate::node::{Kind, Message, Op, Origin, Outcome, Place, Request, Step};
use crate::range::{EmptyRange, Key};

/// The first bytes of a stream: the protocol and its version.
const MAGIC: [u8; 8] = *b"elastic\x02";
/// A value has at most so many bytes.
pub const VALUE_MAX: usize = 8 << 20;
/// A frame has at most so many bytes behind its header: a chunk with the largest value as its last.
pub const FRAME_MAX: usize = 24 << 20;
/// Kind and length.
pub const HEADER: usize = 5;
/// A value that is a smaller part of its frame is copied out of it, so that it does not keep all of the frame in
/// memory: what is kept is at most so many times what is used.
const KEPT: usize = 32;

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The first of each stream, to a server.
    Hello {
        /// The peer that speaks; none for a client.
        peer: Option<Peer>,
        /// What peers of a service, and those who may command them, have in common.
        secret: [u8; 16],
    },
    /// A client asks.
    Request(Request),
    /// A server answers a client.
    Answer {
        /// The request's session.
        session: u64,
        /// The request's number.
        seq: u64,
        /// The answer.
        outcome: Outcome,
        /// Where the server listens that has moved, if it is known.
        address: String,
    },
    /// Between servers.
    Peer(Message),
    /// An operator's command, and the answer to one: a text in JSON.
    Command(Bytes),
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The stream begins with something else.
    #[error(
        "the stream does not begin with this protocol in this version: both ends must be of one release"
    )]
    Protocol,
    /// No such kind.
    #[error("{0:#x} is no kind of {1}: both ends must be of one release")]
    Kind(u8, &'static str),
    /// It ends within a field.
    #[error("the frame ends within {0}")]
    Short(&'static str),
    /// It goes on after its last field.
    #[error("{0} bytes follow the frame's last field")]
    Long(usize),
    /// A length is above what is allowed.
    #[error("{0} bytes of {1} are more than {2}")]
    Large(usize, &'static str, usize),
    /// A range is none.
    #[error(transparent)]
    Range(#[from] EmptyRange),
    /// An address is no text.
    #[error("an address is no UTF-8")]
    Text,
}

/// A frame as it is sent: pieces, so that large values are not copied.
#[derive(Debug, Default)]
pub struct Encoded {
    pieces: Vec<Bytes>,
    last: BytesMut,
}

impl Encoded {
    /// `frame`, with its header.
    pub fn new(frame: &Frame) -> Self {
        let mut whole = Self { pieces: Vec::with_capacity(1), last: BytesMut::with_capacity(256) };
        whole.last.put_bytes(0, HEADER);
        let kind = whole.frame(frame);
        let length = whole.pieces.iter().map(Bytes::len).sum::<usize>() + whole.last.len() - HEADER;
        // What is too long for the field is above FRAME_MAX, and the receiver refuses it.
        let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        let header = [kind, a, b, c, d];
        if whole.pieces.is_empty() {
            whole.last[..HEADER].copy_from_slice(&header);
        } else {
            let mut first = BytesMut::from(&whole.pieces[0][..]);
            first[..HEADER].copy_from_slice(&header);
            whole.pieces[0] = first.freeze();
        }
        whole.flush();
        whole
    }

    /// The bytes in their order.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    fn flush(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push(self.last.split().freeze());
        }
    }

    fn frame(&mut self, frame: &Frame) -> u8 {
        match frame {
            Frame::Hello { peer, secret } => {
                self.last.put_slice(&MAGIC);
                self.flag(peer.is_some());
                self.last.put_u32_le(peer.map_or(0, |peer| peer.0));
                self.last.put_slice(secret);
                1
            }
            Frame::Request(request) => {
                self.request(request);
                2
            }
            Frame::Answer { session, seq, outcome, address } => {
                self.last.put_u64_le(*session);
                self.last.put_u64_le(*seq);
                self.outcome(outcome);
                self.value(&Bytes::copy_from_slice(address.as_bytes()));
                3
            }
            Frame::Peer(Message::Transfer(id, step)) => {
                self.last.put_u32_le(id.source.0);
                self.last.put_u64_le(id.life);
                self.last.put_u32_le(id.number);
                self.step(step);
                4
            }
            Frame::Peer(Message::Forward(origin, request)) => {
                self.origin(*origin);
                self.request(request);
                5
            }
            Frame::Peer(Message::Answer { origin, session, seq, outcome }) => {
                self.origin(*origin);
                self.last.put_u64_le(*session);
                self.last.put_u64_le(*seq);
                self.outcome(outcome);
                6
            }
            Frame::Command(text) => {
                self.value(text);
                7
            }
        }
    }

    fn flag(&mut self, flag: bool) {
        self.last.put_u8(u8::from(flag));
    }

    fn count(&mut self, count: usize) {
        self.last.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn value(&mut self, value: &Bytes) {
        self.count(value.len());
        if value.len() < 4096 {
            self.last.put_slice(value);
        } else {
            self.flush();
            self.pieces.push(value.clone());
        }
    }

    fn option(&mut self, value: Option<&Bytes>) {
        self.flag(value.is_some());
        if let Some(value) = value {
            self.value(value);
        }
    }

    fn key(&mut self, key: &Key) {
        self.count(key.name().len());
        self.last.put_slice(key.name());
    }

    fn origin(&mut self, origin: Origin) {
        self.last.put_u32_le(origin.peer.0);
        self.last.put_u64_le(origin.connection);
        self.last.put_u8(origin.hops);
    }

    fn request(&mut self, request: &Request) {
        self.last.put_u64_le(request.session);
        self.last.put_u64_le(request.seq);
        self.key(&request.key);
        match &request.op {
            Op::Get => self.last.put_u8(0),
            Op::Put(value) => {
                self.last.put_u8(1);
                self.value(value);
            }
            Op::Delete => self.last.put_u8(2),
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Value(value) => {
                self.last.put_u8(0);
                self.option(value.as_ref());
            }
            Outcome::Done { existed } => {
                self.last.put_u8(1);
                self.flag(*existed);
            }
            Outcome::Moved { home, epoch } => {
                self.last.put_u8(2);
                self.flag(home.is_some());
                self.last.put_u32_le(home.map_or(0, |home| home.0));
                self.last.put_u64_le(*epoch);
            }
            Outcome::Busy => self.last.put_u8(3),
        }
    }

    fn place(&mut self, place: Place) {
        self.last.put_u64_le(place.life);
        self.last.put_u32_le(place.number);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Begin { kind, range, epoch } => {
                self.last.put_u8(0);
                self.flag(*kind == Kind::Mirror);
                self.last.put_u64_le(range.first());
                self.last.put_u64_le(range.last());
                self.last.put_u64_le(*epoch);
            }
            Step::Begun(place) => {
                self.last.put_u8(1);
                self.place(*place);
            }
            Step::Refuse => self.last.put_u8(2),
            Step::Chunk(chunk) => {
                self.last.put_u8(3);
                self.last.put_u32_le(chunk.round);
                self.last.put_u64_le(chunk.number);
                self.flag(chunk.whole);
                self.count(chunk.sessions.len());
                for session in &chunk.sessions {
                    self.last.put_u64_le(session.id);
                    self.last.put_u64_le(session.seq);
                    self.flag(session.existed);
                    self.flag(session.wrote.is_some());
                    self.last.put_u64_le(session.wrote.unwrap_or(0));
                }
                self.count(chunk.objects.len());
                for (key, value) in &chunk.objects {
                    self.key(key);
                    self.option(value.as_ref());
                }
            }
            Step::Ack { place, round, received, applied } => {
                self.last.put_u8(4);
                self.place(*place);
                self.last.put_u32_le(*round);
                self.last.put_u64_le(*received);
                self.last.put_u64_le(*applied);
            }
            Step::Finish => self.last.put_u8(5),
            Step::Ready(place) => {
                self.last.put_u8(6);
                self.place(*place);
            }
            Step::Committed => self.last.put_u8(7),
            Step::Adopted => self.last.put_u8(8),
            Step::Abort => self.last.put_u8(9),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::TransferId;
    use crate::node::{Chunk, Session};
    use crate::range::Range;

    fn value() -> impl Strategy<Value = Bytes> {
        prop_oneof![vec(any::<u8>(), 0..40), Just(vec![7; 5000])].prop_map(Bytes::from)
    }

    fn key() -> impl Strategy<Value = Key> {
        vec(any::<u8>(), 0..20).prop_map(|name| Key::of(&name))
    }

    fn request() -> impl Strategy<Value = Request> {
        let op = prop_oneof![Just(Op::Get), value().prop_map(Op::Put), Just(Op::Delete)];
        (any::<u64>(), any::<u64>(), key(), op).prop_map(|(session, seq, key, op)| Request {
            session,
            seq,
            key,
            op,
        })
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            proptest::option::of(value()).prop_map(Outcome::Value),
            any::<bool>().prop_map(|existed| Outcome::Done { existed }),
            (proptest::option::of(any::<u32>().prop_map(Peer)), any::<u64>())
                .prop_map(|(home, epoch)| Outcome::Moved { home, epoch }),
            Just(Outcome::Busy),
        ]
    }

    fn place() -> impl Strategy<Value = Place> {
        (any::<u64>(), any::<u32>()).prop_map(|(life, number)| Place { life, number })
    }

    fn step() -> impl Strategy<Value = Step> {
        let session = (any::<u64>(), any::<u64>(), any::<bool>(), any::<Option<u64>>())
            .prop_map(|(id, seq, existed, wrote)| Session { id, seq, existed, wrote });
        let objects = vec((key(), proptest::option::of(value())), 0..5);
        prop_oneof![
            (any::<bool>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
                |(mirror, a, b, epoch)| Step::Begin {
                    kind: if mirror { Kind::Mirror } else { Kind::Move },
                    range: Range::new(a.min(b), a.max(b)).unwrap(),
                    epoch,
                }
            ),
            (any::<u32>(), any::<u64>(), objects, vec(session, 0..5), any::<bool>()).prop_map(
                |(round, number, objects, sessions, whole)| {
                    Step::Chunk(Chunk { round, number, objects, sessions, whole })
                }
            ),
            (place(), any::<u32>(), any::<u64>(), any::<u64>()).prop_map(
                |(place, round, received, applied)| Step::Ack { place, round, received, applied }
            ),
            place().prop_map(Step::Begun),
            place().prop_map(Step::Ready),
            proptest::sample::select(vec![
                Step::Refuse,
                Step::Finish,
                Step::Committed,
                Step::Adopted,
                Step::Abort,
            ]),
        ]
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let origin = (any::<u32>(), any::<u64>(), any::<u8>())
            .prop_map(|(peer, connection, hops)| Origin { peer: Peer(peer), connection, hops });
        let transfer = (any::<u32>(), any::<u64>(), any::<u32>())
            .prop_map(|(source, life, number)| TransferId { source: Peer(source), life, number });
        prop_oneof![
            (proptest::option::of(any::<u32>().prop_map(Peer)), any::<[u8; 16]>())
                .prop_map(|(peer, secret)| Frame::Hello { peer, secret }),
            request().prop_map(Frame::Request),
            (any::<u64>(), any::<u64>(), outcome(), "[a-z0-9:]{0,20}").prop_map(
                |(session, seq, outcome, address)| {
                    Frame::Answer { session, seq, outcome, address }
                }
            ),
            (transfer, step()).prop_map(|(id, step)| Frame::Peer(Message::Transfer(id, step))),
            (origin.clone(), request())
                .prop_map(|(origin, request)| Frame::Peer(Message::Forward(origin, request))),
            (origin, any::<u64>(), any::<u64>(), outcome()).prop_map(
                |(origin, session, seq, outcome)| {
                    Frame::Peer(Message::Answer { origin, session, seq, outcome })
                }
            ),
            value().prop_map(Frame::Command),
        ]
    }

    fn bytes(frame: &Frame) -> (u8, Bytes) {
        let whole = Bytes::from(Encoded::new(frame).pieces().concat());
        let (kind, length) = header(*whole.first_chunk().unwrap()).unwrap();
        assert_eq!(length, whole.len() - HEADER);
        (kind, whole.slice(HEADER..))
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read(frame in frame()) {
            let (kind, body) = bytes(&frame);
            prop_assert_eq!(decode(kind, body.clone()).unwrap(), frame);
            // No part of it is one, nor it with more behind.
            for length in 0..body.len().min(200) {
                prop_assert!(decode(kind, body.slice(..length)).is_err());
            }
            prop_assert!(decode(kind, [body, Bytes::from_static(b"x")].concat().into()).is_err());
        }

        #[test]
        fn nothing_panics(kind in 0..9_u8, body in vec(any::<u8>(), 0..300)) {
            let _ = decode(kind, body.into());
        }

        #[test]
        fn what_was_changed_does_not_panic(frame in frame(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let (kind, body) = bytes(&frame);
            let mut body = body.to_vec();
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] = with;
            }
            let _ = decode(kind, body.into());
        }
    }

    #[test]
    fn lengths_are_not_believed() {
        assert!(matches!(header([4, 255, 255, 255, 255]), Err(WireError::Large(..))));
        let mut chunk = vec![0; 16];
        chunk.push(3);
        chunk.extend([0; 13]);
        chunk.extend(u32::MAX.to_le_bytes());
        assert_eq!(decode(4, chunk.into()), Err(WireError::Short("sessions")));
    }
}
