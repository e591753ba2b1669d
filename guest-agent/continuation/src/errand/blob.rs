//! What moves, as one piece of bytes that the hosts ship: connections, each with its service's continuation.
//!
//! It goes one way, and whoever sends it may lie: lengths are of what is there, and each connection is checked as
//! [`ConnectionState::decode`] and [`Continuation::check_import`] do.

use std::collections::HashSet;
use std::net::SocketAddr;

use thiserror::Error;

use crate::service::{Continuation, MOST_LOGGED, MOST_STATE, ServiceError};
use crate::state::{self, ConnectionState, StateError};
use crate::wire::{Reader, Writer};

/// Bytes of a whole state at most.
pub const MOST_BYTES: usize = 256 << 20;
/// Connections in it at most.
pub const MOST_CONNECTIONS: u32 = 65_535;

const MAGIC: [u8; 4] = *b"Move";
const VERSION: u16 = 1;
/// Of what a service has exported, with what was read and written since.
const MOST_CONTINUATION: usize = MOST_STATE + 2 * MOST_LOGGED + 1024;

/// A connection that is between two homes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traveller {
    /// What the kernel had of it.
    pub state: ConnectionState,
    /// What its service has exported ([`Continuation::import`]); empty if it had no continuation.
    pub continuation: Vec<u8>,
}

/// Why bytes are not what moves, or what moves is too much.
#[derive(Debug, Error)]
pub enum BlobError {
    /// Something else was sent.
    #[error("this is no state of a move; send what encode has made")]
    NotAMove,
    /// A version that is not known here.
    #[error(
        "version {0} of a move's state is not known, but {VERSION} is; bring both VMs to one version"
    )]
    Version(u16),
    /// It says that it has another length than it has.
    #[error("the state of a move has {found} bytes and says {said}; send it again, whole")]
    Length {
        /// What it says.
        said: u32,
        /// What there is.
        found: usize,
    },
    /// It ends too early, too late, or has a length that cannot be.
    #[error("the state of a move is broken at byte {0}; send it again, as it was made")]
    Broken(usize),
    /// More than can move at once.
    #[error(
        "{connections} connections of {bytes} bytes are too much for one move ({MOST_CONNECTIONS}, {MOST_BYTES}); mark connections as migratable when they are accepted"
    )]
    TooMuch {
        /// How many there are.
        connections: usize,
        /// Bytes of as many as were counted.
        bytes: usize,
    },
    /// The same two addresses twice.
    #[error("there are two connections from {local} to {peer} in one move; refuse who sent it")]
    Twice {
        /// Of the end that moves.
        local: SocketAddr,
        /// Of the other.
        peer: SocketAddr,
    },
    /// A connection that cannot be.
    #[error(transparent)]
    State(#[from] StateError),
    /// A continuation that cannot be.
    #[error(transparent)]
    Continuation(#[from] ServiceError),
}

/// The bytes of these connections, with what their services have exported.
///
/// # Errors
/// [`BlobError::TooMuch`].
pub fn encode<'a>(
    connections: impl ExactSizeIterator<Item = (&'a ConnectionState, &'a [u8])>,
) -> Result<Vec<u8>, BlobError> {
    let count = connections.len();
    let number = u32::try_from(count).ok().filter(|count| *count <= MOST_CONNECTIONS);
    let number = number.ok_or(BlobError::TooMuch { connections: count, bytes: 0 })?;
    let mut to = Writer::default();
    to.0.extend(MAGIC);
    to.u16(VERSION);
    to.u32(0); // its length, when it is known
    to.u32(number);
    for (state, continuation) in connections {
        to.bytes(&state.encode());
        to.bytes(continuation);
        if to.0.len() > MOST_BYTES {
            return Err(BlobError::TooMuch { connections: count, bytes: to.0.len() });
        }
    }
    let length = u32::try_from(to.0.len()).unwrap_or(u32::MAX);
    to.0[6..10].copy_from_slice(&length.to_le_bytes());
    Ok(to.0)
}

/// The connections that `bytes` are.
///
/// # Errors
/// They are none, or what they say cannot be.
pub fn decode(bytes: &[u8]) -> Result<Vec<Traveller>, BlobError> {
    let mut from = Reader(bytes);
    if from.array() != Some(MAGIC) {
        return Err(BlobError::NotAMove);
    }
    match from.u16() {
        Some(VERSION) => {}
        Some(other) => return Err(BlobError::Version(other)),
        None => return Err(BlobError::NotAMove),
    }
    let said = from.u32().ok_or(BlobError::NotAMove)?;
    if usize::try_from(said) != Ok(bytes.len()) || bytes.len() > MOST_BYTES {
        return Err(BlobError::Length { said, found: bytes.len() });
    }
    let broken = |from: &Reader<'_>| BlobError::Broken(bytes.len() - from.0.len());
    let count = from.u32().filter(|count| *count <= MOST_CONNECTIONS);
    let count = count.ok_or_else(|| broken(&from))?;
    // Nothing is allocated for connections that are only said to be there.
    let (mut all, mut seen) = (Vec::new(), HashSet::new());
    for _ in 0..count {
        let state = from.bytes(state::MOST_BYTES).ok_or_else(|| broken(&from))?;
        let continuation = from.bytes(MOST_CONTINUATION).ok_or_else(|| broken(&from))?;
        let state = ConnectionState::decode(state)?;
        if !continuation.is_empty() {
            Continuation::check_import(continuation)?;
        }
        let (local, peer) = (state.local, state.peer);
        if !seen.insert((local, peer)) {
            return Err(BlobError::Twice { local, peer });
        }
        all.push(Traveller { state, continuation: continuation.to_vec() });
    }
    if from.0.is_empty() { Ok(all) } else { Err(broken(&from)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::tests::sample;

    fn encoded(connections: &[Traveller]) -> Vec<u8> {
        encode(connections.iter().map(|one| (&one.state, &one.continuation[..]))).unwrap()
    }

    /// `count` connections, of peers at different ports.
    fn travellers(count: u16) -> Vec<Traveller> {
        let one = |number: u16| {
            let mut state = sample();
            state.peer.set_port(1000 + number);
            Traveller { state, continuation: Vec::new() }
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for count in [0, 1, 20] {
            let all = travellers(count);
            assert_eq!(decode(&encoded(&all)).unwrap(), all);
        }
        assert_eq!(encoded(&[]).len(), 14);
    }

    #[test]
    fn what_lies_is_refused() {
        let good = encoded(&travellers(2));
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err(), "{length}");
        }
        assert!(matches!(decode(&[&good[..], b"x"].concat()), Err(BlobError::Length { .. })));
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            decode(&bytes)
        };
        assert!(matches!(changed(0, b'm'), Err(BlobError::NotAMove)));
        assert!(matches!(changed(4, 2), Err(BlobError::Version(2))));
        assert!(matches!(changed(10, 1), Err(BlobError::Broken(_))), "one is left over");
        assert!(matches!(changed(10, 3), Err(BlobError::Broken(_))), "one is missing");
        assert!(matches!(changed(13, 1), Err(BlobError::Broken(14))), "too many");
        assert!(matches!(changed(17, 0xff), Err(BlobError::Broken(_))), "a length beyond the end");
        let mut twice = travellers(1);
        twice.push(twice[0].clone());
        assert!(matches!(decode(&encoded(&twice)), Err(BlobError::Twice { .. })));
        let mut broken = travellers(1);
        broken[0].continuation = b"Cont".to_vec();
        assert!(matches!(decode(&encoded(&broken)), Err(BlobError::Continuation(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_stand_for_themselves(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            value: u8,
        ) {
            let _ = decode(&bytes);
            // Close to what is right.
            let mut good = encoded(&travellers(2));
            let at = at.index(good.len());
            good[at] = value;
            if let Ok(all) = decode(&good) {
                prop_assert_eq!(decode(&encoded(&all)).unwrap(), all);
            }
        }

        #[test]
        fn any_connections_survive(count in 0_u16..40, lengths in proptest::collection::vec(0_usize..2000, 40)) {
            let mut all = travellers(count);
            for (one, length) in all.iter_mut().zip(lengths) {
                one.state.send.bytes.resize(length, 7);
                one.state.send.unsent = length / 2;
            }
            prop_assert_eq!(decode(&encoded(&all)).unwrap(), all);
        }
    }
}
