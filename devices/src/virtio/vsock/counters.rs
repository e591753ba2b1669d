//! What the device counts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counters of a device, which others may look at while it works.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) packets_from_guest: AtomicU64,
    pub(super) packets_to_guest: AtomicU64,
    pub(super) bytes_from_guest: AtomicU64,
    pub(super) bytes_to_guest: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) dialled: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) timed_out: AtomicU64,
    pub(super) violations: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) open: AtomicU64,
}

/// What they were at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Packets that the guest sent.
    pub packets_from_guest: u64,
    /// Packets that it was sent.
    pub packets_to_guest: u64,
    /// Bytes of content that the guest sent.
    pub bytes_from_guest: u64,
    /// Bytes of content that it was sent.
    pub bytes_to_guest: u64,
    /// Connections that programs of the host asked for and the guest accepted.
    pub accepted: u64,
    /// Connections that the guest asked for and a program of the host listened to.
    pub dialled: u64,
    /// Connections that were refused: nobody listened, or there were too many.
    pub refused: u64,
    /// Connections, and beginnings of such, that ended because one side kept the other waiting.
    pub timed_out: u64,
    /// Connections that were reset because the guest broke their rules.
    pub violations: u64,
    /// Packets that were none, and buffers without room for one.
    pub malformed: u64,
    /// Connections that there are now, with those that are coming and going.
    pub open: u64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// What they are now.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            packets_from_guest: read(&self.packets_from_guest),
            packets_to_guest: read(&self.packets_to_guest),
            bytes_from_guest: read(&self.bytes_from_guest),
            bytes_to_guest: read(&self.bytes_to_guest),
            accepted: read(&self.accepted),
            dialled: read(&self.dialled),
            refused: read(&self.refused),
            timed_out: read(&self.timed_out),
            violations: read(&self.violations),
            malformed: read(&self.malformed),
            open: read(&self.open),
        }
    }
}
