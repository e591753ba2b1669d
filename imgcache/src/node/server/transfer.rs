//! A data block on its way in: into the slot that the item will have, or into a list of keys.

use super::budget::Permit;
use crate::node::cache::{Attributes, Key, Reservation, StoreMode};
use crate::transport::verbs::Endpoint;

/// A data block of which a part may have come.
#[derive(Debug)]
pub(super) struct Transfer {
    pub sink: Sink,
    filled: usize,
    pub then: Then,
}

/// Where it goes.
#[derive(Debug)]
pub(super) enum Sink {
    Slot(Reservation),
    List(List),
}

/// A list of keys.
#[derive(Debug)]
pub(super) struct List {
    pub bytes: Vec<u8>,
    /// For its memory.
    _permit: Permit,
}

/// What is done when it is there.
#[derive(Debug)]
pub(super) enum Then {
    Store {
        key: Key,
        mode: StoreMode,
        attributes: Attributes,
        quiet: bool,
    },
    /// The line of an `ms`, which its reply needs.
    MetaSet {
        line: Box<[u8]>,
    },
    Lease {
        id: u64,
        ttl: u64,
    },
    Pin {
        image: [u8; 32],
    },
    Push {
        peer: Box<Endpoint>,
    },
}

impl Transfer {
    pub fn value(slot: Reservation, then: Then) -> Self {
        Self { sink: Sink::Slot(slot), filled: 0, then }
    }

    pub fn list(length: usize, permit: Permit, then: Then) -> Self {
        let list = List { bytes: vec![0; length], _permit: permit };
        Self { sink: Sink::List(list), filled: 0, then }
    }

    /// What is still to be filled.
    pub fn unfilled(&mut self) -> &mut [u8] {
        let bytes: &mut [u8] = match &mut self.sink {
            Sink::Slot(reservation) => reservation,
            Sink::List(list) => &mut list.bytes,
        };
        bytes.get_mut(self.filled..).unwrap_or_default()
    }

    /// Bytes of it.
    pub fn length(&self) -> usize {
        match &self.sink {
            Sink::Slot(reservation) => reservation.len(),
            Sink::List(list) => list.bytes.len(),
        }
    }

    /// Whether all of it came.
    pub fn is_filled(&self) -> bool {
        self.filled >= self.length()
    }

    /// Takes note that the next `length` bytes are filled.
    pub fn advance(&mut self, length: usize) {
        self.filled += length;
    }

    /// Fills from `bytes`; returns how many were taken.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let unfilled = self.unfilled();
        let length = unfilled.len().min(bytes.len());
        unfilled[..length].copy_from_slice(&bytes[..length]);
        self.advance(length);
        length
    }
}
