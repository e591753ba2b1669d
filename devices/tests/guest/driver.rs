//! A driver of the entropy device, in a machine of two pieces of memory with a hole between.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use devices::bus::BusDevice;
use devices::interrupt::InterruptLine;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::rng::{EntropySource, Rng};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::DescriptorTable;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const QUEUE_SIZE: u16 = 256;
pub const TABLE: u64 = 0x1000;
pub const AVAILABLE: u64 = 0x2000;
pub const USED: u64 = 0x3000;
pub const BUFFERS: u64 = 0x1_0000;
/// The first address after the low memory.
pub const HOLE: u64 = 0x10_0000;
const HIGH: u64 = 0x20_0000;
const PIECE: usize = 0x10_0000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const QUEUE_NOTIFY: u64 = 0x50;
pub const INTERRUPT_STATUS: u64 = 0x60;
pub const STATUS: u64 = 0x70;
pub const FEATURES_OK: u32 = 11;
pub const DRIVER_OK: u32 = 15;
pub const NEEDS_RESET: u32 = 0x40;

thread_local! {
    /// Bytes taken from `MARKED` on this thread.
    pub static TAKEN: Cell<usize> = const { Cell::new(0) };
}

pub const MARK: u8 = 0xa5;
/// Entropy that is easy to find, and counted.
pub const MARKED: EntropySource = |buffer| {
    TAKEN.set(TAKEN.get() + buffer.len());
    buffer.fill(MARK);
    Ok(())
};

pub struct RngDriver {
    pub transport: MmioTransport<Rng>,
    pub memory: GuestMemoryMmap,
    pub interrupt: EventFd,
    available: u16,
}

pub fn memory() -> GuestMemoryMmap {
    let pieces = [(GuestAddress(0), PIECE), (GuestAddress(HIGH), PIECE)];
    GuestMemoryMmap::from_ranges(&pieces).unwrap()
}

impl RngDriver {
    pub fn new(rng: Rng, memory: GuestMemoryMmap) -> Self {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = InterruptLine::new(interrupt.try_clone().unwrap());
        let transport = MmioTransport::new(rng, memory.clone(), line).unwrap();
        Self { transport, memory, interrupt, available: 0 }
    }

    pub fn started(rng: Rng) -> Self {
        let mut driver = Self::new(rng, memory());
        driver.start();
        driver
    }

    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Resets the device and goes on until its features are settled.
    pub fn negotiate(&mut self) {
        for status in [0, 1, 3] {
            self.write(STATUS, status);
            assert_eq!(self.read(STATUS), status);
        }
        for (select, features) in [(0, 0), (1, 1)] {
            self.write(0x24, select);
            self.write(0x20, features);
        }
        self.write(STATUS, FEATURES_OK);
        assert_eq!(self.read(STATUS), FEATURES_OK);
    }

    pub fn set_up_queue(&mut self) {
        for (offset, value) in [
            (0x30, 0),
            (0x38, u64::from(QUEUE_SIZE)),
            (0x80, TABLE),
            (0x84, 0),
            (0x90, AVAILABLE),
            (0x94, 0),
            (0xa0, USED),
            (0xa4, 0),
            (0x44, 1),
        ] {
            self.write(offset, u32::try_from(value).unwrap());
        }
        assert_eq!(self.read(0x44), 1);
        self.memory.write_slice(&[0; 0x3000], GuestAddress(TABLE)).unwrap();
        self.available = 0;
    }

    /// Resets the device and starts it with an empty queue.
    pub fn start(&mut self) {
        self.negotiate();
        self.set_up_queue();
        self.write(STATUS, DRIVER_OK);
        assert_eq!(self.read(STATUS), DRIVER_OK);
    }

    /// Writes descriptors (address, length, flags), each leading to the next, from `head` on.
    pub fn write_chain(&self, head: u16, descriptors: &[(u64, u32, u16)]) {
        let table = DescriptorTable::new(&self.memory, GuestAddress(TABLE), QUEUE_SIZE);
        for (index, &(address, length, flags)) in (head..).zip(descriptors) {
            let descriptor = Descriptor::new(address, length, flags, index + 1);
            table.store(index, RawDescriptor::from(descriptor)).unwrap();
        }
    }

    /// Makes the chain that starts at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    pub fn set_available(&self, index: u16) {
        self.memory.store(index, GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
    }

    /// Serves the queue if its event was signalled, and says whether it was.
    pub fn serve(&mut self) -> bool {
        let signalled = self.transport.queue_event(0).read().is_ok();
        if signalled {
            self.transport.handle_queue_event(0);
        }
        signalled
    }

    /// Offers one chain at `head`, notifies and serves.
    pub fn request(&mut self, descriptors: &[(u64, u32, u16)]) {
        self.write_chain(0, descriptors);
        self.offer(0);
        self.write(QUEUE_NOTIFY, 0);
        assert!(self.serve());
    }

    /// Heads and lengths of the used chains.
    pub fn used(&self) -> Vec<(u32, u32)> {
        let count: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        let ring = (0..u64::from(count)).map(|index| GuestAddress(USED + 4 + 8 * index));
        ring.map(|element| self.memory.read_obj::<[u32; 2]>(element).unwrap().into()).collect()
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}
