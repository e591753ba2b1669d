//! A driver's request (virtio 1.2, section 5.2.6): what is in its descriptors, copied once and checked.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::backend::Operation;
use super::{MAX_DESCRIPTORS, MAX_REQUEST_BYTES, MAX_ZERO_BYTES, SECTOR};

/// Bytes of a request's header: type (4), reserved (4), sector (8).
const HEADER_BYTES: usize = 16;
/// Bytes of the range of a discard or of zeros: sector (8), sectors (4), flags (4).
const RANGE_BYTES: usize = 16;
/// Of the flags of a range: space need not be kept.
const UNMAP: u32 = 1;

/// Pieces of guest memory that follow each other in a request.
#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<(GuestAddress, usize)>);

impl Pieces {
    /// Their length in bytes.
    pub(super) fn length(&self) -> usize {
        // As many 32-bit numbers as there are descriptors at most.
        self.0.iter().map(|(_, length)| length).sum()
    }

    /// Calls `visit` with the pieces of `length` bytes from `skip` on; false if it fails, or there are
    /// not as many.
    fn walk(
        &self,
        mut skip: usize,
        length: usize,
        mut visit: impl FnMut(GuestAddress, usize, usize) -> bool,
    ) -> bool {
        let mut done = 0;
        for &(address, size) in &self.0 {
            if done == length {
                break;
            }
            let skipped = skip.min(size);
            skip -= skipped;
            let part = (size - skipped).min(length - done);
            if part == 0 {
                continue;
            }
            let Some(start) = address.checked_add(skipped as u64) else { return false };
            if !visit(start, done, part) {
                return false;
            }
            done += part;
        }
        done == length
    }

    /// Fills `data` from what begins after `skip` bytes; says whether all was in guest memory.
    fn read(&self, memory: &GuestMemoryMmap, skip: usize, data: &mut [u8]) -> bool {
        self.walk(skip, data.len(), |address, at, length| {
            data.get_mut(at..at + length)
                .is_some_and(|part| memory.read_slice(part, address).is_ok())
        })
    }

    /// Writes `data` after `skip` bytes; says whether all was in guest memory.
    pub(super) fn write(&self, memory: &GuestMemoryMmap, skip: usize, data: &[u8]) -> bool {
        self.walk(skip, data.len(), |address, at, length| {
            data.get(at..at + length).is_some_and(|part| memory.write_slice(part, address).is_ok())
        })
    }
}

/// What a driver asks for.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Something of the backend.
    Operation(Operation),
    /// The device's id.
    Id,
    /// Something that makes no sense, or leaves the device or guest memory.
    Bad,
    /// Something that this device does not do.
    Unsupported,
}

/// A request as its driver made it.
#[derive(Debug)]
pub(super) struct DriverRequest {
    /// Where the answer goes: data, and at the end the status byte. Without a byte there is no way to
    /// answer.
    pub(super) answer: Pieces,
    pub(super) wanted: Wanted,
}

impl DriverRequest {
    /// Copies the request out of guest memory and checks it against a device of `sectors` sectors.
    pub(super) fn read(
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
        sectors: u64,
        writable: bool,
    ) -> Self {
        let (mut question, mut answer) = (Pieces::default(), Pieces::default());
        let (mut count, mut sound) = (0, true);
        for descriptor in chain.take(MAX_DESCRIPTORS + 1) {
            count += 1;
            let length = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
            if descriptor.is_write_only() {
                answer.0.push((descriptor.addr(), length));
            } else {
                // What is written comes last (virtio 1.2, section 2.7.4.2).
                sound &= answer.0.is_empty();
                question.0.push((descriptor.addr(), length));
            }
        }
        let mut header = [0; HEADER_BYTES];
        sound &= count <= MAX_DESCRIPTORS && question.read(memory, 0, &mut header);
        let wanted = if sound {
            let room = answer.length().saturating_sub(1);
            wanted(header, &question, room, memory, sectors, writable)
        } else {
            Wanted::Bad
        };
        Self { answer, wanted }
    }
}

/// What is asked for by a request with this header, whose answer has room for `room` bytes of data.
fn wanted(
    header: [u8; HEADER_BYTES],
    question: &Pieces,
    room: usize,
    memory: &GuestMemoryMmap,
    sectors: u64,
    writable: bool,
) -> Wanted {
    let [kind, _, low, high] = words(header);
    let sector = u64::from(low) | u64::from(high) << 32;
    let sent = question.length().saturating_sub(HEADER_BYTES);
    let within = |sector: u64, length: u64, limit: u64| {
        let end = sector.checked_add(length / SECTOR).filter(|end| *end <= sectors);
        let good = length > 0 && length.is_multiple_of(SECTOR) && length <= limit;
        // No overflow: the end is one of a device of less than 2^64 bytes.
        (good && end.is_some()).then(|| sector * SECTOR)
    };
    let operation = match kind {
        VIRTIO_BLK_T_IN => within(sector, room as u64, MAX_REQUEST_BYTES as u64)
            .map(|offset| Operation::Read { offset, length: room }),
        VIRTIO_BLK_T_OUT if writable => within(sector, sent as u64, MAX_REQUEST_BYTES as u64)
            .and_then(|offset| {
                let mut data = vec![0; sent];
                let read = question.read(memory, HEADER_BYTES, &mut data);
                read.then_some(Operation::Write { offset, data })
            }),
        VIRTIO_BLK_T_OUT => None,
        VIRTIO_BLK_T_FLUSH => Some(Operation::Flush),
        VIRTIO_BLK_T_GET_ID => return Wanted::Id,
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if writable => {
            let mut range = [0; RANGE_BYTES];
            // One range: the device says that it takes no more.
            if sent != RANGE_BYTES || !question.read(memory, HEADER_BYTES, &mut range) {
                return Wanted::Bad;
            }
            let [low, high, count, flags] = words(range);
            let allowed = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { UNMAP };
            if flags & !allowed != 0 {
                return Wanted::Unsupported;
            }
            let sector = u64::from(low) | u64::from(high) << 32;
            let length = u64::from(count) * SECTOR;
            within(sector, length, MAX_ZERO_BYTES).map(|offset| Operation::Zero { offset, length })
        }
        _ => return Wanted::Unsupported,
    };
    operation.map_or(Wanted::Bad, Wanted::Operation)
}

/// The little-endian words of a header or of a range.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    [0, 1, 2, 3].map(|index| words.get(index).copied().map_or(0, u32::from_le_bytes))
}
