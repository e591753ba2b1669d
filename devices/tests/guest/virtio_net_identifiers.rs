//! The virtual identifiers of a network device, as its driver and the host's switch see them.

use std::sync::atomic::Ordering;

use devices::virtio::net::NetConfig;
use devices::virtio::net::identifiers::{Identifiers, Receive};
use devices::virtio::net::limit::Limit;
use endpoint::frames::mark::{self, Kind};
use endpoint::range::{Form, Range};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::driver::{QUEUE_SIZE, WRITE};
use crate::net_driver::{MAC, MERGE, NetDriver, RX, config, frame};

const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const BUFFER: u64 = 0x3_0000;
/// Of each buffer; frames of these tests fit.
const ROOM: u16 = 64;
/// Bytes behind the Ethernet header of most frames here.
const CONTENT: usize = 20;

fn range(request: u32) -> Range {
    Range::new(Form::Prefix, 0x12345, request, request).unwrap()
}

fn vid(request: u32) -> [u8; 6] {
    range(request).first().bytes()
}

fn one(request: u32, receive: Receive) -> Identifiers {
    Identifiers { range: range(request), address: None, receive, may_send: false }
}

/// A frame that is told from others by its first byte of content.
fn numbered(destination: [u8; 6], number: u8) -> Vec<u8> {
    let mut frame = frame(destination, PEER, CONTENT);
    frame[26] = number;
    frame
}

fn marker(nonce: u64) -> Vec<u8> {
    [&[0; 12], &mark::frame(Kind::Mark, nonce)[..]].concat()
}

fn answered(driver: &NetDriver) -> Vec<u64> {
    let nonce = |frame: Vec<u8>| {
        assert_eq!(frame[..12], [0; 12]);
        match mark::read(&frame[12..]) {
            Some((Kind::Answer, nonce)) => nonce,
            other => panic!("{other:?}"),
        }
    };
    driver.arrived().into_iter().map(nonce).collect()
}

/// Offers buffers `first` and so on.
fn offer(driver: &mut NetDriver, first: u16, count: u16) {
    for head in first..first + count {
        driver.offer(RX, head, &[(BUFFER + u64::from(head * ROOM), ROOM.into(), WRITE)]);
    }
    driver.notify(RX);
}

/// The numbers of the frames that the guest has got, by destination.
fn got(driver: &NetDriver) -> Vec<([u8; 6], u8)> {
    let used = driver.used(RX).into_iter().filter(|&(_, length)| length > 0);
    used.map(|(head, length)| {
        let at = BUFFER + u64::from(head) * u64::from(ROOM);
        let bytes = driver.bytes(at, usize::try_from(length).unwrap());
        (bytes[12..18].try_into().unwrap(), bytes[26])
    })
    .collect()
}

#[test]
fn frames_for_a_held_identifier_wait_and_are_the_first_when_it_is_opened() {
    let mut driver = NetDriver::started(config(), MERGE);
    driver.identifiers.set(vec![one(1, Receive::Hold), one(2, Receive::Deliver)]);
    offer(&mut driver, 0, 20);
    for (request, number) in [(1, 0), (2, 1), (1, 2), (3, 3)] {
        driver.peer.send(&numbered(vid(request), number)).unwrap();
    }
    driver.peer.send(&numbered(MAC, 4)).unwrap();
    driver.run();
    assert_eq!(got(&driver), [(vid(2), 1), (MAC, 4)]);
    let counts = driver.identifiers.counters();
    assert_eq!((counts.held, counts.holding, counts.unknown), (2, 2, 1));
    assert_eq!(driver.counts().received_dropped, 0, "each is counted once");

    driver.peer.send(&numbered(vid(1), 5)).unwrap();
    driver.identifiers.set(vec![one(1, Receive::Deliver)]);
    assert!(driver.host_ready(true), "it wakes whoever waits for the device");
    driver.run();
    assert_eq!(got(&driver)[2..], [(vid(1), 0), (vid(1), 2), (vid(1), 5)]);
    driver.peer.send(&numbered(vid(2), 6)).unwrap();
    driver.run();
    let counts = driver.identifiers.counters();
    assert_eq!((counts.held, counts.holding, counts.unknown), (2, 0, 2));
}

#[test]
fn what_has_waited_is_filtered_and_must_be_as_negotiated() {
    const GUEST_CSUM: u64 = 1 << 1;
    let config = NetConfig { allow_in: Some("tcp:22".parse().unwrap()), ..config() };
    let mut driver = NetDriver::started(config, GUEST_CSUM);
    driver.identifiers.set(vec![one(1, Receive::Hold)]);
    offer(&mut driver, 0, 8);
    // Neither ARP nor IP, which says no port; ARP; and ARP that needs a checksum.
    let mut arp = numbered(vid(1), 1);
    arp[24..26].copy_from_slice(&[8, 6]);
    let mut partial = arp.clone();
    partial[0] = 1;
    for frame in [&numbered(vid(1), 0), &arp, &partial] {
        driver.peer.send(frame).unwrap();
    }
    driver.run();
    assert_eq!(driver.identifiers.counters().holding, 3);
    // Another driver, which computes no checksums, finds them still waiting.
    driver.start(0);
    offer(&mut driver, 0, 8);
    driver.run();
    assert_eq!(driver.identifiers.counters().holding, 3);
    driver.identifiers.set(vec![one(1, Receive::Deliver)]);
    driver.run();
    assert_eq!(got(&driver), [(vid(1), 1)]);
    let counts = driver.counts();
    assert_eq!((counts.received_filtered, counts.received_dropped), (1, 1));
}

#[test]
fn what_has_waited_waits_for_buffers_and_the_rate_limit_too() {
    let length = u64::try_from(14 + CONTENT).unwrap();
    let limit = Limit { bytes: 20 * length, burst: length, packets: 0 };
    let mut driver = NetDriver::started(NetConfig { receive: limit, ..config() }, 0);
    driver.identifiers.set(vec![one(1, Receive::Hold)]);
    driver.run();
    for number in 0..4 {
        driver.peer.send(&numbered(vid(1), number)).unwrap();
    }
    driver.run();
    assert_eq!(driver.identifiers.counters().holding, 4);
    assert_eq!(driver.counts().received_throttled, 0, "what waits anyhow uses none of it up");
    driver.identifiers.set(vec![one(1, Receive::Deliver)]);
    driver.run();
    assert!(!driver.host_ready(false), "nothing can be done without buffers");
    offer(&mut driver, 0, 10);
    while got(&driver).len() < 4 {
        driver.run();
        assert!(got(&driver).len() == 4 || driver.host_ready(true), "it says when it goes on");
    }
    assert_eq!(got(&driver), [0, 1, 2, 3].map(|number| (vid(1), number)));
    assert!(driver.counts().received_throttled > 0);
}

#[test]
fn an_end_mark_is_answered_behind_everything_that_came_before() {
    let mut driver = NetDriver::started(config(), 0);
    driver.identifiers.set(vec![one(1, Receive::Hold)]);
    driver.run();
    driver.peer.send(&marker(1)).unwrap();
    // What waits for an identifier is not waited for.
    driver.peer.send(&numbered(vid(1), 0)).unwrap();
    driver.peer.send(&marker(2)).unwrap();
    driver.run();
    assert_eq!(answered(&driver), [1, 2], "without any buffers of the guest's");
    driver.peer.send(&numbered(MAC, 1)).unwrap();
    driver.peer.send(&marker(3)).unwrap();
    driver.peer.send(&[&[0; 12], &mark::frame(Kind::Answer, 4)[..]].concat()).unwrap();
    driver.run();
    assert!(answered(&driver).is_empty());
    offer(&mut driver, 0, 4);
    driver.run();
    assert_eq!(got(&driver)[0], (MAC, 1));
    assert_eq!(answered(&driver), [3]);
    assert_eq!(driver.counts().marks, 3);
    driver.host.gone.store(true, Ordering::Relaxed);
    driver.peer.send(&marker(5)).unwrap();
    driver.run();
    assert!(answered(&driver).is_empty());
}

#[test]
fn an_end_mark_is_answered_while_the_rate_limit_is_used_up() {
    // A byte a second.
    let limit = Limit { bytes: 1, burst: 1, packets: 0 };
    let mut driver = NetDriver::started(NetConfig { receive: limit, ..config() }, 0);
    offer(&mut driver, 0, 10);
    driver.peer.send(&numbered(MAC, 0)).unwrap();
    driver.run();
    driver.peer.send(&marker(1)).unwrap();
    driver.run();
    assert_eq!((got(&driver).len(), answered(&driver)), (1, vec![1]), "nothing was before it");
    driver.peer.send(&numbered(MAC, 1)).unwrap();
    driver.peer.send(&marker(2)).unwrap();
    driver.run();
    assert_eq!((got(&driver).len(), answered(&driver)), (1, vec![]), "a frame was");
    assert!(!driver.host_ready(false));

    let limit = Limit { bytes: 200, burst: 1, packets: 0 };
    let mut driver = NetDriver::started(NetConfig { receive: limit, ..config() }, 0);
    offer(&mut driver, 0, 10);
    for number in 0..3 {
        driver.peer.send(&numbered(MAC, number)).unwrap();
    }
    driver.peer.send(&marker(3)).unwrap();
    loop {
        driver.run();
        let answers = answered(&driver);
        assert_eq!(answers.len(), usize::from(got(&driver).len() == 3));
        if answers == [3] {
            break;
        }
        assert!(driver.host_ready(true));
    }
}

#[test]
fn only_an_identifier_with_a_voice_is_heard() {
    let address = Some([10, 7, 0, 100].into());
    let mut driver = NetDriver::started(config(), 0);
    let mut packet = frame(PEER, vid(1), 0);
    packet.truncate(24);
    packet.extend([8, 0, 0x45, 0, 0, 24, 0, 0, 0, 0, 64, 1, 0, 0]);
    packet.extend([10, 7, 0, 100, 10, 7, 0, 1, 0, 0, 0, 0]);
    driver.send(&packet);
    assert_eq!(driver.counts().sent_spoofed, 1, "it has no such identifier");
    let silent = Identifiers { address, ..one(1, Receive::Hold) };
    driver.identifiers.set(vec![silent]);
    driver.send(&packet);
    assert!(driver.arrived().is_empty());
    driver.identifiers.set(vec![Identifiers { may_send: true, ..silent }]);
    driver.send(&packet);
    assert_eq!(driver.arrived(), std::slice::from_ref(&packet));
    driver.identifiers.set(vec![silent]);
    driver.send(&packet);
    driver.send(&frame(PEER, MAC, 60));
    assert_eq!(driver.arrived(), [frame(PEER, MAC, 60)], "the VM itself is");
    let counts = driver.counts();
    assert_eq!((counts.sent_spoofed, counts.sent_dropped, counts.sent_frames), (1, 0, 2));
    assert_eq!(driver.identifiers.counters().muted, 2);
}

/// What happens to a device with three identifiers; there are frames for a fourth.
#[derive(Clone, Debug)]
enum Act {
    Frame(u32),
    Mark,
    Set([Option<Receive>; 3]),
    Offer(u16),
    /// The device has time.
    Run,
    /// It has time for one turn, which was begun for this queue or the host's side.
    Turn(Option<usize>),
}

fn act() -> impl Strategy<Value = Act> {
    let receive = prop_oneof![Just(None), Just(Some(Receive::Hold)), Just(Some(Receive::Deliver))];
    prop_oneof![
        8 => (0..4_u32).prop_map(Act::Frame),
        1 => Just(Act::Mark),
        3 => prop::array::uniform3(receive).prop_map(Act::Set),
        2 => (1..8_u16).prop_map(Act::Offer),
        3 => Just(Act::Run),
        2 => prop_oneof![Just(None), Just(Some(0)), Just(Some(1))].prop_map(Act::Turn),
    ]
}

fn set(driver: &NetDriver, receive: [Option<Receive>; 3]) {
    let identifiers = (0..).zip(receive).filter_map(|(n, receive)| Some(one(n, receive?)));
    driver.identifiers.set(identifiers.collect());
}

proptest! {
    #[test]
    fn each_frame_is_got_once_in_order_or_counted_once(
        acts in vec(act(), 0..120), throttled in any::<bool>(), first in prop::array::uniform3(
            prop_oneof![Just(Some(Receive::Hold)), Just(Some(Receive::Deliver))]),
    ) {
        // Fast enough to go on within the test, and used up at times.
        let limit = Limit { bytes: if throttled { 1_000_000 } else { 0 }, burst: 100, packets: 0 };
        let mut driver = NetDriver::started(NetConfig { receive: limit, ..config() }, 0);
        set(&driver, first);
        let (mut came, mut offered, mut marks, mut answers) = (0_u8, 0, 0, Vec::new());
        let mut before = Vec::new();
        for act in acts {
            match act {
                // As many as the socket takes.
                Act::Frame(request) => {
                    if driver.peer.send(&numbered(vid(request), came)).is_ok() {
                        came += 1;
                    }
                }
                Act::Mark => {
                    if driver.peer.send(&marker(marks)).is_ok() {
                        marks += 1;
                        before.push(came);
                    }
                }
                Act::Set(receive) => set(&driver, receive),
                Act::Offer(count) if offered + count <= QUEUE_SIZE => {
                    offer(&mut driver, offered, count);
                    offered += count;
                }
                Act::Offer(_) => {}
                Act::Run => {
                    driver.run();
                }
                Act::Turn(None) => driver.transport.handle_host_event(),
                Act::Turn(Some(queue)) => driver.transport.handle_queue_event(queue),
            }
            for nonce in answered(&driver) {
                // What came before is not on its way any more.
                let counts = driver.identifiers.counters();
                let settled = got(&driver).iter().filter(|(_, n)| *n < before[answers.len()]).count();
                let counted = counts.holding + counts.dropped + counts.unknown;
                prop_assert!(settled as u64 + counted >= before[answers.len()].into());
                answers.push(nonce);
            }
        }
        // Enough buffers, and the time that the limit wants.
        while offered < QUEUE_SIZE {
            offer(&mut driver, offered, 1);
            offered += 1;
        }
        let settled = |driver: &NetDriver| {
            let counts = driver.identifiers.counters();
            got(driver).len() as u64 + counts.holding + counts.dropped + counts.unknown
        };
        driver.run();
        while settled(&driver) < came.into() {
            prop_assert!(driver.host_ready(true));
            driver.run();
        }
        driver.run();
        prop_assert_eq!(settled(&driver), u64::from(came));
        prop_assert_eq!(driver.counts().received_frames, got(&driver).len() as u64);
        prop_assert_eq!(driver.counts().received_dropped, 0);
        prop_assert_eq!(driver.identifiers.counters().overflow, 0);
        for request in 0..4 {
            let got = got(&driver).into_iter().filter(|(to, _)| *to == vid(request));
            prop_assert!(got.map(|(_, number)| number).is_sorted_by(|a, b| a < b));
        }
        answers.extend(answered(&driver));
        prop_assert_eq!(answers, (0..marks).collect::<Vec<_>>());
        set(&driver, [None; 3]);
        driver.run();
        prop_assert!(!driver.host_ready(false));
        prop_assert_eq!(driver.identifiers.counters().holding, 0);
    }
}
