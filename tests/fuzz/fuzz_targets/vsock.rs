//! What a guest does to the socket device: packets of any content in descriptors of any kind, rings that
//! are rewritten meanwhile, while programs of the host come, write, read and go.

#![no_main]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, OnceLock};

use devices::bus::BusDevice;
use devices::interrupt::InterruptLine;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::vsock::packet::Header;
use devices::virtio::vsock::{Dialer, Settings, Vsock};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 0x4_0000;
const SIZE: u16 = 16;
/// Table, available and used ring of a queue.
const QUEUES: [u64; 3] = [0x1000, 0x2000, 0x3000];
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const PACKETS: u64 = 0x1_0000;
const MOST: usize = 4;

/// Connects the guest to programs that are ends of pairs.
#[derive(Debug, Default, Clone)]
struct Pairs(Arc<Mutex<VecDeque<UnixStream>>>);

impl Dialer for Pairs {
    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        if port % 4 == 3 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        self.0.lock().expect("no panic").push_back(theirs);
        Ok(ours)
    }
}

/// Takes bytes from the input; zeros when it is used up.
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

    /// A header that is often one of a connection.
    fn header(&mut self) -> Header {
        let [cid, ports, kind, operation, flags, credit] = self.bytes();
        let number = |choice: u8, any: u16| match choice % 4 {
            0 => 0,
            1 => 1 << 16,
            2 => u32::MAX,
            _ => any.into(),
        };
        Header {
            source_cid: if cid == 255 { 4 } else { 3 },
            destination_cid: if cid == 254 { 5 } else { 2 },
            source_port: u32::from(ports % 4),
            destination_port: if ports & 0x80 == 0 { u32::from(ports >> 4) } else { (1 << 30) + u32::from(ports >> 4 & 7) },
            length: u32::from(self.word()),
            kind: if kind > 250 { kind.into() } else { 1 },
            operation: u16::from(operation % 9),
            flags: u32::from(flags % 5),
            room: number(credit, self.word()),
            forwarded: number(credit >> 2, self.word()),
        }
    }
}

struct Guest {
    transport: MmioTransport<Vsock>,
    memory: GuestMemoryMmap,
    available: [u16; 3],
}

impl Guest {
    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn start(&mut self) {
        for status in [0, 1, 3] {
            self.write(0x70, status);
        }
        self.write(0x24, 1);
        self.write(0x20, 1);
        self.write(0x70, 11);
        for (queue, base) in (0_u32..).zip(QUEUES) {
            self.memory.write_slice(&[0; 0xc00], GuestAddress(base)).expect("RAM");
            self.write(0x30, queue);
            self.write(0x38, SIZE.into());
            for (register, address) in [(0x80, base), (0x90, base + AVAILABLE), (0xa0, base + USED)] {
                self.write(register, address as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.available = [0; 3];
        self.write(0x70, 15);
        for head in 0..SIZE / 2 {
            self.offer(0, head, &[(0x2_0000 + 0x1000 * u64::from(head), 0x1000, 2)]);
        }
    }

    fn offer(&mut self, queue: usize, head: u16, descriptors: &[(u64, u32, u16)]) {
        let base = QUEUES[queue];
        for (index, (address, length, flags)) in (head..).zip(descriptors) {
            let at = base + 16 * u64::from(index % SIZE);
            let _ = self.memory.write_obj(*address, GuestAddress(at));
            let _ = self.memory.write_obj(*length, GuestAddress(at + 8));
            let _ = self.memory.write_obj(*flags, GuestAddress(at + 12));
            let _ = self.memory.write_obj((index + 1) % SIZE, GuestAddress(at + 14));
        }
        let slot = base + AVAILABLE + 4 + 2 * u64::from(self.available[queue] % SIZE);
        let _ = self.memory.write_obj(head, GuestAddress(slot));
        self.available[queue] = self.available[queue].wrapping_add(1);
        let _ = self.memory.write_obj(self.available[queue], GuestAddress(base + AVAILABLE + 2));
    }

    /// A few turns of the event loop.
    fn turn(&mut self) {
        for _ in 0..4 {
            for queue in 0..3 {
                self.transport.handle_queue_event(queue);
            }
            self.transport.handle_host_event();
        }
    }
}

/// One socket for all runs, to which programs of the host connect.
fn listener() -> &'static (UnixListener, std::path::PathBuf) {
    static LISTENER: OnceLock<(UnixListener, std::path::PathBuf)> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("vsock-fuzz-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        (UnixListener::bind(&path).expect("a socket"), path)
    })
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("RAM");
    let (listener, path) = listener();
    let (listener, pairs) = (listener.try_clone().expect("a descriptor"), Pairs::default());
    let settings =
        Settings { max_connections: MOST, max_handshakes: 2, buffer_bytes: 4096, ..Settings::default() };
    let device = Vsock::with_settings(3, listener, Box::new(pairs.clone()), settings).expect("a device");
    let counters = device.counters();
    let line = InterruptLine::new(EventFd::new(EFD_NONBLOCK).expect("an event"));
    let transport = MmioTransport::new(device, memory.clone(), line).expect("a transport");
    let mut guest = Guest { transport, memory, available: [0; 3] };
    guest.start();

    while !input.0.is_empty() {
        match input.byte() % 12 {
            0..=3 => {
                // A whole packet.
                let header = input.header();
                let _ = guest.memory.write_slice(&header.encode(), GuestAddress(PACKETS));
                let content = (PACKETS + 44, header.length.min(0x3000), 0);
                guest.offer(1, 0, &[(PACKETS, 44, 1), content]);
            }
            4 => {
                let queue = usize::from(input.byte() % 3);
                let head = u16::from(input.byte() % 16);
                let mut chain = Vec::new();
                for _ in 0..1 + input.byte() % 3 {
                    let address = u64::from(input.word()) << 2;
                    chain.push((address, u32::from(input.word()), u16::from(input.byte() % 8)));
                }
                guest.offer(queue, head, &chain);
            }
            5 => {
                let at = u64::from(input.word()) % 0x4000;
                let _ = guest.memory.write_slice(&input.bytes::<8>(), GuestAddress(at));
            }
            6 => {
                if let Ok(mut host) = UnixStream::connect(path) {
                    let _ = host.set_nonblocking(true);
                    let port = input.byte() % 4;
                    let words = match input.byte() % 4 {
                        0 => "CONN".into(),
                        1 => "something else\n".into(),
                        _ => format!("CONNECT {port}\n"),
                    };
                    let _ = host.write(words.as_bytes());
                    pairs.0.lock().expect("no panic").push_back(host);
                }
            }
            7 => {
                let length = usize::from(input.word());
                if let Some(host) = pairs.0.lock().expect("no panic").front_mut() {
                    let _ = host.write(&vec![1; length]);
                }
            }
            8 => {
                if let Some(host) = pairs.0.lock().expect("no panic").front_mut() {
                    let _ = host.read(&mut [0; 3000]);
                }
            }
            9 => {
                let mut hosts = pairs.0.lock().expect("no panic");
                let end = hosts.pop_front();
                if input.byte() % 2 == 0 {
                    hosts.extend(end);
                }
            }
            10 => {
                if input.byte() % 8 == 0 {
                    guest.start();
                }
            }
            _ => guest.turn(),
        }
        if input.byte() % 2 == 0 {
            guest.turn();
        }
        assert!(counters.counts().open <= MOST as u64);
    }
    // Whatever happened, a reset makes all well: nobody is connected, and a packet is answered.
    drop(pairs.0.lock().expect("no panic").drain(..));
    guest.start();
    assert_eq!(counters.counts().open, 0);
    let before = counters.counts().packets_to_guest;
    let header = Header {
        source_cid: 3,
        destination_cid: 2,
        source_port: 99,
        destination_port: 99,
        kind: 1,
        operation: 5,
        ..Header::default()
    };
    let _ = guest.memory.write_slice(&header.encode(), GuestAddress(PACKETS));
    guest.offer(1, 0, &[(PACKETS, 44, 0)]);
    guest.turn();
    assert!(counters.counts().packets_to_guest > before);
});
