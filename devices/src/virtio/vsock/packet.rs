//! Packets: the header (virtio 1.2, section 5.10.6) and the descriptors that a packet lies in.
//!
//! Header and content may be cut over descriptors as the driver likes: Linux puts them into one buffer,
//! into two, or, where it sends without copying, into one for each page.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 44;
/// Most bytes that one packet carries behind its header.
pub const MAX_PAYLOAD: usize = 64 << 10;
/// The host's context identifier.
pub const HOST_CID: u64 = 2;
/// Type of a packet that belongs to a stream.
pub const STREAM: u16 = 1;
/// Flag of a shutdown: its sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of a shutdown: its sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Most descriptors of one chain that are looked at: 64 KiB in pages, the header, and some.
const MAX_DESCRIPTORS: usize = 64;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// There is no such connection, or it is over.
    Reset = 3,
    /// The sender will not receive, or not send, any more.
    Shutdown = 4,
    /// Carries content.
    Data = 5,
    /// Tells how much room there is.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

impl Operation {
    /// The operation of this number.
    pub fn of(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|operation| *operation as u16 == number)
    }
}

/// The header of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Who sends it.
    pub source_cid: u64,
    /// Who it is for.
    pub destination_cid: u64,
    /// The sender's port.
    pub source_port: u32,
    /// The receiver's port.
    pub destination_port: u32,
    /// Bytes behind the header.
    pub length: u32,
    /// Type of the socket.
    pub kind: u16,
    /// Number of an [`Operation`].
    pub operation: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Bytes that the sender has room for in all.
    pub room: u32,
    /// Bytes that the sender has passed on, modulo 2^32.
    pub forwarded: u32,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = &bytes[..];
        Self {
            source_cid: u64::from_le_bytes(take(&mut rest)),
            destination_cid: u64::from_le_bytes(take(&mut rest)),
            source_port: u32::from_le_bytes(take(&mut rest)),
            destination_port: u32::from_le_bytes(take(&mut rest)),
            length: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            operation: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            room: u32::from_le_bytes(take(&mut rest)),
            forwarded: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Writes it.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let fields: [&[u8]; 10] = [
            &self.source_cid.to_le_bytes(),
            &self.destination_cid.to_le_bytes(),
            &self.source_port.to_le_bytes(),
            &self.destination_port.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.operation.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.room.to_le_bytes(),
            &self.forwarded.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        for field in fields {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        bytes
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, others) =
        rest.split_first_chunk().expect("a header has as many bytes as its fields");
    *rest = others;
    *first
}

/// The memory that a chain of descriptors names, as far as it is guest memory.
#[derive(Debug, Default)]
pub struct Buffers(Vec<(GuestAddress, usize)>);

impl Buffers {
    /// Takes the descriptors of `chain` that the device may write, or those that it may read, up to the
    /// first that is not guest memory.
    pub fn collect(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
        writable: bool,
    ) {
        self.0.clear();
        let access = if writable { Permissions::Write } else { Permissions::Read };
        for descriptor in chain.take(MAX_DESCRIPTORS) {
            let length = descriptor.len() as usize;
            if descriptor.is_write_only() != writable || length == 0 {
                continue;
            }
            if !GuestMemory::check_range(memory, descriptor.addr(), length, access) {
                break;
            }
            self.0.push((descriptor.addr(), length));
        }
    }

    /// How many bytes there are.
    pub fn length(&self) -> usize {
        self.0.iter().fold(0, |sum, (_, length)| sum.saturating_add(*length))
    }

    /// Fills `bytes` with what is there from byte `skip` on; says whether there were as many.
    pub fn read(&self, memory: &GuestMemoryMmap, skip: usize, bytes: &mut [u8]) -> bool {
        let mut done = 0;
        for (address, length) in self.after(skip) {
            let part = &mut bytes[done..];
            let count = part.len().min(length);
            if memory.read_slice(&mut part[..count], address).is_err() {
                return false;
            }
            done += count;
        }
        done == bytes.len()
    }

    /// Writes `bytes` from byte `skip` on; says whether there was room for all.
    pub fn write(&self, memory: &GuestMemoryMmap, skip: usize, bytes: &[u8]) -> bool {
        let mut done = 0;
        for (address, length) in self.after(skip) {
            let part = &bytes[done..];
            let count = part.len().min(length);
            if memory.write_slice(&part[..count], address).is_err() {
                return false;
            }
            done += count;
        }
        done == bytes.len()
    }

    /// What there is behind the first `skip` bytes.
    fn after(&self, mut skip: usize) -> impl Iterator<Item = (GuestAddress, usize)> {
        self.0.iter().filter_map(move |(address, length)| {
            let skipped = skip.min(*length);
            skip -= skipped;
            // Within memory, as was checked.
            (skipped < *length)
                .then(|| (GuestAddress(address.0 + skipped as u64), length - skipped))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_is_read_as_it_was_written(bytes in any::<[[u8; 11]; 4]>()) {
            let bytes: [u8; HEADER_BYTES] = bytes.as_flattened().try_into().unwrap();
            prop_assert_eq!(Header::decode(&bytes).encode(), bytes);
        }

        #[test]
        fn content_comes_back_however_it_is_cut(
            lengths in prop::collection::vec(0_usize..100, 0..20),
            skip in 0_usize..200,
            content in prop::collection::vec(any::<u8>(), 0..500),
        ) {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
            let pieces = (0_u64..).zip(&lengths).map(|(n, &length)| (GuestAddress(n * 256), length));
            let buffers = Buffers(pieces.collect());
            let fits = skip + content.len() <= buffers.length() || content.is_empty();
            prop_assert_eq!(buffers.write(&memory, skip, &content), fits);
            let mut back = vec![0; content.len()];
            prop_assert_eq!(buffers.read(&memory, skip, &mut back), fits);
            prop_assert!(!fits || back == content);
        }
    }

    #[test]
    fn operations_are_those_of_the_specification() {
        let known: Vec<u16> = (0..20).filter(|number| Operation::of(*number).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7]);
    }
}
