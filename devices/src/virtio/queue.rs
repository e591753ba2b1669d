//! The registers by which a driver sets up one split virtqueue (virtio 1.2, sections 2.7 and
//! 4.2.2).

use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Why a queue cannot be made ready.
#[derive(Debug, Error)]
pub(super) enum QueueError {
    #[error("Size {0} is no power of two up to the largest size")]
    Size(u32),
    #[error("{part} at {address:#x} is not aligned")]
    Alignment { part: &'static str, address: u64 },
    #[error("{part} at {address:#x}, {length:#x} bytes, is not in guest memory")]
    Outside { part: &'static str, address: u64, length: usize },
}

/// One 32-bit half of an address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

/// The registers of one queue, as the driver left them.
#[derive(Clone, Debug)]
pub(super) struct QueueRegisters {
    max_size: u16,
    pub(super) size: u32,
    pub(super) descriptor_table: u64,
    pub(super) driver_area: u64,
    pub(super) device_area: u64,
    ready: bool,
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: u32::from(max_size),
            descriptor_table: 0,
            driver_area: 0,
            device_area: 0,
            ready: false,
        }
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Declares the queue ready, or not any more.
    pub(super) fn set_ready(
        &mut self,
        ready: bool,
        memory: &GuestMemoryMmap,
    ) -> Result<(), QueueError> {
        if ready {
            self.build_ready(memory)?;
        }
        self.ready = ready;
        Ok(())
    }

    /// Makes the queue for the device. It is checked again: what was in order when the queue was
    /// declared ready is not taken on trust.
    pub(super) fn build(&self, memory: &GuestMemoryMmap) -> Result<Queue, QueueError> {
        if self.ready { self.build_ready(memory) } else { self.build_unready() }
    }

    fn build_unready(&self) -> Result<Queue, QueueError> {
        Queue::new(self.max_size).map_err(|_| QueueError::Size(u32::from(self.max_size)))
    }

    fn build_ready(&self, memory: &GuestMemoryMmap) -> Result<Queue, QueueError> {
        let mut queue = self.build_unready()?;
        u16::try_from(self.size)
            .ok()
            .and_then(|size| queue.try_set_size(size).ok())
            .ok_or(QueueError::Size(self.size))?;

        let (table, driver, device) = (self.descriptor_table, self.driver_area, self.device_area);
        let misaligned = |part, address| move |_| QueueError::Alignment { part, address };
        queue
            .try_set_desc_table_address(GuestAddress(table))
            .map_err(misaligned("Descriptor table", table))?;
        queue
            .try_set_avail_ring_address(GuestAddress(driver))
            .map_err(misaligned("Driver area", driver))?;
        queue
            .try_set_used_ring_address(GuestAddress(device))
            .map_err(misaligned("Device area", device))?;

        // Lengths of section 2.7, with the event field at the end of both rings.
        let size = usize::from(queue.size());
        for (part, address, length, access) in [
            ("Descriptor table", table, 16 * size, Permissions::Read),
            ("Driver area", driver, 6 + 2 * size, Permissions::Read),
            ("Device area", device, 6 + 8 * size, Permissions::Write),
        ] {
            if !GuestMemory::check_range(memory, GuestAddress(address), length, access) {
                return Err(QueueError::Outside { part, address, length });
            }
        }
        queue.set_ready(true);
        Ok(queue)
    }
}

/// Writes one half of an address register.
pub(super) fn set_half(address: &mut u64, half: Half, value: u32) {
    let value = u64::from(value);
    *address = match half {
        Half::Low => *address & !0xffff_ffff | value,
        Half::High => *address & 0xffff_ffff | value << 32,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut QueueRegisters);

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    fn registers() -> QueueRegisters {
        QueueRegisters {
            size: 16,
            descriptor_table: 0x1000,
            driver_area: 0x2000,
            device_area: 0x3000,
            ..QueueRegisters::new(256)
        }
    }

    fn refusal(change: impl FnOnce(&mut QueueRegisters)) -> String {
        let mut registers = registers();
        change(&mut registers);
        let error = registers.set_ready(true, &memory()).unwrap_err();
        assert!(!registers.is_ready());
        error.to_string()
    }

    #[test]
    fn a_ready_queue_is_built_as_registered() {
        let mut registers = registers();
        assert!(!registers.build(&memory()).unwrap().ready());
        registers.set_ready(true, &memory()).unwrap();
        let queue = registers.build(&memory()).unwrap();
        assert!(queue.ready());
        assert_eq!((queue.size(), queue.max_size()), (16, 256));
        assert_eq!(
            (queue.desc_table(), queue.avail_ring(), queue.used_ring()),
            (0x1000, 0x2000, 0x3000)
        );
        registers.set_ready(false, &memory()).unwrap();
        assert!(!registers.is_ready());
        registers.reset();
        assert_eq!((registers.size, registers.device_area), (256, 0));
    }

    #[test]
    fn bad_sizes_are_refused() {
        for size in [0, 3, 255, 512, 0x1_0000, 0x1_0010, u32::MAX] {
            assert!(refusal(|queue| queue.size = size).starts_with("Size"), "{size}");
        }
    }

    #[test]
    fn misaligned_areas_are_refused() {
        for (message, change) in [
            ("Descriptor table at 0x1008 is not", (|q| q.descriptor_table += 8) as Change),
            ("Driver area at 0x2001 is not", |q| q.driver_area += 1),
            ("Device area at 0x3002 is not", |q| q.device_area += 2),
        ] {
            assert!(refusal(change).starts_with(message), "{message}");
        }
    }

    #[test]
    fn areas_that_leave_memory_by_a_byte_or_wrap_are_refused() {
        for (message, change) in [
            ("Descriptor table at 0xff10", (|q| q.descriptor_table = 0xff10) as Change),
            ("Driver area at 0xffdc", |q| q.driver_area = 0xffdc),
            ("Device area at 0xff7c", |q| q.device_area = 0xff7c),
            ("Device area at 0xfffffffffffffffc", |q| q.device_area = !3),
            ("Descriptor table at 0x100000000", |q| q.descriptor_table = 1 << 32),
        ] {
            assert!(refusal(change).starts_with(message), "{message}");
        }
        let mut last = registers();
        last.descriptor_table = 0xff00;
        last.set_ready(true, &memory()).unwrap();
    }

    #[test]
    fn halves_of_an_address_are_written_apart() {
        let mut address = 0;
        set_half(&mut address, Half::High, 0x1234_5678);
        set_half(&mut address, Half::Low, 0x9abc_def0);
        assert_eq!(address, 0x1234_5678_9abc_def0);
        set_half(&mut address, Half::High, 0);
        assert_eq!(address, 0x9abc_def0);
    }
}
