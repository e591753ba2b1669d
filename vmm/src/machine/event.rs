//! What happens in a VM that its event loop must know of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use devices::event::{EventSink, GuestEvent};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest said so to a device.
    Guest(GuestEvent),
    /// A vCPU shut down.
    TripleFault,
    /// A vCPU cannot go on; the reason in words.
    Failed(String),
}

/// Hands events to the event loop, from any thread.
///
/// Each kind of event is sent once: a guest can repeat what it does as fast as it likes.
#[derive(Debug, Clone)]
pub struct EventSender {
    events: Sender<MachineEvent>,
    wake: Arc<EventFd>,
    sent: Arc<Sent>,
}

/// What has been sent.
#[derive(Debug, Default)]
struct Sent {
    panicked: AtomicBool,
    crash_loaded: AtomicBool,
    end: AtomicBool,
}

impl EventSender {
    /// Sends; an event loop that has ended does not need it any more.
    pub fn send(&self, event: MachineEvent) {
        let sent = match event {
            MachineEvent::Guest(GuestEvent::Panicked) => &self.sent.panicked,
            MachineEvent::Guest(GuestEvent::CrashLoaded) => &self.sent.crash_loaded,
            _ => &self.sent.end,
        };
        if sent.swap(true, Ordering::AcqRel) {
            return;
        }
        let _ = self.events.send(event);
        let _ = self.wake.write(1);
    }

    /// Whether an event was sent after which nothing of the guest is to run: a guest that waits for
    /// its own end does so by exit after exit.
    pub fn ended(&self) -> bool {
        self.sent.end.load(Ordering::Acquire)
    }

    /// The form in which devices want it.
    pub fn sink(&self) -> EventSink {
        let sender = self.clone();
        Arc::new(move |event| sender.send(MachineEvent::Guest(event)))
    }
}

/// The other end: what the event loop waits for.
#[derive(Debug)]
pub struct EventReceiver {
    /// The events.
    pub events: Receiver<MachineEvent>,
    /// Readable when there are some.
    pub wake: Arc<EventFd>,
}

/// A sender and its receiver.
///
/// # Errors
/// No eventfd.
pub fn event_channel() -> std::io::Result<(EventSender, EventReceiver)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, events) = channel();
    let sent = Arc::default();
    Ok((EventSender { events: sender, wake: wake.clone(), sent }, EventReceiver { events, wake }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_repeats_is_sent_once() {
        let (sender, receiver) = event_channel().unwrap();
        let sink = sender.sink();
        for _ in 0..3 {
            sink(GuestEvent::Panicked);
            assert!(!sender.ended());
        }
        sink(GuestEvent::Reset);
        sink(GuestEvent::PowerOff);
        assert!(sender.ended());
        let seen: Vec<_> = receiver.events.try_iter().collect();
        let guest = MachineEvent::Guest;
        assert_eq!(seen, [guest(GuestEvent::Panicked), guest(GuestEvent::Reset)]);
    }
}
