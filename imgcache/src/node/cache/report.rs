//! Snapshots for statistics and metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::counters::{ClassStats, Counters, Placement};
use super::state::State;
use super::time::Now;
use super::{Cache, OpenReport};
use crate::index::announce::Announcement;
use crate::index::reader::Exported;
use crate::node::arena::Arena;
use crate::node::arena::header::HEADER_BYTES;
use crate::node::slab::Class;

impl State {
    fn class_stats(&mut self, class: Class, now: Now) -> ClassStats {
        let counts = self.class_counts[class.number()];
        let queue = self.queues[class.number()];
        let oldest = queue.oldest().map(|id| self.table.record(id).stored);
        ClassStats {
            class: class.id(),
            slot_bytes: class.slot_bytes() as u64,
            slots_per_slab: class.slots() as u64,
            slabs: self.slabs.slabs_of(class) as u64,
            used_slots: self.slabs.used_of(class) as u64,
            free_slots: self.slabs.free_of(class) as u64,
            items: queue.len() as u64,
            content_bytes: counts.content_bytes,
            age: oldest.map_or(0, |stored| now.unix.saturating_sub(stored)),
            evicted: counts.evicted,
            evicted_unfetched: counts.evicted_unfetched,
            evicted_idle: counts.evicted_idle,
            reclaimed: counts.reclaimed,
            out_of_memory: counts.out_of_memory,
        }
    }
}

impl Cache {
    /// All counters. Memory that readers gave back counts as used until the next store that needs it,
    /// or the next maintenance.
    pub fn counters(&self) -> Counters {
        let state = self.lock();
        Counters {
            counts: state.counts,
            items: state.table.used() as u64,
            items_by_kind: state.items_by_kind,
            content_bytes: state.content_bytes,
            capacity: state.capacity(),
            used: state.slabs.used_bytes(),
            quarantined: state.quarantine.bytes(),
            reserved: state.returns.reserved(),
            parked: state.returns.parked(),
            leased: state.holds.leased(),
            pinned: state.holds.pinned(),
            leases: state.holds.lease_count() as u64,
            closing_leases: state.holds.closing() as u64,
            pins: state.holds.pin_count() as u64,
            table_used: state.table.used() as u64,
            table_entries: state.table.entries() as u64,
            free_slabs: state.slabs.free_slabs() as u64,
            slabs: state.slabs.count() as u64,
            overhead_bytes: state.overhead(),
            restored: self.report.restored,
            dropped_damaged: self.report.damaged,
            dropped_expired: self.report.expired,
            backing: self.report.backing,
            draining: self.is_draining.load(Ordering::Relaxed),
        }
    }

    /// The size classes that have slabs, or refused something, by size.
    pub fn class_stats(&self, now: Now) -> Vec<ClassStats> {
        let mut state = self.lock();
        let all = Class::all().map(|class| state.class_stats(class, now));
        all.filter(|stats| stats.slabs > 0 || stats.out_of_memory > 0).collect()
    }

    /// What clients that place items need to know.
    pub fn placement(&self) -> Placement {
        let state = self.lock();
        Placement {
            boot_id: self.arena.boot_id(),
            generation: state.generation,
            capacity: state.capacity(),
            used: state.slabs.used_bytes(),
            leased: state.holds.leased(),
            pinned: state.holds.pinned(),
            quarantined: state.quarantine.bytes(),
            draining: self.is_draining.load(Ordering::Relaxed),
        }
    }

    /// What opening gave.
    pub fn open_report(&self) -> &OpenReport {
        &self.report
    }

    /// The memory, to be registered with a device or handed to another process.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// What remote readers need to know.
    pub fn exported(&self) -> Exported {
        self.arena.exported()
    }

    /// The same, and what else they are told.
    pub fn announcement(&self) -> Announcement {
        let index = HEADER_BYTES as u64;
        let quarantine = self.lock().quarantine.time();
        Announcement { exported: self.arena.exported(), index, quarantine }
    }
}
