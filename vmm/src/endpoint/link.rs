//! Messages between a VM's process and the agent, over the VM's socket after the word `endpoints`: a length of four
//! bytes, little-endian, and so many bytes of `postcard`.

use std::time::Duration;

use devices::virtio::net::identifiers::{IdentifierCounts, Identifiers};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of the longest message: a command with its buffer.
const LONGEST: usize = (1 << 20) + (16 << 10);
/// Bytes of the length.
const HEAD: usize = 4;

/// What a VM's process says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromVm {
    /// A command of the guest, whose rights and arguments the device has checked.
    Call {
        /// Names it in the answer.
        ticket: u64,
        /// The operation's number.
        operation: u16,
        /// The arguments.
        input: Vec<u8>,
        /// What is in the command's buffer, if the operation reads it.
        data: Vec<u8>,
        /// How many bytes of output there is room for.
        room: u32,
    },
    /// The table of this number is in force.
    InForce {
        /// The number.
        number: u64,
        /// What the device has counted by then.
        counted: IdentifierCounts,
    },
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToVm {
    /// A command is done.
    Done {
        /// Which.
        ticket: u64,
        /// Its output.
        output: Vec<u8>,
    },
    /// It is not.
    Failed {
        /// Which.
        ticket: u64,
        /// Why: a number of [`control_abi::status::Error`].
        status: u32,
    },
    /// Something for the guest to know: an event of [`control_abi::event::Kind::Endpoint`].
    Raise {
        /// Its value.
        value: u64,
    },
    /// What the network device lets through from now on.
    Set {
        /// Its number.
        number: u64,
        /// The identifiers; frames to and from others are dropped.
        table: Vec<Identifiers>,
        /// For how long, unless it is said again. Then nothing passes.
        valid: Option<Duration>,
    },
    /// The table is valid for so much longer from now on.
    Extend {
        /// How long.
        valid: Duration,
    },
}

/// Why a connection is none of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A message of a length that none has.
    #[error("a message of {0} bytes, of {LONGEST} at most")]
    Length(usize),
    /// Bytes that are no message.
    #[error("bytes that are no message: {0}")]
    Message(#[from] postcard::Error),
}

/// The bytes of `message`.
///
/// # Errors
/// It is too long.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, LinkError> {
    let mut bytes = postcard::to_extend(message, vec![0; HEAD])?;
    let length = bytes.len() - HEAD;
    let head = u32::try_from(length).ok().filter(|_| length <= LONGEST);
    let head = head.ok_or(LinkError::Length(length))?;
    bytes[..HEAD].copy_from_slice(&head.to_le_bytes());
    Ok(bytes)
}

/// Puts messages together out of what is read of a stream.
#[derive(Debug, Default)]
pub struct Incoming(Vec<u8>);

impl Incoming {
    /// Bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next message, if it is there in whole.
    ///
    /// # Errors
    /// It is none: the connection is of no use any more.
    pub fn message<M: DeserializeOwned>(&mut self) -> Result<Option<M>, LinkError> {
        let Some(head) = self.0.first_chunk::<HEAD>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(LinkError::Length(length));
        }
        let Some(bytes) = self.0.get(HEAD..HEAD + length) else { return Ok(None) };
        let message = postcard::from_bytes(bytes)?;
        self.0.drain(..HEAD + length);
        if self.0.is_empty() && self.0.capacity() > (64 << 10) {
            // A state has gone through; there may be none for hours.
            self.0 = Vec::new();
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn call(ticket: u64, data: usize) -> FromVm {
        FromVm::Call { ticket, operation: 0x34, input: vec![1, 2], data: vec![7; data], room: 9 }
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(lengths in proptest::collection::vec(0usize..5000, 0..8), cut in 1usize..4000) {
            let messages: Vec<_> = lengths.iter().zip(0..).map(|(data, at)| call(at, *data)).collect();
            let bytes: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
            let (mut incoming, mut seen) = (Incoming::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                incoming.push(piece);
                while let Some(message) = incoming.message::<FromVm>().unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(seen, messages);
        }

        #[test]
        fn any_bytes_are_messages_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut incoming = Incoming::default();
            incoming.push(&bytes);
            while let Ok(Some(_)) = incoming.message::<ToVm>() {}
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_there() {
        let mut incoming = Incoming::default();
        incoming.push(&u32::MAX.to_le_bytes());
        assert_eq!(incoming.message::<ToVm>(), Err(LinkError::Length(0xffff_ffff)));
        assert!(matches!(encode(&call(1, LONGEST)), Err(LinkError::Length(_))));
        assert!(encode(&call(1, 1 << 20)).is_ok());
    }
}
