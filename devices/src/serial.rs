//! A serial port, 16550A: the console at COM1, the control device's event line at COM2.
//!
//! Registers and interrupts are vm-superio's. This module adds what a console needs around them:
//! input that waits for room in the FIFO, and output that never disturbs the guest.
//!
//! Output is not buffered. Each byte the guest transmits is one `write` of the output, which
//! costs little beside the VM exit that brought it, and a prompt without a newline shows at
//! once. A byte the output does not take (closed, full and non-blocking, or blocked until a
//! signal came) is lost and counted, as on a serial line that nobody listens to.

use std::cell::Cell;
use std::fmt;
use std::io::{self, ErrorKind, Write};

use log::debug;
use vm_superio::Serial;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// First I/O port of COM1.
pub const COM1_BASE: u64 = 0x3f8;
/// I/O ports of a UART.
pub const COM1_LENGTH: u64 = 8;
/// ISA interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// First I/O port of COM2, the control device's event line.
pub const COM2_BASE: u64 = 0x2f8;
/// I/O ports of COM2.
pub const COM2_LENGTH: u64 = 8;
/// ISA interrupt of COM2.
pub const COM2_IRQ: u32 = 3;

/// Bytes of vm-superio's receive FIFO.
const FIFO_BYTES: usize = 64;
const MODEM_CONTROL_OFFSET: u8 = 4;
const MODEM_CONTROL_LOOPBACK: u8 = 1 << 4;

/// A UART whose transmitter is an output and whose receiver is fed with
/// [`receive`](SerialConsole::receive). Registers are one byte wide; an access of another width
/// reads as all ones and writes nothing.
pub struct SerialConsole {
    uart: Serial<InterruptLine, ConsoleEvents, Output>,
    input_ready: Option<EventFd>,
}

impl SerialConsole {
    /// Makes a console that interrupts by `line` and writes to `output`.
    pub fn new(line: InterruptLine, output: Box<dyn Write + Send>) -> Self {
        let uart = Serial::with_events(line, ConsoleEvents::default(), Output(output));
        Self { uart, input_ready: None }
    }

    /// Sets the event that is signalled whenever the guest has emptied the receive FIFO, or ends
    /// the loopback in which it takes no input: [`receive`](Self::receive) has room again. It
    /// should not block.
    pub fn set_input_ready(&mut self, event: EventFd) {
        self.input_ready = Some(event);
    }

    /// Puts `input` into the receive FIFO, as much as fits, and returns how many bytes that was.
    /// The rest stays with the caller until the event of
    /// [`set_input_ready`](Self::set_input_ready).
    pub fn receive(&mut self, input: &[u8]) -> usize {
        let count = input.len().min(self.space());
        if count == 0 {
            return 0;
        }
        // The bytes are in the FIFO before the interrupt is tried: they count even if it fails.
        if let Err(error) = self.uart.enqueue_raw_bytes(&input[..count]) {
            debug!("Serial console: {error}");
        }
        count
    }

    /// How many bytes [`receive`](Self::receive) would take now.
    pub fn space(&self) -> usize {
        if self.is_loopback() { 0 } else { self.uart.fifo_capacity() }
    }

    /// Whether nothing that was received waits for the guest, and it takes input.
    pub fn is_idle(&self) -> bool {
        self.space() == FIFO_BYTES
    }

    /// How many bytes of output were lost because the output did not take them.
    pub fn lost_output(&self) -> u64 {
        self.uart.events().lost.get()
    }

    /// Flushes the output. Only an output that buffers by itself and ignores the flush after
    /// each byte needs it.
    ///
    /// # Errors
    /// The output's own.
    pub fn flush(&mut self) -> io::Result<()> {
        self.uart.writer_mut().flush()
    }

    fn is_loopback(&self) -> bool {
        self.uart.state().modem_control & MODEM_CONTROL_LOOPBACK != 0
    }

    fn signal_input_ready(&self) {
        // A counter that is full has been signalled already.
        if let Some(Err(error)) = self.input_ready.as_ref().map(|event| event.write(1)) {
            debug!("Serial console: input event: {error}");
        }
    }
}

impl BusDevice for SerialConsole {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (Ok(offset @ 0..8), [value]) = (u8::try_from(offset), &mut *data) else {
            data.fill(0xff);
            return;
        };
        *value = self.uart.read(offset);
        if self.uart.events().drained.take() && !self.is_loopback() {
            self.signal_input_ready();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(offset @ 0..8), &[value]) = (u8::try_from(offset), data) else { return };
        let ends_loopback = offset == MODEM_CONTROL_OFFSET
            && value & MODEM_CONTROL_LOOPBACK == 0
            && self.is_loopback();
        if let Err(error) = self.uart.write(offset, value) {
            debug!("Serial console: {error}");
        }
        if ends_loopback && self.space() > 0 {
            self.signal_input_ready();
        }
    }
}

impl fmt::Debug for SerialConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialConsole")
            .field("state", &self.uart.state())
            .field("lost_output", &self.lost_output())
            .finish_non_exhaustive()
    }
}

/// What the UART tells of its traffic.
#[derive(Debug, Default)]
struct ConsoleEvents {
    /// The guest has emptied the FIFO since this was last taken.
    drained: Cell<bool>,
    /// Bytes the output did not take.
    lost: Cell<u64>,
}

impl SerialEvents for ConsoleEvents {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {
        self.lost.set(self.lost.get().saturating_add(1));
    }

    fn in_buffer_empty(&self) {
        self.drained.set(true);
    }
}

/// The output. A write that a signal interrupts is not tried again: the signal may be there to
/// stop the very thread that a blocked terminal holds up.
struct Output(Box<dyn Write + Send>);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => ErrorKind::WouldBlock.into(),
            _ => error,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;
    const LOOPBACK: u8 = MODEM_CONTROL_LOOPBACK;
    const FIFO: usize = FIFO_BYTES;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(data)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    /// A console, its interrupt event and its input event.
    fn console(output: impl Write + Send + 'static) -> (SerialConsole, EventFd, EventFd) {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let ready = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = InterruptLine::new(interrupt.try_clone().unwrap());
        let mut console = SerialConsole::new(line, Box::new(output));
        console.set_input_ready(ready.try_clone().unwrap());
        (console, interrupt, ready)
    }

    fn read(console: &mut SerialConsole, offset: u64) -> u8 {
        let mut data = [0];
        console.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn transmitted_bytes_reach_the_output_at_once() {
        let output = Shared::default();
        let (mut console, _, _) = console(output.clone());
        for byte in b"# " {
            console.write(DATA, &[*byte]);
        }
        assert_eq!(*output.0.lock().unwrap(), b"# ");
        assert_eq!(console.lost_output(), 0);
        console.flush().unwrap();
    }

    #[test]
    fn a_dead_output_loses_bytes_but_not_the_transmit_interrupt() {
        for kind in [ErrorKind::BrokenPipe, ErrorKind::WouldBlock, ErrorKind::Interrupted] {
            let (mut console, interrupt, _) = console(Failing(kind));
            console.write(INTERRUPT_ENABLE, &[0b10]);
            interrupt.read().unwrap();
            read(&mut console, 2);
            console.write(DATA, b"x");
            assert_eq!(console.lost_output(), 1, "{kind}");
            assert_eq!(interrupt.read().unwrap(), 1);
            assert_eq!(read(&mut console, LINE_STATUS) & 0x20, 0x20);
            assert_eq!(console.flush().unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn input_fills_the_fifo_and_waits_until_the_guest_has_read_it() {
        let (mut console, interrupt, ready) = console(io::sink());
        console.write(INTERRUPT_ENABLE, &[0b01]);
        let input: Vec<u8> = (0..100).collect();
        assert_eq!(console.space(), FIFO);
        assert!(console.is_idle());
        assert_eq!(console.receive(&input), FIFO);
        assert!(!console.is_idle());
        assert_eq!(interrupt.read().unwrap(), 1);
        assert_eq!(console.space(), 0);
        assert_eq!(console.receive(&input[FIFO..]), 0);
        assert!(ready.read().is_err());

        let read_back: Vec<u8> = (0..FIFO).map(|_| read(&mut console, DATA)).collect();
        assert_eq!(read_back, input[..FIFO]);
        assert_eq!(ready.read().unwrap(), 1);
        assert_eq!(console.receive(&input[FIFO..]), 100 - FIFO);
        assert_eq!(read(&mut console, LINE_STATUS) & 1, 1);
    }

    #[test]
    fn input_waits_for_the_end_of_loopback() {
        let (mut console, _, ready) = console(io::sink());
        console.write(4, &[LOOPBACK]);
        console.write(DATA, b"l");
        assert_eq!(console.receive(b"abc"), 0);
        assert_eq!(read(&mut console, DATA), b'l');
        assert!(ready.read().is_err());
        console.write(4, &[0]);
        assert_eq!(ready.read().unwrap(), 1);
        console.write(4, &[0]);
        assert!(ready.read().is_err());
        assert_eq!(console.receive(b"abc"), 3);
        assert_eq!(console.receive(b""), 0);
    }

    #[test]
    fn wide_and_foreign_accesses_are_ignored() {
        let output = Shared::default();
        let (mut console, _, _) = console(output.clone());
        for (offset, width) in [(0, 2), (0, 4), (0, 8), (0, 0), (8, 1), (0x100, 1), (u64::MAX, 1)] {
            let mut data = vec![0x55; width];
            console.read(offset, &mut data);
            assert_eq!(data, vec![0xff; width]);
            console.write(offset, &data);
        }
        assert!(output.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_console_without_a_listener_or_with_a_stuck_line_still_works() {
        let stuck = EventFd::new(EFD_NONBLOCK).unwrap();
        stuck.write(u64::MAX - 1).unwrap();
        let line = InterruptLine::new(stuck.try_clone().unwrap());
        let mut console = SerialConsole::new(line, Box::new(io::sink()));
        console.write(INTERRUPT_ENABLE, &[0b11]);
        assert_eq!(console.receive(b"ab"), 2);
        assert_eq!((read(&mut console, DATA), read(&mut console, DATA)), (b'a', b'b'));
        console.set_input_ready(stuck);
        assert_eq!(read(&mut console, DATA), 0);
        assert!(format!("{console:?}").contains("lost_output: 0"));
    }
}
