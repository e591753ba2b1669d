//! Drivers of the socket device that keep to no rule, and one that does while everything happens in any
//! order.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::num::Wrapping;

use devices::virtio::vsock::Settings;
use devices::virtio::vsock::packet::{Header, Operation};
use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{DRIVER_OK, NEXT, STATUS, WRITE};
use crate::vsock_driver::{CID, Driver, PACKET, SIZES, available, data, packet, table, used};

/// The queues that the driver has set up, as a transport hands them to a device.
pub fn queues() -> Vec<Queue> {
    let make = |index: usize| {
        let mut queue = Queue::new(SIZES[index]).unwrap();
        queue.try_set_desc_table_address(GuestAddress(table(index))).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(available(index))).unwrap();
        queue.try_set_used_ring_address(GuestAddress(used(index))).unwrap();
        queue.set_ready(true);
        queue
    };
    (0..3).map(make).collect()
}

/// Few connections, so that random packets hit them.
fn settings() -> Settings {
    Settings { max_connections: 4, max_handshakes: 2, ..Settings::default() }
}

fn header() -> impl Strategy<Value = Header> {
    let cid = |usual: u64| prop_oneof![20 => Just(usual), 1 => any::<u64>()];
    let number = || prop_oneof![Just(0_u32), Just(65536), 0_u32..70_000, any::<u32>()];
    let ports = (9_u32..12, prop_oneof![4 => Just(80_u32), 2 => Just(1 << 30), 1 => any::<u32>()]);
    (
        (cid(CID.into()), cid(2)),
        ports,
        prop_oneof![20 => Just(1_u16), 1 => any::<u16>()],
        prop_oneof![20 => 1_u16..8, 1 => any::<u16>()],
        prop_oneof![4 => 0_u32..5000, 1 => any::<u32>()],
        prop_oneof![Just(0_u32), 0_u32..4, any::<u32>()],
        (number(), number()),
    )
        .prop_map(|(cids, ports, kind, operation, length, flags, credit)| Header {
            source_cid: cids.0,
            destination_cid: cids.1,
            source_port: ports.0,
            destination_port: ports.1,
            length,
            kind,
            operation,
            flags,
            room: credit.0,
            forwarded: credit.1,
        })
}

fn descriptors() -> impl Strategy<Value = Vec<(u64, u32, u16)>> {
    let address = prop_oneof![
        8 => Just(PACKET), 2 => Just(PACKET + 44), 1 => 0_u64..0x50_0000, 1 => any::<u64>(),
    ];
    let length = prop_oneof![4 => Just(44_u32), 4 => 0_u32..5000, 1 => any::<u32>()];
    let flags = prop_oneof![6 => Just(0_u16), 4 => Just(NEXT), 1 => Just(WRITE), 1 => any::<u16>()];
    vec((address, length, flags), 1..5)
}

#[derive(Clone, Debug)]
enum Act {
    Packet(Header),
    Chain(usize, u16, Vec<(u64, u32, u16)>),
    Scribble(u64, Vec<u8>),
    HostConnects(u32),
    HostWrites(usize),
    HostReads,
    HostCloses,
}

fn act() -> impl Strategy<Value = Act> {
    let place = (0_usize..3, prop_oneof![0_u64..64, 0x4000_u64..0x4010, 0x8000_u64..0x8010])
        .prop_map(|(queue, offset)| table(queue) + offset);
    prop_oneof![
        12 => header().prop_map(Act::Packet),
        4 => (0_usize..3, 0_u16..20, descriptors()).prop_map(|(queue, head, chain)| Act::Chain(queue, head, chain)),
        1 => (place, vec(any::<u8>(), 1..8)).prop_map(|(place, bytes)| Act::Scribble(place, bytes)),
        2 => (9_u32..12).prop_map(Act::HostConnects),
        3 => (1_usize..5000).prop_map(Act::HostWrites),
        2 => Just(Act::HostReads),
        1 => Just(Act::HostCloses),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_does_the_device_is_bounded_and_usable(acts in vec(act(), 0..60)) {
        let mut driver = Driver::new(settings(), 8);
        let listener = driver.listener(80);
        listener.set_nonblocking(true).unwrap();
        let mut hosts = VecDeque::new();
        for act in acts {
            match act {
                Act::Packet(header) => driver.send(&header, &[1; 3000]),
                Act::Chain(queue, head, chain) => {
                    if head + 5 < SIZES[queue] {
                        driver.offer(queue, head, &chain);
                    }
                    driver.write(0x50, u32::try_from(queue).unwrap());
                }
                Act::Scribble(place, bytes) => {
                    driver.memory.write_slice(&bytes, GuestAddress(place)).unwrap();
                    for queue in 0..3 {
                        driver.transport.handle_queue_event(queue);
                    }
                }
                Act::HostConnects(port) => {
                    let host = driver.host(format!("CONNECT {port}\n").as_bytes());
                    host.set_nonblocking(true).unwrap();
                    hosts.push_back(host);
                }
                Act::HostWrites(count) => if let Some(host) = hosts.front_mut() {
                    let _ = host.write(&vec![2; count]);
                },
                Act::HostReads => if let Some(host) = hosts.front_mut() {
                    let _ = host.read(&mut [0; 5000]);
                },
                Act::HostCloses => { hosts.pop_front(); }
            }
            while let Ok((host, _)) = listener.accept() {
                host.set_nonblocking(true).unwrap();
                hosts.push_back(host);
            }
            // It comes to rest: whatever it waits for, it does not spin.
            driver.settle();
            let counts = driver.transport.device().counters().counts();
            prop_assert!(counts.open <= 4);
        }
        driver.start();
        driver.offer_buffers(8);
        drop(hosts);
        driver.packets();
        driver.send(&packet(Operation::Request, 999, 80), &[]);
        prop_assert_eq!(driver.expect(Operation::Response).destination_port, 999);
        prop_assert_eq!(driver.read(STATUS), DRIVER_OK);
    }
}

/// A step of an honest guest and an honest program of the host.
#[derive(Clone, Copy, Debug)]
enum Step {
    HostWrites(usize),
    HostReads(usize),
    GuestSends(usize),
    GuestReads(usize),
    Buffers,
}

fn step() -> impl Strategy<Value = Step> {
    let count = || prop_oneof![1_usize..100, 1_usize..20_000];
    prop_oneof![
        count().prop_map(Step::HostWrites),
        count().prop_map(Step::HostReads),
        count().prop_map(Step::GuestSends),
        count().prop_map(Step::GuestReads),
        Just(Step::Buffers),
    ]
}

/// Bytes that tell their place.
fn pattern(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|at| (at ^ at >> 8 ^ at >> 16).to_le_bytes()[0]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Nothing is lost, doubled or out of order, whoever waits for whom; no side is sent more than it has
    /// room for; and in the end all arrives.
    #[test]
    fn streams_arrive_whole(room in prop_oneof![100_u32..2000, Just(65536_u32)], steps in vec(step(), 0..120)) {
        let mut driver = Driver::new(Settings::default(), 0);
        let listener = driver.listener(80);
        driver.offer_buffers(3);
        driver.send(&Header { room, ..packet(Operation::Request, 9, 80) }, &[]);
        let header = driver.expect(Operation::Response);
        let (mut host, _) = listener.accept().unwrap();
        host.set_nonblocking(true).unwrap();

        // Bytes to the guest: written, come, read by its program. From it: sent, known to be passed on, read.
        let (mut written, mut come, mut consumed) = (0, 0, 0);
        let (mut sent, mut read, mut told) = (0, 0, (header.room, header.forwarded));
        let credit = |consumed: usize| Header {
            room, forwarded: u32::try_from(consumed).unwrap(), ..packet(Operation::CreditUpdate, 9, 80)
        };
        let finish = [Step::HostReads(1 << 20), Step::GuestReads(1 << 20), Step::Buffers];
        let last = std::iter::repeat_n(finish, 20_000).flatten();
        for (number, step) in steps.iter().copied().chain(last).enumerate() {
            if number >= steps.len() && come == written && consumed == come && read == sent {
                break;
            }
            match step {
                Step::HostWrites(count) => if let Ok(count) = host.write(&pattern(written, count)) {
                    written += count;
                },
                Step::HostReads(count) => {
                    let mut bytes = vec![0; count];
                    if let Ok(count) = host.read(&mut bytes) {
                        prop_assert_eq!(&bytes[..count], pattern(read, count));
                        read += count;
                    }
                }
                Step::GuestSends(count) => {
                    let waiting = Wrapping(u32::try_from(sent).unwrap()) - Wrapping(told.1);
                    let allowed = usize::try_from(told.0 - waiting.0).unwrap();
                    let count = count.min(allowed);
                    if count > 0 {
                        let header = Header { room: credit(consumed).room,
                            forwarded: credit(consumed).forwarded, ..data(9, 80, count) };
                        driver.send(&header, &pattern(sent, count));
                        sent += count;
                    }
                }
                Step::GuestReads(count) => {
                    consumed += count.min(come - consumed);
                    driver.send(&credit(consumed), &[]);
                }
                Step::Buffers => {}
            }
            for (header, content) in driver.packets() {
                told = (header.room, header.forwarded);
                let operation = Operation::of(header.operation);
                prop_assert!(matches!(operation,
                    Some(Operation::Data | Operation::CreditUpdate | Operation::CreditRequest)), "{header:?}");
                prop_assert_eq!(&content, &pattern(come, content.len()));
                come += content.len();
                prop_assert!(come - consumed <= room as usize, "more than there is room for");
            }
        }
        prop_assert_eq!((come, read), (written, sent));
    }
}
