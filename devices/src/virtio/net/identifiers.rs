//! The virtual identifiers of a VM: what its device receives and sends for them besides its own address.
//!
//! While a service moves here, frames for it arrive before it can take them. They wait in the device, in
//! their order, until the identifier is opened: [`IdentifierTable::set`]. Only an identifier that is open
//! has a voice; so no guest can answer for a service that is still, or again, somewhere else.
//!
//! Whatever is set is true when [`IdentifierTable::set`] returns: no frame that the guest sends after
//! that is judged by what was before.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use endpoint::range::{Form, Range};
use endpoint::vid::Vid;
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

/// Most frames of a VM that wait for its identifiers to be opened.
pub const MOST_HELD: usize = 10_000;
/// Most bytes of them, with the headers before them. Memory is used as frames come.
pub const MOST_HELD_BYTES: usize = 16 << 20;

/// What becomes of frames for an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Receive {
    /// The guest gets them.
    Deliver,
    /// They wait in the device.
    Hold,
}

/// Identifiers that the VM has, and what it may do with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identifiers {
    /// Which. Where ranges of a table have one in common, the first decides.
    pub range: Range,
    /// The service's address of IP, which they may send from besides the VM's own.
    pub address: Option<IpAddr>,
    /// What becomes of frames for them.
    pub receive: Receive,
    /// Whether they have a voice.
    pub may_send: bool,
}

/// What was counted for a VM's identifiers; each frame once, but for `held`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentifierCounts {
    /// Frames that ever had to wait.
    pub held: u64,
    /// Those that still do.
    pub holding: u64,
    /// Frames that were lost because too many waited.
    pub overflow: u64,
    /// Frames that waited and were dropped with their identifier.
    pub dropped: u64,
    /// Frames that an identifier sent which has no voice.
    pub muted: u64,
    /// Frames that came for identifiers which the VM does not have.
    pub unknown: u64,
}

/// The identifiers of a VM's network device, to be set from any thread. All clones are one table.
#[derive(Clone, Debug)]
pub struct IdentifierTable(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// Whether there are identifiers, and whether frames go on that waited: so that a VM without either
    /// looks no further.
    filled: AtomicBool,
    released: AtomicBool,
    /// Wakes the device's thread, and whether it has been written to.
    event: OwnedFd,
    signalled: AtomicBool,
}

/// What the table is at one time.
#[derive(Debug, Default)]
pub(super) struct Table {
    identifiers: Vec<Identifiers>,
    /// Frames that wait, in the order in which they came. Of one identifier all are here, or in `released`.
    held: VecDeque<Kept>,
    /// Frames that waited, and go on before any other does.
    released: VecDeque<Kept>,
    bytes: usize,
    counts: IdentifierCounts,
    /// When all that is said here ends, unless it is said again.
    end: Option<Instant>,
}

#[derive(Debug)]
struct Kept {
    vid: Vid,
    frame: Box<[u8]>,
}

/// What is to become of a frame that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The guest gets it.
    Deliver,
    /// It was put to those that wait, or lost among too many.
    Taken,
    /// It goes behind those that have waited.
    Behind,
    /// It is for an identifier that the VM does not have.
    Unknown,
    /// It is for an interface that the VM is not.
    Another,
}

impl IdentifierTable {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared {
            table: Mutex::default(),
            filled: AtomicBool::new(false),
            released: AtomicBool::new(false),
            event,
            signalled: AtomicBool::new(false),
        })))
    }

    /// Gives the VM these identifiers and no others, all at once. Frames that wait for one which is to be
    /// delivered now go to the guest before any that comes later for it; those for one that is no longer
    /// there are dropped.
    pub fn set(&self, identifiers: Vec<Identifiers>) {
        let mut table = self.lock();
        table.replace(identifiers);
        self.0.filled.store(!table.identifiers.is_empty(), Ordering::Release);
        let released = !table.released.is_empty();
        self.0.released.store(released, Ordering::Release);
        drop(table);
        if released {
            // It is full only if it is readable anyway. In this order the device can read too early, and
            // is woken again, but never leaves anything to be read.
            let _ = rustix::io::write(&self.0.event, &1_u64.to_ne_bytes());
            self.0.signalled.store(true, Ordering::Release);
        }
    }

    /// Has the table hold for so long, unless this is said again; without, for good. Afterwards the identifiers are as
    /// good as gone: who has set them may be, and another host may have them.
    pub fn hold_for(&self, valid: Option<Duration>) {
        self.lock().end = valid.map(|valid| Instant::now() + valid);
    }

    /// What was counted until now.
    pub fn counters(&self) -> IdentifierCounts {
        let table = self.lock();
        IdentifierCounts { holding: table.kept() as u64, ..table.counts }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    /// Takes note of that the device was woken.
    pub(super) fn heard(&self) {
        if self.0.signalled.swap(false, Ordering::AcqRel) {
            let _ = rustix::io::read(&self.0.event, &mut [0; 8]);
        }
    }

    /// Whether the VM has none.
    pub(super) fn is_empty(&self) -> bool {
        !self.0.filled.load(Ordering::Acquire)
    }

    /// Whether frames that waited are to be delivered.
    pub(super) fn has_released(&self) -> bool {
        self.0.released.load(Ordering::Acquire)
    }

    /// The next frame that has waited, into `buffer`; its length.
    pub(super) fn take_released(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut table = self.lock();
        let kept = table.released.pop_front();
        self.0.released.store(!table.released.is_empty(), Ordering::Release);
        let Kept { frame, .. } = kept?;
        table.bytes -= frame.len();
        drop(table);
        // It was in a buffer of that size before.
        buffer.get_mut(..frame.len())?.copy_from_slice(&frame);
        Some(frame.len())
    }

    /// Decides about `frame`, which has its header, for one `destination` that is not the VM itself.
    pub(super) fn decide(&self, destination: [u8; 6], frame: &[u8]) -> Fate {
        let is_vid = |vid: &Vid| Form::ALL.iter().any(|form| form.parts(*vid).is_some());
        match Vid::new(destination).ok().filter(is_vid) {
            Some(vid) => self.lock().decide(vid, frame),
            None => Fate::Another,
        }
    }

    /// Counts a frame whose fate was [`Fate::Unknown`].
    pub(super) fn count_unknown(&self) {
        self.lock().counts.unknown += 1;
    }
}

impl Table {
    /// Those that `source` is one of.
    pub(super) fn find(&self, source: [u8; 6]) -> Option<&Identifiers> {
        let vid = Vid::new(source).ok()?;
        self.identifiers.iter().find(|identifiers| identifiers.range.contains(vid))
    }

    /// Whether those with `address` may send; nothing if there are none.
    pub(super) fn may_send_from(&self, address: IpAddr) -> Option<bool> {
        let is_over = self.is_over();
        let mut with = self.identifiers.iter().filter(|other| other.address == Some(address));
        let first = with.next()?;
        Some(!is_over && (first.may_send || with.any(|other| other.may_send)))
    }

    /// Whether nobody has said for too long that this still holds.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    pub(super) fn count_muted(&mut self) {
        self.counts.muted += 1;
    }

    fn kept(&self) -> usize {
        self.held.len() + self.released.len()
    }

    fn decide(&mut self, vid: Vid, frame: &[u8]) -> Fate {
        let found = self.find(vid.bytes()).filter(|_| !self.is_over());
        let Some(Identifiers { receive, .. }) = found else { return Fate::Unknown };
        match receive {
            // They may have been released since the device looked.
            Receive::Deliver if !self.released.is_empty() => Fate::Behind,
            Receive::Deliver => Fate::Deliver,
            Receive::Hold => {
                if self.kept() == MOST_HELD || self.bytes + frame.len() > MOST_HELD_BYTES {
                    self.counts.overflow += 1;
                } else {
                    self.bytes += frame.len();
                    self.held.push_back(Kept { vid, frame: frame.into() });
                    self.counts.held += 1;
                }
                Fate::Taken
            }
        }
    }

    fn replace(&mut self, identifiers: Vec<Identifiers>) {
        self.identifiers = identifiers;
        let kept = std::mem::take(&mut self.released).into_iter();
        for kept in kept.chain(std::mem::take(&mut self.held)) {
            match self.find(kept.vid.bytes()).map(|identifiers| identifiers.receive) {
                Some(Receive::Deliver) => self.released.push_back(kept),
                Some(Receive::Hold) => self.held.push_back(kept),
                None => {
                    self.bytes -= kept.frame.len();
                    self.counts.dropped += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
