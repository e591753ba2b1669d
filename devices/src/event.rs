//! What a guest did that ends or marks its machine's life.

use std::sync::Arc;

/// An act of the guest that concerns the owner of the machine rather than a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestEvent {
    /// The guest switched its machine off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset, by ACPI or by the keyboard controller.
    Reset,
    /// The guest's kernel panicked and nothing in the guest will handle it.
    Panicked,
    /// The guest's kernel panicked and its own crash kernel takes over.
    CrashLoaded,
}

/// Where devices report a [`GuestEvent`].
///
/// It is called on the thread of the vCPU that made the access, with that device's lock held:
/// it must neither block nor touch a device.
pub type EventSink = Arc<dyn Fn(GuestEvent) + Send + Sync>;

/// A sink for tests, and what it has received.
#[cfg(test)]
pub(crate) fn recorder() -> (EventSink, Arc<std::sync::Mutex<Vec<GuestEvent>>>) {
    let events = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    (Arc::new(move |event| sink.lock().unwrap().push(event)), events)
}
