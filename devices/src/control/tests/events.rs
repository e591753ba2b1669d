//! The ring, the line, and generations.

use control_abi::event::{RING_DOWN, event_offset};

use super::*;

#[test]
fn a_full_ring_loses_what_comes_and_says_how_much() {
    let mut guest = Guest::manager();
    guest.raise_ring();
    for number in 0..70 {
        guest.device.raise(Event::new(Kind::VmEnded, number));
    }
    assert_eq!((guest.word(RING), guest.word(RING + 4)), (64, 6));
    assert_eq!(guest.get(Register::RingHead), 64);
    let last = Event::decode(&guest.bytes(RING + u64::from(event_offset(63)))).unwrap();
    assert_eq!(last.value, 63);
    guest.set(Register::RingTail, 2);
    guest.device.raise(Event::new(Kind::VmEnded, 99));
    assert_eq!(guest.word(RING), 65);
    assert_eq!(Event::decode(&guest.bytes(RING + 64)).unwrap().value, 99);
    let counters = guest.device.counters();
    assert_eq!((counters.events, counters.events_lost), (65, 6));
}

#[test]
fn what_is_not_enabled_or_has_no_ring_is_noted_only() {
    let mut guest = Guest::manager();
    guest.device.raise(Event::new(Kind::Prepare, 0));
    assert_eq!(guest.get(Register::EventStatus), Kind::Prepare.bit());
    guest.set(Register::EventStatus, Kind::Prepare.bit());
    assert_eq!(guest.get(Register::EventStatus), 0);
    guest.raise_ring();
    guest.set(Register::EventEnable, Kind::Prepare.bit() | 1 << 31);
    assert_eq!(guest.get(Register::EventEnable), Kind::Prepare.bit());
    guest.device.raise(Event::new(Kind::VmEnded, 0));
    assert_eq!(guest.get(Register::RingHead), 0);
    assert!(guest.line.read().is_err());
    guest.device.raise(Event::new(Kind::Prepare, 0));
    assert_eq!(guest.line.read().unwrap(), 1);
}

#[test]
fn a_ring_that_is_not_in_ram_is_down() {
    let mut guest = Guest::manager();
    let bad = [
        (0, RING + 4),     // unaligned
        (0, 0xfc0),        // crosses a page
        (0, PIECE),        // in the hole
        (0, HIGH + PIECE), // beyond RAM
        (u32::MAX, RING),  // far beyond RAM
    ];
    for (high, low) in bad {
        guest.raise_ring();
        guest.set(Register::RingHigh, high);
        guest.set(Register::RingLow, u32::try_from(low).unwrap());
        assert_eq!(guest.get(Register::Result), Error::BadAddress.status());
        assert_eq!(guest.get(Register::RingLow), RING_DOWN);
        guest.device.raise(Event::new(Kind::Endpoint, 0));
        assert_eq!(guest.get(Register::RingHead), 0);
    }
    guest.raise_ring();
    assert_eq!(guest.get(Register::RingLow), u32::try_from(RING).unwrap());
    guest.set(Register::RingLow, RING_DOWN);
    assert_eq!(guest.get(Register::Result), status::DONE);
    assert_eq!(guest.get(Register::RingLow), RING_DOWN);
}

#[test]
fn a_guest_that_damages_its_ring_damages_nothing_else() {
    let mut guest = Guest::manager();
    guest.raise_ring();
    for _ in 0..10 {
        guest.put(RING, &[0xff; 2112]);
        guest.set(Register::RingTail, u32::MAX);
        guest.device.raise(Event::new(Kind::VmEnded, 5));
    }
    assert_eq!(guest.word(RING), 10);
    assert_eq!(guest.get(Register::RingTail), 0);
}

#[test]
fn a_restored_guest_finds_another_generation_and_no_ring() {
    let mut guest = Guest::manager();
    guest.raise_ring();
    guest.set(Register::CommandHigh, 5);
    assert_eq!(guest.command(Operation::Heartbeat, &[]), status::ACCEPTED);
    let state = guest.device.state();

    let mut copy = Guest::manager();
    copy.device.restore(&state).unwrap();
    assert_eq!(copy.get(Register::Generation), 2);
    assert_eq!(copy.get(Register::CommandHigh), 0);
    assert_eq!(copy.get(Register::EventEnable), ALL_KINDS);
    assert_eq!(copy.get(Register::EventStatus), Kind::Generation.bit());
    assert_eq!(copy.get(Register::RingLow), RING_DOWN);
    // The command is lost, and its ticket is not given again.
    copy.device.complete(1, Ok(&[]));
    assert_eq!(copy.command(Operation::Heartbeat, &[]), status::ACCEPTED);
    assert_eq!(copy.bytes(COMMAND + 48), 2u64.to_le_bytes());
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut guest = Guest::manager();
    let good = guest.device.state();
    let json = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<ControlState>(&json).unwrap(), good);
    let bad = [
        ControlState { version: 2, ..good.clone() },
        ControlState { event_enable: 1 << 31, ..good.clone() },
        ControlState { generation: u32::MAX, ..good },
    ];
    for state in bad {
        assert!(guest.device.restore(&state).is_err());
        assert_eq!(guest.get(Register::Generation), 1);
    }
}
