//! The entropy device as its driver sees it, through the MMIO transport and the rings.

use std::io;

use devices::virtio::VirtioDevice;
use devices::virtio::rng::{MAX_REQUEST_BYTES, MAX_REQUESTS, Rng};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{
    AVAILABLE, BUFFERS, DRIVER_OK, FEATURES_OK, HOLE, INDIRECT, INTERRUPT_STATUS, MARK, MARKED,
    NEEDS_RESET, NEXT, QUEUE_NOTIFY, QUEUE_SIZE, RngDriver, STATUS, TABLE, TAKEN, USED, WRITE,
    memory,
};

fn started() -> RngDriver {
    RngDriver::started(Rng::with_source(MARKED))
}

#[test]
fn a_request_is_filled_with_the_hosts_entropy_and_interrupts() {
    let mut driver = RngDriver::started(Rng::new());
    driver.request(&[(BUFFERS, 5000, WRITE)]);
    assert_eq!(driver.used(), [(0, 5000)]);
    assert_eq!(driver.interrupt.read().unwrap(), 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    driver.write(0x64, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);

    let bytes = driver.bytes(BUFFERS, 5001);
    let distinct: std::collections::BTreeSet<u8> = bytes[..5000].iter().copied().collect();
    assert!(distinct.len() > 200, "{} distinct bytes", distinct.len());
    assert!(bytes[4992..5000].iter().any(|&byte| byte != 0));
    assert_eq!(bytes[5000], 0);

    driver.request(&[(BUFFERS, 5000, WRITE)]);
    assert_ne!(driver.bytes(BUFFERS, 5000), bytes[..5000]);
    assert_eq!(driver.used().len(), 2);
}

#[test]
fn the_device_is_an_entropy_device_without_configuration() {
    let mut driver = started();
    assert_eq!(driver.read(0x08), 4);
    driver.write(0x100, 0);
    assert_eq!(driver.read(0x100), u32::MAX);
    driver.write(0x14, 0);
    assert_eq!(driver.read(0x10), 0);
    assert_eq!(Rng::default().features(), 0);
}

#[test]
fn descriptors_the_device_may_not_write_are_skipped() {
    let mut driver = started();
    driver.request(&[
        (BUFFERS, 16, NEXT),
        (BUFFERS + 0x1000, 16, NEXT | WRITE),
        (BUFFERS + 0x2000, 16, NEXT),
        (BUFFERS + 0x3000, 16, WRITE),
    ]);
    assert_eq!(driver.used(), [(0, 32)]);
    for (page, expected) in [(0, 0), (1, MARK), (2, 0), (3, MARK)] {
        assert_eq!(driver.bytes(BUFFERS + page * 0x1000, 16), [expected; 16]);
    }
    driver.request(&[(BUFFERS, 16, 0)]);
    assert_eq!(driver.used()[1], (0, 0));
}

#[test]
fn overlapping_descriptors_do_not_multiply_the_work() {
    let mut driver = started();
    let limit = u32::try_from(MAX_REQUEST_BYTES).unwrap();
    driver.request(&[(BUFFERS, limit - 1, NEXT | WRITE); 200]);
    driver.request(&[(BUFFERS, u32::MAX, WRITE)]);
    assert_eq!(driver.used(), [(0, limit), (0, limit)]);
    assert_eq!(TAKEN.get(), 2 * MAX_REQUEST_BYTES);
    assert_eq!(driver.bytes(BUFFERS + u64::from(limit), 1), [0]);
}

#[test]
fn a_descriptor_outside_memory_ends_the_request_before_it() {
    let cases = [
        (vec![(HOLE, 16, WRITE)], 0),
        (vec![(u64::MAX - 3, 16, WRITE)], 0),
        (vec![(HOLE - 100, 5000, WRITE)], 100),
        (vec![(BUFFERS, 16, WRITE | NEXT), (HOLE, 16, WRITE | NEXT), (BUFFERS, 16, WRITE)], 16),
    ];
    for (descriptors, length) in cases {
        let mut driver = started();
        driver.request(&descriptors);
        assert_eq!(driver.used(), [(0, length)], "{descriptors:x?}");
        assert_eq!(driver.read(STATUS), DRIVER_OK);
    }
}

#[test]
fn a_chain_that_loops_ends() {
    let mut driver = started();
    let table = GuestAddress(TABLE);
    let own_successor = Descriptor::new(BUFFERS, 1, NEXT | WRITE, 0);
    driver.memory.write_obj(RawDescriptor::from(own_successor), table).unwrap();
    driver.offer(0);
    driver.write(QUEUE_NOTIFY, 0);
    assert!(driver.serve());
    assert_eq!(driver.used(), [(0, u32::from(QUEUE_SIZE))]);
}

#[test]
fn a_huge_indirect_table_is_not_walked_to_its_end() {
    let mut driver = started();
    // Every entry of the table is the same descriptor, an indirect one in turn or a plain one.
    for (flags, length) in [(INDIRECT, 0), (NEXT | WRITE, u32::from(QUEUE_SIZE))] {
        let entry = RawDescriptor::from(Descriptor::new(BUFFERS, 1, flags, 1));
        driver.memory.write_obj(entry, GuestAddress(0x8_0000)).unwrap();
        let next = RawDescriptor::from(Descriptor::new(BUFFERS, 1, flags, 0));
        driver.memory.write_obj(next, GuestAddress(0x8_0010)).unwrap();
        driver.request(&[(0x8_0000, 0xffff0, INDIRECT)]);
        assert_eq!(driver.used().last(), Some(&(0, length)));
    }
}

#[test]
fn one_turn_serves_a_bounded_number_of_requests_and_asks_for_another() {
    let mut driver = started();
    let requests = 2 * MAX_REQUESTS + 3;
    driver.write_chain(0, &[(BUFFERS, 8, WRITE)]);
    for _ in 0..requests {
        driver.offer(0);
    }
    driver.write(QUEUE_NOTIFY, 0);
    for served in [MAX_REQUESTS, 2 * MAX_REQUESTS, requests] {
        assert!(driver.serve());
        assert_eq!(driver.used().len(), served);
    }
    assert!(!driver.serve());
}

#[test]
fn the_rings_wrap_around() {
    let mut driver = started();
    driver.write_chain(7, &[(BUFFERS, 8, WRITE)]);
    for _ in 0..2 * QUEUE_SIZE {
        driver.offer(7);
        driver.transport.handle_queue_event(0);
    }
    let used: u16 = driver.memory.read_obj(GuestAddress(USED + 2)).unwrap();
    assert_eq!(used, 2 * QUEUE_SIZE);
    assert_eq!(driver.read(STATUS), DRIVER_OK);
}

#[test]
fn a_notification_without_requests_does_not_interrupt() {
    let mut driver = started();
    driver.write(QUEUE_NOTIFY, 0);
    assert!(driver.serve());
    assert!(driver.interrupt.read().is_err());
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
}

#[test]
fn broken_rings_need_a_reset_after_which_the_device_works_again() {
    let breakages: [fn(&mut RngDriver); 2] =
        [|driver| driver.offer(QUEUE_SIZE), |driver| driver.set_available(QUEUE_SIZE + 1)];
    for breakage in breakages {
        let mut driver = started();
        breakage(&mut driver);
        driver.write(QUEUE_NOTIFY, 0);
        assert!(driver.serve());
        assert_eq!(driver.read(STATUS), DRIVER_OK | NEEDS_RESET);
        assert_eq!(driver.read(INTERRUPT_STATUS), 2);
        assert!(driver.used().is_empty());
        driver.write(QUEUE_NOTIFY, 0);
        assert!(!driver.serve());

        driver.start();
        driver.request(&[(BUFFERS, 16, WRITE)]);
        assert_eq!(driver.used(), [(0, 16)]);
    }
}

#[test]
fn a_host_without_entropy_gives_none_and_needs_a_reset() {
    let mut driver = RngDriver::started(Rng::with_source(|_| Err(io::ErrorKind::Other.into())));
    driver.request(&[(BUFFERS, 16, WRITE)]);
    assert!(driver.used().is_empty());
    assert_eq!(driver.read(STATUS), DRIVER_OK | NEEDS_RESET);
}

#[test]
fn a_device_without_its_queue_does_not_start() {
    let mut driver = RngDriver::new(Rng::new(), memory());
    driver.negotiate();
    driver.write(STATUS, DRIVER_OK);
    assert_eq!(driver.read(STATUS), FEATURES_OK | NEEDS_RESET);

    let memory = memory();
    for index in [0, 1] {
        let error = Rng::new().process_queue(index, &memory).unwrap_err();
        assert_eq!(error.to_string(), format!("Queue {index} is not ready"));
    }
}

#[test]
fn a_head_beyond_the_table_is_named() {
    let driver = started();
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    let mut rng = Rng::with_source(MARKED);
    rng.activate(0, vec![queue]).unwrap();

    driver.memory.write_obj(QUEUE_SIZE, GuestAddress(AVAILABLE + 4)).unwrap();
    driver.set_available(1);
    let error = rng.process_queue(0, &driver.memory).unwrap_err();
    assert_eq!(error.to_string(), "Queue 0 of 256 descriptors offers a chain at descriptor 256");
    rng.reset();
    let error = rng.process_queue(0, &driver.memory).unwrap_err();
    assert_eq!(error.to_string(), "Queue 0 is not ready");
}
