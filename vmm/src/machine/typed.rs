//! What was typed, on its way into a serial port that takes little at a time.

use std::io;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use devices::serial::SerialConsole;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::event_loop::lock;

/// How soon a serial port that is busy is tried again.
const BUSY: Duration = Duration::from_millis(2);

/// Bytes for a serial port, which it has not taken.
pub(super) struct Typed {
    serial: Arc<Mutex<SerialConsole>>,
    /// What waits.
    pub waiting: Vec<u8>,
    /// Signalled when the serial port may have room again.
    pub room: EventFd,
}

impl Typed {
    /// None yet, for `serial`.
    ///
    /// # Errors
    /// No eventfd.
    pub fn new(serial: &Arc<Mutex<SerialConsole>>) -> io::Result<Self> {
        let room = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        lock(serial).set_input_ready(room.try_clone()?);
        Ok(Self { serial: Arc::clone(serial), waiting: Vec::new(), room })
    }

    /// Hands on as much as the serial port takes. The port is busy while a processor prints, or waits for
    /// somebody to read its output, and the loop must not wait with it.
    pub fn deliver(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let taken = match self.serial.try_lock() {
            Ok(mut serial) => serial.receive(&self.waiting),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().receive(&self.waiting),
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(BUSY);
                // A counter that is full is readable already.
                let _ = self.room.write(1);
                return;
            }
        };
        self.waiting.drain(..taken);
    }
}
