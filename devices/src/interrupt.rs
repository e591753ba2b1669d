//! The interrupt line from a device to the interrupt controller.

use std::io;

use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt line: every trigger is one edge.
///
/// The other end of the event descriptor is the machine's business; under KVM it is an irqfd.
/// Edges that come before the other end has read the last one are merged, as on a real line.
#[derive(Debug)]
pub struct InterruptLine(EventFd);

impl InterruptLine {
    /// Makes a line of an event descriptor.
    pub fn new(event: EventFd) -> Self {
        Self(event)
    }

    /// Sends one edge.
    ///
    /// # Errors
    /// The descriptor's own: `EAGAIN` if it does not block and 2^64 - 2 edges wait unread.
    pub fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }

    /// Makes a second handle of the same line.
    ///
    /// # Errors
    /// Those of `dup`: no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn edges_of_both_handles_reach_the_one_descriptor() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = InterruptLine::new(event.try_clone().unwrap());
        line.trigger().unwrap();
        Trigger::trigger(&line.try_clone().unwrap()).unwrap();
        assert_eq!(event.read().unwrap(), 2);
    }

    #[test]
    fn a_full_counter_is_an_error_and_does_not_block() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(u64::MAX - 1).unwrap();
        let line = InterruptLine::new(event);
        assert_eq!(line.trigger().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
