//! A driver of the network device, and the other end of its cable.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use devices::bus::BusDevice;
use devices::interrupt::InterruptLine;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::net::counters::Counts;
use devices::virtio::net::identifiers::IdentifierTable;
use devices::virtio::net::limit::Limit;
use devices::virtio::net::tap::{Offloads, Tap};
use devices::virtio::net::{Net, NetConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::DescriptorTable;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver::{DRIVER_OK, FEATURES_OK, QUEUE_NOTIFY, QUEUE_SIZE, STATUS, memory};

pub const RX: u64 = 0;
pub const TX: u64 = 1;
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Where queue `n` has its table and rings.
pub const RINGS: u64 = 0x1000;
const RINGS_EACH: u64 = 0x4000;
pub const EVENT_IDX: u64 = 1 << 29;
pub const MERGE: u64 = 1 << 15;

/// What the tests see of the host's interface.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub offloads: Arc<Mutex<Vec<Offloads>>>,
    pub gone: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Cable {
    socket: UnixDatagram,
    host: Host,
}

impl AsFd for Cable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Tap for Cable {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.host.gone.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.socket.recv(buffer)
    }

    fn transmit(&mut self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(|_| ())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.host.offloads.lock().unwrap().push(offloads);
        Ok(())
    }
}

pub fn config() -> NetConfig {
    NetConfig {
        mac: devices::virtio::net::mac::MacAddress::new(MAC).unwrap(),
        mtu: 1500,
        ipv4: None,
        ipv6: None,
        allow_in: None,
        allow_out: None,
        receive: Limit::default(),
        send: Limit::default(),
        lease: None,
    }
}

pub struct NetDriver {
    pub transport: MmioTransport<Net>,
    pub memory: GuestMemoryMmap,
    pub interrupt: EventFd,
    /// The other end.
    pub peer: UnixDatagram,
    pub host: Host,
    pub identifiers: IdentifierTable,
    counters: Arc<devices::virtio::net::counters::Counters>,
    available: [u16; 2],
}

/// A frame from `source` to `destination` with a header of zeros before it.
pub fn frame(destination: [u8; 6], source: [u8; 6], length: usize) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(destination);
    frame.extend(source);
    frame.extend([0x12, 0x34]);
    frame.extend((0..length).map(|n| u8::try_from(n % 251).unwrap()));
    frame
}

impl NetDriver {
    pub fn new(config: NetConfig) -> Self {
        let (near, peer) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        let host = Host::default();
        let net = Net::new(Box::new(Cable { socket: near, host: host.clone() }), config).unwrap();
        let (counters, identifiers) = (net.counters(), net.identifiers());
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = InterruptLine::new(interrupt.try_clone().unwrap());
        let memory = memory();
        let transport = MmioTransport::new(net, memory.clone(), line).unwrap();
        Self { transport, memory, interrupt, peer, host, identifiers, counters, available: [0; 2] }
    }

    pub fn started(config: NetConfig, features: u64) -> Self {
        let mut driver = Self::new(config);
        driver.start(features);
        driver
    }

    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Resets the device and starts it with empty queues.
    pub fn start(&mut self, features: u64) {
        for status in [0, 1, 3] {
            self.write(STATUS, status);
        }
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32 | 1)] {
            self.write(0x24, select);
            self.write(0x20, u32::try_from(half).unwrap());
        }
        self.write(STATUS, FEATURES_OK);
        assert_eq!(self.read(STATUS), FEATURES_OK);
        for queue in [RX, TX] {
            let base = RINGS + queue * RINGS_EACH;
            self.memory.write_slice(&[0; 0x3000], GuestAddress(base)).unwrap();
            for (offset, value) in [
                (0x30, queue),
                (0x38, QUEUE_SIZE.into()),
                (0x80, base),
                (0x90, base + 0x1000),
                (0xa0, base + 0x2000),
                (0x44, 1),
            ] {
                self.write(offset, u32::try_from(value).unwrap());
            }
            assert_eq!(self.read(0x44), 1);
        }
        self.available = [0; 2];
        self.write(STATUS, DRIVER_OK);
        assert_eq!(self.read(STATUS), DRIVER_OK);
    }

    /// Writes a chain of descriptors (address, length, flags) from `head` on and offers it.
    pub fn offer(&mut self, queue: u64, head: u16, descriptors: &[(u64, u32, u16)]) {
        let base = RINGS + queue * RINGS_EACH;
        let table = DescriptorTable::new(&self.memory, GuestAddress(base), QUEUE_SIZE);
        for (index, &(address, length, flags)) in (head..).zip(descriptors) {
            let descriptor = Descriptor::new(address, length, flags, index + 1);
            table.store(index, RawDescriptor::from(descriptor)).unwrap();
        }
        let available = &mut self.available[usize::try_from(queue).unwrap()];
        let slot = base + 0x1004 + 2 * u64::from(*available % QUEUE_SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        *available = available.wrapping_add(1);
        self.memory.store(*available, GuestAddress(base + 0x1002), Ordering::Release).unwrap();
    }

    pub fn notify(&mut self, queue: u64) {
        self.write(QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// Whether the host's side of the device has something to do, at once or within a minute.
    pub fn host_ready(&self, wait: bool) -> bool {
        let event = self.transport.host_event().unwrap();
        let timeout = Timespec { tv_sec: if wait { 60 } else { 0 }, tv_nsec: 0 };
        poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout)).unwrap() > 0
    }

    /// Does what the event loop does until there is nothing to do; how many turns that were.
    pub fn run(&mut self) -> usize {
        for turn in 0..1000 {
            let mut busy = false;
            for queue in [RX, TX] {
                let queue = usize::try_from(queue).unwrap();
                if self.transport.queue_event(queue).read().is_ok() {
                    self.transport.handle_queue_event(queue);
                    busy = true;
                }
            }
            if self.host_ready(false) {
                self.transport.handle_host_event();
                busy = true;
            }
            if !busy {
                return turn;
            }
        }
        panic!("the device never rests");
    }

    /// Heads and lengths of the used chains.
    pub fn used(&self, queue: u64) -> Vec<(u32, u32)> {
        let base = RINGS + queue * RINGS_EACH + 0x2000;
        let count: u16 = self.memory.read_obj(GuestAddress(base + 2)).unwrap();
        let ring = (0..u64::from(count)).map(|index| GuestAddress(base + 4 + 8 * index));
        ring.map(|element| self.memory.read_obj::<[u32; 2]>(element).unwrap().into()).collect()
    }

    /// Where the device wants the next notification (`avail_event`).
    pub fn wants_notification_at(&self, queue: u64) -> u16 {
        let at = RINGS + queue * RINGS_EACH + 0x2004 + 8 * u64::from(QUEUE_SIZE);
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Sends `frame`, which has its header, and serves.
    pub fn send(&mut self, frame: &[u8]) {
        self.memory.write_slice(frame, GuestAddress(0x2_0000)).unwrap();
        self.offer(TX, 0, &[(0x2_0000, u32::try_from(frame.len()).unwrap(), 0)]);
        self.notify(TX);
        self.run();
    }

    /// What arrived at the other end.
    pub fn arrived(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        std::iter::from_fn(|| {
            let length = self.peer.recv(&mut buffer).ok()?;
            Some(buffer[..length].to_vec())
        })
        .collect()
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}
