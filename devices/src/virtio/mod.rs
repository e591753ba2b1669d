//! Virtio: what every device has in common.
//!
//! A device implements [`VirtioDevice`]; a transport ([`mmio`]) presents it to the guest. The
//! transport checks everything about queues and phases, so that a device sees only a sequence
//! that the specification (virtio 1.2, section 3.1) allows.

mod queue;
mod status;

pub mod blk;
pub mod mmio;
pub mod net;
pub mod rng;
pub mod vsock;

use std::io;
use std::os::fd::BorrowedFd;

use thiserror::Error;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

/// A virtio device, behind whatever transport.
pub trait VirtioDevice: Send + std::fmt::Debug {
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

    /// A descriptor that is readable while the device has work that no queue event announces, such
    /// as frames from a network: the host's side of it. It is waited for level-triggered, so a
    /// device that cannot go on before its driver does something has to make it silent until then:
    /// by an epoll of its own, which a device also needs where it waits for several things.
    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Serves that work, for a bounded time. Called when [`host_event`](Self::host_event) is
    /// readable, whether or not the driver has started the device.
    ///
    /// # Errors
    /// As of [`process_queue`](Self::process_queue).
    fn process_host_event(
        &mut self,
        _memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        Ok(QueueProgress::default())
    }
}

impl VirtioDevice for Box<dyn VirtioDevice> {
    fn device_type(&self) -> u32 {
        (**self).device_type()
    }

    fn features(&self) -> u64 {
        (**self).features()
    }

    fn queue_sizes(&self) -> &[u16] {
        (**self).queue_sizes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        (**self).read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        (**self).write_config(offset, data);
    }

    fn activate(&mut self, features: u64, queues: Vec<Queue>) -> Result<(), VirtioError> {
        (**self).activate(features, queues)
    }

    fn process_queue(
        &mut self,
        index: usize,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        (**self).process_queue(index, memory)
    }

    fn reset(&mut self) {
        (**self).reset();
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        (**self).host_event()
    }

    fn process_host_event(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        (**self).process_host_event(memory)
    }
}

/// How far [`VirtioDevice::process_queue`] came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueProgress {
    /// Buffers were used and the driver wants to hear of it.
    pub interrupt: bool,
    /// Requests are left: call again. Of host events that is said by the descriptor itself.
    pub more: bool,
    /// The configuration space is another than before: the driver is to read it again.
    pub config: bool,
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
