//! What a block device is made of, as the device sees it: something that takes requests and completes
//! them later, on whatever threads.
//!
//! Requests and completions own their bytes. Nothing but the device touches guest memory, so a
//! request that is still under way when its driver resets the device, or its VM ends, can write nowhere.

use std::os::fd::BorrowedFd;

/// Which request of a device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag {
    /// How often the device was reset before.
    pub(super) generation: u64,
    /// Its slot among those under way.
    pub(super) slot: usize,
}

impl Tag {
    /// One for tests of backends: no device has it.
    pub fn of_nobody(slot: usize) -> Self {
        Self { generation: u64::MAX, slot }
    }

    /// The slot, which no other request has that is under way.
    pub fn slot(self) -> usize {
        self.slot
    }
}

/// Something to be done, within the device's capacity. Offsets and lengths are in bytes, multiples of
/// 512, and no length is 0.
#[derive(Debug)]
pub enum Operation {
    /// Reads bytes.
    Read {
        /// Where from.
        offset: u64,
        /// How many; at most [`MAX_REQUEST_BYTES`](super::MAX_REQUEST_BYTES).
        length: usize,
    },
    /// Writes bytes. Never submitted to a backend that is not writable.
    Write {
        /// Where to.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// Has all of a range read as zeros, without keeping space for it. Never submitted to a backend that
    /// is not writable.
    Zero {
        /// Where from.
        offset: u64,
        /// How many bytes; at most [`MAX_ZERO_BYTES`](super::MAX_ZERO_BYTES).
        length: u64,
    },
    /// Has all that was written, in requests that were completed, outlive the host's crash.
    Flush,
}

/// A request to a backend.
#[derive(Debug)]
pub struct Request {
    /// What its completion names.
    pub tag: Tag,
    /// What is to be done.
    pub operation: Operation,
}

/// The end of a request.
#[derive(Debug)]
pub struct Completion {
    /// Which.
    pub tag: Tag,
    /// The bytes that were read, or nothing for what reads none; or that it failed, which its backend
    /// has told the host about as often as the host wants to hear of it.
    pub result: Result<Vec<u8>, Failed>,
}

/// The request was not carried out; the driver is told of an I/O error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

/// What a block device is made of.
pub trait BlockBackend: Send + std::fmt::Debug {
    /// Its size in sectors of 512 bytes.
    fn sectors(&self) -> u64;

    /// Whether it can be written to.
    fn is_writable(&self) -> bool;

    /// What tells it from others: up to 20 bytes, padded with zeros.
    fn id(&self) -> [u8; 20];

    /// Takes a request; returns at once. Every request is completed, once, in any order.
    fn submit(&mut self, request: Request);

    /// Readable while there are completions, or after [`wake`](Self::wake) until the next
    /// [`completion`](Self::completion) that returns none.
    fn event(&self) -> BorrowedFd<'_>;

    /// Makes [`event`](Self::event) readable: the device wants to be called again.
    fn wake(&self);

    /// The next completion, if there is one.
    fn completion(&mut self) -> Option<Completion>;
}
