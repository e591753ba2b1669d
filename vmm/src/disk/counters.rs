//! What a disk counts, for the report.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counters of a disk that is in use.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) chunks_fetched: AtomicU64,
    pub(super) chunks_ahead: AtomicU64,
    pub(super) bytes_fetched: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) overlay_bytes: AtomicU64,
    pub(super) errors: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// What a disk did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskReport {
    /// Chunks of the image that were brought.
    pub chunks_fetched: u64,
    /// Those of them that nobody had asked for yet.
    pub chunks_ahead: u64,
    /// Their bytes.
    pub bytes_fetched: u64,
    /// Bytes that the guest read.
    pub bytes_read: u64,
    /// Bytes that it wrote.
    pub bytes_written: u64,
    /// Times that it had all brought to the host's disk.
    pub flushes: u64,
    /// Bytes of content that the overlay has.
    pub overlay_bytes: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl Counters {
    /// What they are now.
    pub fn report(&self) -> DiskReport {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskReport {
            chunks_fetched: now(&self.chunks_fetched),
            chunks_ahead: now(&self.chunks_ahead),
            bytes_fetched: now(&self.bytes_fetched),
            bytes_read: now(&self.bytes_read),
            bytes_written: now(&self.bytes_written),
            flushes: now(&self.flushes),
            overlay_bytes: now(&self.overlay_bytes),
            errors: now(&self.errors),
        }
    }
}
