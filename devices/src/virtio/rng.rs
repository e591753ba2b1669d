//! Entropy device (virtio 1.2, section 5.4): fills the driver's buffers from the host's
//! `getrandom`.
//!
//! What a request costs the host is bounded whatever the driver puts into its descriptors: a
//! request is filled up to [`MAX_REQUEST_BYTES`], so descriptors that overlap do not multiply
//! the work, and one call serves at most [`MAX_REQUESTS`], so other devices on the thread get
//! their turn.

use std::io;
use std::num::Wrapping;
use std::sync::atomic::Ordering;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestMemoryMmap};

use super::{QueueProgress, VirtioDevice, VirtioError};

/// Most bytes one request gets; a driver asks again for more.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Most requests one [`process_queue`](VirtioDevice::process_queue) serves.
pub const MAX_REQUESTS: usize = 16;

const REQUEST_QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 256;
/// Most descriptors of one chain that are looked at.
const MAX_DESCRIPTORS: usize = QUEUE_SIZE as usize;
const CHUNK_BYTES: usize = 4 << 10;

/// Fills a buffer with entropy.
pub type EntropySource = fn(&mut [u8]) -> io::Result<()>;

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    source: EntropySource,
    queue: Option<Queue>,
}

impl Rng {
    /// Makes a device that takes its entropy from the host's kernel.
    pub fn new() -> Self {
        Self::with_source(host_entropy)
    }

    /// Makes a device that takes its entropy from `source`.
    pub fn with_source(source: EntropySource) -> Self {
        Self { source, queue: None }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

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
        let Some(queue) = self.queue.as_mut().filter(|_| index == REQUEST_QUEUE) else {
            return Err(VirtioError::QueueNotReady { index });
        };
        let broken = |error| VirtioError::BrokenQueue { index, error };

        let mut used = false;
        for _ in 0..MAX_REQUESTS {
            let Some(chain) = queue.iter(memory).map_err(broken)?.next() else { break };
            let (head, size) = (chain.head_index(), queue.size());
            if head >= size {
                return Err(VirtioError::HeadOutOfRange { index, head, size });
            }
            let length = fill(chain, memory, self.source).map_err(VirtioError::Host)?;
            queue.add_used(memory, head, length).map_err(broken)?;
            used = true;
        }
        Ok(QueueProgress {
            interrupt: used && queue.needs_notification(memory).map_err(broken)?,
            more: queue.avail_idx(memory, Ordering::Acquire).map_err(broken)?
                != Wrapping(queue.next_avail()),
            config: false,
        })
    }

    fn reset(&mut self) {
        self.queue = None;
    }
}

/// Fills the writable descriptors of `chain` and returns how many bytes that were. A descriptor
/// that leaves guest memory ends the request there: what came before is the driver's.
fn fill(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    source: EntropySource,
) -> io::Result<u32> {
    let mut buffer = [0; CHUNK_BYTES];
    let mut filled = 0;
    'request: for descriptor in chain.take(MAX_DESCRIPTORS).filter(Descriptor::is_write_only) {
        let mut address = descriptor.addr();
        let mut left = (descriptor.len() as usize).min(MAX_REQUEST_BYTES - filled);
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK_BYTES)];
            source(chunk)?;
            let written = memory.write(chunk, address).unwrap_or(0);
            filled += written;
            left -= written;
            match address.checked_add(written as u64) {
                Some(next) if written == chunk.len() => address = next,
                _ => break 'request,
            }
        }
    }
    Ok(u32::try_from(filled).expect("bounded by MAX_REQUEST_BYTES"))
}

fn host_entropy(mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let filled =
            rustix::io::retry_on_intr(|| getrandom(&mut *buffer, GetRandomFlags::empty()))?;
        buffer = &mut buffer[filled..];
    }
    Ok(())
}
