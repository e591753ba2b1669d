//! What the two sides of a move say to each other: a kind, a length, and so many bytes.

use std::fmt;
use std::io::{self, Read, Write};

use super::MoverError;
use crate::wire::{Reader, Writer};

/// Of what is not a connection, in bytes.
const MOST_SMALL: usize = 1024;
/// First in each offer, so that others are told apart before anything is allocated.
const MAGIC: [u8; 4] = *b"TcpM";
const VERSION: u16 = 1;

/// The number of a move.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id([u8; 16]);

impl Id {
    /// One that there is nowhere else.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        // Without the system's random numbers, time: enough to tell the moves of one machine from each other.
        if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(16) {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            bytes = now.unwrap_or_default().as_nanos().to_le_bytes();
        }
        Self(bytes)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// So many connections follow.
    Offer(Id, u16),
    /// One of them: its state and its continuation.
    Connection(Vec<u8>, Vec<u8>),
    /// The connections are here and silent; the number is that of the destination's life.
    Ready(Id, Id),
    /// The connections are not, and will not be, here.
    Refused(Id, String),
    /// They are to go on here.
    Commit(Id),
    /// They do.
    Done(Id),
    /// They go on at the source.
    Abort(Id),
    /// They are not here.
    Aborted(Id),
    /// No such move is known in this life of the destination.
    Unknown(Id, Id),
}

impl Message {
    pub(super) fn id(&self) -> Option<Id> {
        match *self {
            Self::Offer(id, _)
            | Self::Ready(id, _)
            | Self::Refused(id, _)
            | Self::Commit(id)
            | Self::Done(id)
            | Self::Abort(id)
            | Self::Aborted(id)
            | Self::Unknown(id, _) => Some(id),
            Self::Connection(..) => None,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        let kind = match self {
            Self::Offer(..) => 1,
            Self::Connection(..) => 2,
            Self::Ready(..) => 3,
            Self::Refused(..) => 4,
            Self::Commit(_) => 5,
            Self::Done(_) => 6,
            Self::Abort(_) => 7,
            Self::Aborted(_) => 8,
            Self::Unknown(..) => 9,
        };
        to.u8(kind);
        to.u32(0); // its length, when it is known
        if let Some(id) = self.id() {
            to.0.extend(id.0);
        }
        match self {
            Self::Offer(_, count) => {
                to.0.extend(MAGIC);
                to.u16(VERSION);
                to.u16(*count);
            }
            Self::Connection(state, continuation) => {
                to.bytes(state);
                to.bytes(continuation);
            }
            Self::Ready(_, life) | Self::Unknown(_, life) => to.0.extend(life.0),
            Self::Refused(_, why) => {
                to.0.extend(why.chars().take(200).collect::<String>().as_bytes());
            }
            Self::Commit(_) | Self::Done(_) | Self::Abort(_) | Self::Aborted(_) => {}
        }
        let length = u32::try_from(to.0.len() - 5).unwrap_or(u32::MAX);
        to.0[1..5].copy_from_slice(&length.to_le_bytes());
        to.0
    }

    fn decode(kind: u8, body: &[u8]) -> Option<Self> {
        let mut from = Reader(body);
        let mut id = || from.array().map(Id);
        let message = match kind {
            1 => {
                let id = id()?;
                if from.array() != Some(MAGIC) || from.u16()? != VERSION {
                    return None;
                }
                Self::Offer(id, from.u16()?)
            }
            2 => {
                let state = from.bytes(body.len())?.to_vec();
                Self::Connection(state, from.bytes(body.len())?.to_vec())
            }
            3 => Self::Ready(id()?, id()?),
            4 => {
                let id = id()?;
                let text = String::from_utf8_lossy(std::mem::take(&mut from.0));
                // It may be shown on a terminal.
                Self::Refused(id, text.chars().filter(|char| !char.is_control()).collect())
            }
            5 => Self::Commit(id()?),
            6 => Self::Done(id()?),
            7 => Self::Abort(id()?),
            8 => Self::Aborted(id()?),
            9 => Self::Unknown(id()?, id()?),
            _ => return None,
        };
        from.0.is_empty().then_some(message)
    }

    pub(super) fn send(&self, channel: &mut (impl Write + ?Sized)) -> io::Result<()> {
        channel.write_all(&self.encode())?;
        channel.flush()
    }

    /// The next message, of which one with a connection may have `most` bytes.
    pub(super) fn receive(
        channel: &mut (impl Read + ?Sized),
        most: usize,
    ) -> Result<Self, MoverError> {
        let mut head = [0; 5];
        channel.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > if kind == 2 { most } else { MOST_SMALL } {
            return Err(MoverError::Unexpected(format!("{length} bytes of kind {kind}")));
        }
        // As it comes, not as it is announced: an announcement alone takes no memory.
        let mut body = Vec::new();
        Read::take(&mut *channel, length as u64).read_to_end(&mut body)?;
        if body.len() != length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Self::decode(kind, &body)
            .ok_or_else(|| MoverError::Unexpected(format!("{length} broken bytes of kind {kind}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_what_they_were() {
        let (id, life) = (Id::random(), Id::random());
        for message in [
            Message::Offer(id, 3),
            Message::Connection(vec![1, 2], vec![3]),
            Message::Ready(id, life),
            Message::Refused(id, "no".into()),
            Message::Commit(id),
            Message::Done(id),
            Message::Abort(id),
            Message::Aborted(id),
            Message::Unknown(id, life),
        ] {
            let bytes = message.encode();
            assert_eq!(Message::receive(&mut &bytes[..], 100).unwrap(), message);
            for cut in 0..bytes.len() {
                assert!(Message::receive(&mut &bytes[..cut], 100).is_err());
            }
        }
    }

    #[test]
    fn what_is_announced_too_large_is_refused_before_it_is_read() {
        let bytes = Message::Connection(vec![0; 200], Vec::new()).encode();
        assert!(matches!(Message::receive(&mut &bytes[..], 100), Err(MoverError::Unexpected(_))));
        let shown = Message::Refused(Id::random(), "a\u{1b}[31mb".into()).encode();
        let Ok(Message::Refused(_, text)) = Message::receive(&mut &shown[..], 0) else { panic!() };
        assert_eq!(text, "a[31mb");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::receive(&mut &bytes[..], 100);
            if let [kind, body @ ..] = &bytes[..] {
                let _ = Message::decode(*kind % 12, body);
            }
        }
    }
}
