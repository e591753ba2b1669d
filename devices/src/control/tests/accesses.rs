//! Registers: every width, every offset, every order.

use control_abi::register::{Access, MAGIC, REGISTERS, WINDOW_BYTES};
use proptest::prelude::*;

use super::*;

#[test]
fn only_aligned_words_are_answered() {
    let mut guest = Guest::manager();
    let mut ignored = 0;
    for width in [0, 1, 2, 3, 4, 8, 16] {
        for offset in (0..u64::from(WINDOW_BYTES) + 8).chain([4096, u64::MAX]) {
            let register = width == 4 && offset % 4 == 0 && offset < u64::from(WINDOW_BYTES);
            let mut data = vec![0x55; width];
            guest.device.read(offset, &mut data);
            if !register {
                assert_eq!(data, vec![0xff; width], "{offset:#x}");
                guest.device.write(offset, &data);
                ignored += 2;
            }
        }
    }
    assert_eq!(guest.device.counters().ignored_accesses, ignored);
    assert_eq!(guest.device.counters().commands, 0);
    assert_eq!(guest.get(Register::Magic), MAGIC);
    assert_eq!(guest.get(Register::Version), 0x0001_0000);
}

#[test]
fn what_can_only_be_read_stays_and_what_can_only_be_written_reads_as_zero() {
    for register in REGISTERS {
        let mut guest = Guest::manager();
        let before = guest.get(*register);
        guest.set(*register, 0x1234_5678);
        match register.access() {
            Access::Read => assert_eq!(guest.get(*register), before, "{}", register.label()),
            Access::Write => assert_eq!(guest.get(*register), 0, "{}", register.label()),
            Access::ReadWrite => {}
        }
    }
}

#[test]
fn marks_are_passed_on() {
    let mut guest = Guest::manager();
    guest.set(Register::Mark, 1);
    guest.set(Register::Mark, u32::MAX);
    assert_eq!(guest.device.operations().marks, [1, u32::MAX]);
    for mark in 0..1000 {
        guest.set(Register::Mark, mark);
    }
    assert_eq!(guest.device.operations().marks.len(), 256);
}

#[derive(Debug, Clone)]
enum Act {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Time(u64),
    Complete(u64, bool),
    Raise(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let offset = prop_oneof![8 => (0u64..16).prop_map(|word| word * 4), 1 => any::<u64>()];
    // Addresses that are something, mostly.
    let value = prop_oneof![
        (0u32..0x20).prop_map(|page| page << 12),
        Just(0x3000),
        Just(0x5000),
        0u32..70,
        any::<u32>(),
    ];
    let data = prop_oneof![
        8 => value.prop_map(|value| value.to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..9),
    ];
    prop_oneof![
        2 => (offset.clone(), 0usize..9).prop_map(|(offset, width)| Act::Read(offset, width)),
        6 => (offset, data).prop_map(|(offset, data)| Act::Write(offset, data)),
        1 => (0u64..100).prop_map(Act::Time),
        1 => (0u64..8, any::<bool>()).prop_map(|(ticket, well)| Act::Complete(ticket, well)),
        1 => any::<u64>().prop_map(Act::Raise),
    ]
}

proptest! {
    #[test]
    fn no_order_of_accesses_breaks_the_device(acts in prop::collection::vec(act(), 0..200)) {
        let mut guest = Guest::manager();
        guest.prepare(Operation::Heartbeat.number(), &[]);
        for act in acts {
            match act {
                Act::Read(offset, width) => guest.device.read(offset, &mut vec![0; width]),
                Act::Write(offset, data) => guest.device.write(offset, &data),
                Act::Time(time) => guest.pass_time(time),
                Act::Complete(ticket, well) => {
                    guest.device.complete(ticket, if well { Ok(b"x") } else { Err(Error::Host) });
                }
                Act::Raise(value) => guest.device.raise(Event::new(Kind::VmEnded, value)),
            }
            let (head, tail) = (guest.device.ring.head(), guest.device.ring.tail());
            prop_assert!(head.wrapping_sub(tail) <= 64);
            prop_assert!(guest.device.accepted.len() <= MAX_ACCEPTED);
            prop_assert!(guest.get(Register::Credit) <= 256);
            prop_assert_eq!(guest.get(Register::Magic), MAGIC);
            prop_assert_eq!(guest.get(Register::Generation), 1);
        }
    }
}
