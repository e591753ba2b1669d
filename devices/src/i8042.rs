//! The keyboard controller, as far as it resets the machine.
//!
//! The window covers ports 0x60 to 0x64. Command 0xfe at port 0x64 pulses the CPU's reset line;
//! the status reads as 0, both buffers empty, so that a kernel that waits for the controller
//! before the command does not wait. There is no keyboard: the FADT must not announce an i8042
//! (`IAPC_BOOT_ARCH` bit 1 clear), or a kernel probes for one against its time-outs.
//!
//! Port 0x61 lies in the same window and belongs to the system timer. Kernels poll its bit 5,
//! the output of counter 2, without a limit while they calibrate; it always reads as set.

use std::convert::Infallible;
use std::fmt;

use vm_superio::{I8042Device, Trigger};

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// First I/O port of the window.
pub const I8042_BASE: u64 = 0x60;
/// I/O ports of the window.
pub const I8042_LENGTH: u64 = 5;

const DATA_OFFSET: u64 = 0; // Port 0x60
const TIMER_OFFSET: u64 = 1; // Port 0x61: NMI status and control, timer counter 2
const COMMAND_OFFSET: u64 = 4; // Port 0x64: command, or status when read
const TIMER_COUNTER_2_OUT: u8 = 0x20;

/// The keyboard controller. It emits [`GuestEvent::Reset`].
#[derive(Debug)]
pub struct I8042 {
    controller: I8042Device<ResetLine>,
}

impl I8042 {
    /// Makes a controller whose reset line is `events`.
    pub fn new(events: EventSink) -> Self {
        Self { controller: I8042Device::new(ResetLine(events)) }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (TIMER_OFFSET, [value]) => *value = TIMER_COUNTER_2_OUT,
            (DATA_OFFSET | COMMAND_OFFSET, [value]) => {
                *value = u8::try_from(offset).map_or(0xff, |offset| self.controller.read(offset));
            }
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), &[value]) = (u8::try_from(offset), data) {
            let Ok(()) = self.controller.write(offset, value);
        }
    }
}

struct ResetLine(EventSink);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)(GuestEvent::Reset);
        Ok(())
    }
}

impl fmt::Debug for ResetLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetLine")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::recorder;

    #[test]
    fn only_command_fe_as_one_byte_at_port_64_resets() {
        let (sink, events) = recorder();
        let mut i8042 = I8042::new(sink);
        for (offset, data) in
            [(0, &[0xfe][..]), (4, &[0xfd]), (4, &[0xfe, 0]), (4, &[]), (0x104, &[0xfe])]
        {
            i8042.write(offset, data);
        }
        assert!(events.lock().unwrap().is_empty());
        i8042.write(4, &[0xfe]);
        assert_eq!(*events.lock().unwrap(), [GuestEvent::Reset]);
    }

    #[test]
    fn the_controller_is_never_busy_and_timer_output_is_set() {
        let mut i8042 = I8042::new(recorder().0);
        for (offset, expected) in [(0, 0), (1, 0x20), (2, 0xff), (3, 0xff), (4, 0), (5, 0xff)] {
            let mut data = [0x55];
            i8042.read(offset, &mut data);
            assert_eq!(data, [expected], "port offset {offset}");
        }
        let mut wide = [0; 2];
        i8042.read(4, &mut wide);
        assert_eq!(wide, [0xff; 2]);
    }

    #[test]
    fn debug_hides_the_sink() {
        assert!(format!("{:?}", I8042::new(recorder().0)).contains("ResetLine"));
    }
}
