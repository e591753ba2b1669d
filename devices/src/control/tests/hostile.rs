//! Commands of any content at any place: what is written is the command's own, and nothing else.

use proptest::prelude::*;

use super::*;

/// A header in which each word may be right, nearly right or anything.
fn header() -> impl Strategy<Value = [u8; 64]> {
    let address = prop_oneof![
        Just(0u64),
        0u64..0x2_0000,
        (PIECE - 70)..(PIECE + 70),
        (HIGH - 70)..(HIGH + 70),
        (HIGH + PIECE - 70)..(HIGH + PIECE + 70),
        (u64::MAX - 70)..=u64::MAX,
        any::<u64>(),
    ];
    let length =
        prop_oneof![0u32..200, 4000u32..4100, (1u32 << 20) - 2..(1 << 20) + 2, any::<u32>(),];
    let operation = prop_oneof![
        4 => 0u16..0x0a,
        2 => 0x50u16..0x5a,
        1 => any::<u16>(),
    ];
    let rarely = |right: u32| prop_oneof![30 => Just(right), 1 => any::<u32>()];
    let magic = rarely(command::MAGIC);
    let version = rarely(0x0040_0001);
    let flags = prop_oneof![8 => 0u16..4, 1 => any::<u16>()];
    let words = (magic, version, operation, flags, rarely(0), any::<u64>());
    let places = (address.clone(), length.clone(), length, address);
    (words, places, rarely(0)).prop_map(|(words, places, reserved)| {
        let (magic, version, operation, flags, status, sequence) = words;
        let (input, input_length, buffer_length, buffer) = places;
        let mut bytes = [0; 64];
        bytes[0..4].copy_from_slice(&magic.to_le_bytes());
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        bytes[8..10].copy_from_slice(&operation.to_le_bytes());
        bytes[10..12].copy_from_slice(&flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&status.to_le_bytes());
        bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&input.to_le_bytes());
        bytes[32..36].copy_from_slice(&input_length.to_le_bytes());
        bytes[36..40].copy_from_slice(&buffer_length.to_le_bytes());
        bytes[40..48].copy_from_slice(&buffer.to_le_bytes());
        bytes[60..64].copy_from_slice(&reserved.to_le_bytes());
        bytes
    })
}

/// Where a command at `address` with these words may be written to.
fn own(address: u64, bytes: &[u8; 64]) -> Vec<Range<u64>> {
    let word = |at: usize| u64::from(u32::from_le_bytes(*bytes[at..].first_chunk().unwrap()));
    let long = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    let flags = bytes[10];
    let behind = if flags & 1 == 0 { 0 } else { word(32).next_multiple_of(8) };
    let buffer = if flags & 2 == 0 { long(40) } else { address + 64 + behind };
    let end = buffer.saturating_add(word(36));
    vec![address + 12..address + 16, address + 48..address + 60, buffer..end]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn only_what_is_the_commands_own_is_written(
        bytes in header(),
        place in prop_oneof![(0u64..0x400).prop_map(|at| at * 64), Just(0x2fc0), 0u64..PIECE - 64],
        answer in prop_oneof![
            Just(Answer::Accepted),
            (0usize..5000).prop_map(|length| Answer::Done(vec![0xaa; length])),
            Just(Answer::Failed(Error::Host)),
        ],
        late in 0usize..5000,
    ) {
        let mut guest = Guest::manager();
        guest.put(place, &bytes);
        guest.device.operations().answer = Some(answer.clone());
        guest.device.memory.writes.borrow_mut().clear();
        let result = guest.submit_at(place);
        if result == status::ACCEPTED {
            // The guest changes the command while it is worked at; the device does not look.
            guest.device.memory.memory.write_bytes(place, &[0xff; 64]).unwrap();
            guest.device.complete(1, Ok(&vec![0xbb; late]));
        }
        let allowed = own(place, &bytes);
        for write in guest.device.memory.writes.borrow().iter() {
            let inside = |range: &Range<u64>| range.start <= write.start && write.end <= range.end;
            prop_assert!(allowed.iter().any(inside), "{write:x?} is none of {allowed:x?}");
        }
        prop_assert!(result != status::PENDING);
        prop_assert!(result <= status::ACCEPTED || Error::from_status(result).is_some());
    }
}
