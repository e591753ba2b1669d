//! The network device as its driver sees it, through the MMIO transport and the rings.

use std::sync::atomic::Ordering;

use devices::virtio::net::dhcp::Lease;
use devices::virtio::net::limit::Limit;
use devices::virtio::net::tap::Offloads;
use devices::virtio::net::{MAX_FRAMES, NetConfig};
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{DRIVER_OK, HOLE, NEEDS_RESET, NEXT, QUEUE_SIZE, STATUS, WRITE};
use crate::net_driver::{EVENT_IDX, MAC, MERGE, NetDriver, RINGS, RX, TX, config, frame};

const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const BUFFER: u64 = 0x3_0000;
/// Why the device interrupts: a register of the transport (virtio 1.2, 4.2.2), and a bit of it.
const INTERRUPT_STATUS: u64 = 0x60;
const CONFIG_CHANGED: u32 = 2;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;

#[test]
fn the_configuration_says_who_the_vm_is() {
    let mut driver = NetDriver::new(NetConfig { mtu: 9000, ..config() });
    assert_eq!(driver.read(0x08), 1);
    let words: Vec<u8> =
        (0..4).flat_map(|word| driver.read(0x100 + 4 * word).to_le_bytes()).collect();
    assert_eq!(words[..6], MAC);
    assert_eq!(words[6..8], [1, 0], "link up");
    assert_eq!(words[10..12], 9000_u16.to_le_bytes());
    assert_eq!(words[12..], [0xff; 4]);
}

#[test]
fn a_frame_goes_out_whole_from_pieces() {
    let mut driver = NetDriver::started(config(), 0);
    let sent = frame(PEER, MAC, 1000);
    driver.memory.write_slice(&sent, GuestAddress(BUFFER)).unwrap();
    let pieces = [(BUFFER, 5, NEXT), (BUFFER + 5, 20, NEXT), (BUFFER + 25, 1001, 0)];
    driver.offer(TX, 3, &pieces);
    driver.notify(TX);
    driver.run();
    assert_eq!(driver.arrived(), [sent]);
    assert_eq!(driver.used(TX), [(3, 0)]);
    let counts = driver.counts();
    assert_eq!((counts.sent_frames, counts.sent_bytes), (1, 1014));
    assert!(driver.interrupt.read().is_ok());
}

#[test]
fn a_frame_comes_in_over_as_many_buffers_as_it_takes() {
    let mut driver = NetDriver::started(config(), MERGE);
    let sent = frame(MAC, PEER, 300);
    for head in 0..4 {
        driver.offer(RX, head, &[(BUFFER + 0x1000 * u64::from(head), 100, WRITE)]);
    }
    driver.notify(RX);
    driver.run();
    driver.peer.send(&sent).unwrap();
    driver.run();
    assert_eq!(driver.used(RX), [(0, 100), (1, 100), (2, 100), (3, 26)]);
    let parts = [(0, 100), (1, 100), (2, 100), (3, 26)];
    let mut got: Vec<u8> =
        parts.iter().flat_map(|&(n, length)| driver.bytes(BUFFER + 0x1000 * n, length)).collect();
    assert_eq!(got[10..12], [4, 0], "buffers");
    got[10] = 0;
    assert_eq!(got, sent);
    assert_eq!(driver.counts().received_bytes, 314);
}

#[test]
fn without_merging_a_frame_that_does_not_fit_is_lost_and_the_next_is_not() {
    let mut driver = NetDriver::started(config(), 0);
    driver.offer(RX, 0, &[(BUFFER, 100, WRITE)]);
    driver.offer(RX, 1, &[(BUFFER, 50, WRITE | NEXT), (BUFFER + 50, 500, WRITE)]);
    driver.run();
    for length in [300, 301] {
        driver.peer.send(&frame(MAC, PEER, length)).unwrap();
    }
    driver.run();
    assert_eq!(driver.used(RX), [(0, 0), (1, 327)]);
    assert_eq!(driver.counts().received_dropped, 1);
}

#[test]
fn a_flood_without_buffers_neither_spins_nor_stalls() {
    for features in [MERGE, MERGE | EVENT_IDX] {
        let mut driver = NetDriver::started(config(), features);
        driver.run();
        for length in 0..5 {
            driver.peer.send(&frame(MAC, PEER, 100 + length)).unwrap();
        }
        driver.run();
        assert!(!driver.host_ready(false), "nothing can be done");
        // Too few for one frame: it waits, and asks to hear of the next.
        driver.offer(RX, 0, &[(BUFFER, 60, WRITE)]);
        driver.notify(RX);
        driver.run();
        assert!(driver.used(RX).is_empty() && !driver.host_ready(false));
        if features & EVENT_IDX != 0 {
            assert_eq!(driver.wants_notification_at(RX), 1, "of what comes next");
        }
        for head in 1..20 {
            driver.offer(RX, head, &[(BUFFER + 0x100 * u64::from(head), 100, WRITE)]);
        }
        driver.notify(RX);
        driver.run();
        assert_eq!(driver.counts().received_frames, 5);
        driver.peer.send(&frame(MAC, PEER, 10)).unwrap();
        driver.run();
        assert_eq!(driver.counts().received_frames, 6);
    }
}

#[test]
fn a_frame_larger_than_all_buffers_that_there_can_be_is_lost() {
    let mut driver = NetDriver::started(config(), MERGE);
    for head in 0..QUEUE_SIZE {
        driver.offer(RX, head, &[(BUFFER, 4, WRITE)]);
    }
    driver.notify(RX);
    driver.peer.send(&frame(MAC, PEER, 2000)).unwrap();
    driver.run();
    assert_eq!(driver.used(RX).len(), usize::from(QUEUE_SIZE));
    assert!(driver.used(RX).iter().all(|&(_, length)| length == 0));
    driver.offer(RX, 0, &[(BUFFER, 2000, WRITE)]);
    driver.notify(RX);
    driver.peer.send(&frame(MAC, PEER, 50)).unwrap();
    driver.run();
    assert_eq!(driver.counts().received_frames, 1);
}

#[test]
fn others_frames_are_not_received() {
    let mut driver = NetDriver::started(config(), 0);
    driver.offer(RX, 0, &[(BUFFER, 1000, WRITE)]);
    driver.notify(RX);
    driver.peer.send(&frame(PEER, PEER, 60)).unwrap();
    driver.peer.send(&[0; 11]).unwrap();
    driver.peer.send(&[0; 20]).unwrap();
    driver.peer.send(&frame([0xff; 6], PEER, 60)).unwrap();
    driver.run();
    let counts = driver.counts();
    assert_eq!((counts.received_frames, counts.received_dropped), (1, 3));
}

#[test]
fn a_sender_that_the_vm_is_not_is_not_heard() {
    let mut driver = NetDriver::started(config(), 0);
    driver.send(&frame(PEER, PEER, 60));
    driver.send(&[0; 11]);
    driver.send(&[]);
    let mut cut = frame(PEER, MAC, 60);
    cut[1] = 1; // Segments, which were not agreed upon
    driver.send(&cut);
    assert!(driver.arrived().is_empty());
    let counts = driver.counts();
    assert_eq!((counts.sent_spoofed, counts.sent_dropped), (1, 3));
    assert_eq!(driver.used(TX).len(), 4);
}

#[test]
fn the_host_leaves_undone_what_the_driver_takes_and_no_more() {
    let mut driver = NetDriver::started(config(), GUEST_CSUM | GUEST_TSO4);
    driver.run();
    let wanted = Offloads { checksum: true, tso4: true, ..Offloads::default() };
    assert_eq!(*driver.host.offloads.lock().unwrap(), [wanted]);
    driver.start(0);
    driver.run();
    assert_eq!(driver.host.offloads.lock().unwrap().last(), Some(&Offloads::default()));
    // One that was on its way still is not for this driver.
    driver.offer(RX, 0, &[(BUFFER, 2000, WRITE)]);
    driver.notify(RX);
    let mut large = frame(MAC, PEER, 1000);
    (large[0], large[1], large[4]) = (1, 1, 100);
    driver.peer.send(&large).unwrap();
    driver.run();
    assert_eq!(driver.counts().received_dropped, 1);
}

#[test]
fn one_turn_is_bounded_and_asks_for_another() {
    let mut driver = NetDriver::started(config(), 0);
    driver.run();
    let sent = frame(PEER, PEER, 60);
    driver.memory.write_slice(&sent, GuestAddress(BUFFER)).unwrap();
    for _ in 0..QUEUE_SIZE {
        driver.offer(TX, 0, &[(BUFFER, u32::try_from(sent.len()).unwrap(), 0)]);
    }
    driver.notify(TX);
    driver.transport.handle_queue_event(1);
    assert_eq!(driver.counts().sent_spoofed, MAX_FRAMES as u64);
    driver.run();
    assert_eq!(driver.counts().sent_spoofed, u64::from(QUEUE_SIZE));
}

#[test]
fn limits_hold_frames_back_both_ways_and_lose_none() {
    let limit = Limit { bytes: 2_000_000, burst: 20_000, packets: 0 };
    let mut driver = NetDriver::started(NetConfig { receive: limit, send: limit, ..config() }, 0);
    driver.run();
    let sent = frame(PEER, MAC, 9_986);
    driver.memory.write_slice(&sent, GuestAddress(BUFFER)).unwrap();
    let length = u32::try_from(sent.len()).unwrap();
    for _ in 0..6 {
        driver.offer(TX, 0, &[(BUFFER, length, 0)]);
    }
    for head in 0..6 {
        driver.offer(RX, head, &[(BUFFER + 0x1_0000, 20_000, WRITE)]);
    }
    for _ in 0..6 {
        driver.peer.send(&frame(MAC, PEER, 9_986)).unwrap();
    }
    driver.notify(TX);
    driver.notify(RX);
    while driver.counts().sent_frames < 6 || driver.counts().received_frames < 6 {
        driver.run();
        assert!(driver.host_ready(true), "it says when it goes on");
    }
    let counts = driver.counts();
    assert!(counts.sent_throttled > 0 && counts.received_throttled > 0, "{counts:?}");
    assert_eq!(driver.arrived().len(), 6);
}

#[test]
fn a_request_for_an_address_is_answered_and_goes_nowhere() {
    let lease = Lease {
        address: [10, 0, 0, 2].into(),
        prefix: 24,
        gateway: None,
        dns: Vec::new(),
        host_name: None,
    };
    let config = NetConfig { ipv4: Some(lease.address), lease: Some(lease), ..config() };
    let mut driver = NetDriver::started(config, 0);
    driver.offer(RX, 0, &[(BUFFER, 1500, WRITE)]);
    driver.notify(RX);
    let mut request = frame([0xff; 6], MAC, 0);
    request.truncate(24);
    request.extend([8, 0, 0x45, 0, 1, 20, 0, 0, 0, 0, 64, 17, 0, 0]);
    request.extend([0, 0, 0, 0, 255, 255, 255, 255, 0, 68, 0, 67, 1, 0, 0, 0]);
    let mut message = [0; 244];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&MAC);
    message[236..].copy_from_slice(&[99, 130, 83, 99, 53, 1, 1, 255]);
    request.extend(message);
    driver.send(&request);
    assert!(driver.arrived().is_empty());
    assert_eq!(driver.counts().dhcp_answers, 1);
    let [(0, length)] = driver.used(RX)[..] else { panic!("{:?}", driver.used(RX)) };
    let answer = driver.bytes(BUFFER, usize::try_from(length).unwrap());
    assert_eq!(answer[12..18], MAC);
    assert_eq!(answer[12 + 42 + 16..][..4], [10, 0, 0, 2], "yiaddr");
}

#[test]
fn an_interface_that_is_gone_is_down_and_silent() {
    let mut driver = NetDriver::started(config(), 0);
    driver.offer(RX, 0, &[(BUFFER, 1500, WRITE)]);
    driver.notify(RX);
    driver.host.gone.store(true, Ordering::Relaxed);
    driver.peer.send(&[1]).unwrap();
    assert_eq!(driver.read(INTERRUPT_STATUS) & CONFIG_CHANGED, 0);
    driver.run();
    assert_eq!(driver.read(INTERRUPT_STATUS) & CONFIG_CHANGED, CONFIG_CHANGED, "told");
    assert_eq!(driver.read(0x104) >> 16, 0, "link down");
    assert!(!driver.host_ready(false));
    driver.send(&frame(PEER, MAC, 60));
    assert_eq!(driver.counts().sent_dropped, 1);
    assert_eq!(driver.read(STATUS), DRIVER_OK);
}

#[test]
fn a_broken_ring_silences_the_device_until_it_is_reset() {
    for queue in [RX, TX] {
        let mut driver = NetDriver::started(config(), 0);
        driver.run();
        driver.peer.send(&frame(MAC, PEER, 60)).unwrap();
        let index = GuestAddress(RINGS + queue * 0x4000 + 0x1002);
        driver.memory.write_obj(QUEUE_SIZE + 1, index).unwrap();
        driver.notify(queue);
        driver.run();
        assert_eq!(driver.read(STATUS), DRIVER_OK | NEEDS_RESET);
        assert!(!driver.host_ready(false));
        driver.start(0);
        driver.offer(RX, 0, &[(BUFFER, 1500, WRITE)]);
        driver.notify(RX);
        driver.run();
        driver.send(&frame(PEER, MAC, 60));
        assert_eq!(driver.arrived().len(), 1);
    }
}

#[test]
fn buffers_that_are_not_memory_are_the_drivers_loss() {
    let mut driver = NetDriver::started(config(), 0);
    driver.offer(RX, 0, &[(HOLE, 1500, WRITE)]);
    driver.offer(RX, 1, &[(HOLE - 10, 1500, WRITE)]);
    driver.offer(RX, 2, &[(u64::MAX - 3, 1500, WRITE)]);
    driver.notify(RX);
    for _ in 0..3 {
        driver.peer.send(&frame(MAC, PEER, 60)).unwrap();
    }
    driver.offer(TX, 0, &[(HOLE - 4, 100, 0)]);
    driver.offer(TX, 1, &[(0, u32::MAX, 0)]);
    driver.notify(TX);
    driver.run();
    assert_eq!(driver.used(RX), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(driver.counts().sent_dropped, 2);
    assert_eq!(driver.read(STATUS), DRIVER_OK);
}

/// Something that a guest which keeps to no rule does, or somebody on its network.
#[derive(Clone, Debug)]
enum Act {
    Write(u64, u32),
    Scribble(u64, Vec<u8>),
    Offer(u64, u16, Vec<(u64, u32, u16)>),
    Frame(Vec<u8>),
}

fn act() -> impl Strategy<Value = Act> {
    let address = prop_oneof![0x1_0000_u64..0x4_0000, HOLE - 100..HOLE + 100, any::<u64>()];
    let length = prop_oneof![0_u32..2000, any::<u32>()];
    let flags = prop_oneof![Just(WRITE), Just(NEXT | WRITE), Just(NEXT), Just(0), 0_u16..8];
    let place = prop_oneof![RINGS..RINGS + 64, RINGS + 0x1000..RINGS + 0x1010];
    prop_oneof![
        2 => ((0_u64..0x44).prop_map(|n| n * 4), prop_oneof![0_u32..16, any::<u32>()])
            .prop_map(|(offset, value)| Act::Write(offset, value)),
        1 => (place, 0_u64..2, vec(prop_oneof![0_u8..8, any::<u8>()], 1..16))
            .prop_map(|(place, queue, bytes)| Act::Scribble(place + queue * 0x4000, bytes)),
        6 => (0_u64..2, 0_u16..260, vec((address, length, flags), 1..5))
            .prop_map(|(queue, head, chain)| Act::Offer(queue, head, chain)),
        3 => (vec(any::<u8>(), 0..100), any::<bool>()).prop_map(|(mut bytes, own)| {
            if own && bytes.len() >= 24 {
                bytes[..12].fill(0);
                bytes[12..18].copy_from_slice(&MAC);
            }
            Act::Frame(bytes)
        }),
    ]
}

proptest! {
    #[test]
    fn whatever_a_guest_does_the_device_rests_and_can_be_used_again(
        acts in vec(act(), 0..60), features in prop::sample::select(vec![0, MERGE, MERGE | EVENT_IDX]),
    ) {
        let mut driver = NetDriver::started(config(), features);
        for act in acts {
            match act {
                Act::Write(offset, value) => driver.write(offset, value),
                Act::Scribble(at, bytes) => {
                    driver.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                }
                Act::Offer(queue, head, chain) if head + 4 < QUEUE_SIZE => {
                    driver.offer(queue, head, &chain);
                    driver.notify(queue);
                }
                Act::Offer(queue, _, _) => driver.notify(queue),
                Act::Frame(bytes) => {
                    let _ = driver.peer.send(&bytes);
                }
            }
            driver.run();
            // Whatever got out had the VM's address.
            for sent in driver.arrived() {
                prop_assert_eq!(&sent[18..24], &MAC);
            }
        }
        driver.start(features);
        driver.run();
        driver.send(&frame(PEER, MAC, 60));
        prop_assert_eq!(driver.arrived().len(), 1);
    }
}
