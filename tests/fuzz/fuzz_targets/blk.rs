//! The block device against any driver: chains of any descriptors, completions in any order, resets in
//! between. Nothing panics, nothing that reaches the backend leaves the disk, and what is under way is
//! bounded.
#![no_main]

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use devices::bus::BusDevice;
use devices::interrupt::InterruptLine;
use devices::virtio::blk::{
    Block, BlockBackend, Completion, Failed, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, Operation, Request,
};
use devices::virtio::mmio::MmioTransport;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SECTORS: u64 = 4096;
const MEMORY: usize = 0x2_0000;
const QUEUE_SIZE: u16 = 256;
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

#[derive(Debug)]
struct Backend {
    desk: Arc<Mutex<(Vec<Request>, Vec<Completion>)>>,
    writable: bool,
    event: UnixStream,
}

impl BlockBackend for Backend {
    fn sectors(&self) -> u64 {
        SECTORS
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn id(&self) -> [u8; 20] {
        [b'x'; 20]
    }

    fn submit(&mut self, request: Request) {
        self.desk.lock().unwrap().0.push(request);
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn wake(&self) {}

    fn completion(&mut self) -> Option<Completion> {
        self.desk.lock().unwrap().1.pop()
    }
}

fn write(transport: &mut MmioTransport<Block>, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

fn start(transport: &mut MmioTransport<Block>) {
    for (offset, value) in [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x38, u32::from(QUEUE_SIZE)),
        (0x80, TABLE as u32),
        (0x90, AVAILABLE as u32),
        (0xa0, USED as u32),
        (0x44, 1),
        (0x70, 15),
    ] {
        write(transport, offset, value);
    }
}

fn check(requests: &[Request], writable: bool) {
    assert!(requests.len() <= MAX_IN_FLIGHT);
    let mut bytes = 0;
    for request in requests {
        let (offset, length) = match &request.operation {
            Operation::Read { offset, length } => {
                bytes += length;
                (*offset, *length as u64)
            }
            Operation::Write { offset, data } => {
                bytes += data.len();
                (*offset, data.len() as u64)
            }
            Operation::Zero { offset, length } => (*offset, *length),
            Operation::Flush => continue,
        };
        assert!(length > 0 && length % 512 == 0 && offset % 512 == 0);
        assert!(offset + length <= SECTORS * 512);
        assert!(writable || matches!(request.operation, Operation::Read { .. }));
    }
    assert!(bytes <= MAX_IN_FLIGHT_BYTES);
}

fuzz_target!(|input: &[u8]| {
    let Some((&first, mut rest)) = input.split_first() else { return };
    let writable = first & 1 != 0;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let desk = Arc::<Mutex<(Vec<Request>, Vec<Completion>)>>::default();
    // Never waited for.
    let event = UnixStream::pair().unwrap().0;
    let block = Block::new(Box::new(Backend { desk: desk.clone(), writable, event }));
    let line = InterruptLine::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let mut transport = MmioTransport::new(block, memory.clone(), line).unwrap();
    start(&mut transport);
    // The input is acts: a byte, and what it takes.
    let mut available = 0_u16;
    while let Some((&act, after)) = rest.split_first() {
        rest = after;
        match act % 8 {
            // Somewhere in memory, up to 32 bytes.
            0..=3 => {
                let Some((place, after)) = rest.split_first_chunk::<2>() else { break };
                let (data, after) = after.split_at(after.len().min(usize::from(act >> 3)));
                let place = u64::from(u16::from_le_bytes(*place));
                let _ = memory.write(data, GuestAddress(place));
                rest = after;
            }
            4 | 5 => {
                let Some((head, after)) = rest.split_first_chunk::<2>() else { break };
                let slot = AVAILABLE + 4 + 2 * u64::from(available % QUEUE_SIZE);
                memory.write_slice(head, GuestAddress(slot)).unwrap();
                available = available.wrapping_add(1);
                memory.write_obj(available, GuestAddress(AVAILABLE + 2)).unwrap();
                transport.handle_queue_event(0);
                rest = after;
            }
            6 => {
                let request = desk.lock().unwrap().0.pop();
                if let Some(Request { tag, operation }) = request {
                    let result = match operation {
                        Operation::Read { length, .. } if act < 128 => Ok(vec![act; length]),
                        _ if act < 128 => Ok(Vec::new()),
                        _ => Err(Failed),
                    };
                    desk.lock().unwrap().1.push(Completion { tag, result });
                }
                transport.handle_host_event();
            }
            _ => {
                if act & 0x80 != 0 {
                    start(&mut transport);
                    available = 0;
                    memory.write_obj(0_u16, GuestAddress(AVAILABLE + 2)).unwrap();
                } else {
                    let mut data = vec![0; usize::from(act >> 3)];
                    transport.read(0x100 + u64::from(act), &mut data);
                }
            }
        }
        check(&desk.lock().unwrap().0, writable);
    }
});
