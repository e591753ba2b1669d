//! A guest's word that its kernel panicked: the pvpanic I/O port of QEMU's `docs/specs/pvpanic`.
//!
//! One port, one byte wide. Reading gives the events the device understands, writing reports
//! events, one bit each. A stock Linux finds it by the ACPI identifier `QEMU0001` with the port
//! in `_CRS`.

use std::fmt;

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// The customary I/O port.
pub const PVPANIC_PORT: u64 = 0x505;
/// I/O ports of the window.
pub const PVPANIC_LENGTH: u64 = 1;
/// ACPI hardware identifier of the device.
pub const PVPANIC_ACPI_ID: &str = "QEMU0001";

const PANICKED: u8 = 1 << 0; // The guest panicked and the host shall handle it.
const CRASH_LOADED: u8 = 1 << 1; // The guest panicked and handles it by itself.

/// The pvpanic port. It emits [`GuestEvent::Panicked`] and [`GuestEvent::CrashLoaded`].
pub struct Pvpanic {
    events: EventSink,
}

impl Pvpanic {
    /// Makes the port; what a guest reports goes to `events`.
    pub fn new(events: EventSink) -> Self {
        Self { events }
    }
}

impl BusDevice for Pvpanic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (0, [value]) => *value = PANICKED | CRASH_LOADED,
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (0, &[value]) = (offset, data) else { return };
        if value & PANICKED != 0 {
            (self.events)(GuestEvent::Panicked);
        }
        if value & CRASH_LOADED != 0 {
            (self.events)(GuestEvent::CrashLoaded);
        }
    }
}

impl fmt::Debug for Pvpanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pvpanic").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::recorder;

    #[test]
    fn each_known_event_bit_is_reported_once() {
        use GuestEvent::{CrashLoaded, Panicked};
        let cases: [(u8, &[GuestEvent]); 5] = [
            (1, &[Panicked]),
            (2, &[CrashLoaded]),
            (3, &[Panicked, CrashLoaded]),
            (0, &[]),
            (0xfc, &[]),
        ];
        for (value, expected) in cases {
            let (sink, events) = recorder();
            Pvpanic::new(sink).write(0, &[value]);
            assert_eq!(*events.lock().unwrap(), expected, "{value:#x}");
        }
    }

    #[test]
    fn reading_tells_the_supported_events() {
        let (sink, events) = recorder();
        let mut pvpanic = Pvpanic::new(sink);
        let mut data = [0];
        pvpanic.read(0, &mut data);
        assert_eq!(data, [0b11]);

        let mut wide = [0; 2];
        pvpanic.read(0, &mut wide);
        assert_eq!(wide, [0xff; 2]);
        pvpanic.write(0, &[1, 1]);
        pvpanic.write(1, &[1]);
        assert!(events.lock().unwrap().is_empty());
        assert_eq!(format!("{pvpanic:?}"), "Pvpanic { .. }");
    }
}
