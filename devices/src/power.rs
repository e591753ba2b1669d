//! Power control of a hardware-reduced ACPI platform.
//!
//! Sleep control and sleep status register follow ACPI 6.5, section 4.8.3.7; the reset register
//! follows section 4.8.3.6. The FADT points at them with the offsets below, the DSDT's `_S5`
//! package names [`S5_SLEEP_TYPE`]. All registers are one byte wide.

use std::fmt;

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// Offset of the sleep control register (FADT `SLEEP_CONTROL_REG`).
pub const SLEEP_CONTROL_OFFSET: u64 = 0;
/// Offset of the sleep status register (FADT `SLEEP_STATUS_REG`).
pub const SLEEP_STATUS_OFFSET: u64 = 1;
/// Offset of the reset register (FADT `RESET_REG`).
pub const RESET_OFFSET: u64 = 2;
/// What resets the machine when written to the reset register (FADT `RESET_VALUE`).
pub const RESET_VALUE: u8 = 0x5a;
/// `SLP_TYPx` of the soft-off state, for the DSDT's `_S5` package.
pub const S5_SLEEP_TYPE: u8 = 5;
/// Length of the register window in bytes.
pub const WINDOW_LENGTH: u64 = 4;

const SLEEP_TYPE_SHIFT: u32 = 2; // SLP_TYPx, bits 2 to 4
const SLEEP_TYPE_MASK: u8 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u8 = 1 << 5; // SLP_EN, write-only

/// The power control registers. They emit [`GuestEvent::PowerOff`] and [`GuestEvent::Reset`].
pub struct Power {
    events: EventSink,
    /// `SLP_TYPx` as last written, in place.
    sleep_type: u8,
}

impl Power {
    /// Makes the registers; what they cause goes to `events`.
    pub fn new(events: EventSink) -> Self {
        Self { events, sleep_type: 0 }
    }

    fn write_sleep_control(&mut self, value: u8) {
        self.sleep_type = value & SLEEP_TYPE_MASK;
        // No other sleep state is announced: entering one is dropped.
        if value & SLEEP_ENABLE != 0 && self.sleep_type == S5_SLEEP_TYPE << SLEEP_TYPE_SHIFT {
            (self.events)(GuestEvent::PowerOff);
        }
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (SLEEP_CONTROL_OFFSET, [value]) => *value = self.sleep_type,
            // WAK_STS (bit 7) reports a wake-up, and nothing wakes a machine that is off.
            (SLEEP_STATUS_OFFSET, [value]) => *value = 0,
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL_OFFSET, &[value]) => self.write_sleep_control(value),
            (RESET_OFFSET, &[RESET_VALUE]) => (self.events)(GuestEvent::Reset),
            _ => {}
        }
    }
}

impl fmt::Debug for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Power").field("sleep_type", &self.sleep_type).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::recorder;

    #[test]
    fn only_s5_with_sleep_enable_powers_off() {
        for value in 0..=u8::MAX {
            let (sink, events) = recorder();
            Power::new(sink).write(SLEEP_CONTROL_OFFSET, &[value]);
            let off = (value >> 2) & 0b111 == S5_SLEEP_TYPE && value & 0x20 != 0;
            let expected: &[GuestEvent] = if off { &[GuestEvent::PowerOff] } else { &[] };
            assert_eq!(*events.lock().unwrap(), expected, "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        let (sink, events) = recorder();
        let mut power = Power::new(sink);
        for value in (0..=u8::MAX).filter(|&value| value != RESET_VALUE) {
            power.write(RESET_OFFSET, &[value]);
        }
        power.write(RESET_OFFSET, &[RESET_VALUE, 0]);
        power.write(RESET_OFFSET + 1, &[RESET_VALUE]);
        assert!(events.lock().unwrap().is_empty());
        power.write(RESET_OFFSET, &[RESET_VALUE]);
        assert_eq!(*events.lock().unwrap(), [GuestEvent::Reset]);
    }

    #[test]
    fn sleep_type_reads_back_without_enable_and_nothing_has_woken() {
        let mut power = Power::new(recorder().0);
        power.write(SLEEP_CONTROL_OFFSET, &[0xff]);
        power.write(SLEEP_STATUS_OFFSET, &[0x80]);
        for (offset, expected) in [(0, 0x1c), (1, 0), (2, 0xff), (3, 0xff)] {
            let mut data = [0x55];
            power.read(offset, &mut data);
            assert_eq!(data, [expected], "offset {offset}");
        }
        let mut wide = [0; 4];
        power.read(SLEEP_CONTROL_OFFSET, &mut wide);
        assert_eq!(wide, [0xff; 4]);
        assert_eq!(format!("{power:?}"), "Power { sleep_type: 28, .. }");
    }
}
