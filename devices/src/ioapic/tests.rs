//! Programming sequences as drivers use them, and the rules of the registers.

use super::*;

const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;

#[derive(Default)]
struct Recorder {
    routes: Vec<(u8, Option<MsiMessage>)>,
    sent: Vec<MsiMessage>,
}

impl MsiRouter for Recorder {
    fn route(&mut self, pin: u8, message: Option<MsiMessage>) {
        self.routes.push((pin, message));
    }

    fn send(&mut self, message: MsiMessage) {
        self.sent.push(message);
    }
}

fn ioapic() -> Ioapic<Recorder> {
    Ioapic::new(Recorder::default(), IOAPIC_PINS)
}

fn read(ioapic: &mut Ioapic<Recorder>, index: u8) -> u32 {
    ioapic.write(SELECT_OFFSET, &u32::from(index).to_le_bytes());
    let mut data = [0; 4];
    ioapic.read(WINDOW_OFFSET, &mut data);
    u32::from_le_bytes(data)
}

fn write(ioapic: &mut Ioapic<Recorder>, index: u8, value: u32) {
    ioapic.write(SELECT_OFFSET, &u32::from(index).to_le_bytes());
    ioapic.write(WINDOW_OFFSET, &value.to_le_bytes());
}

fn low(pin: u8) -> u8 {
    REDIRECTION_INDEX + 2 * pin
}

fn high(pin: u8) -> u8 {
    low(pin) + 1
}

#[test]
fn reset_state_masks_every_pin_and_names_version_and_size() {
    let mut ioapic = ioapic();
    assert_eq!(read(&mut ioapic, 0), 0);
    assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
    for pin in 0..IOAPIC_PINS {
        assert_eq!(read(&mut ioapic, low(pin)), MASKED);
        assert_eq!(read(&mut ioapic, high(pin)), 0);
    }
    assert!(!ioapic.any_unmasked() && !ioapic.ever_unmasked());
}

#[test]
fn programming_a_pin_routes_it_once_and_masking_unroutes_it() {
    let mut ioapic = ioapic();
    write(&mut ioapic, high(5), 0x0300_0000);
    write(&mut ioapic, low(5), 0x0031 | MASKED);
    assert!(ioapic.router().routes.is_empty());

    write(&mut ioapic, low(5), 0x0031);
    write(&mut ioapic, low(5), 0x0031);
    let message = MsiMessage { address: 0xfee0_3000, data: 0x31 };
    assert_eq!(ioapic.router().routes, [(5, Some(message))]);
    assert!(ioapic.any_unmasked() && ioapic.ever_unmasked());

    write(&mut ioapic, high(5), 0x0100_0000);
    let moved = MsiMessage { address: 0xfee0_1000, data: 0x31 };
    assert_eq!(ioapic.router().routes[1..], [(5, Some(moved))]);

    write(&mut ioapic, low(5), 0x0031 | MASKED);
    assert_eq!(ioapic.router().routes[2..], [(5, None)]);
    assert!(!ioapic.any_unmasked() && ioapic.ever_unmasked());
}

#[test]
fn the_last_pin_is_programmed_like_the_first() {
    let mut ioapic = ioapic();
    for pin in [0, IOAPIC_PINS - 1] {
        write(&mut ioapic, low(pin), 0x40);
    }
    let pins: Vec<u8> = ioapic.router().routes.iter().map(|(pin, _)| *pin).collect();
    assert_eq!(pins, [0, 23]);
}

#[test]
fn messages_carry_destination_delivery_and_trigger_mode() {
    let cases = [
        // entry low, destination, address, data
        (0x0030, 0xff, 0xfeef_f000, 0x0030),
        (0x0830, 0x01, 0xfee0_1004, 0x0030),
        (0x0931, 0x0f, 0xfee0_f00c, 0x0131),
        (0x0400, 0x02, 0xfee0_2000, 0x0400),
        (0x8030, 0x00, 0xfee0_0000, 0xc030),
        (0xa030, 0x00, 0xfee0_0000, 0xc030),
        (0x0700, 0x00, 0xfee0_0000, 0x0700),
    ];
    for (entry, destination, address, data) in cases {
        let mut ioapic = ioapic();
        write(&mut ioapic, high(1), destination << 24);
        write(&mut ioapic, low(1), entry);
        assert_eq!(ioapic.router().routes, [(1, Some(MsiMessage { address, data }))], "{entry:#x}");
    }
}

#[test]
fn reserved_delivery_modes_and_illegal_vectors_have_no_route() {
    for entry in [0x0330, 0x0630, 0x0000, 0x000f, 0x010f] {
        let mut ioapic = ioapic();
        write(&mut ioapic, low(1), entry);
        assert!(ioapic.router().routes.is_empty(), "{entry:#x}");
        assert!(ioapic.any_unmasked());
    }
}

#[test]
fn read_only_and_reserved_bits_are_kept() {
    let mut ioapic = ioapic();
    write(&mut ioapic, low(2), u32::MAX);
    assert_eq!(read(&mut ioapic, low(2)), 0x0001_afff);
    write(&mut ioapic, high(2), u32::MAX);
    assert_eq!(read(&mut ioapic, high(2)), 0xff00_0000);
    write(&mut ioapic, 0, u32::MAX);
    assert_eq!((read(&mut ioapic, 0), read(&mut ioapic, 2)), (0x0f00_0000, 0x0f00_0000));
    write(&mut ioapic, 1, u32::MAX);
    write(&mut ioapic, 2, 0);
    assert_eq!((read(&mut ioapic, 1), read(&mut ioapic, 2)), (0x0017_0020, 0x0f00_0000));
}

#[test]
fn registers_that_are_not_there_read_zero_and_take_nothing() {
    let mut ioapic = ioapic();
    for index in (3..REDIRECTION_INDEX).chain(low(IOAPIC_PINS)..=u8::MAX) {
        write(&mut ioapic, index, 0x0031);
        assert_eq!(read(&mut ioapic, index), 0, "{index:#x}");
    }
    assert!(ioapic.router().routes.is_empty() && !ioapic.ever_unmasked());
}

#[test]
fn only_aligned_words_reach_the_registers() {
    let mut ioapic = ioapic();
    ioapic.write(SELECT_OFFSET, &0x12_u32.to_le_bytes());
    for (offset, width) in
        [(0, 1), (0, 2), (0, 8), (0x10, 1), (0x10, 8), (0x11, 4), (0x40, 4), (0x44, 4), (0xffc, 4)]
    {
        let mut data = vec![0; width];
        if offset != EOI_OFFSET {
            ioapic.write(offset, &data);
        }
        ioapic.read(offset, &mut data);
        assert_eq!(data, vec![0xff; width], "{offset:#x} {width}");
    }
    let mut data = [0; 4];
    ioapic.read(SELECT_OFFSET, &mut data);
    assert_eq!(data, [0x12, 0, 0, 0]);
    assert!(!ioapic.ever_unmasked());
}

#[test]
fn a_high_level_pin_interrupts_again_after_each_end_of_interrupt() {
    let mut ioapic = ioapic();
    write(&mut ioapic, low(9), 0x0050 | LEVEL);
    ioapic.set_pin(9, true);
    ioapic.set_pin(9, true);
    assert_eq!(ioapic.router().sent.len(), 1);
    assert_eq!(read(&mut ioapic, low(9)), 0x0050 | LEVEL | REMOTE_IRR);

    ioapic.end_of_interrupt(0x51);
    assert_eq!(ioapic.router().sent.len(), 1);
    ioapic.write(EOI_OFFSET, &0x50_u32.to_le_bytes());
    assert_eq!(ioapic.router().sent.len(), 2);

    ioapic.set_pin(9, false);
    ioapic.end_of_interrupt(0x50);
    assert_eq!(ioapic.router().sent, [MsiMessage { address: 0xfee0_0000, data: 0xc050 }; 2]);
    assert_eq!(read(&mut ioapic, low(9)), 0x0050 | LEVEL);
}

#[test]
fn remote_irr_survives_writes_until_the_entry_becomes_edge_triggered() {
    let mut ioapic = ioapic();
    write(&mut ioapic, low(9), 0x0050 | LEVEL);
    ioapic.set_pin(9, true);
    write(&mut ioapic, low(9), 0x0050 | LEVEL | MASKED);
    assert_eq!(read(&mut ioapic, low(9)), 0x0050 | LEVEL | MASKED | REMOTE_IRR);
    write(&mut ioapic, low(9), 0x0050 | MASKED);
    assert_eq!(read(&mut ioapic, low(9)), 0x0050 | MASKED);
    write(&mut ioapic, low(9), 0x0050 | LEVEL);
    assert_eq!(ioapic.router().sent.len(), 2);
}

#[test]
fn a_masked_level_is_sent_when_unmasked_and_a_masked_edge_is_lost() {
    let mut ioapic = ioapic();
    write(&mut ioapic, low(9), 0x0050 | LEVEL | MASKED);
    ioapic.set_pin(9, true);
    ioapic.set_pin(4, true);
    assert!(ioapic.router().sent.is_empty());
    write(&mut ioapic, low(9), 0x0050 | LEVEL);
    write(&mut ioapic, low(4), 0x0040);
    assert_eq!(ioapic.router().sent.len(), 1);

    ioapic.set_pin(4, true);
    assert_eq!(ioapic.router().sent.len(), 1);
    ioapic.set_pin(4, false);
    ioapic.set_pin(4, true);
    assert_eq!(ioapic.router().sent[1], MsiMessage { address: 0xfee0_0000, data: 0x40 });
    ioapic.set_pin(IOAPIC_PINS, true);
    assert_eq!(ioapic.router().sent.len(), 2);
}

#[test]
fn a_router_may_leave_sending_out() {
    struct RoutesOnly;
    impl MsiRouter for RoutesOnly {
        fn route(&mut self, _: u8, _: Option<MsiMessage>) {}
    }
    let mut ioapic = Ioapic::new(RoutesOnly, IOAPIC_PINS);
    ioapic.write(SELECT_OFFSET, &0x10_u32.to_le_bytes());
    ioapic.write(WINDOW_OFFSET, &0x30_u32.to_le_bytes());
    ioapic.set_pin(0, true);
    assert!(ioapic.any_unmasked());
    assert!(format!("{ioapic:?}").contains("0x00000000:00000030"));
}

#[test]
fn pins_that_a_small_one_has_not_read_as_zero_and_route_nothing() {
    let mut ioapic = Ioapic::new(Recorder::default(), 6);
    assert_eq!(read(&mut ioapic, VERSION_INDEX), VERSION | 5 << LAST_ENTRY_SHIFT);
    write(&mut ioapic, REDIRECTION_INDEX + 2 * 6, 0x30);
    assert_eq!(read(&mut ioapic, REDIRECTION_INDEX + 2 * 6), 0);
    assert!(!ioapic.ever_unmasked());
}
