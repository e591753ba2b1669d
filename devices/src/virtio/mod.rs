//! Virtio: what every device has in common.
//!
//! A device implements [`VirtioDevice`]; a transport ([`mmio`]) presents it to the guest. The
//! transport checks everything about queues and phases, so that a device sees only a sequence
//! that the specification (virtio 1.2, section 3.1) allows.

mod queue;
mod status;

pub mod mmio;
pub mod rng;

use std::io;

use thiserror::Error;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

/// A virtio device, behind whatever transport.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// Feature bits the device offers, without `VIRTIO_F_VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// Largest size of each queue, in descriptors: powers of two up to 32,768.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the device's configuration space. `data` comes filled with ones, which stay where
    /// there is no field. The offset may be any.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device's configuration space; what is not writable is dropped. The offset may
    /// be any.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Starts the device with the negotiated features and one entry for each queue. A queue the
    /// driver left out is not ready; the others have a checked size and lie in guest memory.
    ///
    /// # Errors
    /// The device cannot work with these queues; the driver is told that a reset is needed.
    fn activate(&mut self, features: u64, queues: Vec<Queue>) -> Result<(), VirtioError>;

    /// Serves requests of queue `index`, for a bounded time.
    ///
    /// # Errors
    /// The queue is broken, or the device cannot go on; the driver is told that a reset is
    /// needed.
    fn process_queue(
        &mut self,
        index: usize,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError>;

    /// Stops the device and drops its queues.
    fn reset(&mut self);
}

/// How far [`VirtioDevice::process_queue`] came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueProgress {
    /// Buffers were used and the driver wants to hear of it.
    pub interrupt: bool,
    /// Requests are left: call again.
    pub more: bool,
}

/// Why a device cannot go on before its driver has reset it.
#[derive(Debug, Error)]
pub enum VirtioError {
    /// The driver has not set up a queue that the device needs.
    #[error("Queue {index} is not ready")]
    QueueNotReady {
        /// Index of the queue.
        index: usize,
    },
    /// The rings of a queue are broken.
    #[error("Queue {index} is broken: {error}")]
    BrokenQueue {
        /// Index of the queue.
        index: usize,
        /// What is wrong.
        error: virtio_queue::Error,
    },
    /// The driver offered a descriptor chain whose head is beyond the descriptor table.
    #[error("Queue {index} of {size} descriptors offers a chain at descriptor {head}")]
    HeadOutOfRange {
        /// Index of the queue.
        index: usize,
        /// The chain's first descriptor.
        head: u16,
        /// Size of the queue in descriptors.
        size: u16,
    },
    /// The host did not give what the device hands on.
    #[error("The host's side of the device failed: {0}")]
    Host(#[source] io::Error),
}
