//! A guest that keeps to no rule: every register at every width in every phase, and random
//! sequences of accesses to every device. Nothing panics, what is not there reads as all ones,
//! work stays bounded, and a reset always brings a device back.

use std::io;
use std::sync::Arc;

use devices::bus::BusDevice;
use devices::event::EventSink;
use devices::i8042::I8042;
use devices::interrupt::InterruptLine;
use devices::ioapic::{IOAPIC_PINS, Ioapic, MsiMessage, MsiRouter};
use devices::power::Power;
use devices::pvpanic::Pvpanic;
use devices::serial::SerialConsole;
use devices::virtio::rng::{MAX_REQUEST_BYTES, MAX_REQUESTS, Rng};
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver::{
    AVAILABLE, BUFFERS, DRIVER_OK, FEATURES_OK, MARKED, NEEDS_RESET, RngDriver, STATUS, TABLE,
    TAKEN, USED, WRITE, memory,
};

const WIDTHS: [usize; 4] = [1, 2, 4, 8];
const FAILED: u32 = 0x80;
/// Every status a driver can bring a device to.
const PHASES: [u32; 7] =
    [0, 1, 3, FEATURES_OK, DRIVER_OK, DRIVER_OK | NEEDS_RESET, DRIVER_OK | FAILED];
/// Control registers of virtio over MMIO that can be read; SHM ones read as all ones.
const READABLE: [u64; 10] = [0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x44, 0x60, 0x70, 0xfc];

fn driver_in(phase: u32, memory: &GuestMemoryMmap) -> RngDriver {
    let mut driver = RngDriver::new(Rng::with_source(MARKED), memory.clone());
    match phase {
        0 => {}
        1 | 3 => driver.write(STATUS, phase),
        FEATURES_OK => {
            driver.negotiate();
            driver.set_up_queue();
        }
        _ => {
            driver.start();
            if phase & NEEDS_RESET != 0 {
                driver.offer(u16::MAX);
                driver.transport.handle_queue_event(0);
            }
            driver.write(STATUS, phase);
        }
    }
    assert_eq!(driver.read(STATUS), phase);
    driver
}

/// Whatever happened, a driver that resets the device can use it.
fn assert_usable(driver: &mut RngDriver) {
    driver.start();
    driver.request(&[(BUFFERS, 16, WRITE)]);
    assert_eq!(driver.used(), [(0, 16)]);
}

#[test]
fn virtio_registers_read_as_all_ones_unless_they_are_there_and_read_as_a_word() {
    let memory = memory();
    for phase in PHASES {
        let mut driver = driver_in(phase, &memory);
        for offset in (0..0x1000).chain([0x1000, u64::from(u32::MAX) + 1, u64::MAX]) {
            for width in WIDTHS {
                let mut data = vec![0x55; width];
                driver.transport.read(offset, &mut data);
                if width != 4 || !READABLE.contains(&offset) {
                    assert_eq!(data, vec![0xff; width], "{offset:#x} {width} in {phase:#x}");
                }
            }
        }
        assert_eq!(driver.read(STATUS), phase, "reading changes nothing");
    }
}

#[test]
fn a_virtio_write_of_any_place_width_and_value_in_any_phase_leaves_a_usable_device() {
    let memory = memory();
    for phase in PHASES {
        for offset in 0..0x108 {
            for width in WIDTHS {
                for value in [0, 1, u64::MAX] {
                    let mut driver = driver_in(phase, &memory);
                    driver.transport.write(offset, &value.to_le_bytes()[..width]);
                    if (offset, width) != (STATUS, 4) {
                        assert_eq!(driver.read(STATUS), phase, "{offset:#x} {width} {value:#x}");
                    }
                    driver.transport.handle_queue_event(0);
                    assert_usable(&mut driver);
                }
            }
        }
    }
}

#[test]
fn every_device_takes_every_access() {
    let sink: EventSink = Arc::new(|_| {});
    let devices: [(&str, Box<dyn BusDevice>); 5] = [
        ("serial", Box::new(serial())),
        ("i8042", Box::new(I8042::new(Arc::clone(&sink)))),
        ("power", Box::new(Power::new(Arc::clone(&sink)))),
        ("pvpanic", Box::new(Pvpanic::new(sink))),
        ("ioapic", Box::new(Ioapic::new(Routes::default(), IOAPIC_PINS))),
    ];
    for (name, mut device) in devices {
        let word_wide = name == "ioapic";
        for offset in (0..0x1100).chain([u64::MAX]) {
            for width in [0, 1, 2, 3, 4, 8, 16] {
                for value in [0, 1, 0xff] {
                    let mut data = vec![value; width];
                    device.write(offset, &data);
                    device.read(offset, &mut data);
                    if width != if word_wide { 4 } else { 1 } || offset > 0x40 {
                        assert_eq!(data, vec![0xff; width], "{name} {offset:#x} {width}");
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct Routes([Option<MsiMessage>; 24]);

impl MsiRouter for Routes {
    fn route(&mut self, pin: u8, message: Option<MsiMessage>) {
        assert_ne!(self.0[usize::from(pin)], message, "no change");
        self.0[usize::from(pin)] = message;
    }
}

fn serial() -> SerialConsole {
    let line = InterruptLine::new(EventFd::new(EFD_NONBLOCK).unwrap());
    SerialConsole::new(line, Box::new(io::sink()))
}

/// One thing a guest does to a device.
#[derive(Clone, Debug)]
enum Act {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

fn act(offsets: impl Strategy<Value = u64> + Clone) -> impl Strategy<Value = Act> {
    let word = prop_oneof![
        4 => (0_u64..32).boxed(),
        2 => prop::bits::u64::ANY.boxed(),
        1 => Just(u64::MAX).boxed(),
    ];
    let width = prop_oneof![6 => Just(4_usize), 4 => Just(1), 1 => Just(2), 1 => 0_usize..=8];
    prop_oneof![
        1 => (offsets.clone(), width.clone()).prop_map(|(offset, width)| Act::Read(offset, width)),
        3 => (offsets, width, word).prop_map(|(offset, width, word)| {
            Act::Write(offset, word.to_le_bytes()[..width].to_vec())
        }),
    ]
}

fn perform(device: &mut impl BusDevice, act: &Act) {
    match act {
        Act::Read(offset, width) => device.read(*offset, &mut vec![0; *width]),
        Act::Write(offset, data) => device.write(*offset, data),
    }
}

/// A few bytes somewhere in the rings and tables of the queue.
fn scribble() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let place = prop_oneof![TABLE..TABLE + 64, AVAILABLE..AVAILABLE + 16, USED..USED + 16];
    (place, vec(prop_oneof![0_u8..8, any::<u8>()], 1..16))
}

proptest! {
    #[test]
    fn random_accesses_leave_a_usable_virtio_device(
        phase in prop::sample::select(&PHASES[..]),
        acts in vec((act(prop_oneof![6 => (0_u64..0x48).prop_map(|n| n * 4), 1 => 0_u64..0x1010]),
            prop::option::of(scribble())), 0..60),
    ) {
        let memory = memory();
        let mut driver = driver_in(phase, &memory);
        for (act, scribble) in acts {
            let before = driver.read(STATUS);
            perform(&mut driver.transport, &act);
            if let Some((address, bytes)) = scribble {
                memory.write_slice(&bytes, GuestAddress(address)).unwrap();
            }
            let after = driver.read(STATUS);
            prop_assert!(after == 0 || before & !after == 0, "{before:#x} to {after:#x}");
            TAKEN.set(0);
            driver.transport.handle_queue_event(0);
            prop_assert!(TAKEN.get() <= MAX_REQUESTS * MAX_REQUEST_BYTES);
        }
        assert_usable(&mut driver);
    }

    #[test]
    fn the_ioapic_keeps_routes_in_step_with_its_entries(
        acts in vec(act(prop_oneof![
            4 => Just(0_u64), 6 => Just(0x10), 1 => Just(0x40), 1 => 0_u64..0x1010,
        ]), 0..200),
        pins in vec((0_u8..30, any::<bool>(), any::<u8>()), 200),
    ) {
        let mut ioapic = Ioapic::new(Routes::default(), IOAPIC_PINS);
        let mut ever = false;
        for (act, (pin, level, vector)) in acts.iter().zip(pins) {
            perform(&mut ioapic, act);
            ioapic.set_pin(pin, level);
            ioapic.end_of_interrupt(vector);
            prop_assert!(ioapic.ever_unmasked() >= ever.max(ioapic.any_unmasked()));
            ever = ioapic.ever_unmasked();
        }
        let mut unmasked = false;
        for pin in 0..24_u8 {
            let mut entry = [0; 4];
            ioapic.write(0, &[0x10 + 2 * pin, 0, 0, 0]);
            ioapic.read(0x10, &mut entry);
            let entry = u32::from_le_bytes(entry);
            let masked = entry & 1 << 16 != 0;
            unmasked |= !masked;
            prop_assert_eq!(entry & !0x0001_efff, 0, "reserved bits");
            match ioapic.router().0[usize::from(pin)] {
                Some(message) => {
                    prop_assert!(!masked);
                    prop_assert_eq!(message.data & 0x87ff, entry & 0x87ff);
                }
                None => prop_assert!(masked || entry & 0x3ff != 0x2ff),
            }
        }
        prop_assert_eq!(unmasked, ioapic.any_unmasked());
    }

    #[test]
    fn random_accesses_and_input_leave_the_console_consistent(
        acts in vec((act(0_u64..10), vec(any::<u8>(), 0..80)), 0..200),
    ) {
        let mut console = serial();
        for (act, input) in acts {
            perform(&mut console, &act);
            let space = console.space();
            prop_assert_eq!(console.receive(&input), input.len().min(space));
            prop_assert!(console.space() <= 64);
        }
        prop_assert_eq!(console.lost_output(), 0);
    }

    #[test]
    fn random_accesses_to_small_devices_report_only_their_own_events(
        acts in vec(act(0_u64..6), 0..200),
    ) {
        use devices::event::GuestEvent::{CrashLoaded, Panicked, PowerOff, Reset};
        let only = |allowed: &'static [_]| -> EventSink {
            Arc::new(move |event| assert!(allowed.contains(&event), "{event:?}"))
        };
        let mut power = Power::new(only(&[PowerOff, Reset]));
        let mut pvpanic = Pvpanic::new(only(&[Panicked, CrashLoaded]));
        let mut i8042 = I8042::new(only(&[Reset]));
        for act in acts {
            perform(&mut power, &act);
            perform(&mut pvpanic, &act);
            perform(&mut i8042, &act);
        }
    }
}
