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
#[derive(Debug, Clone)]
pub struct EventSender {
    events: Sender<MachineEvent>,
    wake: Arc<EventFd>,
    ended: Arc<AtomicBool>,
}

impl MachineEvent {
    /// Whether nothing of the guest is to run after it.
    fn is_end(&self) -> bool {
        !matches!(self, Self::Guest(GuestEvent::Panicked | GuestEvent::CrashLoaded))
    }
}

impl EventSender {
    /// Sends; an event loop that has ended does not need it any more.
    pub fn send(&self, event: MachineEvent) {
        if event.is_end() {
            self.ended.store(true, Ordering::Release);
        }
        let _ = self.events.send(event);
        let _ = self.wake.write(1);
    }

    /// Whether an event was sent after which nothing of the guest is to run: a guest that waits for
    /// its own end does so by exit after exit.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
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
    let ended = Arc::new(AtomicBool::new(false));
    Ok((EventSender { events: sender, wake: wake.clone(), ended }, EventReceiver { events, wake }))
}
