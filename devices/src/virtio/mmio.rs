//! Virtio over MMIO, version 2 (virtio 1.2, section 4.2).
//!
//! Every register belongs to a phase of the driver's initialisation and is dropped outside it:
//! features until they are settled, queue registers from then until the device runs. The device
//! gets queues of its own when it starts, built from the registers, so nothing the driver writes
//! later reaches them.
//!
//! Control registers take aligned 32-bit accesses, as section 4.2.2.2 demands of the driver.
//! Other widths, write-only registers and offsets without a register read as all ones, and
//! writes to them are dropped. All ones is also what the specification asks of the shared memory
//! length registers of a device without shared memory.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;

use log::{debug, warn};
use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::{Half, QueueRegisters, set_half};
use super::status::{Status, Step};
use super::{QueueProgress, VirtioDevice, VirtioError};
use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// Length of the register window in bytes.
pub const MMIO_LENGTH: u64 = 0x1000;
/// Offset of the register that an ioeventfd of queue `i` watches for a 32-bit write of `i`.
pub const QUEUE_NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = 0; // None claimed
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// Why a device cannot be put behind a transport.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The device asks for a queue size that virtio does not have.
    #[error("Largest size of queue {index}, {size}, is no power of two up to 32768")]
    QueueSize {
        /// Index of the queue.
        index: usize,
        /// The size asked for.
        size: u16,
    },
    /// The host did not give an event descriptor.
    #[error("Cannot make the event of queue {index}: {source}")]
    QueueEvent {
        /// Index of the queue.
        index: usize,
        /// The host's error.
        source: io::Error,
    },
    /// There is not one event for each queue.
    #[error("The device has {queues} queues, but was given {events} events")]
    EventCount {
        /// How many queues it has.
        queues: usize,
        /// How many events there are.
        events: usize,
    },
}

/// A virtio device in a window of [`MMIO_LENGTH`] bytes.
///
/// A driver's notification of queue `i` signals [`queue_event`](Self::queue_event)`(i)`, whether
/// the register is written here or an ioeventfd takes the write before it comes here. Requests
/// are served by [`handle_queue_event`](Self::handle_queue_event), on whatever thread waits for
/// the event: never on a vCPU's.
#[derive(Debug)]
pub struct MmioTransport<D> {
    device: D,
    memory: GuestMemoryMmap,
    line: InterruptLine,
    status: Status,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
    queue_events: Vec<EventFd>,
    interrupt_status: u32,
    config_generation: u32,
    /// Times the device needed a reset: only the first is worth a warning, or a guest could fill
    /// the log.
    failures: u64,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind a transport that interrupts by `line`.
    ///
    /// # Errors
    /// The device's queue sizes are none of virtio's, or the host is out of descriptors.
    pub fn new(
        device: D,
        memory: GuestMemoryMmap,
        line: InterruptLine,
    ) -> Result<Self, TransportError> {
        let event = |index| {
            EventFd::new(EFD_NONBLOCK)
                .map_err(|source| TransportError::QueueEvent { index, source })
        };
        let queue_events =
            (0..device.queue_sizes().len()).map(event).collect::<Result<Vec<_>, _>>()?;
        Self::with_queue_events(device, memory, line, queue_events)
    }

    /// As [`new`](Self::new), with events that exist already, one a queue: so that they can be
    /// connected before there is memory to put a device on. They should not block.
    ///
    /// # Errors
    /// The device's queue sizes are none of virtio's, or there is not one event for each queue.
    pub fn with_queue_events(
        device: D,
        memory: GuestMemoryMmap,
        line: InterruptLine,
        queue_events: Vec<EventFd>,
    ) -> Result<Self, TransportError> {
        let mut queues = Vec::new();
        for (index, &size) in device.queue_sizes().iter().enumerate() {
            if !size.is_power_of_two() {
                return Err(TransportError::QueueSize { index, size });
            }
            queues.push(QueueRegisters::new(size));
        }
        if queues.len() != queue_events.len() {
            let (queues, events) = (queues.len(), queue_events.len());
            return Err(TransportError::EventCount { queues, events });
        }
        Ok(Self {
            device,
            memory,
            line,
            status: Status::default(),
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            queue_events,
            interrupt_status: 0,
            config_generation: 0,
            failures: 0,
        })
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The events that driver notifications signal, one a queue.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// The event that a driver's notification of queue `index` signals.
    ///
    /// # Panics
    /// The device has no such queue.
    pub fn queue_event(&self, index: usize) -> &EventFd {
        &self.queue_events[index]
    }

    /// Serves queue `index` after its event was signalled. If the device leaves requests for
    /// later, the event is signalled again.
    pub fn handle_queue_event(&mut self, index: usize) {
        let Some(event) = self.queue_events.get(index) else { return };
        // Nothing to read only means that the event was handled already.
        let _ = event.read();
        if !self.status.is_live() || !self.queues[index].is_ready() {
            return;
        }
        match self.device.process_queue(index, &self.memory) {
            Ok(progress) => {
                if progress.more {
                    self.signal_queue(index);
                }
                self.tell(progress);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// What tells that the device has work of the host's side; see
    /// [`VirtioDevice::host_event`].
    pub fn host_event(&self) -> Option<BorrowedFd<'_>> {
        self.device.host_event()
    }

    /// Serves the host's side of the device after its event was signalled.
    pub fn handle_host_event(&mut self) {
        match self.device.process_host_event(&self.memory) {
            Ok(progress) => self.tell(progress),
            // A device that its driver has not started has no queues that could be broken.
            Err(error) if self.status.is_live() => self.fail(&error),
            Err(error) => debug!("Virtio: host event before the driver: {error}"),
        }
    }

    /// Tells the driver what it wants to hear of, if there is one.
    fn tell(&mut self, progress: QueueProgress) {
        if progress.interrupt && self.status.is_live() {
            self.interrupt(VIRTIO_MMIO_INT_VRING);
        }
        if progress.config {
            self.config_changed();
        }
    }

    /// Tells the driver that the device's configuration space has changed.
    pub fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status.is_live() {
            self.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => {
                let [low, high] = halves(self.offered_features());
                match self.device_features_select {
                    0 => low,
                    1 => high,
                    _ => 0,
                }
            }
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.selected_queue().map_or(0, |queue| u32::from(queue.max_size()))
            }
            VIRTIO_MMIO_QUEUE_READY => {
                self.selected_queue().map_or(0, |queue| u32::from(queue.is_ready()))
            }
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status,
            VIRTIO_MMIO_STATUS => self.status.bits(),
            VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation,
            _ => u32::MAX,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify_queue(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !value,
            VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if !self.status.negotiates_features() {
            debug!("Virtio: driver features written in status {:#x}", self.status.bits());
            return;
        }
        match self.driver_features_select {
            0 => set_half(&mut self.driver_features, Half::Low, value),
            1 => set_half(&mut self.driver_features, Half::High, value),
            _ => {}
        }
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        if !self.status.configures_queues() {
            debug!("Virtio: register {offset:#x} written in status {:#x}", self.status.bits());
            return;
        }
        let selected = usize::try_from(self.queue_select).ok();
        let Some(queue) = selected.and_then(|index| self.queues.get_mut(index)) else { return };
        if offset == VIRTIO_MMIO_QUEUE_READY {
            if let Err(error) = queue.set_ready(value == 1, &self.memory) {
                debug!("Virtio: queue {} refused: {error}", self.queue_select);
            }
            return;
        }
        if queue.is_ready() {
            debug!("Virtio: register {offset:#x} of a ready queue written");
            return;
        }
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.descriptor_table, Half::Low, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.descriptor_table, Half::High, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.driver_area, Half::Low, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.driver_area, Half::High, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.device_area, Half::Low, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.device_area, Half::High, value),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let Some(steps) = self.status.steps_to(value) else {
            debug!("Virtio: status {value:#x} refused in {:#x}", self.status.bits());
            return;
        };
        for step in steps {
            let result = match step {
                Step::FeaturesOk if !self.accepts_features() => {
                    debug!("Virtio: driver features {:#x} refused", self.driver_features);
                    return;
                }
                Step::DriverOk => self.activate(),
                _ => Ok(()),
            };
            if let Err(error) = result {
                self.fail(&error);
                return;
            }
            self.status.take(step);
        }
    }

    fn accepts_features(&self) -> bool {
        self.driver_features & !self.offered_features() == 0
            && self.driver_features & VERSION_1 != 0
    }

    fn activate(&mut self) -> Result<(), VirtioError> {
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, registers) in self.queues.iter().enumerate() {
            let mut queue = registers.build(&self.memory).map_err(|error| {
                debug!("Virtio: queue {index} refused: {error}");
                VirtioError::QueueNotReady { index }
            })?;
            queue.set_event_idx(self.driver_features & EVENT_IDX != 0);
            queues.push(queue);
        }
        self.device.activate(self.driver_features, queues)
    }

    fn reset(&mut self) {
        self.device.reset();
        self.status = Status::default();
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.interrupt_status = 0;
        self.queues.iter_mut().for_each(QueueRegisters::reset);
    }

    fn fail(&mut self, error: &VirtioError) {
        self.failures = self.failures.saturating_add(1);
        let device_type = self.device.device_type();
        if self.failures == 1 {
            warn!("Virtio device of type {device_type} needs a reset: {error}");
        } else {
            debug!("Virtio device of type {device_type} needs a reset: {error}");
        }
        self.status.set_needs_reset();
        self.interrupt(VIRTIO_MMIO_INT_CONFIG);
    }

    fn notify_queue(&mut self, value: u32) {
        if let Ok(index) = usize::try_from(value)
            && index < self.queues.len()
            && self.status.is_live()
        {
            self.signal_queue(index);
        }
    }

    fn signal_queue(&self, index: usize) {
        // A counter that is full has been signalled already.
        if let Err(error) = self.queue_events[index].write(1) {
            debug!("Virtio: event of queue {index}: {error}");
        }
    }

    fn interrupt(&mut self, cause: u32) {
        self.interrupt_status |= cause;
        if let Err(error) = self.line.trigger() {
            debug!("Virtio: interrupt: {error}");
        }
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    fn selected_queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }
}

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device.read_config(offset, data);
        } else if let (Ok(offset), Ok(word)) =
            (u32::try_from(offset), <&mut [u8; 4]>::try_from(data))
        {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if self.status.takes_config() {
                self.device.write_config(offset, data);
            }
        } else if let (Ok(offset), Ok(word)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

/// The lower and the upper half of a 64-bit register.
fn halves(value: u64) -> [u32; 2] {
    let mut bytes = [[0; 4]; 2];
    bytes.as_flattened_mut().copy_from_slice(&value.to_le_bytes());
    bytes.map(u32::from_le_bytes)
}
