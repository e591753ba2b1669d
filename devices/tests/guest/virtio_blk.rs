//! The block device as its driver sees it, over a backend that completes when the test says so; and a
//! driver that keeps to no rule.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use devices::bus::BusDevice;
use devices::interrupt::InterruptLine;
use devices::virtio::blk::{
    Block, BlockBackend, Completion, Failed, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, MAX_REQUEST_BYTES,
    Operation, Request,
};
use devices::virtio::mmio::MmioTransport;
use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::DescriptorTable;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver::{
    AVAILABLE, BUFFERS, DRIVER_OK, FEATURES_OK, HOLE, INDIRECT, NEEDS_RESET, NEXT, QUEUE_NOTIFY,
    QUEUE_SIZE, STATUS, TABLE, USED, WRITE, memory,
};

const SECTORS: u64 = 64;
const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const HEADER: u64 = BUFFERS;
const STATUS_BYTE: u64 = BUFFERS + 0x100;

const DATA: u64 = BUFFERS + 0x1000;
const UNTOUCHED: u8 = 0xee;

fn halves(number: u64) -> [u32; 2] {
    let bytes = number.to_le_bytes();
    [0, 1].map(|half: usize| u32::from_le_bytes(bytes.as_chunks::<4>().0[half]))
}

/// What the test sees of the backend.
#[derive(Debug, Default)]
struct Desk {
    submitted: Vec<Request>,
    completed: Vec<Completion>,
}

#[derive(Debug)]
struct Backend {
    desk: Arc<Mutex<Desk>>,
    writable: bool,
    event: Arc<Event>,
}

/// Readable while it was signalled, and not yet cleared.
#[derive(Debug)]
struct Event(UnixStream, UnixStream);

impl Event {
    fn new() -> Self {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        Self(here, there)
    }

    fn signal(&self) {
        (&self.1).write_all(&[1]).unwrap();
    }

    /// Clears it; says whether it was signalled.
    fn clear(&self) -> bool {
        let mut signalled = false;
        while (&self.0).read(&mut [0; 64]).is_ok() {
            signalled = true;
        }
        signalled
    }
}

impl BlockBackend for Backend {
    fn sectors(&self) -> u64 {
        SECTORS
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn id(&self) -> [u8; 20] {
        *b"twenty bytes of name"
    }

    fn submit(&mut self, request: Request) {
        self.desk.lock().unwrap().submitted.push(request);
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.0.as_fd()
    }

    fn wake(&self) {
        self.event.signal();
    }

    fn completion(&mut self) -> Option<Completion> {
        let next = self.desk.lock().unwrap().completed.pop();
        if next.is_none() {
            self.event.clear();
        }
        next
    }
}

struct Driver {
    transport: MmioTransport<Block>,
    memory: GuestMemoryMmap,
    interrupt: EventFd,
    desk: Arc<Mutex<Desk>>,
    event: Arc<Event>,
    available: u16,
}

impl Driver {
    fn new(writable: bool) -> Self {
        let (memory, desk) = (memory(), Arc::<Mutex<Desk>>::default());
        let event = Arc::new(Event::new());
        let backend = Backend { desk: desk.clone(), writable, event: event.clone() };
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = InterruptLine::new(interrupt.try_clone().unwrap());
        let block = Block::new(Box::new(backend));
        let transport = MmioTransport::new(block, memory.clone(), line).unwrap();
        let mut driver = Self { transport, memory, interrupt, desk, event, available: 0 };
        driver.start();
        driver
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn start(&mut self) {
        for status in [0, 1, 3] {
            self.write(STATUS, status);
        }
        // All that it offers, and version 1.
        self.write(0x14, 0);
        let features = self.read(0x10);
        for (select, features) in [(0, features), (1, 1)] {
            self.write(0x24, select);
            self.write(0x20, features);
        }
        self.write(STATUS, FEATURES_OK);
        for (offset, value) in [
            (0x30, 0),
            (0x38, u64::from(QUEUE_SIZE)),
            (0x80, TABLE),
            (0x90, AVAILABLE),
            (0xa0, USED),
            (0x44, 1),
        ] {
            self.write(offset, u32::try_from(value).unwrap());
        }
        self.memory.write_slice(&[0; 0x3000], GuestAddress(TABLE)).unwrap();
        self.available = 0;
        self.write(STATUS, DRIVER_OK);
        assert_eq!(self.read(STATUS), DRIVER_OK);
        self.memory.write_slice(&[UNTOUCHED; 0x2000], GuestAddress(BUFFERS)).unwrap();
    }

    fn header(&self, kind: u32, sector: u64) {
        let [low, high] = halves(sector);
        let words = [kind, 0, low, high];
        self.memory.write_obj(words, GuestAddress(HEADER)).unwrap();
    }

    fn offer(&mut self, head: u16, descriptors: &[(u64, u32, u16)]) {
        let table = DescriptorTable::new(&self.memory, GuestAddress(TABLE), QUEUE_SIZE);
        for (index, &(address, length, flags)) in (head..).zip(descriptors) {
            let descriptor = Descriptor::new(address, length, flags, index + 1);
            table.store(index, RawDescriptor::from(descriptor)).unwrap();
        }
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write_obj(self.available, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    fn serve(&mut self) {
        self.write(QUEUE_NOTIFY, 0);
        while self.transport.queue_event(0).read().is_ok() {
            self.transport.handle_queue_event(0);
        }
    }

    /// One request, its data at `DATA`.
    fn request(&mut self, kind: u32, sector: u64, data: Option<(u32, u16)>) {
        self.header(kind, sector);
        let mut descriptors = vec![(HEADER, 16, NEXT)];
        descriptors.extend(data.map(|(length, flags)| (DATA, length, flags | NEXT)));
        descriptors.push((STATUS_BYTE, 1, WRITE));
        self.offer(0, &descriptors);
        self.serve();
    }

    fn submitted(&self) -> Vec<Request> {
        std::mem::take(&mut self.desk.lock().unwrap().submitted)
    }

    fn complete(&mut self, request: &Request, result: Result<Vec<u8>, Failed>) {
        let completion = Completion { tag: request.tag, result };
        self.desk.lock().unwrap().completed.push(completion);
        self.event.signal();
        self.handle_host_event();
    }

    /// As the event loop would: for as long as there is something.
    fn handle_host_event(&mut self) {
        while self.event.clear() {
            self.event.signal();
            self.transport.handle_host_event();
        }
    }

    fn used(&self) -> Vec<(u32, u32)> {
        let count: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        let ring = (0..u64::from(count)).map(|index| GuestAddress(USED + 4 + 8 * index));
        ring.map(|element| self.memory.read_obj::<[u32; 2]>(element).unwrap().into()).collect()
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn status(&self) -> u8 {
        self.bytes(STATUS_BYTE, 1)[0]
    }
}

#[test]
fn a_read_is_answered_when_its_backend_is_done() {
    let mut driver = Driver::new(false);
    driver.request(READ, 3, Some((1024, WRITE)));
    let submitted = driver.submitted();
    assert!(matches!(submitted[0].operation, Operation::Read { offset: 1536, length: 1024 }));
    assert!(driver.used().is_empty());
    assert!(driver.interrupt.read().is_err());
    driver.complete(&submitted[0], Ok(vec![7; 1024]));
    assert_eq!(driver.used(), [(0, 1025)]);
    assert_eq!(driver.interrupt.read().unwrap(), 1);
    assert_eq!((driver.status(), driver.bytes(DATA, 1024)), (0, vec![7; 1024]));
    assert_eq!(driver.bytes(DATA + 1024, 1), [UNTOUCHED]);
    // A second completion of the same request is nobody's.
    driver.complete(&submitted[0], Ok(vec![8; 1024]));
    assert_eq!(driver.used().len(), 1);
}

#[test]
fn writes_carry_the_bytes_of_their_time() {
    let mut driver = Driver::new(true);
    driver.memory.write_slice(&[5; 512], GuestAddress(DATA)).unwrap();
    driver.request(WRITE_OUT, 63, Some((512, 0)));
    driver.memory.write_slice(&[6; 512], GuestAddress(DATA)).unwrap();
    let submitted = driver.submitted();
    let Operation::Write { offset, data } = &submitted[0].operation else { panic!() };
    assert_eq!((*offset, data), (63 * 512, &vec![5; 512]));
    driver.complete(&submitted[0], Err(Failed));
    assert_eq!((driver.used(), driver.status()), (vec![(0, 1)], 1));
    driver.request(FLUSH, 0, None);
    let submitted = driver.submitted();
    assert!(matches!(submitted[0].operation, Operation::Flush));
    driver.complete(&submitted[0], Ok(Vec::new()));
    assert_eq!((driver.used().len(), driver.status()), (2, 0));
}

#[test]
fn ranges_are_made_zero() {
    let mut driver = Driver::new(true);
    for (kind, flags, sector, count, outcome) in [
        (DISCARD, 0, 8_u64, 16_u32, None),
        (WRITE_ZEROES, 1, 0, 64, None),
        (WRITE_ZEROES, 0, 63, 1, None),
        (DISCARD, 1, 8, 16, Some(2)),
        (WRITE_ZEROES, 2, 8, 16, Some(2)),
        (DISCARD, 0, 8, 57, Some(1)),
        (DISCARD, 0, u64::MAX, 1, Some(1)),
        (DISCARD, 0, 0, 0, Some(1)),
        (DISCARD, 0, 0, u32::MAX, Some(1)),
    ] {
        let [low, high] = halves(sector);
        let words = [low, high, count, flags];
        driver.memory.write_obj(words, GuestAddress(DATA)).unwrap();
        driver.request(kind, 0, Some((16, 0)));
        let submitted = driver.submitted();
        if let Some(status) = outcome {
            assert!(submitted.is_empty());
            assert_eq!(driver.status(), status, "{kind} {flags} {sector} {count}");
        } else {
            let Operation::Zero { offset, length } = submitted[0].operation else { panic!() };
            assert_eq!((offset, length), (sector * 512, u64::from(count) * 512));
            driver.complete(&submitted[0], Ok(Vec::new()));
            assert_eq!(driver.status(), 0);
        }
    }
    driver.request(DISCARD, 0, Some((32, 0)));
    assert_eq!(driver.status(), 1);
}

#[test]
fn the_configuration_and_the_id_are_the_backends() {
    for (writable, expected) in [(false, 1 << 5), (true, 1 << 9 | 1 << 13 | 1 << 14)] {
        let mut driver = Driver::new(writable);
        driver.write(0x14, 0);
        let features = driver.read(0x10);
        assert_eq!(features & (1 << 5 | 1 << 9 | 1 << 13 | 1 << 14), expected);
        assert_eq!((driver.read(0x08), driver.read(0x100), driver.read(0x104)), (2, 64, 0));
        assert_eq!(driver.read(0x114), 512);
        let (size_max, seg_max) = (driver.read(0x108), driver.read(0x10c));
        assert!(u64::from(size_max) * u64::from(seg_max) <= MAX_REQUEST_BYTES as u64);
        driver.request(GET_ID, 0, Some((20, WRITE)));
        assert_eq!(
            (driver.status(), driver.bytes(DATA, 20)),
            (0, b"twenty bytes of name".to_vec())
        );
        driver.request(GET_ID, 0, Some((5, WRITE)));
        assert_eq!(driver.bytes(DATA, 20)[..5], *b"twent");
    }
}

#[test]
fn requests_that_make_no_sense_never_reach_the_backend() {
    let mut driver = Driver::new(true);
    let limit = u32::try_from(MAX_REQUEST_BYTES).unwrap();
    for (kind, sector, data) in [
        (READ, 0, None),
        (READ, 64, Some((512, WRITE))),
        (READ, 63, Some((1024, WRITE))),
        (READ, u64::MAX, Some((512, WRITE))),
        (READ, 0, Some((511, WRITE))),
        (READ, 0, Some((limit + 512, WRITE))),
        (READ, 0, Some((512, 0))),
        (WRITE_OUT, 0, Some((512, WRITE))),
        (WRITE_OUT, 0, Some((100, 0))),
        (WRITE_OUT, 64, Some((512, 0))),
        (WRITE_OUT, 0, None),
    ] {
        driver.start();
        driver.request(kind, sector, data);
        assert!(driver.submitted().is_empty(), "{kind} {sector} {data:?}");
        assert_eq!((driver.used().len(), driver.status()), (1, 1), "{kind} {sector} {data:?}");
    }
    driver.request(99, 0, Some((512, WRITE)));
    assert_eq!(driver.status(), 2);

    let mut driver = Driver::new(false);
    for kind in [WRITE_OUT, DISCARD] {
        driver.request(kind, 0, Some((512, 0)));
        assert!(driver.submitted().is_empty());
        assert_ne!(driver.status(), 0);
    }
}

#[test]
fn descriptors_that_make_no_sense_use_their_request_up() {
    let chains: [&[(u64, u32, u16)]; 9] = [
        &[(HEADER, 16, 0)],
        &[(HEADER, 15, NEXT), (STATUS_BYTE, 1, WRITE)],
        &[(STATUS_BYTE, 1, WRITE)],
        &[(STATUS_BYTE, 1, WRITE | NEXT), (HEADER, 16, 0)],
        &[(HOLE, 16, NEXT), (STATUS_BYTE, 1, WRITE)],
        &[(u64::MAX - 3, 16, NEXT), (STATUS_BYTE, 1, WRITE)],
        &[(HEADER, 16, NEXT), (DATA, 512, WRITE | NEXT), (HOLE, 1, WRITE)],
        &[(HEADER, 0, NEXT), (STATUS_BYTE, 0, WRITE)],
        &[(HEADER, 16, INDIRECT)],
    ];
    for chain in chains {
        let mut driver = Driver::new(true);
        driver.header(READ, 0);
        driver.offer(0, chain);
        driver.serve();
        for request in driver.submitted() {
            driver.complete(&request, Ok(vec![1; 512]));
        }
        assert_eq!(driver.used().len(), 1, "{chain:x?}");
        assert_eq!(driver.read(STATUS), DRIVER_OK);
        driver.start();
        driver.request(READ, 0, Some((512, WRITE)));
        assert_eq!(driver.submitted().len(), 1);
    }
}

#[test]
fn a_read_that_leaves_guest_memory_is_an_error_there() {
    let mut driver = Driver::new(false);
    driver.header(READ, 0);
    driver
        .offer(0, &[(HEADER, 16, NEXT), (HOLE - 100, 512, WRITE | NEXT), (STATUS_BYTE, 1, WRITE)]);
    driver.serve();
    let submitted = driver.submitted();
    driver.complete(&submitted[0], Ok(vec![1; 512]));
    assert_eq!((driver.used(), driver.status()), (vec![(0, 1)], 1));
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let mut driver = Driver::new(false);
    driver.header(READ, 2);
    driver.offer(
        0,
        &[
            (HEADER, 5, NEXT),
            (HEADER + 5, 11, NEXT),
            (DATA, 100, WRITE | NEXT),
            (DATA + 100, 413, WRITE),
        ],
    );
    driver.serve();
    let submitted = driver.submitted();
    assert!(matches!(submitted[0].operation, Operation::Read { offset: 1024, length: 512 }));
    driver.complete(&submitted[0], Ok((0..=255).chain(0..=255).collect()));
    let expected: Vec<u8> = (0..=255).chain(0..=255).chain([0]).collect();
    assert_eq!(driver.bytes(DATA, 513), expected);
    assert_eq!(driver.used(), [(0, 513)]);
}

#[test]
fn what_completes_after_a_reset_changes_nothing() {
    let mut driver = Driver::new(false);
    driver.request(READ, 0, Some((512, WRITE)));
    let before = driver.submitted();
    driver.start();
    driver.complete(&before[0], Ok(vec![1; 512]));
    assert!(driver.used().is_empty());
    assert_eq!(driver.bytes(DATA, 512), [UNTOUCHED; 512]);
    // Nor does it complete the request that took its place.
    driver.request(READ, 1, Some((512, WRITE)));
    let now = driver.submitted();
    driver.complete(&before[0], Ok(vec![1; 512]));
    assert!(driver.used().is_empty());
    driver.complete(&now[0], Ok(vec![2; 512]));
    assert_eq!(driver.bytes(DATA, 512), [2; 512]);
}

#[test]
fn what_is_under_way_is_bounded_also_over_resets_and_the_rest_waits() {
    let mut driver = Driver::new(false);
    let mut held = Vec::new();
    for _ in 0..5 {
        driver.header(READ, 0);
        for head in 0..80 {
            driver.offer(
                3 * head,
                &[(HEADER, 16, NEXT), (DATA, 512, WRITE | NEXT), (STATUS_BYTE, 1, WRITE)],
            );
        }
        driver.serve();
        held.extend(driver.submitted());
        assert_eq!(held.len(), MAX_IN_FLIGHT);
        driver.start();
    }
    driver.header(READ, 0);
    for head in 0..80 {
        driver.offer(
            3 * head,
            &[(HEADER, 16, NEXT), (DATA, 512, WRITE | NEXT), (STATUS_BYTE, 1, WRITE)],
        );
    }
    driver.serve();
    // As those of the past end, the others get on, with no word of the driver.
    let mut done = 0;
    while let Some(request) = held.pop() {
        driver.complete(&request, Ok(vec![1; 512]));
        held.extend(driver.submitted());
        done += 1;
        assert!(done < 1000);
    }
    assert_eq!(driver.used().len(), 80);
}

#[test]
fn the_bytes_under_way_are_bounded() {
    let mut driver = Driver::new(true);
    driver.header(WRITE_OUT, 0);
    let whole = u32::try_from(SECTORS * 512).unwrap();
    for head in 0..80 {
        let chain = [(HEADER, 16, NEXT), (DATA, whole, NEXT), (STATUS_BYTE, 1, WRITE)];
        driver.offer(3 * head, &chain);
    }
    driver.serve();
    let bytes: usize = driver
        .submitted()
        .iter()
        .map(|request| match &request.operation {
            Operation::Write { data, .. } => data.len(),
            _ => panic!(),
        })
        .sum();
    assert!(bytes > 0 && bytes <= MAX_IN_FLIGHT_BYTES, "{bytes}");
}

#[test]
fn broken_rings_need_a_reset() {
    let mut driver = Driver::new(false);
    driver.offer(QUEUE_SIZE, &[]);
    driver.serve();
    assert_eq!(driver.read(STATUS), DRIVER_OK | NEEDS_RESET);
    driver.start();
    driver.request(READ, 0, Some((512, WRITE)));
    assert_eq!(driver.submitted().len(), 1);
}

proptest! {
    #[test]
    fn a_driver_that_keeps_to_no_rule_harms_itself_only(
        chains in prop::collection::vec(
            (
                prop::collection::vec((
                    prop_oneof![
                        4 => BUFFERS..BUFFERS + 0x3000,
                        1 => HOLE - 600..HOLE + 10,
                        1 => any::<u64>(),
                        1 => TABLE..TABLE + 0x3000,
                    ],
                    prop_oneof![4 => 0..1100_u32, 1 => any::<u32>(), 2 => Just(512_u32), 2 => Just(16_u32)],
                    prop_oneof![3 => Just(NEXT), 3 => Just(NEXT | WRITE), 1 => 0..8_u16],
                ), 0..8),
                (0..16_u32, prop_oneof![0..70_u64, any::<u64>()]),
                0..4_u8,
            ), 1..40),
        writable in any::<bool>(),
    ) {
        let mut driver = Driver::new(writable);
        let mut held: Vec<Request> = Vec::new();
        for (index, (chain, (kind, sector), act)) in chains.into_iter().enumerate() {
            driver.header(kind, sector);
            driver.offer(u16::try_from(index * 6).unwrap(), &chain);
            driver.serve();
            held.extend(driver.submitted());
            prop_assert!(held.len() <= MAX_IN_FLIGHT);
            for request in &held {
                let (offset, length) = match &request.operation {
                    Operation::Read { offset, length } => (*offset, *length as u64),
                    Operation::Write { offset, data } => (*offset, data.len() as u64),
                    Operation::Zero { offset, length } => (*offset, *length),
                    Operation::Flush => continue,
                };
                prop_assert!(length > 0 && length % 512 == 0 && offset % 512 == 0);
                prop_assert!(offset + length <= SECTORS * 512);
                let reads = matches!(request.operation, Operation::Read { .. });
                prop_assert!(writable || reads);
            }
            match act {
                0 => driver.start(),
                1 => {
                    if let Some(request) = held.pop() {
                        let data = match request.operation {
                            Operation::Read { length, .. } => vec![3; length],
                            _ => Vec::new(),
                        };
                        driver.complete(&request, Ok(data));
                    }
                }
                _ => {}
            }
        }
        for request in held.drain(..) {
            driver.complete(&request, Err(Failed));
        }
        driver.start();
        for request in driver.submitted() {
            driver.complete(&request, Err(Failed));
        }
        driver.request(READ, 0, Some((512, WRITE)));
        prop_assert_eq!(driver.submitted().len(), 1);
    }
}
