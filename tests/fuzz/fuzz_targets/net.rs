//! What a guest does to its network device, and the network to both: rings and frames of any content, with
//! filters, limits, answers to DHCP and virtual identifiers switched on as the input says.

#![no_main]

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use devices::bus::BusDevice;
use devices::interrupt::InterruptLine;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::net::dhcp::Lease;
use devices::virtio::net::identifiers::{Identifiers, Receive};
use devices::virtio::net::limit::Limit;
use devices::virtio::net::mac::MacAddress;
use devices::virtio::net::tap::{Offloads, Tap};
use devices::virtio::net::{MAX_FRAMES, Net, NetConfig};
use endpoint::frames::mark;
use endpoint::range::{Form, Range};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SIZE: usize = 0x1_0000;
const RINGS: [u64; 2] = [0x1000, 0x3000];

#[derive(Debug)]
struct Cable(UnixDatagram);

impl AsFd for Cable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Tap for Cable {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }

    fn transmit(&mut self, frame: &[u8]) -> io::Result<()> {
        let is_vid = (0..3).any(|request| frame[18..24] == range(request).first().bytes());
        let is_answer = mark::read(&frame[12..]).is_some();
        assert!(frame[18..24] == MAC || is_vid || is_answer, "somebody else's");
        Ok(())
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

fn range(request: u32) -> Range {
    Range::new(Form::Prefix, 0x12345, request, request).expect("a range")
}

/// Three identifiers, of which three bits each say whether they are there, held, and may send.
fn identifiers(bits: u16) -> Vec<Identifiers> {
    let address = |request: u32| match request {
        0 => Some([10, 7, 0, 100].into()),
        1 => Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100).into()),
        _ => None,
    };
    let some = |request: u32| {
        let bit = |n: u32| bits >> (4 * request + n) & 1 != 0;
        let receive = if bit(1) { Receive::Hold } else { Receive::Deliver };
        let range = range(request);
        bit(0).then(|| Identifiers { range, address: address(request), receive, may_send: bit(2) })
    };
    (0..3).filter_map(some).collect()
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let count = N.min(self.0.len());
        bytes[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

/// Who it is that a byte says: an identifier, or the VM.
fn sender(byte: u8) -> [u8; 6] {
    match byte {
        1..=3 => range(u32::from(byte) - 1).first().bytes(),
        _ => MAC,
    }
}

fn start(transport: &mut MmioTransport<Net>, memory: &GuestMemoryMmap, features: u32) {
    let mut write = |offset: u64, value: u32| transport.write(offset, &value.to_le_bytes());
    for (offset, value) in
        [(0x70, 0), (0x70, 3), (0x24, 0), (0x20, features), (0x24, 1), (0x20, 1), (0x70, 11)]
    {
        write(offset, value);
    }
    for (queue, base) in (0..).zip([0x1000, 0x3000]) {
        for (offset, value) in [
            (0x30, queue),
            (0x38, 16),
            (0x80, base),
            (0x90, base + 0x800),
            (0xa0, base + 0x1000),
            (0x44, 1),
        ] {
            write(offset, value);
        }
    }
    let _ = memory.write_slice(&[0; 0x4000], GuestAddress(0x1000));
    write(0x70, 15);
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let flags = input.byte();
    let on = |bit: u8| flags & 1 << bit != 0;
    let rules = |on: bool| on.then(|| "tcp:22+udp:1-100".parse().expect("rules"));
    let address = [10, 0, 0, 2].into();
    let lease = Lease { address, prefix: 24, gateway: None, dns: Vec::new(), host_name: None };
    let limit = Limit { bytes: if on(4) { 1000 } else { 0 }, burst: 1000, packets: 0 };
    let config = NetConfig {
        mac: MacAddress::new(MAC).expect("an address"),
        mtu: 1500,
        ipv4: on(0).then_some(address),
        ipv6: on(1).then(|| "fd00::2".parse().expect("an address")),
        allow_in: rules(on(2)),
        allow_out: rules(on(3)),
        receive: limit,
        send: limit,
        lease: on(5).then_some(lease),
    };
    let (near, peer) = UnixDatagram::pair().expect("sockets");
    near.set_nonblocking(true).expect("a socket");
    peer.set_nonblocking(true).expect("a socket");
    let net = Net::new(Box::new(Cable(near)), config).expect("a device");
    let (counters, table) = (net.counters(), net.identifiers());
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).expect("RAM");
    let line = InterruptLine::new(EventFd::new(EFD_NONBLOCK).expect("an event"));
    let mut transport = MmioTransport::new(net, memory.clone(), line).expect("a transport");
    let offered = 0x3000_3fff_u32 & 0x3001_f9ab | 0x8000;
    let features = if on(6) { 0x3001_b98b & offered | 0x8003 } else { 0 };
    start(&mut transport, &memory, features);
    let mut available = [0_u16; 2];

    while !input.0.is_empty() {
        let act = input.byte();
        match act % 16 {
            // A chain of one to four pieces, of whatever content.
            0..=2 => {
                let queue = usize::from(input.byte() % 2);
                let base = RINGS[queue];
                let pieces = 1 + u64::from(input.byte() % 4);
                for piece in 0..pieces {
                    let mut descriptor = [0; 16];
                    let at = 0x8000 + u64::from(input.word() & 0x7fff);
                    descriptor[..8].copy_from_slice(&at.to_le_bytes());
                    descriptor[8..10].copy_from_slice(&(input.word() & 0x0fff).to_le_bytes());
                    let chained = u8::from(piece + 1 < pieces);
                    descriptor[12] = chained | if queue == 0 { 2 } else { 0 } | input.byte() & 4 & flags;
                    descriptor[14] = u8::try_from(piece + 1).unwrap_or(0);
                    let _ = memory.write_slice(&descriptor, GuestAddress(base + 16 * piece));
                }
                let slot = base + 0x804 + 2 * u64::from(available[queue] % 16);
                let _ = memory.write_obj(0_u16, GuestAddress(slot));
                available[queue] = available[queue].wrapping_add(1);
                let _ = memory.write_obj(available[queue], GuestAddress(base + 0x802));
                transport.handle_queue_event(queue);
            }
            // A frame of the guest's, with its address or an identifier's.
            3 => {
                let length = 14 + usize::from(input.byte());
                let mut frame = vec![0; 12];
                frame.extend([0xff; 6]);
                frame.extend(sender(act >> 4));
                frame.extend(input.take(length));
                let _ = memory.write_slice(&frame, GuestAddress(0x8000));
                let mut descriptor = [0; 16];
                descriptor[1] = 0x80;
                descriptor[8..10].copy_from_slice(&u16::try_from(frame.len()).unwrap_or(0).to_le_bytes());
                let _ = memory.write_slice(&descriptor, GuestAddress(RINGS[1]));
                let slot = RINGS[1] + 0x804 + 2 * u64::from(available[1] % 16);
                let _ = memory.write_obj(0_u16, GuestAddress(slot));
                available[1] = available[1].wrapping_add(1);
                let _ = memory.write_obj(available[1], GuestAddress(RINGS[1] + 0x802));
                transport.handle_queue_event(1);
            }
            // One from the network.
            4 => {
                let length = usize::from(input.byte());
                let mut frame = input.take(length);
                if length % 2 == 0 && frame.len() > 18 {
                    frame[..12].fill(0);
                    let to = frame[18];
                    frame[12..18].copy_from_slice(&sender(to));
                    if to == 4 {
                        frame.splice(12.., mark::frame(mark::Kind::Mark, 1));
                    }
                }
                let _ = peer.send(&frame);
            }
            5 => {
                let at = 0x1000 + u64::from(input.word() & 0x3fff);
                let _ = memory.write_slice(&input.bytes::<8>(), GuestAddress(at));
            }
            6 => {
                let (offset, value) = (u64::from(input.byte()), u32::from_le_bytes(input.bytes()));
                transport.write(offset, &value.to_le_bytes());
            }
            8 => table.set(identifiers(input.word())),
            _ => {
                available = [0; 2];
                start(&mut transport, &memory, features);
            }
        }
        let before = counters.read();
        transport.handle_host_event();
        transport.handle_queue_event(0);
        let after = counters.read();
        let of_table = table.counters();
        assert!(of_table.holding + of_table.dropped <= of_table.held);
        let moved = |of: fn(&devices::virtio::net::counters::Counts) -> u64| of(&after) - of(&before);
        assert!(moved(|counts| counts.received_frames) <= 2 * MAX_FRAMES as u64);
        assert!(moved(|counts| counts.sent_frames) <= 2 * MAX_FRAMES as u64);
    }
});
