//! A driver of the socket device that does what a test says, and the folder with the device's sockets.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use devices::bus::BusDevice;
use devices::interrupt::InterruptLine;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, Operation, STREAM};
use devices::virtio::vsock::{Settings, SocketPrefix, Vsock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::DescriptorTable;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver::{DRIVER_OK, FEATURES_OK, NEXT, QUEUE_NOTIFY, STATUS, WRITE};

pub const CID: u32 = 3;
pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;
pub const EVENT: usize = 2;
pub const SIZES: [u16; 3] = [256, 256, 16];

pub const MEMORY: usize = 4 << 20;
/// Where a packet is written, for the device to take.
pub const PACKET: u64 = 0x10_0000;
/// Buffers for packets from the device, and where they begin.
const BUFFER: u64 = 0x1000;
const BUFFERS: u64 = 0x20_0000;
const EVENTS: u64 = 0x8000;

pub fn table(queue: usize) -> u64 {
    0x1_0000 + 0x1_0000 * queue as u64
}
pub fn available(queue: usize) -> u64 {
    table(queue) + 0x4000
}
pub fn used(queue: usize) -> u64 {
    table(queue) + 0x8000
}

/// A driver; it answers nothing by itself.
pub struct Driver {
    pub transport: MmioTransport<Vsock>,
    pub memory: GuestMemoryMmap,
    pub folder: TempDir,
    available: [u16; 3],
    seen: [u16; 3],
}

impl Driver {
    /// A device whose driver has not started.
    pub fn idle(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let dialer = Box::new(SocketPrefix::new(path));
        let device = Vsock::with_settings(CID, listener, dialer, settings).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = InterruptLine::new(interrupt);
        let transport = MmioTransport::new(device, memory.clone(), line).unwrap();
        Self { transport, memory, folder, available: [0; 3], seen: [0; 3] }
    }

    /// A started one, with buffers for `buffers` packets.
    pub fn new(settings: Settings, buffers: u16) -> Self {
        let mut driver = Self::idle(settings);
        driver.start();
        driver.offer_buffers(buffers);
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

    pub fn start(&mut self) {
        for status in [0, 1, 3] {
            self.write(STATUS, status);
        }
        for (select, features) in [(0, 0), (1, 1)] {
            self.write(0x24, select);
            self.write(0x20, features);
        }
        self.write(STATUS, FEATURES_OK);
        for (queue, size) in SIZES.into_iter().enumerate() {
            let zeros = vec![0; 0xc000];
            self.memory.write_slice(&zeros, GuestAddress(table(queue))).unwrap();
            let number = u32::try_from(queue).unwrap();
            self.write(0x30, number);
            self.write(0x38, size.into());
            for (offset, address) in
                [(0x80, table(queue)), (0x90, available(queue)), (0xa0, used(queue))]
            {
                self.write(offset, u32::try_from(address).unwrap());
                self.write(offset + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.available = [0; 3];
        self.seen = [0; 3];
        self.write(STATUS, DRIVER_OK);
        assert_eq!(self.read(STATUS), DRIVER_OK);
    }

    /// Makes a chain of descriptors (address, length, flags) available, without a word to the device.
    pub fn offer(&mut self, queue: usize, head: u16, descriptors: &[(u64, u32, u16)]) {
        let size = SIZES[queue];
        let descriptor_table = DescriptorTable::new(&self.memory, GuestAddress(table(queue)), size);
        for (index, &(address, length, flags)) in (head..).zip(descriptors) {
            let descriptor = Descriptor::new(address, length, flags, index + 1);
            descriptor_table.store(index, RawDescriptor::from(descriptor)).unwrap();
        }
        let slot = available(queue) + 4 + 2 * u64::from(self.available[queue] % size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        let index = GuestAddress(available(queue) + 2);
        self.memory.store(self.available[queue], index, Ordering::Release).unwrap();
    }

    /// Offers this many buffers for packets from the device; each is used over and over.
    pub fn offer_buffers(&mut self, count: u16) {
        for number in 0..count {
            self.offer_buffer(number);
        }
        self.write(QUEUE_NOTIFY, 0);
    }

    fn offer_buffer(&mut self, number: u16) {
        let address = BUFFERS + BUFFER * u64::from(number);
        self.offer(RECEIVE, number, &[(address, u32::try_from(BUFFER).unwrap(), WRITE)]);
    }

    pub fn offer_event_buffer(&mut self) {
        self.offer(EVENT, 0, &[(EVENTS, 8, WRITE)]);
        self.write(QUEUE_NOTIFY, 2);
    }

    /// Serves what was signalled, until nothing is any more.
    pub fn settle(&mut self) {
        loop {
            let mut idle = true;
            for queue in 0..3 {
                if self.transport.queue_event(queue).read().is_ok() {
                    self.transport.handle_queue_event(queue);
                    idle = false;
                }
            }
            if self.host_is_due(Duration::ZERO) {
                self.transport.handle_host_event();
                idle = false;
            }
            if idle {
                return;
            }
        }
    }

    /// Whether the host's side is, or becomes, due.
    pub fn host_is_due(&self, wait: Duration) -> bool {
        let event = self.transport.host_event().unwrap();
        let timeout = Timespec::try_from(wait).unwrap();
        poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout)).unwrap() > 0
    }

    /// Waits for something of the host's side, and serves it.
    pub fn wait(&mut self) {
        assert!(self.host_is_due(Duration::from_secs(20)), "nothing comes");
        self.settle();
    }

    /// What the device has given back of a queue since the last look: heads and lengths.
    pub fn take_used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let index: u16 =
            self.memory.load(GuestAddress(used(queue) + 2), Ordering::Acquire).unwrap();
        let mut all = Vec::new();
        while self.seen[queue] != index {
            let slot = used(queue) + 4 + 8 * u64::from(self.seen[queue] % SIZES[queue]);
            let [head, length] = self.memory.read_obj::<[u32; 2]>(GuestAddress(slot)).unwrap();
            all.push((u16::try_from(head).unwrap(), length));
            self.seen[queue] = self.seen[queue].wrapping_add(1);
        }
        all
    }

    /// Packets that have come; their buffers are offered again.
    pub fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        let mut loops = 0;
        loop {
            self.settle();
            let heads = self.take_used(RECEIVE);
            if heads.is_empty() {
                return packets;
            }
            for (head, length) in heads {
                let mut bytes = vec![0; length as usize];
                let address = GuestAddress(BUFFERS + BUFFER * u64::from(head));
                self.memory.read_slice(&mut bytes, address).unwrap();
                packets.push(parse(&bytes));
                self.offer_buffer(head);
            }
            self.write(QUEUE_NOTIFY, 0);
            loops += 1;
            assert!(loops < 10_000, "packets without end");
        }
    }

    /// The next packets, for which it waits; at least one.
    pub fn some_packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        loop {
            let packets = self.packets();
            if !packets.is_empty() {
                return packets;
            }
            self.wait();
        }
    }

    /// The next packet, for which it waits, and after which none may come.
    pub fn packet(&mut self) -> (Header, Vec<u8>) {
        let mut packets = self.some_packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// The next packet, which is to be `operation`.
    pub fn expect(&mut self, operation: Operation) -> Header {
        let (header, content) = self.packet();
        assert_eq!(header.operation, operation as u16, "{header:?}");
        assert!(content.is_empty());
        header
    }

    /// Content that comes, at least `length` bytes of it; packets that carry none are an error.
    pub fn content(&mut self, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            for (header, content) in self.some_packets() {
                assert_eq!(header.operation, Operation::Data as u16, "{header:?}");
                all.extend(content);
            }
        }
        all
    }

    /// Has the device take a packet.
    pub fn send(&mut self, header: &Header, content: &[u8]) {
        self.memory.write_slice(&header.encode(), GuestAddress(PACKET)).unwrap();
        let behind = PACKET + HEADER_BYTES as u64;
        self.memory.write_slice(content, GuestAddress(behind)).unwrap();
        let length = u32::try_from(content.len()).unwrap();
        if content.is_empty() {
            self.send_descriptors(&[(PACKET, 44, 0)]);
        } else {
            self.send_descriptors(&[(PACKET, 44, NEXT), (behind, length, 0)]);
        }
    }

    /// Has the device take a packet that lies there.
    pub fn send_descriptors(&mut self, descriptors: &[(u64, u32, u16)]) {
        self.offer(TRANSMIT, 0, descriptors);
        self.write(QUEUE_NOTIFY, 1);
        self.settle();
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("v")
    }

    /// A program of the host that has connected and said `words`.
    pub fn host(&self, words: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        std::io::Write::write_all(&mut stream, words).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// One that listens for the guest.
    pub fn listener(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.folder.path().join(format!("v_{port}"))).unwrap()
    }

    /// A connection from the guest's port to a program of the host that listens.
    pub fn connect(&mut self, listener: &UnixListener, guest: u32, host: u32) -> UnixStream {
        self.send(&packet(Operation::Request, guest, host), &[]);
        self.expect(Operation::Response);
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

/// Takes a packet apart.
pub fn parse(bytes: &[u8]) -> (Header, Vec<u8>) {
    let (header, content) = bytes.split_first_chunk().expect("a header");
    let header = Header::decode(header);
    assert_eq!(header.length as usize, content.len());
    (header, content.to_vec())
}

/// A packet of a guest that has room for 64 KiB and passed nothing on.
pub fn packet(operation: Operation, guest: u32, host: u32) -> Header {
    Header {
        source_cid: CID.into(),
        destination_cid: HOST_CID,
        source_port: guest,
        destination_port: host,
        kind: STREAM,
        operation: operation as u16,
        room: 64 << 10,
        ..Header::default()
    }
}

/// One with content.
pub fn data(guest: u32, host: u32, length: usize) -> Header {
    Header { length: u32::try_from(length).unwrap(), ..packet(Operation::Data, guest, host) }
}
