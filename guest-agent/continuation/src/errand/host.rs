//! The host, as a server sees it that carries out errands: the control device.

use std::time::{Duration, Instant};

use control_abi::event::{Kind, endpoint};
use guest_agent::calls::endpoint::{Errand, ErrandKind};
use guest_agent::driver::{Driver, DriverError};

/// Between looks where another process has the device's events.
const LOOK: Duration = Duration::from_millis(50);

/// Gives errands, and takes what comes of them. What does is [`Driver`]; tests have others.
pub trait Host {
    /// The next errand of a service; again, until it was answered.
    ///
    /// # Errors
    /// The device's refusal, as with all that follow.
    fn next_errand(&mut self, service: &str) -> Result<Option<Errand>, DriverError>;

    /// Waits until there may be an errand, at most so long.
    ///
    /// # Errors
    /// The device cannot be used any more.
    fn wait(&mut self, most: Duration) -> Result<(), DriverError>;

    /// An errand of a move that is not decided is done.
    ///
    /// # Errors
    /// The device's refusal.
    fn prepared(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError>;

    /// An errand of a move that is decided is done.
    ///
    /// # Errors
    /// The device's refusal.
    fn done(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError>;

    /// An errand cannot be done.
    ///
    /// # Errors
    /// The device's refusal.
    fn abort(&mut self, number: u64, errand: ErrandKind, why: &str) -> Result<(), DriverError>;

    /// Bytes of a state that can be sent, or received, at once.
    fn piece(&mut self) -> usize;

    /// Sends a piece of the state, which has byte `at` first.
    ///
    /// # Errors
    /// The device's refusal.
    fn send(&mut self, number: u64, at: u64, bytes: &[u8]) -> Result<(), DriverError>;

    /// Receives the state from byte `at` on; how many bytes.
    ///
    /// # Errors
    /// The device's refusal.
    fn receive(&mut self, number: u64, at: u64, bytes: &mut [u8]) -> Result<usize, DriverError>;
}

impl Host for Driver {
    fn next_errand(&mut self, service: &str) -> Result<Option<Errand>, DriverError> {
        Driver::next_errand(self, Some(service))
    }

    fn wait(&mut self, most: Duration) -> Result<(), DriverError> {
        self.check_generation()?;
        let (has_events, _) = self.has_events();
        let until = Instant::now() + if has_events { most } else { most.min(LOOK) };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.next_event(left) {
                Some(event) if event.kind == Kind::Endpoint && event.value == endpoint::ERRAND => {
                    return Ok(());
                }
                // Of something else.
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }

    fn prepared(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError> {
        Driver::prepared(self, number, errand)
    }

    fn done(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError> {
        Driver::done(self, number, errand)
    }

    fn abort(&mut self, number: u64, errand: ErrandKind, why: &str) -> Result<(), DriverError> {
        Driver::abort(self, number, Some(errand), why)
    }

    fn piece(&mut self) -> usize {
        self.largest_buffer()
    }

    fn send(&mut self, number: u64, at: u64, bytes: &[u8]) -> Result<(), DriverError> {
        self.move_send(number, at, bytes)
    }

    fn receive(&mut self, number: u64, at: u64, bytes: &mut [u8]) -> Result<usize, DriverError> {
        self.move_receive(number, at, bytes)
    }
}
