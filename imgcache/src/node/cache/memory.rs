//! Where memory comes from: free slots, what has come back, evicted items, other classes' slabs.

use std::sync::Arc;

use super::error::ReserveError;
use super::item::{Block, GiveBack, Reservation, Returned};
use super::key::Kind;
use super::state::State;
use super::table::FETCHED;
use super::time::Now;
use crate::node::arena::SLAB_BYTES;
use crate::node::slab::{Class, Place, Slabs};

/// How many records a search for one to evict looks at.
const LOOKS: usize = 16_384;
/// How many items' slabs are looked at for one that can be taken whole.
const SLAB_LOOKS: usize = 8;
/// How many times memory is tried to be made for one reservation.
const ATTEMPTS: usize = 8;
/// The part of a class's slots that is kept free, in percent.
const RESERVE_PERCENT: usize = 2;
/// A class's oldest item must have been idle for more than twice the time of another's, and this many
/// seconds, to lose a slab to it.
const YOUNGER_SECONDS: u32 = 60;

impl State {
    /// Memory for `length` bytes, of a class that is large enough.
    pub fn reserve(
        &mut self,
        class: Class,
        length: usize,
        now: Now,
    ) -> Result<Reservation, ReserveError> {
        let place = self.allocate(class, now).ok_or_else(|| self.no_memory(class, length))?;
        let offset = self.arena.layout().content + Slabs::offset(place, class);
        let slot = self.arena.claim(offset, class.slot_bytes(), length).ok_or_else(|| {
            // The slot stays in use: somebody does use it.
            tracing::error!(offset, "a free slot is in use");
            self.no_memory(class, length)
        })?;
        let returned = Returned { place, published: false };
        let give_back = GiveBack { returned, returns: Arc::clone(&self.returns) };
        Ok(Reservation { block: Block { slot, give_back } })
    }

    fn no_memory(&mut self, class: Class, length: usize) -> ReserveError {
        self.counts.out_of_memory += 1;
        self.class_counts[class.number()].out_of_memory += 1;
        ReserveError::NoMemory {
            length,
            leased: self.holds.leased(),
            pinned: self.holds.pinned(),
            quarantined: self.waiting_bytes,
            capacity: self.capacity(),
        }
    }

    /// Bytes of all slabs.
    pub fn capacity(&self) -> u64 {
        (self.slabs.count() * SLAB_BYTES) as u64
    }

    fn allocate(&mut self, class: Class, now: Now) -> Option<Place> {
        if let Some(place) = self.slabs.allocate(class) {
            return Some(place);
        }
        self.counts.leases_expired += self.holds.expire(now.monotonic);
        for _ in 0..ATTEMPTS {
            self.settle(now);
            if let Some(place) = self.slabs.allocate(class) {
                return Some(place);
            }
            // While removed items wait, removing more would empty the cache for nothing.
            if !self.quarantine.is_zero() && self.waiting_bytes >= self.most_waiting(class) {
                return None;
            }
            if !self.make_room(class, now) {
                return None;
            }
        }
        self.settle(now);
        self.slabs.allocate(class)
    }

    /// How much is removed ahead when removed items wait before their memory is used again.
    fn most_waiting(&self, class: Class) -> u64 {
        let part = self.capacity() / 100 * RESERVE_PERCENT as u64;
        part.max(2 * class.slot_bytes() as u64)
    }

    /// Evicts something whose memory `class` can have. Returns whether anything was.
    fn make_room(&mut self, class: Class, now: Now) -> bool {
        let own = self.idle(class, now);
        let much_older = |idle: u32| {
            own.is_none_or(|own| idle > own.saturating_mul(2).saturating_add(YOUNGER_SECONDS))
        };
        let mut donors: Vec<(u32, Class)> = Class::all()
            .filter(|donor| *donor != class)
            .filter_map(|donor| Some((self.idle(donor, now)?, donor)))
            .collect();
        donors.sort_unstable_by_key(|(idle, _)| std::cmp::Reverse(*idle));
        donors
            .iter()
            .take_while(|(idle, _)| much_older(*idle))
            .any(|(_, donor)| self.take_slab(*donor, now))
            || self.evict_of(class, now)
            || donors.iter().any(|(_, donor)| self.take_slab(*donor, now))
    }

    /// For how many seconds a class's oldest item was not accessed.
    fn idle(&self, class: Class, now: Now) -> Option<u32> {
        let oldest = self.queues[class.number()].oldest()?;
        Some(now.unix.saturating_sub(self.table.record(oldest).accessed))
    }

    /// Evicts one item of a class.
    fn evict_of(&mut self, class: Class, now: Now) -> bool {
        let victim = self.queues[class.number()].victim(&mut self.table, LOOKS);
        if let Some(id) = victim {
            self.evict(id, now.unix, false);
        }
        victim.is_some()
    }

    /// Evicts all items of a slab of `donor`, one of those with its oldest items. A slab of which
    /// anything is in use, held, reserved or waiting is left alone.
    fn take_slab(&mut self, donor: Class, now: Now) -> bool {
        let mut next = self.queues[donor.number()].oldest();
        let mut found = None;
        for _ in 0..SLAB_LOOKS {
            let Some(id) = next else { break };
            let slab = self.table.record(id).content.as_ref().map(|content| content.place().slab);
            found = slab.filter(|slab| {
                self.slabs
                    .owners(*slab)
                    .all(|owner| owner.is_some_and(|id| self.table.record(id).evictable()))
            });
            if found.is_some() {
                break;
            }
            next = self.newer(id);
        }
        let Some(slab) = found else { return false };
        let owners: Vec<u32> = self.slabs.owners(slab).flatten().collect();
        for id in owners {
            self.evict(id, now.unix, false);
        }
        self.counts.slabs_moved += 1;
        true
    }

    fn newer(&mut self, id: u32) -> Option<u32> {
        use crate::node::sieve::{NONE, Nodes};
        Some(self.table.links(id).newer).filter(|id| *id != NONE)
    }

    /// Evicts an item for memory, or for its entry.
    pub fn evict(&mut self, id: u32, unix: u32, for_entry: bool) {
        let record = self.table.record(id);
        let age = unix.saturating_sub(record.stored);
        let idle = unix.saturating_sub(record.accessed);
        let unfetched = u64::from(!record.has(FETCHED));
        let kind = Kind::of_flags(record.flags);
        let class = self.class(id);
        let counts = &mut self.counts;
        let evictions = if for_entry { &mut counts.table_evictions } else { &mut counts.evictions };
        *evictions += 1;
        counts.evicted_unfetched += unfetched;
        *counts.evicted.get_mut(kind) += 1;
        counts.evicted_age_seconds += u64::from(age);
        counts.last_eviction_age = age;
        if let Some(class) = class {
            let counts = &mut self.class_counts[class.number()];
            counts.evicted += 1;
            counts.evicted_unfetched += unfetched;
            counts.evicted_idle = idle;
        }
        self.remove(id);
    }

    /// Frees the places that came back, and those that waited long enough. Returns the bytes of the
    /// latter.
    pub fn settle(&mut self, now: Now) -> u64 {
        let mut returned = std::mem::take(&mut self.scratch);
        self.returns.take(&mut returned);
        for Returned { place, published } in returned.drain(..) {
            if published && !self.quarantine.is_zero() {
                // From when it is found, which is after it came back: the wait is not too short.
                self.waiting.push_back((now.monotonic.saturating_add(self.quarantine), place));
                self.waiting_bytes += self.bytes_of(place);
            } else {
                self.slabs.release(place);
            }
        }
        self.scratch = returned;
        let mut released = 0;
        while let Some((until, place)) = self.waiting.front().copied()
            && until <= now.monotonic
        {
            self.waiting.pop_front();
            released += self.bytes_of(place);
            self.slabs.release(place);
        }
        self.waiting_bytes -= released;
        released
    }

    fn bytes_of(&self, place: Place) -> u64 {
        self.slabs.class(place.slab).map_or(0, |class| class.slot_bytes() as u64)
    }

    /// Evicts ahead, so that no store has to wait for it: about 2 % of each class are kept free once
    /// all slabs belong to one. Evicts `most` items at most, and returns how many it did.
    pub fn evict_ahead(&mut self, most: usize, now: Now) -> usize {
        self.settle(now);
        if self.slabs.free_slabs() > 0 {
            return 0;
        }
        let mut evicted = 0;
        for class in Class::all() {
            let slots = self.slabs.slabs_of(class) * class.slots();
            // Rounded down: a class of few slots needs them all.
            let wanted = slots * RESERVE_PERCENT / 100;
            let waiting = usize::try_from(self.waiting_bytes).unwrap_or(usize::MAX);
            let mut missing = wanted
                .saturating_sub(self.slabs.free_of(class))
                .saturating_sub(waiting / class.slot_bytes());
            while missing > 0 && evicted < most && self.evict_of(class, now) {
                missing -= 1;
                evicted += 1;
            }
        }
        self.settle(now);
        evicted
    }
}
