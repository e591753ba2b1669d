//! Block device (virtio 1.2, section 5.2) over whatever completes its requests ([`BlockBackend`]).
//!
//! A request is copied out of guest memory once, checked, and handed to the backend with the bytes that
//! it writes. What comes back is copied into guest memory here, on the thread of the event loop, and
//! only if the device was not reset meanwhile: nobody else touches guest memory, and nothing comes late.
//!
//! What a driver can have under way is bounded, in requests and in bytes, also by one that resets the
//! device while its requests go on: the rest waits in its queue.

mod backend;
mod request;

use std::num::Wrapping;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use self::request::{DriverRequest, Pieces, Wanted};
use super::{QueueProgress, VirtioDevice, VirtioError};

pub use self::backend::{BlockBackend, Completion, Failed, Operation, Request, Tag};

/// Most bytes that one request reads or writes.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Most bytes that one request makes zero.
pub const MAX_ZERO_BYTES: u64 = 1 << 30;
/// Most requests that are under way.
pub const MAX_IN_FLIGHT: usize = 64;
/// Most bytes that requests under way read and write in all.
pub const MAX_IN_FLIGHT_BYTES: usize = 4 << 20;
/// Most requests, and most completions, that one call serves.
pub const MAX_REQUESTS: usize = 64;

/// The unit of the device, in bytes.
const SECTOR: u64 = 512;
const REQUEST_QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 256;
/// Most pieces of data in a request, and the most bytes of each: together less than
/// [`MAX_REQUEST_BYTES`].
const SEG_MAX: u32 = 126;
const SIZE_MAX: u32 = 8 << 10;
/// Header, data, status.
const MAX_DESCRIPTORS: usize = SEG_MAX as usize + 2;
/// Bytes of the configuration space (virtio 1.2, section 5.2.4, up to `write_zeroes_may_unmap`).
const CONFIG_BYTES: usize = 60;
/// Physical blocks of 4 KiB: what is written in whole ones costs the host least.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// A request that its backend is at.
#[derive(Debug)]
struct InFlight {
    /// What the driver knows it by.
    head: u16,
    answer: Pieces,
}

/// The block device.
#[derive(Debug)]
pub struct Block {
    backend: Box<dyn BlockBackend>,
    config: [u8; CONFIG_BYTES],
    queue: Option<Queue>,
    /// How often it was reset.
    generation: u64,
    /// Of this generation.
    in_flight: Vec<Option<InFlight>>,
    /// What the backend has, of any generation, and the bytes of each.
    held: Vec<Option<(Tag, usize)>>,
    held_bytes: usize,
}

impl Block {
    /// The device of `backend`.
    pub fn new(backend: Box<dyn BlockBackend>) -> Self {
        let config = config(backend.sectors());
        let in_flight = std::iter::repeat_with(|| None).take(MAX_IN_FLIGHT).collect();
        let held = vec![None; MAX_IN_FLIGHT];
        Self { backend, config, queue: None, generation: 0, in_flight, held, held_bytes: 0 }
    }

    /// Takes requests from the queue, as long as there is room for them and not too many.
    fn serve(&mut self, memory: &GuestMemoryMmap) -> Result<QueueProgress, VirtioError> {
        let index = REQUEST_QUEUE;
        let broken = |error| VirtioError::BrokenQueue { index, error };
        let (sectors, writable) = (self.backend.sectors(), self.backend.is_writable());
        let mut used = false;
        let mut room = true;
        for _ in 0..MAX_REQUESTS {
            let free = self.held.iter().position(Option::is_none);
            let Some(slot) =
                free.filter(|_| self.held_bytes + MAX_REQUEST_BYTES <= MAX_IN_FLIGHT_BYTES)
            else {
                room = false;
                break;
            };
            let queue = self.queue.as_mut().ok_or(VirtioError::QueueNotReady { index })?;
            let Some(chain) = queue.iter(memory).map_err(broken)?.next() else { break };
            let (head, size) = (chain.head_index(), queue.size());
            if head >= size {
                return Err(VirtioError::HeadOutOfRange { index, head, size });
            }
            let DriverRequest { answer, wanted } =
                DriverRequest::read(chain, memory, sectors, writable);
            let (status, data) = match wanted {
                // Without a place for its status nobody would hear of it.
                Wanted::Operation(operation) if answer.length() > 0 => {
                    self.submit(slot, InFlight { head, answer }, operation);
                    continue;
                }
                Wanted::Operation(_) | Wanted::Bad => (VIRTIO_BLK_S_IOERR, Vec::new()),
                Wanted::Unsupported => (VIRTIO_BLK_S_UNSUPP, Vec::new()),
                Wanted::Id => (VIRTIO_BLK_S_OK, self.backend.id().to_vec()),
            };
            let length = finish(&answer, memory, status, &data);
            let queue = self.queue.as_mut().ok_or(VirtioError::QueueNotReady { index })?;
            queue.add_used(memory, head, length).map_err(broken)?;
            used = true;
        }
        let queue = self.queue.as_mut().ok_or(VirtioError::QueueNotReady { index })?;
        Ok(QueueProgress {
            interrupt: used && queue.needs_notification(memory).map_err(broken)?,
            more: room
                && queue.avail_idx(memory, Ordering::Acquire).map_err(broken)?
                    != Wrapping(queue.next_avail()),
            config: false,
        })
    }

    fn submit(&mut self, slot: usize, request: InFlight, operation: Operation) {
        let bytes = match &operation {
            Operation::Read { length, .. } => *length,
            Operation::Write { data, .. } => data.len(),
            Operation::Zero { .. } | Operation::Flush => 0,
        };
        if let (Some(held), Some(place)) = (self.held.get_mut(slot), self.in_flight.get_mut(slot)) {
            let tag = Tag { generation: self.generation, slot };
            *held = Some((tag, bytes));
            *place = Some(request);
            self.held_bytes += bytes;
            self.backend.submit(Request { tag, operation });
        }
    }

    /// Gives back what the backend held; the request, if the driver still waits for it.
    fn release(&mut self, tag: Tag) -> Option<InFlight> {
        let (_, bytes) = self.held.get_mut(tag.slot)?.take_if(|(held, _)| *held == tag)?;
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
        // Of an earlier generation it is nobody's any more.
        self.in_flight.get_mut(tag.slot)?.take()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_RING_F_INDIRECT_DESC,
        ];
        if self.backend.is_writable() {
            bits.extend([VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        } else {
            bits.push(VIRTIO_BLK_F_RO);
        }
        bits.into_iter().fold(0, |all, bit| all | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Some(fields) = usize::try_from(offset).ok().and_then(|at| self.config.get(at..)) else {
            return;
        };
        for (byte, field) in data.iter_mut().zip(fields) {
            *byte = *field;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, _features: u64, queues: Vec<Queue>) -> Result<(), VirtioError> {
        let queue = queues.into_iter().next().filter(QueueT::ready);
        self.queue = Some(queue.ok_or(VirtioError::QueueNotReady { index: REQUEST_QUEUE })?);
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        if index != REQUEST_QUEUE {
            return Err(VirtioError::QueueNotReady { index });
        }
        self.serve(memory)
    }

    fn reset(&mut self) {
        self.queue = None;
        self.generation += 1;
        self.in_flight.iter_mut().for_each(|request| *request = None);
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.backend.event())
    }

    fn process_host_event(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        let index = REQUEST_QUEUE;
        let broken = |error| VirtioError::BrokenQueue { index, error };
        let mut used = false;
        for _ in 0..MAX_REQUESTS {
            let Some(Completion { tag, result }) = self.backend.completion() else { break };
            let Some(InFlight { head, answer }) = self.release(tag) else { continue };
            let Some(queue) = self.queue.as_mut() else { continue };
            let (status, data) = match result {
                Ok(data) => (VIRTIO_BLK_S_OK, data),
                Err(Failed) => (VIRTIO_BLK_S_IOERR, Vec::new()),
            };
            let length = finish(&answer, memory, status, &data);
            queue.add_used(memory, head, length).map_err(broken)?;
            used = true;
        }
        let Some(queue) = self.queue.as_mut() else { return Ok(QueueProgress::default()) };
        let interrupt = used && queue.needs_notification(memory).map_err(broken)?;
        // What had no room has it now.
        let served = self.serve(memory)?;
        if served.more {
            self.backend.wake();
        }
        Ok(QueueProgress { interrupt: interrupt || served.interrupt, ..QueueProgress::default() })
    }
}

/// Writes an answer, the status last; returns how many bytes the driver may look at.
fn finish(answer: &Pieces, memory: &GuestMemoryMmap, status: u32, data: &[u8]) -> u32 {
    let Some(room) = answer.length().checked_sub(1) else { return 0 };
    let data = data.get(..room).unwrap_or(data);
    let (status, written) =
        if answer.write(memory, 0, data) { (status, data.len()) } else { (VIRTIO_BLK_S_IOERR, 0) };
    let status = u8::try_from(status).unwrap_or(u8::MAX);
    if !answer.write(memory, room, &[status]) {
        return 0;
    }
    u32::try_from(written + 1).unwrap_or(0)
}

/// The configuration space, little-endian.
fn config(sectors: u64) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = config.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    let zero_sectors = u32::try_from(MAX_ZERO_BYTES / SECTOR).unwrap_or(u32::MAX);
    put(0, &sectors.to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &512_u32.to_le_bytes()); // blk_size
    put(24, &[PHYSICAL_BLOCK_EXPONENT]);
    put(26, &8_u16.to_le_bytes()); // min_io_size, in logical blocks
    put(34, &1_u16.to_le_bytes()); // num_queues
    put(36, &zero_sectors.to_le_bytes()); // max_discard_sectors
    put(40, &1_u32.to_le_bytes()); // max_discard_seg
    put(44, &8_u32.to_le_bytes()); // discard_sector_alignment
    put(48, &zero_sectors.to_le_bytes()); // max_write_zeroes_sectors
    put(52, &1_u32.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    config
}
