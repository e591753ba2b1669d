//! What goes when there is no room: single items of a class, or all of a slab of another one.

use super::key::Kind;
use super::state::State;
use super::table::FETCHED;
use super::time::Now;
use crate::node::arena::SLAB_BYTES;
use crate::node::sieve::{NONE, Nodes, Victim};
use crate::node::slab::Class;

/// How many records a search for one to evict looks at.
pub(super) const LOOKS: usize = 16_384;
/// How many slabs a search for one that can be taken whole looks at, where nothing else is left.
pub(super) const SLAB_LOOKS: usize = 64;
/// The same, where an item of the own class can go instead.
const FEW_SLAB_LOOKS: usize = 8;
/// How many slots of slabs such a search looks at.
const SLOT_LOOKS: usize = 65_536;
/// How many of a class's oldest items are looked at for different slabs.
const OLDEST_LOOKS: usize = 64;
/// The part of a class's slots that is kept free, in percent.
pub(super) const RESERVE_PERCENT: usize = 2;
/// A class's oldest item must have been idle for more than twice the time of another's, and this many
/// seconds, to lose a slab to it.
const YOUNGER_SECONDS: u32 = 60;

/// What looking for something that may go gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Something went.
    Made,
    /// Nothing was found; the next search goes on where this one ended.
    LookFurther,
    /// Nothing may go.
    Nothing,
}

impl Room {
    /// This, or what `next` does if nothing was found.
    fn or(self, next: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Made => Self::Made,
            Self::Nothing => next(),
            Self::LookFurther => match next() {
                Self::Nothing => Self::LookFurther,
                other => other,
            },
        }
    }
}

impl State {
    /// Evicts something whose memory `class` can have.
    pub fn make_room(&mut self, class: Class, now: Now) -> Room {
        let own = self.idle(class, now);
        let much_older = |idle: u32| {
            own.is_none_or(|own| idle > own.saturating_mul(2).saturating_add(YOUNGER_SECONDS))
        };
        let mut donors: Vec<(u32, Class)> = Class::all()
            .filter(|donor| *donor != class)
            .filter_map(|donor| Some((self.idle(donor, now)?, donor)))
            .collect();
        donors.sort_unstable_by_key(|(idle, _)| std::cmp::Reverse(*idle));
        let older = donors.iter().take_while(|(idle, _)| much_older(*idle));
        let mut room = Room::Nothing;
        for (_, donor) in older {
            room = room.or(|| self.take_slab(*donor, FEW_SLAB_LOOKS, now));
        }
        room = room.or(|| self.evict_of(class, now));
        for (_, donor) in &donors {
            room = room.or(|| self.take_slab(*donor, SLAB_LOOKS, now));
        }
        room
    }

    /// For how many seconds a class's oldest item was not accessed.
    fn idle(&self, class: Class, now: Now) -> Option<u32> {
        let oldest = self.queues[class.number()].oldest()?;
        Some(now.unix.saturating_sub(self.table.record(oldest).accessed))
    }

    /// Evicts one item of a class.
    fn evict_of(&mut self, class: Class, now: Now) -> Room {
        match self.queues[class.number()].victim(&mut self.table, LOOKS) {
            Victim::Found(id) => {
                self.evict(id, now.unix, false);
                Room::Made
            }
            Victim::LimitReached => Room::LookFurther,
            Victim::None => Room::Nothing,
        }
    }

    /// Evicts all items of a slab of `donor`: one of those with its oldest items if they can go, else
    /// the next one that can, of `looks` slabs from where the last search ended. A slab of which
    /// anything is in use, held, reserved or waiting is left alone.
    fn take_slab(&mut self, donor: Class, looks: usize, now: Now) -> Room {
        let (slab, room) = match self.oldest_whole_slab(donor) {
            Some(slab) => (Some(slab), Room::Made),
            None => self.next_whole_slab(donor, looks),
        };
        let Some(slab) = slab else { return room };
        if self.quarantine.is_on() {
            self.slabs.set_emptied(slab);
        }
        let owners: Vec<u32> = self.slabs.owners(slab).flatten().collect();
        for id in owners {
            self.evict(id, now.unix, false);
        }
        self.counts.slabs_moved += 1;
        Room::Made
    }

    /// How many slots were looked at until it was known whether all items of a slab may go, and
    /// whether they may.
    fn can_be_emptied(&self, slab: u32) -> (usize, bool) {
        let mut looked = 0;
        let all = self.slabs.owners(slab).all(|owner| {
            looked += 1;
            owner.is_some_and(|id| self.table.record(id).evictable())
        });
        (looked, all)
    }

    /// A slab that can be emptied, of those with the oldest items of a class.
    fn oldest_whole_slab(&mut self, class: Class) -> Option<u32> {
        let mut next = self.queues[class.number()].oldest();
        let mut refused = Vec::new();
        for _ in 0..OLDEST_LOOKS {
            let id = next?;
            let slab = self.table.record(id).content.as_ref()?.place().slab;
            if !refused.contains(&slab) {
                if self.can_be_emptied(slab).1 {
                    return Some(slab);
                }
                refused.push(slab);
                if refused.len() == FEW_SLAB_LOOKS {
                    return None;
                }
            }
            next = Some(self.table.links(id).newer).filter(|id| *id != NONE);
        }
        None
    }

    /// The next slab of a class that can be emptied, from behind the one that was looked at last.
    fn next_whole_slab(&mut self, class: Class, looks: usize) -> (Option<u32>, Room) {
        let mut cursor = self.slab_cursors[class.number()];
        let (mut slabs, mut slots, mut found) = (0, 0, None);
        for slab in self.slabs.slabs_after(class, cursor) {
            if slabs == looks || slots >= SLOT_LOOKS {
                break;
            }
            cursor = slab;
            let (looked, can) = self.can_be_emptied(slab);
            (slabs, slots) = (slabs + 1, slots + looked);
            if can {
                found = Some(slab);
                break;
            }
        }
        self.slab_cursors[class.number()] = cursor;
        let all = slabs == self.slabs.slabs_of(class);
        (found, if all { Room::Nothing } else { Room::LookFurther })
    }

    /// Evicts an item for memory, or for its entry.
    pub fn evict(&mut self, id: u32, unix: u32, for_entry: bool) {
        let record = self.table.record(id);
        let age = unix.saturating_sub(record.stored);
        let idle = unix.saturating_sub(record.accessed);
        let unfetched = u64::from(!record.has(FETCHED));
        let kind = Kind::from_flags(record.flags);
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

    /// Evicts ahead, so that no store has to wait for it: about 2 % of each class are kept free once
    /// all slabs belong to one, and with a quarantine what is stored while a place waits. Evicts `most` items at most, and returns how many it did.
    pub fn evict_ahead(&mut self, most: usize, now: Now) -> usize {
        self.settle();
        let spare = self.slabs.free_slabs() * SLAB_BYTES;
        if spare > 0 && !self.quarantine.is_on() {
            return 0;
        }
        let mut evicted = 0;
        for class in Class::all() {
            let slot = class.slot_bytes();
            let slots = self.slabs.slabs_of(class) * class.slots();
            // Rounded down: a class of few slots needs them all.
            let least = slots * RESERVE_PERCENT / 100;
            let bytes = self.quarantine.wanted(class, (least * slot) as u64, self.capacity());
            // No more than the half: the others are what the class is for.
            let wanted = usize::try_from(bytes).unwrap_or(usize::MAX) / slot;
            let wanted = wanted.min(slots / 2).max(least);
            let waiting = usize::try_from(self.quarantine.bytes_of(class)).unwrap_or(usize::MAX);
            let coming = self.slabs.free_of(class) + (waiting + spare) / slot;
            let mut missing = wanted.saturating_sub(coming);
            while missing > 0 && evicted < most && self.evict_of(class, now) == Room::Made {
                missing -= 1;
                evicted += 1;
            }
        }
        self.settle();
        evicted
    }
}
