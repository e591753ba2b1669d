//! Where memory comes from: free slots, what has come back, evicted items, other classes' slabs.

use std::time::Duration;

use super::Cache;
use super::error::ReserveError;
use super::evict::{LOOKS, RESERVE_PERCENT, Room, SLAB_LOOKS};
use super::item::{Block, GiveBack, Reservation, Returned, Seen};
use super::state::State;
use super::time::Now;
use crate::node::arena::SLAB_BYTES;
use crate::node::slab::{Class, Place, Slabs};

/// How many times memory is tried to be made for one reservation.
const ATTEMPTS: usize = 8;
/// The shortest time after which a client is told to come again.
const LEAST_RETRY: Duration = Duration::from_millis(1);

/// The same, where others have to be done first.
const RESERVED_RETRY: Duration = Duration::from_millis(50);

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shortage {
    /// Nothing was found that may go, but not everything was looked at.
    LookFurther,
    /// Nothing may go, or enough went and waits.
    Nothing,
}

impl Cache {
    /// Memory for `length` bytes of content; evicts for it what is needed. Nothing is taken before
    /// the length is checked.
    ///
    /// # Errors
    /// Too large, all memory is in use, or what was removed for it still waits, or others fill as
    /// much as may be filled at once.
    pub fn reserve(&self, length: usize, now: Now) -> Result<Reservation, ReserveError> {
        let too_large = ReserveError::TooLarge { length, limit: self.max_item_bytes };
        if length > self.max_item_bytes {
            return Err(too_large);
        }
        let class = Class::for_length(length).ok_or(too_large)?;
        let mut rounds = {
            let mut state = self.lock();
            let (reserved, limit) = (state.returns.reserved(), self.max_reserved);
            if reserved + class.slot_bytes() as u64 > limit {
                state.counts.reservations_refused += 1;
                let retry_after = RESERVED_RETRY;
                return Err(ReserveError::Reserved { length, reserved, limit, retry_after });
            }
            state.quarantine.ask(class);
            state.rounds()
        };
        loop {
            // Others get their turn between two searches.
            let found = self.lock().try_reserve(class, length, now);
            rounds = rounds.saturating_sub(1);
            match found {
                Ok(reservation) => return Ok(reservation),
                Err(Shortage::LookFurther) if rounds > 0 => (),
                // What leases held is given back here, where nobody waits for it.
                Err(_) if self.end_leases(now) > 0 => (),
                Err(_) => return Err(self.lock().no_memory(class, length)),
            }
        }
    }
}

impl State {
    /// Memory for `length` bytes, of a class that is large enough; for what is done under the lock,
    /// so the search is short.
    pub fn reserve(
        &mut self,
        class: Class,
        length: usize,
        now: Now,
    ) -> Result<Reservation, ReserveError> {
        for _ in 0..ATTEMPTS {
            match self.try_reserve(class, length, now) {
                Ok(reservation) => return Ok(reservation),
                Err(Shortage::LookFurther) => (),
                Err(Shortage::Nothing) => break,
            }
        }
        Err(self.no_memory(class, length))
    }

    /// After how many searches everything that could go was looked at.
    fn rounds(&self) -> usize {
        2 * self.table.entries() / LOOKS + self.slabs.count() / SLAB_LOOKS + ATTEMPTS
    }

    fn try_reserve(
        &mut self,
        class: Class,
        length: usize,
        now: Now,
    ) -> Result<Reservation, Shortage> {
        let place = self.allocate(class, now)?;
        let offset = self.arena.layout().content + Slabs::offset(place, class);
        let slot = self.arena.claim(offset, class.slot_bytes(), length).ok_or_else(|| {
            // The slot stays in use: somebody does use it.
            tracing::error!(offset, "a free slot is in use");
            Shortage::Nothing
        })?;
        let give_back = GiveBack::reserved(place, class.slot_bytes(), &self.returns);
        Ok(Reservation { block: Block { slot, give_back } })
    }

    fn no_memory(&mut self, class: Class, length: usize) -> ReserveError {
        if let Some(time) = self.quarantine.next() {
            self.counts.quarantine_refusals += 1;
            return ReserveError::Waiting { length, retry_after: time.max(LEAST_RETRY) };
        }
        self.counts.out_of_memory += 1;
        self.class_counts[class.number()].out_of_memory += 1;
        ReserveError::NoMemory {
            length,
            leased: self.holds.leased(),
            pinned: self.holds.pinned(),
            quarantined: self.quarantine.bytes(),
            capacity: self.capacity(),
        }
    }

    /// Bytes of all slabs.
    pub fn capacity(&self) -> u64 {
        (self.slabs.count() * SLAB_BYTES) as u64
    }

    fn allocate(&mut self, class: Class, now: Now) -> Result<Place, Shortage> {
        if let Some(place) = self.slabs.allocate(class) {
            return Ok(place);
        }
        for _ in 0..ATTEMPTS {
            self.settle();
            if let Some(place) = self.slabs.allocate(class) {
                return Ok(place);
            }
            if self.quarantine.is_on() && self.is_enough_waiting(class) {
                return Err(Shortage::Nothing);
            }
            match self.make_room(class, now) {
                Room::Made => (),
                Room::LookFurther => return Err(Shortage::LookFurther),
                Room::Nothing => return Err(Shortage::Nothing),
            }
        }
        self.settle();
        self.slabs.allocate(class).ok_or(Shortage::Nothing)
    }

    /// Whether so much was removed for `class` and waits that removing more would only empty the
    /// cache.
    fn is_enough_waiting(&self, class: Class) -> bool {
        let capacity = self.capacity();
        let part = capacity / 100 * RESERVE_PERCENT as u64;
        let least = part.max(2 * class.slot_bytes() as u64);
        let coming = (self.slabs.emptied() * SLAB_BYTES) as u64 + self.quarantine.bytes_of(class);
        coming >= self.quarantine.wanted(class, least, capacity)
            || self.quarantine.is_full(capacity)
    }

    /// Frees the places that came back, and those that waited long enough. Returns the bytes of the
    /// latter.
    pub fn settle(&mut self) -> u64 {
        let mut returned = std::mem::take(&mut self.scratch);
        self.returns.take(&mut returned);
        let is_on = self.quarantine.is_on();
        let waits = |returned: &&Returned| is_on && returned.seen != Seen::Nobody;
        let waiting = returned.iter().filter(waits);
        let slabs = &self.slabs;
        self.quarantine.enter(waiting.filter_map(|Returned { place, .. }| {
            Some((*place, slabs.class(place.slab)?, slabs.is_emptied(place.slab)))
        }));
        for returned in returned.iter().filter(|returned| !waits(returned)) {
            self.slabs.release(returned.place);
        }
        self.scratch = returned;
        let before = self.quarantine.bytes();
        for place in self.quarantine.leave() {
            self.slabs.release(place);
        }
        before - self.quarantine.bytes()
    }
}
